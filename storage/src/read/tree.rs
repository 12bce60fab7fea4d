//! Everything below a CID, as files, directories and links.

use bytes::Bytes;
use cid::Cid;

use super::dir::Listing;
use super::pieces::Pieces;
use super::{EntryKind, Limits, ReadError, stat_block};
use crate::block::{BlockError, RAW};
use crate::unixfs::{UnixfsError, is_entry_name};

/// How a walk gets at blocks: it runs on a thread that may wait.
pub(crate) type Get<'a> = dyn Fn(&Cid) -> Result<Bytes, BlockError> + 'a;

/// The longest target of a symbolic link: PATH_MAX without its end, as systems have it.
const MAX_TARGET: usize = 4095;

/// Something below the root.
pub(crate) struct Visit<'a> {
    /// Where: names with `/` between them, each of which is a plain name; empty for the root itself.
    pub(crate) path: &'a str,
    /// What.
    pub(crate) entry: Entry,
    get: &'a Get<'a>,
    limits: Limits,
}

/// What something below the root is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Comes before everything in it.
    Directory,
    /// Where the link leads.
    Symlink(String),
    /// A file.
    File(Cid),
}

impl Visit<'_> {
    /// Hands over the bytes of a file, piece by piece.
    pub(crate) fn copy_to<E: From<ReadError>>(
        &self,
        take: &mut impl FnMut(&Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let Entry::File(cid) = &self.entry else { return Ok(()) };
        let mut pieces = Pieces::new(*cid, 0, u64::MAX, self.limits);
        while let Some(want) = pieces.want() {
            let block = (self.get)(&want).map_err(ReadError::from)?;
            take(&pieces.give(&block)?)?;
        }
        Ok(())
    }
}

/// Visits everything below `root`, directories before what is in them.
///
/// Every name is checked, so that a path never leads out of where the root is put.
pub(crate) fn walk<E: From<ReadError>>(
    root: Cid,
    get: &Get<'_>,
    limits: &Limits,
    visit: &mut impl FnMut(Visit<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let too_much = |what, limit| ReadError::Limit { root, what, limit };
    let mut waiting = vec![(root, String::new(), 0_u32)];
    let (mut entries, mut bytes) = (1_u64, 0_u64);
    while let Some((cid, path, depth)) = waiting.pop() {
        let mut show = |entry| visit(Visit { path: &path, entry, get, limits: *limits });
        // A leaf needs not be had to know that it is a file.
        if cid.codec() == RAW {
            show(Entry::File(cid))?;
            continue;
        }
        let stat = stat_block(cid, &get(&cid).map_err(ReadError::from)?)?;
        bytes = bytes.saturating_add(stat.size);
        if bytes > limits.max_bytes {
            return Err(too_much("bytes", limits.max_bytes).into());
        }
        match stat.kind {
            EntryKind::File => show(Entry::File(cid))?,
            EntryKind::Symlink => {
                let target = stat.target.unwrap_or_default();
                if target.is_empty() || target.len() > MAX_TARGET || target.contains('\0') {
                    return Err(ReadError::invalid(cid, "a link that no system can hold").into());
                }
                show(Entry::Symlink(target))?;
            }
            EntryKind::Directory => {
                show(Entry::Directory)?;
                if depth >= limits.max_depth {
                    return Err(too_much("levels", u64::from(limits.max_depth)).into());
                }
                let mut listing = Listing::new(cid, limits.max_entries.saturating_sub(entries));
                while let Some(want) = listing.want() {
                    listing.give(&get(&want).map_err(ReadError::from)?)?;
                }
                let links = listing.finish();
                if let Some([twice, _]) = links.array_windows().find(|[left, right]| left.name == right.name)
                {
                    let source = UnixfsError::DuplicateName(twice.name.clone());
                    return Err(ReadError::node(cid, source).into());
                }
                entries = entries.saturating_add(links.len() as u64);
                for link in links.into_iter().rev() {
                    if !is_entry_name(&link.name) {
                        return Err(ReadError::node(cid, UnixfsError::Name(link.name)).into());
                    }
                    let path = if path.is_empty() { link.name } else { format!("{path}/{}", link.name) };
                    waiting.push((link.cid, path, depth + 1));
                }
            }
        }
    }
    Ok(())
}
