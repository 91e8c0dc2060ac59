//! The metadata that travels with business calls (step 2 of a transaction): the context on the request, the
//! votes on the reply. This is the one place where such metadata is read or refused.
//!
//! | key | on | content |
//! |---|---|---|
//! | `synod-context-bin` | request | version, lineage, gtid, call, deadline |
//! | `synod-votes-bin` | reply, also an error | version, execution, the subtree's votes, its failed calls, its unnamed branches, its open branches |
//! | `synod-call-bin` | reply, added by the caller's own bound channel | the call's id |
//!
//! Integers are big-endian. A version that is not known is refused, never guessed at; so is everything that
//! goes on after its end.

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use synod_participant_core::arrival::CallContext;
use synod_participant_core::transaction::{BranchVote, Doom, OpenCalls, Reply};
use synod_proto::command::NamedBranch;
use synod_proto::ids::{CallId, ExecutionId, Gtid, InstanceId, Lineage, OpenToken, ResourceId, UnixMillis};
use synod_proto::limits::{BRANCH_COUNT_MAX, DATABASE_TRANSACTION_BYTES_MAX};
use synod_proto::session::{AbortCause, AbortKind, OpenBranch, Vote};
use tonic::metadata::{BinaryMetadataValue, MetadataMap};

const CONTEXT_KEY: HeaderName = HeaderName::from_static("synod-context-bin");
const VOTES_KEY: HeaderName = HeaderName::from_static("synod-votes-bin");
/// Where the bound channel leaves a call's id, for `discard`.
pub(crate) const CALL_KEY: &str = "synod-call-bin";

const VERSION: u8 = 1;

/// The version of votes that tell of open branches. All others are written as before, so that services may be upgraded
/// one after the other; one that does not know open branches refuses them, instead of committing without them.
const VERSION_OPEN: u8 = 2;

/// The most votes to abort, and the most failed calls, that one reply hands up: one is enough to doom the
/// transaction.
const DOOM_COUNT_MAX: usize = 4;

/// The longest text in a reply, in bytes: votes to abort and failed calls carry one each.
const REPLY_TEXT_BYTES_MAX: usize = 120;

/// The longest vote metadata before base64. HTTP/2 stacks accept 16 KiB of headers by default; base64 makes
/// this 10.7 KiB, and leaves a third for the user's own.
const VOTES_BYTES_MAX: usize = 8 << 10;

const _: () = assert!(
    BRANCH_COUNT_MAX * (8 + 8 + 16 + 1 + 8 + 1 + DATABASE_TRANSACTION_BYTES_MAX)
        + 2 * DOOM_COUNT_MAX * (8 + 1 + 1 + 8 + 8 + 16 + 1 + REPLY_TEXT_BYTES_MAX)
        + 16
        < VOTES_BYTES_MAX,
    "the votes of the widest transaction must fit"
);

/// Metadata that is not what its key says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed metadata `{key}`: {reason}")]
pub(crate) struct Malformed {
    key: &'static str,
    reason: &'static str,
}

pub(crate) fn write_context(context: &CallContext, headers: &mut HeaderMap) {
    let mut out = Vec::with_capacity(1 + 16 + 16 + 8 + 8);
    out.put_u8(VERSION);
    out.put_slice(&context.lineage.0);
    out.put_slice(&context.gtid.to_bytes());
    out.put_u64(context.call.0);
    out.put_u64(context.deadline.0);
    headers.insert(CONTEXT_KEY, binary(&out));
}

/// `None` where the call carries no context.
pub(crate) fn read_context(headers: &HeaderMap) -> Result<Option<CallContext>, Malformed> {
    let Some(mut reader) = Reader::open(headers, &CONTEXT_KEY, "synod-context-bin")? else {
        return Ok(None);
    };
    let context = CallContext {
        lineage: Lineage(reader.id()?),
        gtid: reader.gtid()?,
        call: CallId(reader.u64()?),
        deadline: UnixMillis(reader.u64()?),
    };
    reader.finish()?;
    Ok(Some(context))
}
/// Too many votes or failed calls for one reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{branch_count} branches under one call; at most {BRANCH_COUNT_MAX} may commit together")]
pub(crate) struct TooManyVotes {
    branch_count: usize,
}

const VOTE_COMMIT: u8 = 1;
const VOTE_READ_ONLY: u8 = 2;
const VOTE_ABORT: u8 = 3;
const DOOM_FAILED: u8 = 1;
const DOOM_VOTED_ABORT: u8 = 2;

/// Only these two kinds can doom a transaction on its way up.
fn doom_kind_tag(kind: AbortKind) -> u8 {
    if kind == AbortKind::VotedAbort {
        DOOM_VOTED_ABORT
    } else {
        DOOM_FAILED
    }
}

/// Puts a subtree's votes on a reply, successful or not.
pub(crate) fn write_votes(reply: &Reply, headers: &mut HeaderMap) -> Result<(), TooManyVotes> {
    let too_many = TooManyVotes {
        branch_count: reply.votes.len() + reply.open.len(),
    };
    let mut abort_count = 0;
    let is_told = |vote: &&BranchVote| {
        abort_count += usize::from(matches!(vote.vote, Vote::Abort { .. }));
        !matches!(vote.vote, Vote::Abort { .. }) || abort_count <= DOOM_COUNT_MAX
    };
    let votes: Vec<&BranchVote> = reply.votes.iter().filter(is_told).collect();
    if votes.len() + reply.open.len() > BRANCH_COUNT_MAX {
        return Err(too_many);
    }
    let mut out = Vec::with_capacity(64);
    out.put_u8(if reply.open.is_empty() {
        VERSION
    } else {
        VERSION_OPEN
    });
    out.put_u64(reply.execution.0);
    put_count(&mut out, votes.len());
    for vote in &votes {
        out.put_u64(vote.call.0);
        out.put_u64(vote.execution.0);
        out.put_slice(&vote.resource.0);
        match &vote.vote {
            Vote::Commit => {
                out.put_u8(VOTE_COMMIT);
                out.put_u64(vote.digest);
                put_count(&mut out, vote.database_transaction.len());
                out.put_slice(&vote.database_transaction);
            }
            Vote::ReadOnly => out.put_u8(VOTE_READ_ONLY),
            Vote::Abort { cause } => {
                out.put_u8(VOTE_ABORT);
                put_text(&mut out, cause);
            }
        }
    }
    let dooms = &reply.dooms[..reply.dooms.len().min(DOOM_COUNT_MAX)];
    put_count(&mut out, dooms.len());
    for doom in dooms {
        out.put_u64(doom.call.0);
        out.put_u8(doom_kind_tag(doom.cause.kind));
        let (call, execution) = doom.cause.branch.unwrap_or_default();
        out.put_u8(u8::from(doom.cause.branch.is_some()));
        out.put_u64(call.0);
        out.put_u64(execution.0);
        put_text(&mut out, &doom.cause.text);
    }
    // Only so that an abort can tell them at once: what does not fit is told by its own inquiry.
    let unnamed = &reply.unnamed[..reply
        .unnamed
        .len()
        .min(BRANCH_COUNT_MAX - votes.len() - reply.open.len())];
    put_count(&mut out, unnamed.len());
    for branch in unnamed {
        out.put_u64(branch.call.0);
        out.put_u64(branch.execution.0);
        out.put_slice(&branch.resource.0);
        out.put_u64(branch.digest);
        put_count(&mut out, branch.database_transaction.len());
        out.put_slice(&branch.database_transaction);
    }
    if !reply.open.is_empty() {
        put_count(&mut out, reply.open.len());
    }
    for calls in &reply.open {
        let OpenBranch {
            call,
            execution,
            resource,
            instance,
            token,
            call_count,
        } = calls.branch;
        out.put_u64(call.0);
        out.put_u64(execution.0);
        out.put_slice(&resource.0);
        out.put_slice(&instance.0);
        out.put_u64(token.0);
        out.put_u32(call_count);
        out.put_u32(calls.count_seen);
    }
    assert!(
        out.len() <= VOTES_BYTES_MAX,
        "the limits above bound the encoded votes"
    );
    headers.insert(VOTES_KEY, binary(&out));
    Ok(())
}

/// The votes of a reply; `None` where it carries none, so that the server did not take part. They are taken off: a
/// method that passes its callee's status on must not pass these on as its own.
pub(crate) fn take_votes(headers: &mut HeaderMap) -> Result<Option<Reply>, Malformed> {
    let votes = read_votes(headers);
    headers.remove(VOTES_KEY);
    votes
}

fn read_votes(headers: &HeaderMap) -> Result<Option<Reply>, Malformed> {
    let Some(mut reader) = Reader::open(headers, &VOTES_KEY, "synod-votes-bin")? else {
        return Ok(None);
    };
    if reader.rest.len() > VOTES_BYTES_MAX {
        return Err(reader.malformed("it is too long"));
    }
    let execution = ExecutionId(reader.u64()?);
    let vote_count = reader.count(BRANCH_COUNT_MAX)?;
    let mut votes = Vec::with_capacity(vote_count);
    for _ in 0..vote_count {
        let (call, execution) = (CallId(reader.u64()?), ExecutionId(reader.u64()?));
        let resource = ResourceId(reader.id()?);
        let (vote, digest, database_transaction) = match reader.u8()? {
            VOTE_COMMIT => {
                let digest = reader.u64()?;
                let count = reader.count(DATABASE_TRANSACTION_BYTES_MAX)?;
                (Vote::Commit, digest, reader.take(count)?)
            }
            VOTE_READ_ONLY => (Vote::ReadOnly, 0, Bytes::new()),
            VOTE_ABORT => (
                Vote::Abort {
                    cause: reader.text()?,
                },
                0,
                Bytes::new(),
            ),
            _ => return Err(reader.malformed("it holds a vote of an unknown kind")),
        };
        votes.push(BranchVote {
            call,
            execution,
            resource,
            vote,
            digest,
            database_transaction,
        });
    }
    let doom_count = reader.count(DOOM_COUNT_MAX)?;
    let mut dooms = Vec::with_capacity(doom_count);
    for _ in 0..doom_count {
        let (call, kind) = (CallId(reader.u64()?), reader.doom_kind()?);
        let is_branch = reader.u8()? == 1;
        let branch = (CallId(reader.u64()?), ExecutionId(reader.u64()?));
        let cause = AbortCause {
            kind,
            branch: is_branch.then_some(branch),
            text: reader.text()?,
        };
        dooms.push(Doom { call, cause });
    }
    let unnamed_count = reader.count(BRANCH_COUNT_MAX)?;
    let mut unnamed = Vec::with_capacity(unnamed_count);
    for _ in 0..unnamed_count {
        let (call, execution) = (CallId(reader.u64()?), ExecutionId(reader.u64()?));
        let (resource, digest) = (ResourceId(reader.id()?), reader.u64()?);
        let count = reader.count(DATABASE_TRANSACTION_BYTES_MAX)?;
        let database_transaction = reader.take(count)?;
        unnamed.push(NamedBranch {
            call,
            execution,
            resource,
            digest,
            database_transaction,
        });
    }
    let open = if reader.version == VERSION_OPEN {
        reader.open_calls()?
    } else {
        Vec::new()
    };
    reader.finish()?;
    Ok(Some(Reply {
        execution,
        votes,
        dooms,
        open,
        unnamed,
    }))
}

/// The header value of binary metadata.
pub(crate) fn binary(bytes: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(BinaryMetadataValue::from_bytes(bytes).as_encoded_bytes())
        .expect("base64 is a valid header value")
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.put_u8(u8::try_from(count).expect("every count here is limited to 200"));
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(REPLY_TEXT_BYTES_MAX)];
    put_count(out, text.len());
    out.put_slice(text.as_bytes());
}

struct Reader {
    key: &'static str,
    version: u8,
    rest: Bytes,
}

impl Reader {
    fn open(headers: &HeaderMap, name: &HeaderName, key: &'static str) -> Result<Option<Self>, Malformed> {
        let mut values = headers.get_all(name).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        let malformed = |reason| Malformed { key, reason };
        if values.next().is_some() {
            return Err(malformed("it is there twice"));
        }
        let single = MetadataMap::from_headers(HeaderMap::from_iter([(name.clone(), value.clone())]));
        let rest = single
            .get_bin(key)
            .and_then(|value| value.to_bytes().ok())
            .ok_or_else(|| malformed("it is not base64"))?;
        let mut reader = Self {
            key,
            version: VERSION,
            rest,
        };
        reader.version = reader.u8()?;
        match reader.version {
            VERSION => Ok(Some(reader)),
            VERSION_OPEN if name == VOTES_KEY => Ok(Some(reader)),
            _ => Err(malformed("its version is not known here: upgrade this service")),
        }
    }

    fn malformed(&self, reason: &'static str) -> Malformed {
        Malformed {
            key: self.key,
            reason,
        }
    }

    fn take(&mut self, count: usize) -> Result<Bytes, Malformed> {
        if count > self.rest.len() {
            return Err(self.malformed("it ends early"));
        }
        Ok(self.rest.split_to(count))
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(self.take(4)?.get_u32())
    }

    /// At least one: without any, the version is the other one.
    fn open_calls(&mut self) -> Result<Vec<OpenCalls>, Malformed> {
        let count = self.count(BRANCH_COUNT_MAX)?;
        if count == 0 {
            return Err(self.malformed("it announces open branches and holds none"));
        }
        let mut open = Vec::with_capacity(count);
        for _ in 0..count {
            let calls = OpenCalls {
                branch: OpenBranch {
                    call: CallId(self.u64()?),
                    execution: ExecutionId(self.u64()?),
                    resource: ResourceId(self.id()?),
                    instance: InstanceId(self.id()?),
                    token: OpenToken(self.u64()?),
                    call_count: self.u32()?,
                },
                count_seen: self.u32()?,
            };
            if calls.branch.call_count == 0 {
                return Err(self.malformed("an open branch counts no call"));
            }
            open.push(calls);
        }
        Ok(open)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(self.take(8)?.get_u64())
    }

    fn id(&mut self) -> Result<[u8; 16], Malformed> {
        let mut id = [0; 16];
        self.take(16)?.copy_to_slice(&mut id);
        Ok(id)
    }

    fn gtid(&mut self) -> Result<Gtid, Malformed> {
        Gtid::from_bytes(self.id()?).map_err(|_| self.malformed("its gtid is not a UUID of version 7"))
    }

    fn count(&mut self, max: usize) -> Result<usize, Malformed> {
        let count = usize::from(self.u8()?);
        if count > max {
            Err(self.malformed("a count is above its limit"))
        } else {
            Ok(count)
        }
    }

    fn doom_kind(&mut self) -> Result<AbortKind, Malformed> {
        match self.u8()? {
            DOOM_FAILED => Ok(AbortKind::Doomed),
            DOOM_VOTED_ABORT => Ok(AbortKind::VotedAbort),
            _ => Err(self.malformed("a call failed in an unknown way")),
        }
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let count = self.count(REPLY_TEXT_BYTES_MAX)?;
        String::from_utf8(self.take(count)?.into()).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    fn finish(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.malformed("it goes on after its end"))
        }
    }
}

#[cfg(test)]
mod tests;
