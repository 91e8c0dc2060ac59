//! The value of one slot: a stamp, a watermark and the commands that were waiting when it was formed.
//!
//! ```text
//! version u8 = 1 | stamp u64 | mark u64 | count u32 | count x (length u32 | command)
//! ```
//! The commands are the bytes that their proposers encoded, copied and never re-encoded. An empty value is a no-op:
//! it is what fills a slot of which nobody knows anything, and moves neither stamp nor mark.

use alloc::vec::Vec;
use bytes::{BufMut, Bytes, BytesMut};
use core::fmt;
use synod_proto::command::{Command, CommandError};
use synod_proto::ids::UnixMillis;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 8 + 8 + 4;

/// One decoded entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The proposer's stamp (T14): rises from entry to entry.
    pub stamp: UnixMillis,
    /// The watermark (T9): what lies below is finished or expired.
    pub mark: UnixMillis,
    /// The commands, in order.
    pub commands: Vec<Command>,
}

/// A decided value that is not an entry. The replica must not go on (A8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryError {
    /// Too short or too long.
    Length,
    /// Another version of the format.
    Version(u8),
    /// A command in it is not one.
    Command(CommandError),
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("the entry's bytes end early or go on too long"),
            Self::Version(version) => {
                write!(f, "entry format {version} is unknown to this program: upgrade it")
            }
            Self::Command(error) => write!(
                f,
                "a command in the entry: {error}; if a newer program wrote it, upgrade"
            ),
        }
    }
}

impl core::error::Error for EntryError {}

/// The value that changes nothing.
#[must_use]
pub fn noop() -> Bytes {
    Bytes::new()
}

/// Encodes an entry of encoded commands.
#[must_use]
pub fn encode(stamp: UnixMillis, mark: UnixMillis, commands: &[Bytes]) -> Bytes {
    let body: usize = commands.iter().map(|command| 4 + command.len()).sum();
    let mut out = BytesMut::with_capacity(HEADER_BYTES + body);
    out.put_u8(VERSION);
    out.put_u64(stamp.0);
    out.put_u64(mark.0);
    out.put_u32(u32::try_from(commands.len()).expect("an entry holds far fewer than 2^32 commands"));
    for command in commands {
        out.put_u32(u32::try_from(command.len()).expect("commands are limited to 64 KiB"));
        out.put_slice(command);
    }
    out.freeze()
}

/// What stands before an entry's commands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) stamp: UnixMillis,
    pub(crate) mark: UnixMillis,
}

/// Decodes a value; `None` is the no-op.
///
/// # Errors
/// The bytes are not an entry that this program understands.
pub fn decode(value: &Bytes) -> Result<Option<Entry>, EntryError> {
    let mut commands = Vec::new();
    let header = decode_into(value, &mut commands)?;
    Ok(header.map(|Header { stamp, mark }| Entry {
        stamp,
        mark,
        commands,
    }))
}

/// The same, with the commands into a vector of the caller's, which is empty, and stays so after an error.
pub(crate) fn decode_into(value: &Bytes, commands: &mut Vec<Command>) -> Result<Option<Header>, EntryError> {
    let decoded = decode_all(value, commands);
    if decoded.is_err() {
        commands.clear();
    }
    decoded
}

fn decode_all(value: &Bytes, commands: &mut Vec<Command>) -> Result<Option<Header>, EntryError> {
    if value.is_empty() {
        return Ok(None);
    }
    if value[0] != VERSION {
        return Err(EntryError::Version(value[0]));
    }
    let stamp = UnixMillis(read_u64(value, 1)?);
    let mark = UnixMillis(read_u64(value, 9)?);
    let count = read_u32(value, 17)? as usize;
    let mut at = HEADER_BYTES;
    commands.reserve(count.min(value.len() / 5));
    for _ in 0..count {
        let length = read_u32(value, at)? as usize;
        at += 4;
        let end = at
            .checked_add(length)
            .filter(|end| *end <= value.len())
            .ok_or(EntryError::Length)?;
        commands.push(Command::decode_part(value, at..end).map_err(EntryError::Command)?);
        at = end;
    }
    if at == value.len() {
        Ok(Some(Header { stamp, mark }))
    } else {
        Err(EntryError::Length)
    }
}

fn read_u64(value: &Bytes, at: usize) -> Result<u64, EntryError> {
    let bytes = value.get(at..at + 8).ok_or(EntryError::Length)?;
    Ok(u64::from_be_bytes(
        bytes.try_into().map_err(|_| EntryError::Length)?,
    ))
}

fn read_u32(value: &Bytes, at: usize) -> Result<u32, EntryError> {
    let bytes = value.get(at..at + 4).ok_or(EntryError::Length)?;
    Ok(u32::from_be_bytes(
        bytes.try_into().map_err(|_| EntryError::Length)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::{EntryError, decode, encode, noop};
    use alloc::vec;
    use bytes::Bytes;
    use synod_proto::command::Command;
    use synod_proto::ids::{Lineage, UnixMillis};

    #[test]
    fn an_entry_reads_back_as_written() {
        let commands = vec![Command::Noop, Command::Establish(Lineage([7; 16]))];
        let encoded = commands.iter().map(Command::encode).collect::<vec::Vec<_>>();
        let value = encode(UnixMillis(9), UnixMillis(3), &encoded);
        let entry = decode(&value).expect("decodes").expect("is no no-op");
        assert_eq!(
            (entry.stamp, entry.mark, entry.commands),
            (UnixMillis(9), UnixMillis(3), commands)
        );
    }

    #[test]
    fn a_noop_is_empty_and_every_cut_of_an_entry_is_refused() {
        assert_eq!(decode(&noop()), Ok(None));
        let value = encode(UnixMillis(9), UnixMillis(3), &[Command::Noop.encode()]);
        for cut in 1..value.len() {
            assert_eq!(
                decode(&value.slice(..cut)),
                Err(EntryError::Length),
                "cut at {cut}"
            );
        }
        assert_eq!(decode(&Bytes::from_static(&[2])), Err(EntryError::Version(2)));
    }
}
