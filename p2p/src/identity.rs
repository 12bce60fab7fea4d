//! Who this node is: one Ed25519 key in one file.
//!
//! The file holds the key in libp2p's protobuf form (68 bytes, the public half beside the secret one, so damage shows).

use std::{
    fmt, fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use libp2p::{
    PeerId,
    identity::{Keypair, PublicKey, ed25519},
};
use zeroize::Zeroizing;

use crate::error::IdentityError;

/// Larger than any key file; what is longer is not read further.
const MAX_KEY_FILE_BYTES: u64 = 1024;
/// Before the public key in every Ed25519 peer id: an identity multihash (code 0, 36 bytes) of the key's
/// protobuf form (field 1: key type 1, field 2: 32 bytes).
const PEER_ID_HEADER: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// An Ed25519 key, and the [`PeerId`] that follows from it.
///
/// ```
/// let identity = p2p::Identity::from_seed([7; 32]);
/// let public = p2p::ed25519_of(&identity.peer_id()).expect("an Ed25519 peer");
/// assert_eq!(p2p::peer_id_from_ed25519(public), identity.peer_id());
/// ```
#[derive(Clone)]
pub struct Identity {
    keypair: ed25519::Keypair,
}

impl Identity {
    /// Reads the key file, or makes a new key and writes it there when there is none.
    ///
    /// # Errors
    ///
    /// A key file that others may use, in a folder that others may write to, or with damaged
    /// content is refused; nothing is changed then.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let path = path.as_ref();
        match Self::load(path) {
            Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        match Self::write_new(path) {
            // Another process was faster: its key is the one.
            Err(IdentityError::Exists { .. }) => Self::load(path),
            other => other,
        }
    }

    /// Reads the key file.
    ///
    /// # Errors
    ///
    /// As [`Identity::load_or_create`]; also when there is no file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let path = path.as_ref();
        let read = |source| IdentityError::Read { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(read)?;
        let meta = file.metadata().map_err(read)?;
        if !meta.is_file() {
            return Err(damaged(path, "it is not a regular file"));
        }
        let mode = meta.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::FileMode { path: path.to_owned(), mode });
        }
        check_folder(path)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(128));
        file.take(MAX_KEY_FILE_BYTES).read_to_end(&mut bytes).map_err(read)?;
        let keypair = Keypair::from_protobuf_encoding(&bytes)
            .map_err(|error| damaged(path, &error.to_string()))?
            .try_into_ed25519()
            .map_err(|_| damaged(path, "it holds a key that is not Ed25519"))?;
        Ok(Self { keypair })
    }

    /// Makes a new key and writes it; a file that is there stays as it is.
    ///
    /// Missing folders are made with mode 0700, the file has mode 0600, and appears whole or not at all.
    ///
    /// # Errors
    ///
    /// When there is a file already, or it cannot be written.
    pub fn write_new(path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let path = path.as_ref();
        let write = |source| IdentityError::Write { path: path.to_owned(), source };
        let folder = folder_of(path);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(write)?;
        check_folder(path)?;
        let keypair = ed25519::Keypair::generate();
        let encoded = Zeroizing::new(
            Keypair::from(keypair.clone())
                .to_protobuf_encoding()
                .map_err(|error| write(io::Error::other(error)))?,
        );
        match create_whole(path, &encoded) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(IdentityError::Exists { path: path.to_owned() });
            }
            Err(error) => return Err(write(error)),
        }
        fs::File::open(&folder).and_then(|folder| folder.sync_all()).map_err(write)?;
        Ok(Self { keypair })
    }

    /// The identity that follows from a seed: for tests and local swarms.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        let mut bytes = Zeroizing::new(*seed);
        let secret =
            ed25519::SecretKey::try_from_bytes(&mut bytes[..]).expect("32 bytes are an Ed25519 secret key");
        Self { keypair: secret.into() }
    }

    /// The name that peers know this identity by.
    pub fn peer_id(&self) -> PeerId {
        PublicKey::from(self.keypair.public()).to_peer_id()
    }

    /// The public key.
    pub fn public_bytes(&self) -> [u8; 32] {
        self.keypair.public().to_bytes()
    }

    /// The secret seed, wiped when dropped. It must not reach logs or other processes.
    pub fn secret_bytes(&self) -> Zeroizing<[u8; 32]> {
        let secret = self.keypair.secret();
        let mut seed = Zeroizing::new([0; 32]);
        seed.copy_from_slice(secret.as_ref());
        seed
    }

    pub(crate) fn keypair(&self) -> Keypair {
        self.keypair.clone().into()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer_id())
    }
}

/// The peer id of an Ed25519 public key.
///
/// The bytes are not checked to be a key: a peer that nobody can be has an id too.
pub fn peer_id_from_ed25519(public: [u8; 32]) -> PeerId {
    let mut bytes = PEER_ID_HEADER.to_vec();
    bytes.extend_from_slice(&public);
    PeerId::from_bytes(&bytes).expect("an identity multihash of 36 bytes is a peer id")
}

/// The Ed25519 public key inside a peer id; `None` for peers with other kinds of keys.
pub fn ed25519_of(peer: &PeerId) -> Option<[u8; 32]> {
    peer.to_bytes().strip_prefix(&PEER_ID_HEADER)?.try_into().ok()
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Who may write to the folder may put another key in the file's place.
fn check_folder(path: &Path) -> Result<(), IdentityError> {
    let folder = folder_of(path);
    let meta =
        fs::metadata(&folder).map_err(|source| IdentityError::Read { path: folder.clone(), source })?;
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(IdentityError::FolderMode { path: folder, mode });
    }
    Ok(())
}

/// Writes beside the target, then links: the target appears whole, and never replaces anything.
fn create_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.tmp", u64::from_le_bytes(random)));
    let draft = folder_of(path).join(name);
    let done = create_exclusive(&draft, bytes).and_then(|()| match fs::hard_link(&draft, path) {
        // Not every file system has hard links.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => create_exclusive(path, bytes),
        other => other,
    });
    match fs::remove_file(&draft) {
        Err(error) if done.is_ok() && error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => done,
    }
}

fn create_exclusive(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn damaged(path: &Path, reason: &str) -> IdentityError {
    IdentityError::Damaged { path: path.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/key");
        let made = Identity::load_or_create(&path).unwrap();
        let read = Identity::load_or_create(&path).unwrap();
        assert_eq!(made.peer_id(), read.peer_id());
        assert_eq!(*made.secret_bytes(), *read.secret_bytes());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let parent = path.parent().unwrap();
        assert_eq!(fs::metadata(parent).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(parent).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_new_key_never_replaces_one_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let first = Identity::write_new(&path).unwrap();
        assert!(matches!(Identity::write_new(&path), Err(IdentityError::Exists { .. })));
        assert_eq!(Identity::load(&path).unwrap().peer_id(), first.peer_id());
    }

    #[test]
    fn a_key_that_others_may_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        Identity::write_new(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            chmod(&path, mode);
            let error = Identity::load_or_create(&path).unwrap_err();
            assert!(matches!(error, IdentityError::FileMode { .. }), "{error}");
            assert!(error.to_string().contains("chmod 600"));
        }
        chmod(&path, 0o600);
        chmod(folder.path(), 0o770);
        let error = Identity::load_or_create(&path).unwrap_err();
        assert!(matches!(error, IdentityError::FolderMode { .. }), "{error}");
    }

    #[test]
    fn damaged_keys_are_refused_and_left_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        Identity::write_new(&path).unwrap();
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[20] ^= 1;
        for bad in [&good[..0], &good[..40], &flipped[..], &[0xff; 68][..], &[1; 5000][..]] {
            fs::write(&path, bad).unwrap();
            let error = Identity::load_or_create(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
            assert_eq!(fs::read(&path).unwrap(), bad);
        }
    }

    #[test]
    fn a_seed_always_gives_the_same_peer_and_debug_shows_no_secret() {
        let identity = Identity::from_seed([1; 32]);
        assert_eq!(identity.peer_id(), Identity::from_seed([1; 32]).peer_id());
        assert_eq!(*identity.secret_bytes(), [1; 32]);
        assert_eq!(ed25519_of(&identity.peer_id()), Some(identity.public_bytes()));
        assert_eq!(peer_id_from_ed25519(identity.public_bytes()), identity.peer_id());
        assert_eq!(format!("{identity:?}"), format!("Identity({})", identity.peer_id()));
    }
}
