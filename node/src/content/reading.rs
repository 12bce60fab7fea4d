//! Content as it is read: from this disk, from what is on its way there, or from the peers that have it.

use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use futures::{Stream, StreamExt};
use job::PeerId;
use job::spec::ContentPath;
use storage::block::Blocks;
use storage::exchange::{FetchRequest, Fetched, Peer};
use storage::fetch::{FetchLimits, Progress};
use storage::read::{self, ReadError};
use tokio::sync::watch;

use super::faults::{fault, here, unreadable, unusable};
use super::{Checkout, Content, FetchFault, Listed, NAMES_ON_DISK, ON_ITS_WAY, Stat, parked};

impl Content {
    /// Brings content of at most `max_bytes` here, if it is not, as a path to mount.
    ///
    /// Dropping the future gives up the fetch; what came stays.
    pub async fn checkout(
        &self,
        what: &ContentPath,
        hints: &[PeerId],
        give_up_after: Duration,
        max_bytes: u64,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<Checkout, FetchFault> {
        let (cid, bytes) = match self.here_as_one_block(what)? {
            Some(bytes) if bytes <= max_bytes => (what.cid, bytes),
            _ => {
                let fetched = self.fetch(what, hints, give_up_after, max_bytes, progress).await?;
                self.refuse_link(what, &fetched.root).await?;
                (fetched.root, fetched.progress.bytes)
            }
        };
        let on_disk = max_bytes.saturating_add(NAMES_ON_DISK);
        let held = self.store.checkout_within(&cid, on_disk).await.map_err(|error| unusable(&error))?;
        Ok(Checkout { cid, path: held.path().to_owned(), bytes, _checkout: held })
    }

    /// The size of what is one block that is here, as most modules are: nobody need be asked for anything.
    fn here_as_one_block(&self, what: &ContentPath) -> Result<Option<u64>, FetchFault> {
        if !what.path.is_empty() {
            return Ok(None);
        }
        self.store.raw_root(&what.cid).map_err(|error| here(&error))
    }

    /// Brings content here, if it is not; answers with what the path led to.
    async fn fetch(
        &self,
        what: &ContentPath,
        hints: &[PeerId],
        give_up_after: Duration,
        max_bytes: u64,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<Fetched, FetchFault> {
        self.parked.until_moved(&what.cid).await;
        let most = FetchLimits::default();
        let request = FetchRequest::new(what.cid)
            .path(&what.path)
            .hints(self.hints(hints))
            .limits(FetchLimits { max_bytes: max_bytes.min(most.max_bytes), ..most })
            .give_up_after(give_up_after);
        let request = match progress {
            Some(progress) => request.progress(progress),
            None => request,
        };
        self.exchange.fetch(request).await.map_err(fault)
    }

    /// A symbolic link is the name of something else, and has no bytes of its own.
    async fn refuse_link(&self, what: &ContentPath, cid: &Cid) -> Result<(), FetchFault> {
        let stat = read::stat(&self.store, *cid).await;
        match stat.ok().and_then(|stat| stat.target) {
            None => Ok(()),
            Some(target) => Err(FetchFault::Malformed(format!(
                "{what} is a symbolic link to {target:?}: name what it leads to instead"
            ))),
        }
    }

    /// One block, from here or from peers.
    pub async fn fetch_block(
        &self,
        cid: Cid,
        hints: &[PeerId],
        within: Duration,
    ) -> Result<Bytes, FetchFault> {
        let hints: Vec<Peer> = self.hints(hints).collect();
        match tokio::time::timeout(within, self.exchange.get_block(&cid, hints)).await {
            Ok(found) => found.map_err(|error| FetchFault::NotFound(error.to_string())),
            Err(_) => Err(FetchFault::NotFound(format!("no peer offers {cid}"))),
        }
    }

    /// The bytes of a file, brought here first.
    pub async fn cat(
        &self,
        what: &ContentPath,
        within: Duration,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>, FetchFault> {
        let cid = self.fetch(what, &[], within, u64::MAX, None).await?.root;
        self.refuse_link(what, &cid).await?;
        let guard = self.store.guard(&cid).await.map_err(|error| here(&error))?;
        let bytes = read::cat(&self.store, cid, .., read::Limits::default());
        Ok(bytes.map(move |piece| {
            let _held = &guard;
            piece.map_err(std::io::Error::other)
        }))
    }

    /// A file in a result, from `skip` on, read from here or through peers. `comes`: it may be on its way here.
    pub async fn read(
        &self,
        root: &Cid,
        file: &str,
        skip: u64,
        comes: bool,
        hints: &[PeerId],
    ) -> Result<impl Stream<Item = Result<Bytes, ReadError>> + Send + Unpin + use<>, FetchFault> {
        if let Some(results) = self.parked.find(root) {
            let results = parked::Reader(results);
            let cid = read::resolve(&results, *root, file).await.map_err(|error| unreadable(&error))?;
            return Ok(read::cat(&results, cid, skip.., read::Limits::default()).boxed());
        }
        if self.store.has(root).unwrap_or(false) || (comes && self.arrives(root).await) {
            let cid = read::resolve(&self.store, *root, file).await.map_err(|error| unreadable(&error))?;
            return Ok(read::cat(&self.store, cid, skip.., read::Limits::default()).boxed());
        }
        let blocks = self.exchange.reader(self.hints(hints));
        let cid = read::resolve(&blocks, *root, file).await.map_err(|error| unreadable(&error))?;
        Ok(read::cat(&blocks, cid, skip.., read::Limits::default()).boxed())
    }

    /// Whether a result is here, or comes within a moment: the result of a failure is copied after its job
    /// has ended, and asking peers for what is on its way here would only take longer.
    async fn arrives(&self, root: &Cid) -> bool {
        let mut held = self.held.subscribe();
        let here = async {
            while !(self.store.has(root).unwrap_or(false) || self.parked.find(root).is_some()) {
                if held.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(ON_ITS_WAY, here).await.unwrap_or(false)
    }

    /// The beginning of a file in a result and its length, if it is on this node.
    pub async fn excerpt(&self, root: &Cid, file: &str, most: usize) -> Option<(Bytes, u64)> {
        if let Some(results) = self.parked.find(root) {
            return excerpt(&parked::Reader(results), *root, file, most).await;
        }
        let (store, root, file) = (self.store.clone(), *root, file.to_owned());
        // A few small reads: one hop to a thread that may wait is enough for all of them.
        let read = move || futures::executor::block_on(excerpt(store.blocking(), root, &file, most));
        tokio::task::spawn_blocking(read).await.ok()?
    }

    /// What something is.
    pub async fn stat(&self, what: &ContentPath, within: Duration) -> Result<Stat, FetchFault> {
        let blocks = self.exchange.reader([]);
        let found = async {
            self.parked.until_moved(&what.cid).await;
            let cid = read::resolve(&blocks, what.cid, &what.path).await?;
            read::stat(&blocks, cid).await
        };
        let stat = self.within(what, within, found).await?;
        Ok(Stat {
            cid: stat.cid,
            kind: stat.kind.into(),
            size: stat.size,
            cumulative: stat.total_bytes,
            local: self.store.has(&stat.cid).map_err(|error| here(&error))?,
            target: stat.target,
        })
    }

    /// The entries of a directory.
    pub async fn list(&self, what: &ContentPath, within: Duration) -> Result<Vec<Listed>, FetchFault> {
        let blocks = self.exchange.reader([]);
        let found = async {
            self.parked.until_moved(&what.cid).await;
            let cid = read::resolve(&blocks, what.cid, &what.path).await?;
            read::ls(&blocks, cid).await
        };
        let entries = self.within(what, within, found).await?;
        let listed = |entry: read::Entry| Listed {
            name: entry.name,
            cid: entry.cid,
            size: entry.size,
            kind: entry.kind.into(),
        };
        Ok(entries.into_iter().map(listed).collect())
    }

    async fn within<T>(
        &self,
        what: &ContentPath,
        within: Duration,
        found: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, FetchFault> {
        match tokio::time::timeout(within, found).await {
            Ok(found) => found.map_err(|error| unreadable(&error)),
            Err(_) => {
                let seconds = within.as_secs();
                Err(FetchFault::NotFound(format!("no peer offers {what}: nothing came within {seconds} s")))
            }
        }
    }

    /// How large some content is, if its root is here.
    pub async fn local_size(&self, cid: &Cid) -> Option<u64> {
        if !self.store.has(cid).ok()? {
            return None;
        }
        Some(read::stat(&self.store, *cid).await.ok()?.total_bytes)
    }
}

async fn excerpt<B: Blocks + Clone + 'static>(
    blocks: &B,
    root: Cid,
    file: &str,
    most: usize,
) -> Option<(Bytes, u64)> {
    let cid = read::resolve(blocks, root, file).await.ok()?;
    let length = read::stat(blocks, cid).await.ok()?.size;
    let mut bytes = read::cat(blocks, cid, ..most as u64, read::Limits::default());
    let mut found = Vec::new();
    while let Some(piece) = bytes.next().await {
        found.extend_from_slice(&piece.ok()?);
    }
    Some((found.into(), length))
}
