//! The store as the place that an exchange fills and serves from.

use std::sync::Arc;

use async_trait::async_trait;
use cid::Cid;

use super::Contents;
use crate::fetch::{FetchError, FetchLimits, Sink};
use crate::store::{Store, StoreError};

#[async_trait]
impl Contents for Store {
    async fn sink(&self, root: Cid, limits: FetchLimits) -> Result<Arc<dyn Sink>, FetchError> {
        match self.fetch(&root, limits).await {
            Ok(session) => Ok(Arc::new(session)),
            Err(StoreError::Block(error)) => Err(FetchError::Block(error)),
            Err(error) => Err(FetchError::Store(root, Box::new(error))),
        }
    }
}
