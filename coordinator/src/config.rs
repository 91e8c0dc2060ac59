//! A replica's configuration: a TOML file, flags that override it, and the rules that both must keep.
//!
//! | key | meaning | default |
//! |---|---|---|
//! | `cluster` | name of the cluster, the same at every replica | required |
//! | `replica` | this replica's number, one of those under `peers` | required |
//! | `data` | this replica's own directory | required |
//! | `peers` | table: number of every replica, this one included, to the `host:port` that others reach it at | required |
//! | `listen` | `address:port` to listen at | this replica's entry under `peers` |
//! | `heartbeat_ms` | how often a leader says that it lives | 50 |
//! | `election_timeout_ms_min`, `election_timeout_ms_max` | how long a follower waits for one, at random between the two | 250, 500 |
//! | `segment_bytes` | size of one file of the log | 16777216 |
//! | `watermark_lag_ms` | how long a finished outcome can still be asked for (T14) | 600000 |
//! | `trace` | filter of the trace on stderr, in the syntax of `tracing-subscriber` | `info` |
//!
//! Unknown keys and bad values are refused with their line, before anything is opened (J4: no silent default where a
//! value is unreadable).

#[cfg(test)]
mod tests;

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use synod_proto::ids::{ClusterId, ReplicaId};
use synod_proto::limits::{DEADLINE_MS_MAX, WATERMARK_LAG_MS_DEFAULT};
use toml::Spanned;
use tracing_subscriber::EnvFilter;

/// How often a leader says that it lives, in milliseconds.
pub const HEARTBEAT_MS_DEFAULT: u64 = 50;
/// The shortest wait for a leader, in milliseconds: five heartbeats, so that one lost packet elects nobody.
pub const ELECTION_TIMEOUT_MS_MIN_DEFAULT: u64 = 250;
/// The longest wait for a leader, in milliseconds. The spread keeps two candidates apart.
pub const ELECTION_TIMEOUT_MS_MAX_DEFAULT: u64 = 500;
/// The size of one file of the log, in bytes.
pub const SEGMENT_BYTES_DEFAULT: u64 = 16 << 20;
/// Small enough to test with, large enough for the largest entry to be the exception.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// A segment is written with zeroes before its first use.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// The most replicas. Every entry goes to each of them; beyond seven only the cost grows.
pub const REPLICA_COUNT_MAX: usize = 7;

const _: () = assert!(HEARTBEAT_MS_DEFAULT * 3 <= ELECTION_TIMEOUT_MS_MIN_DEFAULT);
const _: () = assert!(ELECTION_TIMEOUT_MS_MIN_DEFAULT < ELECTION_TIMEOUT_MS_MAX_DEFAULT);

/// What one replica runs with. Made by [`Draft::finish`], which checked every rule, or by hand in a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cluster's name.
    pub cluster: ClusterId,
    /// This replica.
    pub replica: ReplicaId,
    /// The address at which others reach each replica, this one included: `host:port`.
    pub peers: BTreeMap<ReplicaId, String>,
    /// This replica's directory.
    pub data: PathBuf,
    /// The address to listen at.
    pub listen: String,
    /// Milliseconds between a leader's heartbeats.
    pub heartbeat_ms: u64,
    /// The shortest election timeout, in milliseconds.
    pub election_timeout_ms_min: u64,
    /// The longest election timeout, in milliseconds.
    pub election_timeout_ms_max: u64,
    /// The size of one segment of the log, in bytes.
    pub segment_bytes: u64,
    /// How far the watermark trails, in milliseconds (T14).
    pub watermark_lag_ms: u64,
}

impl Settings {
    /// A replica with every default. `peers` must hold `replica`.
    #[must_use]
    pub fn new(
        cluster: ClusterId,
        replica: ReplicaId,
        peers: BTreeMap<ReplicaId, String>,
        data: PathBuf,
    ) -> Self {
        let listen = peers.get(&replica).cloned().unwrap_or_default();
        Self {
            cluster,
            replica,
            peers,
            data,
            listen,
            heartbeat_ms: HEARTBEAT_MS_DEFAULT,
            election_timeout_ms_min: ELECTION_TIMEOUT_MS_MIN_DEFAULT,
            election_timeout_ms_max: ELECTION_TIMEOUT_MS_MAX_DEFAULT,
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            watermark_lag_ms: WATERMARK_LAG_MS_DEFAULT,
        }
    }
}

/// A value that breaks a rule, or a file that cannot be read: where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    place: Place,
    text: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Nowhere => f.write_str(&self.text),
            place => write!(f, "{place}: {}", self.text),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Flag(&'static str),
    File(PathBuf),
    Line(PathBuf, usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("configuration"),
            Self::Flag(flag) => f.write_str(flag),
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Line(file, line) => write!(f, "{}:{line}", file.display()),
        }
    }
}

/// A value and where it was written, so that a broken rule can point there.
#[derive(Clone, Debug)]
struct Written<T> {
    value: T,
    place: Place,
}

/// What was written so far; later sources override earlier ones.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    cluster: Option<Written<String>>,
    replica: Option<Written<u64>>,
    data: Option<Written<PathBuf>>,
    listen: Option<Written<String>>,
    peers: BTreeMap<String, Written<String>>,
    heartbeat_ms: Option<Written<u64>>,
    election_timeout_ms_min: Option<Written<u64>>,
    election_timeout_ms_max: Option<Written<u64>>,
    segment_bytes: Option<Written<u64>>,
    watermark_lag_ms: Option<Written<u64>>,
    trace: Option<Written<String>>,
}

/// The file's form. `deny_unknown_fields`: a misspelt key is an error, not a default (J4).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: Option<Spanned<String>>,
    replica: Option<Spanned<u64>>,
    data: Option<Spanned<PathBuf>>,
    listen: Option<Spanned<String>>,
    #[serde(default)]
    peers: BTreeMap<String, Spanned<String>>,
    heartbeat_ms: Option<Spanned<u64>>,
    election_timeout_ms_min: Option<Spanned<u64>>,
    election_timeout_ms_max: Option<Spanned<u64>>,
    segment_bytes: Option<Spanned<u64>>,
    watermark_lag_ms: Option<Spanned<u64>>,
    trace: Option<Spanned<String>>,
}

impl Draft {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is not TOML, has an unknown key or a value of the wrong type: with the line.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            place: Place::File(file.to_owned()),
            text: format!("cannot read the configuration: {error}"),
        })?;
        Self::parse(file, &text)
    }

    fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let parsed: File = toml::from_str(text).map_err(|error| ConfigError {
            place: match error.span() {
                Some(span) => Place::Line(file.to_owned(), line(text, span.start)),
                None => Place::File(file.to_owned()),
            },
            text: error.message().replace('\n', " "),
        })?;
        let place = |start: usize| Place::Line(file.to_owned(), line(text, start));
        Ok(Self {
            cluster: written(parsed.cluster, place),
            replica: written(parsed.replica, place),
            data: written(parsed.data, place),
            listen: written(parsed.listen, place),
            peers: parsed
                .peers
                .into_iter()
                .filter_map(|(id, address)| written(Some(address), place).map(|address| (id, address)))
                .collect(),
            heartbeat_ms: written(parsed.heartbeat_ms, place),
            election_timeout_ms_min: written(parsed.election_timeout_ms_min, place),
            election_timeout_ms_max: written(parsed.election_timeout_ms_max, place),
            segment_bytes: written(parsed.segment_bytes, place),
            watermark_lag_ms: written(parsed.watermark_lag_ms, place),
            trace: written(parsed.trace, place),
        })
    }

    /// Overrides the cluster's name.
    pub fn set_cluster(&mut self, cluster: String) {
        self.cluster = flag("--cluster", cluster);
    }

    /// Overrides the replica's number.
    pub fn set_replica(&mut self, replica: u64) {
        self.replica = flag("--replica", replica);
    }

    /// Overrides the directory.
    pub fn set_data(&mut self, data: PathBuf) {
        self.data = flag("--data", data);
    }

    /// Overrides the address to listen at.
    pub fn set_listen(&mut self, listen: String) {
        self.listen = flag("--listen", listen);
    }

    /// Overrides the whole table of peers.
    ///
    /// # Errors
    /// An entry is not `ID=HOST:PORT`, or an id occurs twice.
    pub fn set_peers(&mut self, peers: &[String]) -> Result<(), ConfigError> {
        self.peers.clear();
        for peer in peers {
            let place = Place::Flag("--peer");
            let Some((id, address)) = peer.split_once('=') else {
                return Err(ConfigError {
                    place,
                    text: format!("`{peer}` is not ID=HOST:PORT"),
                });
            };
            let written = Written {
                value: address.to_owned(),
                place: place.clone(),
            };
            if self.peers.insert(id.to_owned(), written).is_some() {
                return Err(ConfigError {
                    place,
                    text: format!("replica {id} is named twice"),
                });
            }
        }
        Ok(())
    }

    /// The filter of the trace, if one was written.
    #[must_use]
    pub fn trace(&self) -> Option<&str> {
        self.trace.as_ref().map(|trace| trace.value.as_str())
    }

    /// Checks every rule.
    ///
    /// # Errors
    /// The first broken rule, with the place of the value that breaks it.
    pub fn finish(self) -> Result<Settings, ConfigError> {
        let cluster = required(self.cluster, "cluster")?;
        let cluster: ClusterId = match cluster.value.parse() {
            Ok(cluster) => cluster,
            Err(error) => {
                return Err(ConfigError {
                    place: cluster.place,
                    text: error.to_string(),
                });
            }
        };
        let replica = required(self.replica, "replica")?;
        let peers = peers(self.peers)?;
        let own = match u8::try_from(replica.value).map(ReplicaId) {
            Ok(id) if peers.contains_key(&id) => id,
            _ => {
                let known: Vec<_> = peers.keys().map(ToString::to_string).collect();
                let text = format!(
                    "replica {} is not among the peers ({}): name every replica there, this one included",
                    replica.value,
                    known.join(", ")
                );
                return Err(ConfigError {
                    place: replica.place,
                    text,
                });
            }
        };
        let data = required(self.data, "data")?.value;
        let defaults = Settings::new(cluster, own, peers, data);

        let heartbeat_ms = ranged(self.heartbeat_ms, HEARTBEAT_MS_DEFAULT, 1..=60_000)?;
        let least = heartbeat_ms.value.saturating_mul(3);
        let shortest = match self.election_timeout_ms_min {
            None => Written {
                value: ELECTION_TIMEOUT_MS_MIN_DEFAULT.max(heartbeat_ms.value * 5),
                place: Place::Nowhere,
            },
            written => ranged(written, ELECTION_TIMEOUT_MS_MIN_DEFAULT, least..=600_000)
                .map_err(|error| error.because("three heartbeats: two may be lost"))?,
        };
        let longest = match self.election_timeout_ms_max {
            None => ELECTION_TIMEOUT_MS_MAX_DEFAULT.max(shortest.value * 2),
            written => {
                ranged(
                    written,
                    ELECTION_TIMEOUT_MS_MAX_DEFAULT,
                    shortest.value + 1..=1_200_000,
                )
                .map_err(|error| error.because("above election_timeout_ms_min"))?
                .value
            }
        };
        let segment_bytes = ranged(
            self.segment_bytes,
            SEGMENT_BYTES_DEFAULT,
            SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX,
        )?
        .value;
        let watermark_lag_ms = ranged(
            self.watermark_lag_ms,
            WATERMARK_LAG_MS_DEFAULT,
            2 * DEADLINE_MS_MAX..=365 * 24 * 3_600_000,
        )
        .map_err(|error| error.because("at least twice the longest deadline"))?
        .value;
        if let Some(listen) = &self.listen {
            check_address(&listen.value, &listen.place, PortZero::Allowed)?;
        }
        if let Some(trace) = &self.trace {
            trace_filter(&trace.value).map_err(|text| ConfigError {
                place: trace.place.clone(),
                text,
            })?;
        }
        Ok(Settings {
            listen: self.listen.map_or(defaults.listen, |listen| listen.value),
            heartbeat_ms: heartbeat_ms.value,
            election_timeout_ms_min: shortest.value,
            election_timeout_ms_max: longest,
            segment_bytes,
            watermark_lag_ms,
            ..defaults
        })
    }
}

impl ConfigError {
    fn because(mut self, reason: &str) -> Self {
        self.text = format!("{} ({reason})", self.text);
        self
    }
}

/// Reads the filter of a trace, or says what is wrong with it.
pub(crate) fn trace_filter(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter).map_err(|error| format!("the trace's filter `{filter}`: {error}"))
}

/// The line of a byte offset, from 1.
fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

fn written<T>(spanned: Option<Spanned<T>>, place: impl Fn(usize) -> Place) -> Option<Written<T>> {
    spanned.map(|spanned| {
        let place = place(spanned.span().start);
        Written {
            value: spanned.into_inner(),
            place,
        }
    })
}

fn flag<T>(name: &'static str, value: T) -> Option<Written<T>> {
    Some(Written {
        value,
        place: Place::Flag(name),
    })
}

fn required<T>(written: Option<Written<T>>, key: &str) -> Result<Written<T>, ConfigError> {
    written.ok_or_else(|| ConfigError {
        place: Place::Nowhere,
        text: format!("`{key}` is missing: give --{key}, or `{key} = ...` in the file that --config names"),
    })
}

fn ranged(
    written: Option<Written<u64>>,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Written<u64>, ConfigError> {
    match written {
        None => Ok(Written {
            value: default,
            place: Place::Nowhere,
        }),
        Some(written) if range.contains(&written.value) => Ok(written),
        Some(Written { value, place }) => Err(ConfigError {
            place,
            text: format!("{value} is out of range: {} to {}", range.start(), range.end()),
        }),
    }
}

fn peers(written: BTreeMap<String, Written<String>>) -> Result<BTreeMap<ReplicaId, String>, ConfigError> {
    let fail = |place: &Place, text: String| {
        Err(ConfigError {
            place: place.clone(),
            text,
        })
    };
    if written.is_empty() {
        let text =
            "`peers` is missing: give --peer ID=HOST:PORT for every replica, this one included".to_owned();
        return fail(&Place::Nowhere, text);
    }
    let mut peers = BTreeMap::new();
    for (
        id,
        Written {
            value: address,
            place,
        },
    ) in written
    {
        let Some(id) = id.parse::<u8>().ok().filter(|&id| id != 0).map(ReplicaId) else {
            return fail(&place, format!("`{id}` is not a replica's number: 1 to 255"));
        };
        check_address(&address, &place, PortZero::Refused)?;
        if let Some((other, _)) = peers.iter().find(|(_, taken)| **taken == address) {
            return fail(
                &place,
                format!("replicas {other} and {id} have the same address {address}"),
            );
        }
        if peers.insert(id, address).is_some() {
            return fail(&place, format!("replica {id} is named twice"));
        }
        if peers.len() > REPLICA_COUNT_MAX {
            return fail(&place, format!("more than {REPLICA_COUNT_MAX} replicas"));
        }
    }
    Ok(peers)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PortZero {
    Allowed,
    Refused,
}

/// Checks the form `host:port`; whether the name resolves is found out when it is used.
fn check_address(address: &str, place: &Place, zero: PortZero) -> Result<(), ConfigError> {
    let is_valid = address.rsplit_once(':').is_some_and(|(host, port)| {
        let is_bare = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
        let port = port.parse::<u16>();
        !host.is_empty()
            && is_bare
            && !host.contains('/')
            && port.is_ok_and(|port| port != 0 || zero == PortZero::Allowed)
    });
    if is_valid {
        Ok(())
    } else {
        let text = format!("`{address}` is not HOST:PORT (an IPv6 address goes in brackets)");
        Err(ConfigError {
            place: place.clone(),
            text,
        })
    }
}
