//! Reads and writes of guests, a piece at a time.
//!
//! wasmtime copies what a guest reads or writes through memory of the host, which no limit of the guest counts, in
//! one call as much as the guest asks for. Here each call moves one piece at most and says so, as reads and writes
//! always may; whoever has more calls again.

use wasmtime::{Caller, Extern, Linker};
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self as wasi, WasiSnapshotPreview1 as _};
use wiggle::GuestMemory;

use super::check::WASI;
use super::guest::GuestState;

/// What one call moves at most: large enough that a call's own cost is nothing beside it.
const PIECE_BYTES: u32 = 1 << 20;

/// Buffers that one call looks at; systems commonly take no more.
const BUFFERS: i32 = 1024;

/// A buffer's address and length.
const BUFFER_BYTES: usize = 8;

/// What wasmtime may copy for one of these calls: the piece, and the list of buffers as it holds it.
const FUEL: usize = PIECE_BYTES as usize + BUFFERS as usize * 64;

/// What wasmtime may copy for any other call: names, lists of what to wait for, random bytes.
pub(super) const FUEL_OTHERWISE: usize = 8 << 20;

/// Replaces the functions that move bytes.
pub(super) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    type Now = (i32, i32, i32, i32);
    type At = (i32, i32, i32, i64, i32);
    // Each is the same around another function; a closure that is generic over them cannot be written.
    macro_rules! moving {
        ($name:ident, $parameters:ty, ($($offset:ident)?)) => {
            linker.func_wrap_async(
                WASI,
                stringify!($name),
                |mut caller: Caller<'_, GuestState>, (fd, list, count, $($offset,)? moved): $parameters| {
                    Box::new(async move {
                        let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
                            wasmtime::bail!("the module exports no memory");
                        };
                        let (bytes, state) = memory.data_and_store_mut(&mut caller);
                        let count = count.clamp(0, BUFFERS);
                        let cut = Cut::make(bytes, list, count);
                        state.wasi.set_hostcall_fuel(FUEL);
                        let mut guest = GuestMemory::Unshared(&mut *bytes);
                        let result =
                            wasi::$name(&mut state.wasi, &mut guest, fd, list, count, $($offset,)? moved).await;
                        if let Some(cut) = cut {
                            cut.mend(bytes);
                        }
                        result
                    })
                },
            )?;
        };
    }
    moving!(fd_read, Now, ());
    moving!(fd_write, Now, ());
    moving!(fd_pread, At, (offset));
    moving!(fd_pwrite, At, (offset));
    Ok(())
}

/// A buffer that was made shorter for the time of one call.
struct Cut {
    /// Where its length lies.
    at: usize,
    length: u32,
}

impl Cut {
    /// Shortens the one buffer that a call uses, the first that is not empty, if it is too long. What does not lie
    /// in the guest's memory is left for the call to refuse.
    fn make(bytes: &mut [u8], list: i32, count: i32) -> Option<Self> {
        let list = list.cast_unsigned() as usize;
        let lengths = (0..count.cast_unsigned() as usize).map(|index| list + index * BUFFER_BYTES + 4);
        for at in lengths {
            let place = bytes.get_mut(at..at + 4)?;
            let length = u32::from_le_bytes(place.try_into().ok()?);
            if length > PIECE_BYTES {
                place.copy_from_slice(&PIECE_BYTES.to_le_bytes());
                return Some(Cut { at, length });
            }
            if length > 0 {
                return None;
            }
        }
        None
    }

    fn mend(self, bytes: &mut [u8]) {
        if let Some(place) = bytes.get_mut(self.at..self.at + 4) {
            place.copy_from_slice(&self.length.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(lengths: &[u32]) -> Vec<u8> {
        let buffer = |&length: &u32| [7_u32.to_le_bytes(), length.to_le_bytes()].concat();
        lengths.iter().flat_map(buffer).collect()
    }

    #[test]
    fn only_the_buffer_that_is_used_is_cut_and_then_mended() {
        let before = memory(&[0, 0, PIECE_BYTES + 5, PIECE_BYTES + 6]);
        let mut bytes = before.clone();
        let cut = Cut::make(&mut bytes, 0, 4).unwrap();
        assert_eq!(bytes, memory(&[0, 0, PIECE_BYTES, PIECE_BYTES + 6]));
        cut.mend(&mut bytes);
        assert_eq!(bytes, before);
        for lengths in [&[][..], &[0, 0], &[1, u32::MAX], &[PIECE_BYTES]] {
            let mut bytes = memory(lengths);
            assert!(Cut::make(&mut bytes, 0, lengths.len() as i32).is_none());
            assert_eq!(bytes, memory(lengths));
        }
    }

    #[test]
    fn lists_outside_the_memory_are_left_alone() {
        let mut bytes = memory(&[0, u32::MAX]);
        assert!(Cut::make(&mut bytes, 16, 1).is_none());
        assert!(Cut::make(&mut bytes, -1, BUFFERS).is_none());
        assert!(Cut::make(&mut bytes, 10, 1).is_none());
        assert_eq!(bytes, memory(&[0, u32::MAX]));
    }
}
