//! The few lines of protobuf that the exchange needs: varints, fields, and nothing that allocates
//! on a peer's word.

use bytes::{Buf, BufMut, Bytes};

/// The longest varint: ten groups of seven bits hold 64.
const VARINT_BYTES: usize = 10;

/// Why bytes are no protobuf of the kind that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the bytes end inside a field")]
    Truncated,
    #[error("a number is longer than 64 bits")]
    Overlong,
    #[error("a field has an unknown wire type")]
    WireType,
}

/// One field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Number(u64),
    Bytes(Bytes),
    /// Fixed-width numbers: no message of ours has one, they are stepped over.
    Fixed,
}

/// Takes the next field off `input`; `None` at its end.
pub(crate) fn next_field(input: &mut Bytes) -> Result<Option<(u64, Value)>, WireError> {
    if input.is_empty() {
        return Ok(None);
    }
    let key = take_varint(input)?;
    let value = match key & 7 {
        0 => Value::Number(take_varint(input)?),
        1 => skip(input, 8)?,
        2 => {
            let length = take_varint(input)?;
            let length = usize::try_from(length).map_err(|_| WireError::Truncated)?;
            if length > input.len() {
                return Err(WireError::Truncated);
            }
            Value::Bytes(input.split_to(length))
        }
        5 => skip(input, 4)?,
        _ => return Err(WireError::WireType),
    };
    Ok(Some((key >> 3, value)))
}

fn skip(input: &mut Bytes, count: usize) -> Result<Value, WireError> {
    if input.len() < count {
        return Err(WireError::Truncated);
    }
    input.advance(count);
    Ok(Value::Fixed)
}

/// Takes one varint off the front.
pub(crate) fn take_varint(input: &mut Bytes) -> Result<u64, WireError> {
    let (value, used) = read_varint(input)?.ok_or(WireError::Truncated)?;
    input.advance(used);
    Ok(value)
}

/// Reads a varint at the front of `input`: the number and how many bytes it takes, `None` while
/// more bytes are needed.
pub(crate) fn read_varint(input: &[u8]) -> Result<Option<(u64, usize)>, WireError> {
    let mut value = 0u64;
    for (index, byte) in input.iter().take(VARINT_BYTES).enumerate() {
        let group = u64::from(byte & 0x7f);
        let shifted = group << (7 * index);
        if shifted >> (7 * index) != group {
            return Err(WireError::Overlong);
        }
        value |= shifted;
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if input.len() >= VARINT_BYTES { Err(WireError::Overlong) } else { Ok(None) }
}

/// How many bytes `value` takes as a varint.
pub(crate) fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// How many bytes a length-delimited field with a one-byte key takes.
pub(crate) fn bytes_field_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}

/// Appends `value` as a varint.
pub(crate) fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Appends a number field, unless it is zero: proto3 leaves defaults out.
pub(crate) fn put_number(out: &mut impl BufMut, field: u8, value: u64) {
    if value != 0 {
        out.put_u8(field << 3);
        put_varint(out, value);
    }
}

/// Appends the key and length of a length-delimited field; its bytes follow.
pub(crate) fn put_bytes_head(out: &mut impl BufMut, field: u8, length: usize) {
    out.put_u8(field << 3 | 2);
    put_varint(out, length as u64);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_varint_reads_back_and_has_the_length_foretold(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(read_varint(&out), Ok(Some((value, out.len()))));
            prop_assert_eq!(read_varint(&out[..out.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_refused() {
        assert_eq!(read_varint(&[0xff; 10]), Err(WireError::Overlong));
        assert_eq!(
            read_varint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]),
            Err(WireError::Overlong)
        );
    }
}
