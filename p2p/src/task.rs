use crate::{
    Config, Events, HostError,
    event::Sink,
    shared::{Command, Ended, Shared},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};
pub(crate) const MAX_PROVIDERS: usize = 256;
pub(crate) const MAX_SEARCH: Duration = Duration::from_secs(60);
pub(crate) async fn spawn(
    _config: Config,
    _shared: Arc<Shared>,
    _weak: mpsc::WeakSender<Command>,
    _commands: mpsc::Receiver<Command>,
) -> Result<(Events, watch::Receiver<Ended>), HostError> {
    let (_sink, events) = Sink::new();
    let (_, ended) = watch::channel(None);
    Ok((events, ended))
}
