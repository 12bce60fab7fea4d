//! What goes wrong below, as the rest of the node is told.

use storage::block::BlockError;
use storage::exchange::ExchangeError;
use storage::read::ReadError;
use storage::store::StoreError;

use super::FetchFault;

pub(super) fn here(error: &StoreError) -> FetchFault {
    FetchFault::Here(crate::api::error::chain(error))
}

/// Why content that is here cannot be mounted: its own fault, or the store's.
pub(super) fn unusable(error: &StoreError) -> FetchFault {
    let text = crate::api::error::chain(error);
    match error {
        StoreError::Read(ReadError::Limit { .. }) => FetchFault::TooLarge(text),
        StoreError::Read(ReadError::Block(error)) if !is_bad_name(error) => FetchFault::Here(text),
        StoreError::Read(_) => FetchFault::Malformed(text),
        StoreError::Block(error) if is_bad_name(error) => FetchFault::Malformed(text),
        _ => FetchFault::Here(text),
    }
}

/// Whether no node could check a block of this name.
pub(super) fn is_bad_name(error: &BlockError) -> bool {
    matches!(error, BlockError::UnsupportedHash(..) | BlockError::DigestLength(..))
}

pub(super) fn unreadable(error: &ReadError) -> FetchFault {
    let text = crate::api::error::chain(error);
    match error {
        ReadError::NoEntry { .. } => FetchFault::NoEntry(text),
        ReadError::Block(_) => FetchFault::NotFound(text),
        _ => FetchFault::Malformed(text),
    }
}

pub(super) fn fault(error: ExchangeError) -> FetchFault {
    use storage::fetch::FetchError;
    let text = crate::api::error::chain(&error);
    match &error {
        ExchangeError::Path { source, .. } => match unreadable(source) {
            FetchFault::NoEntry(_) => FetchFault::NoEntry(text),
            FetchFault::Malformed(_) => FetchFault::Malformed(text),
            _ => FetchFault::NotFound(text),
        },
        ExchangeError::NoPeer { .. } | ExchangeError::Deadline { .. } => FetchFault::NotFound(text),
        ExchangeError::Content { source, .. } => match source.as_ref() {
            FetchError::Limit { .. } => FetchFault::TooLarge(text),
            FetchError::Malformed { .. } => FetchFault::Malformed(text),
            FetchError::Block(error) if is_bad_name(error) => FetchFault::Malformed(text),
            _ => FetchFault::Here(text),
        },
        _ => FetchFault::Here(text),
    }
}
