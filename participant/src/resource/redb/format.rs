//! What lies in the file: the tables, and the byte form of their rows. Integers are big-endian.
//!
//! | table | key | value |
//! |---|---|---|
//! | `synod:identity` | a name | `format`, `resource`, `lineage`, `low_water` |
//! | `synod:prepared` | branch id (32 bytes) | [`PreparedRow`] |
//! | `synod:marker` | branch id | [`Marker`]: the proof of what happened to the branch (traps F5) |
//! | `synod:outbox*`, `synod:inbox*` | see `messages` | messages on their way |
//! | any other name | the user's | the user's |
//!
//! Branch ids sort by gtid, and gtids by their begin, so that everything below a low-water mark is one range.

use std::sync::Arc;

use ::redb::TableDefinition;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use synod_proto::ids::{BranchId, CallId, ExecutionId, Gtid, Lineage, UnixMillis};

use super::super::BranchContext;
use super::locks::LockKey;

pub(super) type ByteTable = TableDefinition<'static, &'static [u8], &'static [u8]>;

pub(super) const IDENTITY: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("synod:identity");
pub(super) const PREPARED: ByteTable = TableDefinition::new("synod:prepared");
pub(super) const MARKER: ByteTable = TableDefinition::new("synod:marker");

/// Table names under this prefix are Synod's own.
pub(super) const RESERVED_PREFIX: &str = "synod:";

/// The version of this layout. A file of a newer one is refused (traps J9).
pub(super) const FORMAT: u32 = 1;

pub(super) const NAME_FORMAT: &str = "format";
pub(super) const NAME_RESOURCE: &str = "resource";
pub(super) const NAME_LINEAGE: &str = "lineage";
pub(super) const NAME_LOW_WATER: &str = "low_water";

const BRANCH_BYTES: usize = 32;
const ROW_VERSION: u8 = 1;

/// What a branch does to one key when it commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    /// Nothing; but the branch read it under a lock and relies on it until its outcome (traps C16).
    Lock,
    /// Store this value.
    Put(Bytes),
    /// Remove the row.
    Delete,
}

/// A prepared branch: its context and its redo list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PreparedRow {
    pub(super) context: BranchContext,
    pub(super) prepared_at: UnixMillis,
    pub(super) intents: Vec<(LockKey, Intent)>,
}

/// What became of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Committed { at: UnixMillis },
    Aborted { at: UnixMillis },
}

/// A row that this program did not write.
#[derive(Debug, thiserror::Error)]
#[error("the row of `{table}` is damaged or of a newer version: {what}")]
pub(crate) struct DamagedRow {
    table: &'static str,
    what: &'static str,
}

impl DamagedRow {
    pub(super) fn new(table: &'static str, what: &'static str) -> Self {
        Self { table, what }
    }
}

pub(super) fn branch_key(branch: &BranchId) -> [u8; BRANCH_BYTES] {
    let mut key = [0; BRANCH_BYTES];
    key[..16].copy_from_slice(&branch.gtid.to_bytes());
    key[16..24].copy_from_slice(&branch.call.0.to_be_bytes());
    key[24..].copy_from_slice(&branch.execution.0.to_be_bytes());
    key
}

/// Every branch of a transaction that began before `mark` has a key below this one.
pub(super) fn mark_key(mark: UnixMillis) -> [u8; 6] {
    let mut key = [0; 6];
    key.copy_from_slice(&mark.0.min(0xffff_ffff_ffff).to_be_bytes()[2..]);
    key
}

pub(super) fn parse_branch_key(table: &'static str, key: &[u8]) -> Result<BranchId, DamagedRow> {
    let damaged = DamagedRow {
        table,
        what: "its key is not a branch id",
    };
    if key.len() != BRANCH_BYTES {
        return Err(damaged);
    }
    let mut reader = key;
    let mut gtid = [0; 16];
    reader.copy_to_slice(&mut gtid);
    let Ok(gtid) = Gtid::from_bytes(gtid) else {
        return Err(damaged);
    };
    Ok(BranchId {
        gtid,
        call: CallId(reader.get_u64()),
        execution: ExecutionId(reader.get_u64()),
    })
}

impl PreparedRow {
    /// The row's bytes, and the digest of them that goes into the vote.
    pub(super) fn encode(&self) -> (Bytes, u64) {
        let mut out = BytesMut::with_capacity(256);
        out.put_u8(ROW_VERSION);
        out.put_slice(&self.context.lineage.0);
        out.put_u64(self.context.deadline.0);
        out.put_u64(self.prepared_at.0);
        out.put_u32(length(self.intents.len()));
        for (key, intent) in &self.intents {
            let (tag, value): (u8, &[u8]) = match intent {
                Intent::Lock => (0, &[]),
                Intent::Put(value) => (1, value),
                Intent::Delete => (2, &[]),
            };
            out.put_u8(tag);
            for part in [key.table.as_bytes(), &key.key[..], value] {
                out.put_u32(length(part.len()));
                out.put_slice(part);
            }
        }
        let digest = fnv1a_64(&out);
        out.put_u64(digest);
        (out.freeze(), digest)
    }

    pub(super) fn decode(branch: BranchId, bytes: &[u8]) -> Result<Self, DamagedRow> {
        let damaged = |what| DamagedRow {
            table: "synod:prepared",
            what,
        };
        let Some((body, mut digest)) = bytes.split_at_checked(bytes.len().wrapping_sub(8)) else {
            return Err(damaged("it ends early"));
        };
        // redb's checksums are verified when a file is repaired, not at each read; a redo list is worth its
        // own.
        if digest.get_u64() != fnv1a_64(body) {
            return Err(damaged("its digest does not match"));
        }
        let mut reader = Bytes::copy_from_slice(body);
        let early = |_| damaged("it ends early");
        if reader.try_get_u8().map_err(early)? != ROW_VERSION {
            return Err(damaged("its version is unknown"));
        }
        let mut lineage = [0; 16];
        reader.try_copy_to_slice(&mut lineage).map_err(early)?;
        let deadline = UnixMillis(reader.try_get_u64().map_err(early)?);
        let prepared_at = UnixMillis(reader.try_get_u64().map_err(early)?);
        let count = reader.try_get_u32().map_err(early)?;
        let mut intents = Vec::new();
        for _ in 0..count {
            let tag = reader.try_get_u8().map_err(early)?;
            let table = take(&mut reader).ok_or_else(|| damaged("it ends early"))?;
            let key = take(&mut reader).ok_or_else(|| damaged("it ends early"))?;
            let value = take(&mut reader).ok_or_else(|| damaged("it ends early"))?;
            let table: Arc<str> = std::str::from_utf8(&table)
                .map_err(|_| damaged("a table's name"))?
                .into();
            let intent = match tag {
                0 => Intent::Lock,
                1 => Intent::Put(value),
                2 => Intent::Delete,
                _ => return Err(damaged("an unknown intent")),
            };
            intents.push((LockKey { table, key }, intent));
        }
        if reader.has_remaining() {
            return Err(damaged("it goes on after its end"));
        }
        Ok(Self {
            context: BranchContext {
                branch,
                lineage: Lineage(lineage),
                deadline,
            },
            prepared_at,
            intents,
        })
    }
}

impl Marker {
    pub(super) fn encode(self) -> [u8; 9] {
        let (tag, at) = match self {
            Self::Committed { at } => (1, at),
            Self::Aborted { at } => (2, at),
        };
        let mut out = [tag; 9];
        out[1..].copy_from_slice(&at.0.to_be_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DamagedRow> {
        let mut reader = bytes;
        match (bytes.len(), reader.try_get_u8()) {
            (9, Ok(1)) => Ok(Self::Committed {
                at: UnixMillis(reader.get_u64()),
            }),
            (9, Ok(2)) => Ok(Self::Aborted {
                at: UnixMillis(reader.get_u64()),
            }),
            _ => Err(DamagedRow {
                table: "synod:marker",
                what: "it is not a marker",
            }),
        }
    }
}

pub(super) fn array<const N: usize>(name: &'static str, bytes: &[u8]) -> Result<[u8; N], DamagedRow> {
    bytes.try_into().map_err(|_| DamagedRow {
        table: "synod:identity",
        what: name,
    })
}

fn length(length: usize) -> u32 {
    u32::try_from(length).expect("a branch is limited far below 4 GiB")
}

fn take(reader: &mut Bytes) -> Option<Bytes> {
    let count = usize::try_from(reader.try_get_u32().ok()?).ok()?;
    (count <= reader.len()).then(|| reader.split_to(count))
}

/// FNV-1a, 64 bits (draft-eastlake-fnv): enough to tell damage and to compare two votes; not against an
/// attacker.
fn fnv1a_64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn branch() -> BranchId {
        BranchId {
            gtid: Gtid::new(UnixMillis(7), [9; 10]),
            call: CallId(1),
            execution: ExecutionId(u64::MAX),
        }
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn row() -> impl Strategy<Value = PreparedRow> {
        let intent = prop_oneof![
            Just(Intent::Lock),
            Just(Intent::Delete),
            bytes().prop_map(Intent::Put)
        ];
        let entry = ("[a-z:é]{0,12}", bytes(), intent).prop_map(|(table, key, intent)| {
            (
                LockKey {
                    table: table.as_str().into(),
                    key,
                },
                intent,
            )
        });
        (
            any::<[u8; 16]>(),
            any::<u64>(),
            any::<u64>(),
            proptest::collection::vec(entry, 0..8),
        )
            .prop_map(|(lineage, deadline, at, intents)| PreparedRow {
                context: BranchContext {
                    branch: branch(),
                    lineage: Lineage(lineage),
                    deadline: UnixMillis(deadline),
                },
                prepared_at: UnixMillis(at),
                intents,
            })
    }

    proptest! {
        /// T12: the row alone tells everything that it takes to resolve the branch.
        #[test]
        fn a_prepared_row_reads_back_as_it_was_written(row in row()) {
            prop_assert_eq!(PreparedRow::decode(branch(), &row.encode().0).unwrap(), row);
        }

        #[test]
        fn no_damaged_or_cut_row_is_taken_for_a_redo_list(
            row in row(), at in any::<prop::sample::Index>(), bit in 0..8u8,
        ) {
            let (bytes, _) = row.encode();
            let at = at.index(bytes.len());
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1 << bit;
            prop_assert!(PreparedRow::decode(branch(), &damaged).is_err());
            prop_assert!(PreparedRow::decode(branch(), &bytes[..at]).is_err());
        }

        #[test]
        fn branch_keys_sort_by_begin_and_read_back(
            a in any::<u32>(), b in any::<u32>(), call in any::<u64>(), execution in any::<u64>(),
        ) {
            let id = |millis: u32| BranchId {
                gtid: Gtid::new(UnixMillis(millis.into()), [0xff; 10]),
                call: CallId(call),
                execution: ExecutionId(execution),
            };
            prop_assert_eq!(parse_branch_key("t", &branch_key(&id(a))).unwrap(), id(a));
            prop_assert_eq!(branch_key(&id(a))[..] < mark_key(UnixMillis(b.into()))[..], a < b);
        }
    }

    #[test]
    fn markers_read_back_and_nothing_else_is_a_marker() {
        for marker in [
            Marker::Committed { at: UnixMillis(3) },
            Marker::Aborted {
                at: UnixMillis(u64::MAX),
            },
        ] {
            assert_eq!(Marker::decode(&marker.encode()).unwrap(), marker);
        }
        for bytes in [&[][..], &[1; 8], &[3; 9], &[1; 10]] {
            assert!(Marker::decode(bytes).is_err());
        }
    }
}
