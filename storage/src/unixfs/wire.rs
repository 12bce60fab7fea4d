//! The part of the protobuf encoding that nodes use.

use std::ops::Range;

use super::UnixfsError;

/// One field's value; byte ranges refer to the message that is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    Varint(u64),
    Bytes(Range<usize>),
    Fixed,
}

/// Reads a message field by field.
pub(super) struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Reader { message, at: 0 }
    }

    /// The next field's number and value, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value)>, UnixfsError> {
        if self.at == self.message.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.skip(8)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.skip(4)?,
            _ => return Err(UnixfsError::Encoding("unknown wire type")),
        };
        Ok(Some((tag >> 3, value)))
    }

    pub(super) fn varint(&mut self) -> Result<u64, UnixfsError> {
        let mut value = 0_u64;
        for shift in (0..).step_by(7) {
            let byte = *self.message.get(self.at).ok_or(UnixfsError::Encoding("ends inside a number"))?;
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            if shift > 63 || (shift == 63 && bits > 1) {
                return Err(UnixfsError::Encoding("a number has more than 64 bits"));
            }
            value |= bits << shift;
            if byte < 0x80 {
                break;
            }
        }
        Ok(value)
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.message.len()
    }

    fn skip(&mut self, length: u64) -> Result<Value, UnixfsError> {
        self.take(length).map(|_| Value::Fixed)
    }

    fn take(&mut self, length: u64) -> Result<Range<usize>, UnixfsError> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let end = end.filter(|end| *end <= self.message.len());
        let end = end.ok_or(UnixfsError::Encoding("a field is longer than its message"))?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that [`put_varint`] writes.
pub(super) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Writes a number under a field number below 16.
pub(super) fn put_number(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    put_varint(out, value);
}

/// Writes bytes under a field number below 16.
pub(super) fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    put_length(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

/// Writes what stands before bytes.
pub(super) fn put_length(out: &mut Vec<u8>, field: u8, length: usize) {
    out.push(field << 3 | 2);
    put_varint(out, length as u64);
}

/// Bytes that [`put_bytes`] writes.
pub(super) fn bytes_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}
