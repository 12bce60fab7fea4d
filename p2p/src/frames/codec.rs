//! A frame on the wire: its length as four big-endian bytes, then its bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The largest frame. Larger things are content, and go over their own streams.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Bytes of the length.
const HEADER: usize = 4;
/// Frames below this are copied out of the read buffer: kept for long, they would hold all of it.
const COPY_BELOW: usize = 4096;

/// The peer announced a frame above [`MAX_FRAME_BYTES`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Oversized(pub(crate) usize);

/// Appends the header of a frame.
pub(crate) fn put_header(size: usize, into: &mut BytesMut) {
    debug_assert!(size <= MAX_FRAME_BYTES);
    into.put_u32(size as u32);
}

/// Takes the next whole frame off the front of what was read.
pub(crate) fn take_frame(read: &mut BytesMut) -> Result<Option<Bytes>, Oversized> {
    let Some(header) = read.first_chunk::<HEADER>() else { return Ok(None) };
    let size = u32::from_be_bytes(*header) as usize;
    if size > MAX_FRAME_BYTES {
        return Err(Oversized(size));
    }
    if read.len() < HEADER + size {
        return Ok(None);
    }
    read.advance(HEADER);
    let frame = read.split_to(size);
    Ok(Some(if size < COPY_BELOW { Bytes::copy_from_slice(&frame) } else { frame.freeze() }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_come_out_as_they_went_in_however_the_bytes_are_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6000), 0..8),
            cut in 1..5000usize,
        ) {
            let mut wire = BytesMut::new();
            for frame in &frames {
                put_header(frame.len(), &mut wire);
                wire.extend_from_slice(frame);
            }
            let (mut read, mut found) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                read.extend_from_slice(piece);
                while let Some(frame) = take_frame(&mut read).unwrap() {
                    found.push(frame.to_vec());
                }
            }
            prop_assert_eq!(found, frames);
            prop_assert!(read.is_empty());
        }

        #[test]
        fn any_bytes_are_frames_or_waiting_or_oversized_and_never_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut read = BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = take_frame(&mut read) {
                prop_assert!(frame.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_by_its_header_alone() {
        let mut read = BytesMut::from(&[0x00, 0x10, 0x00, 0x01][..]);
        assert_eq!(take_frame(&mut read), Err(Oversized(MAX_FRAME_BYTES + 1)));
    }
}
