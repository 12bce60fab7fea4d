//! The node's key: `DATA_DIR/key`, made on first use.

use std::path::{Path, PathBuf};

use job::PeerId;
use p2p::{Identity, IdentityError};

/// Where the key of a data directory is.
pub fn key_file(data_dir: &Path) -> PathBuf {
    data_dir.join("key")
}

/// The peer id of a data directory and its key file; makes the key when there is none and `create` is set.
pub fn peer_id(data_dir: &Path, create: bool) -> Result<(PeerId, PathBuf), IdentityError> {
    let path = key_file(data_dir);
    let identity = if create { Identity::load_or_create(&path)? } else { Identity::load(&path)? };
    Ok((PeerId(identity.public_bytes()), path))
}
