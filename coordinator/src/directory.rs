//! A replica's data directory: whose it is, and that only one process uses it (L10).
//!
//! | file | holds |
//! |---|---|
//! | `identity` | format, cluster, replica, all replicas and the directory's incarnation, in TOML; written once |
//! | `lock` | nothing; locked by the process that uses the directory |
//! | `segment-0000000001.log` … | the [`log`](crate::log) |
//! | `segment-0000000002.log.new` | a segment that is being made; of an interrupted making nothing is needed |
//!
//! A new directory becomes one by the last step of its making, the renaming of `identity.new` to `identity`, when the log
//! is already there. So an identity without a log, or a log without an identity, is never the trace of an
//! interrupted start: it is a loss, and is refused rather than begun afresh (traps J3, J4).
//!
//! The replicas are those of the first start for ever: a log that was written under one set of them says nothing about
//! the quorums of another, and two sets at once can decide two values for one slot (L6).

use crate::log::file_disk::DirectoryLock;
use crate::log::format::{segment_number, unfinished_number};
use crate::log::inspect::{ReadOnlyDisk, identity_of_segments};
use crate::log::{FileDisk, Identity, Log, LogError, Opened, Options};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use synod_coordinator_core::durable::Recovered;
use synod_proto::ids::{ClusterId, Incarnation, ReplicaId};

/// The directory format that this program writes and reads.
pub const FORMAT: u32 = 2;

const IDENTITY: &str = "identity";
const IDENTITY_NEW: &str = "identity.new";
const LOCK: &str = "lock";
/// What the root of a freshly made file system holds; it does not make a directory foreign.
pub(crate) const LOST_AND_FOUND: &str = "lost+found";

/// A data directory that this process has locked.
#[derive(Debug)]
pub struct Directory {
    disk: Arc<FileDisk>,
    identity: Identity,
    is_new: bool,
}

/// A data directory cannot be used. Each variant says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// Another process, or another replica of this one, uses it.
    #[error(
        "`{path}` is in use by another process: stop that one, or give this replica a directory of its own"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The path names something else.
    #[error("`{path}` is not a directory: name one that is empty or does not exist yet")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// There is no directory to look at.
    #[error("`{path}` is no data directory: name the one that `synod start` was given, or a copy of it")]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },
    /// A running replica uses the directory that is to be looked at.
    #[error("`{path}` is in use by a running replica: stop it, or copy the directory and look at the copy")]
    Running {
        /// The directory.
        path: PathBuf,
    },
    /// It cannot be created or written to.
    #[error("`{path}` cannot be created or written to: let this user write there, or name another directory")]
    Unwritable {
        /// The directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// It holds files that are not Synod's.
    #[error(
        "`{path}` is not a Synod data directory and not empty (it holds `{entry}`): name one that is empty or does not \
         exist yet"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One of the things in it.
        entry: String,
    },
    /// It belongs to another cluster.
    #[error(
        "`{path}` belongs to cluster `{found}`, not `{expected}`: name the right cluster or another directory"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        found: ClusterId,
        /// The one asked for.
        expected: ClusterId,
    },
    /// It belongs to another replica of the cluster.
    #[error(
        "`{path}` belongs to replica {found}, not {expected}: name the right replica or another directory"
    )]
    OtherReplica {
        /// The directory.
        path: PathBuf,
        /// Its replica.
        found: ReplicaId,
        /// The one asked for.
        expected: ReplicaId,
    },
    /// It was made for another set of replicas.
    #[error(
        "`{path}` was made for the replicas {}, but `peers` names {}: name the same replicas as before; a cluster's \
         members cannot be changed yet", list(.found), list(.expected)
    )]
    OtherReplicas {
        /// The directory.
        path: PathBuf,
        /// Its replicas.
        found: BTreeSet<ReplicaId>,
        /// Those asked for.
        expected: BTreeSet<ReplicaId>,
    },
    /// It was made by a version of Synod whose format this one does not know.
    #[error(
        "`{path}` has directory format {found}; this program reads format {FORMAT}: use the version that wrote it"
    )]
    UnknownFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: i64,
    },
    /// There is a log and nothing that says whose.
    #[error(
        "`{path}` holds a log (`{entry}`) but no `identity`: restore that file, or move everything away and have this \
         replica admitted again"
    )]
    IdentityMissing {
        /// The directory.
        path: PathBuf,
        /// One of the log's files.
        entry: String,
    },
    /// The identity cannot be understood.
    #[error(
        "`{path}` is damaged: {reason}; restore it, or move the directory away and have this replica admitted again"
    )]
    IdentityUnreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The new log could not be made.
    #[error("`{path}`: the log cannot be created")]
    Log {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: LogError,
    },
    /// The disk failed.
    #[error("`{path}` cannot be read or written: check the disk")]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

/// The file `identity`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    format: u32,
    cluster: String,
    replica: u8,
    replicas: BTreeSet<u8>,
    incarnation: String,
}

impl Directory {
    /// Locks the directory at `path` for replica `replica` of `cluster`, which consists of `replicas`. Makes a new one,
    /// with an empty log, if there is nothing at `path` or an empty directory. Blocks on the disk: up to a second for a
    /// new directory.
    ///
    /// # Errors
    /// Each [`DirectoryError`] says what to do. A directory that is refused is left as it was.
    pub fn open(
        path: &Path,
        cluster: &ClusterId,
        replica: ReplicaId,
        replicas: &BTreeSet<ReplicaId>,
        options: Options,
    ) -> Result<Self, DirectoryError> {
        create_if_absent(path)?;
        // Looked at before it is locked, so that not even a lock file is left in somebody else's directory.
        refuse_foreign(path, &entries(path)?)?;
        let lock = lock(path)?;
        let entries = entries(path)?;
        refuse_foreign(path, &entries)?;
        let disk = Arc::new(FileDisk::locked(path.to_owned(), lock));
        if entries.iter().any(|entry| entry == IDENTITY) {
            let (identity, found) = read_identity(path)?;
            if identity.cluster != *cluster {
                return Err(DirectoryError::OtherCluster {
                    path: path.to_owned(),
                    found: identity.cluster,
                    expected: cluster.clone(),
                });
            }
            if identity.replica != replica {
                return Err(DirectoryError::OtherReplica {
                    path: path.to_owned(),
                    found: identity.replica,
                    expected: replica,
                });
            }
            if found != *replicas {
                return Err(DirectoryError::OtherReplicas {
                    path: path.to_owned(),
                    found,
                    expected: replicas.clone(),
                });
            }
            return Ok(Self {
                disk,
                identity,
                is_new: false,
            });
        }
        let incarnation = new_incarnation().map_err(|source| io_error(path, source))?;
        let identity = Identity {
            cluster: cluster.clone(),
            replica,
            incarnation,
        };
        make(path, &disk, (&identity, replicas), &entries, options)?;
        Ok(Self {
            disk,
            identity,
            is_new: true,
        })
    }

    /// Where the log lies. The directory stays locked for as long as this, or a clone of it, lives.
    #[must_use]
    pub fn disk(&self) -> Arc<FileDisk> {
        Arc::clone(&self.disk)
    }

    /// Opens the log in it and tells the trace what was found. Blocks on the disk, and reads the whole log.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open_log(&self, options: Options) -> Result<(Log<FileDisk>, Recovered), LogError> {
        let Opened {
            log,
            recovered,
            report,
        } = Log::open(self.disk(), self.identity.clone(), options)?;
        report.trace();
        Ok((log, recovered))
    }

    /// Whose directory it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether it was made by this call.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }
}

/// A data directory that is looked at and not used: nothing in it is created, repaired or removed, and what is damaged is
/// told in [`problems`](Self::problems) beside what is not.
#[derive(Debug)]
pub struct Untouched {
    /// Its files. While this lives no replica can start here.
    pub disk: Arc<ReadOnlyDisk>,
    /// Whose it is: by its own word, else by its segments' headers.
    pub identity: Option<Identity>,
    /// The replicas that it was made for, by its own word only.
    pub replicas: Option<BTreeSet<ReplicaId>>,
    /// What is wrong with its identity, a sentence each.
    pub problems: Vec<String>,
}

impl Untouched {
    /// Looks at the directory at `path`, which may be a copy.
    ///
    /// # Errors
    /// [`DirectoryError::NoDirectory`], [`DirectoryError::Running`], or [`DirectoryError::Io`] where it cannot be read at
    /// all. Damage is no error.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        if !path.is_dir() {
            return Err(DirectoryError::NoDirectory {
                path: path.to_owned(),
            });
        }
        let lock = match File::open(path.join(LOCK)) {
            Ok(file) => Some(DirectoryLock::share(file).map_err(|error| match error {
                TryLockError::WouldBlock => DirectoryError::Running {
                    path: path.to_owned(),
                },
                TryLockError::Error(source) => io_error(&path.join(LOCK), source),
            })?),
            // A copy need not have it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(io_error(&path.join(LOCK), source)),
        };
        let disk = Arc::new(ReadOnlyDisk::new(path.to_owned(), lock));
        let of_segments = |source| io_error(path, source);
        let (identity, replicas, problems) = match read_identity(path) {
            Ok((identity, replicas)) => (Some(identity), Some(replicas), Vec::new()),
            Err(error) => {
                let mut text = error.to_string();
                if let Some(source) = std::error::Error::source(&error) {
                    text.push_str(&format!(": {source}"));
                }
                let identity = identity_of_segments(&*disk).map_err(of_segments)?;
                (identity, None, vec![text])
            }
        };
        Ok(Self {
            disk,
            identity,
            replicas,
            problems,
        })
    }
}

fn create_if_absent(path: &Path) -> Result<(), DirectoryError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => {
            return Err(DirectoryError::NotADirectory {
                path: path.to_owned(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(DirectoryError::Unwritable {
                path: path.to_owned(),
                source,
            });
        }
    }
    let created = fs::create_dir_all(path).and_then(|()| {
        // The new name must survive a crash as surely as what will be acknowledged from below it.
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    });
    created.map_err(|source| DirectoryError::Unwritable {
        path: path.to_owned(),
        source,
    })
}

fn entries(path: &Path) -> Result<Vec<String>, DirectoryError> {
    let read = || {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    };
    read().map_err(|source| io_error(path, source))
}

/// The number of the segment that this is, or was to become.
fn number_of(entry: &str) -> Option<u64> {
    segment_number(entry).or_else(|| unfinished_number(entry))
}

fn is_segment(entry: &str) -> bool {
    number_of(entry).is_some()
}

/// Without an identity, a directory must be empty, or the trace of an interrupted [`make`].
fn refuse_foreign(path: &Path, entries: &[String]) -> Result<(), DirectoryError> {
    let has = |name: &str| entries.iter().any(|entry| entry == name);
    if has(IDENTITY) {
        return Ok(());
    }
    let foreign = entries
        .iter()
        .find(|entry| !is_segment(entry) && ![LOCK, IDENTITY_NEW, LOST_AND_FOUND].contains(&entry.as_str()));
    if let Some(entry) = foreign {
        return Err(DirectoryError::Foreign {
            path: path.to_owned(),
            entry: entry.clone(),
        });
    }
    // `make` creates the first segment only, and under the eyes of `identity.new`.
    let is_unfinished = |entry: &String| has(IDENTITY_NEW) && number_of(entry) == Some(1);
    match entries
        .iter()
        .find(|entry| is_segment(entry) && !is_unfinished(entry))
    {
        Some(entry) => Err(DirectoryError::IdentityMissing {
            path: path.to_owned(),
            entry: entry.clone(),
        }),
        None => Ok(()),
    }
}

fn lock(path: &Path) -> Result<DirectoryLock, DirectoryError> {
    let opened = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(LOCK));
    let file = opened.map_err(|source| DirectoryError::Unwritable {
        path: path.to_owned(),
        source,
    })?;
    DirectoryLock::take(file).map_err(|error| match error {
        TryLockError::WouldBlock => DirectoryError::Locked {
            path: path.to_owned(),
        },
        TryLockError::Error(source) => io_error(&path.join(LOCK), source),
    })
}

/// Makes a new directory: announce the identity, create the log, make the identity final.
fn make(
    path: &Path,
    disk: &Arc<FileDisk>,
    (identity, replicas): (&Identity, &BTreeSet<ReplicaId>),
    entries: &[String],
    options: Options,
) -> Result<(), DirectoryError> {
    let sync_directory = || File::open(path)?.sync_all();
    // What an interrupted `make` left: nothing was acknowledged from it.
    for entry in entries.iter().filter(|entry| is_segment(entry)) {
        fs::remove_file(path.join(entry)).map_err(|source| io_error(&path.join(entry), source))?;
    }
    let new = path.join(IDENTITY_NEW);
    let announced = write_identity(&new, identity, replicas).and_then(|()| sync_directory());
    announced.map_err(|source| DirectoryError::Unwritable {
        path: path.to_owned(),
        source,
    })?;
    Log::create(disk, identity, options).map_err(|source| DirectoryError::Log {
        path: path.to_owned(),
        source,
    })?;
    let named = fs::rename(&new, path.join(IDENTITY)).and_then(|()| sync_directory());
    named.map_err(|source| io_error(path, source))
}

fn write_identity(path: &Path, identity: &Identity, replicas: &BTreeSet<ReplicaId>) -> io::Result<()> {
    let text = toml::to_string(&IdentityFile {
        format: FORMAT,
        cluster: identity.cluster.to_string(),
        replica: identity.replica.0,
        replicas: replicas.iter().map(|replica| replica.0).collect(),
        incarnation: identity.incarnation.to_string(),
    });
    let text = text.map_err(io::Error::other)?;
    let mut file = File::create(path)?;
    writeln!(
        file,
        "# Whose data directory this is. Written by Synod; a change makes the directory useless."
    )?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Whose directory it is, and the replicas that it was made for.
fn read_identity(directory: &Path) -> Result<(Identity, BTreeSet<ReplicaId>), DirectoryError> {
    let path = directory.join(IDENTITY);
    let unreadable = |reason: String| DirectoryError::IdentityUnreadable {
        path: path.clone(),
        reason,
    };
    let bytes = fs::read(&path).map_err(|source| io_error(&path, source))?;
    let text = String::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| unreadable(error.message().to_owned()))?;
    // The format first: a later one may have other keys.
    match table.get("format").and_then(toml::Value::as_integer) {
        Some(format) if format == i64::from(FORMAT) => {}
        Some(found) => {
            return Err(DirectoryError::UnknownFormat {
                path: directory.to_owned(),
                found,
            });
        }
        None => return Err(unreadable("it names no format".to_owned())),
    }
    let file: IdentityFile = table
        .try_into()
        .map_err(|error: toml::de::Error| unreadable(error.message().to_owned()))?;
    let identity = Identity {
        cluster: file
            .cluster
            .parse()
            .map_err(|error| unreadable(format!("{error}")))?,
        replica: ReplicaId(file.replica),
        incarnation: file
            .incarnation
            .parse()
            .map_err(|error| unreadable(format!("{error}")))?,
    };
    Ok((identity, file.replicas.into_iter().map(ReplicaId).collect()))
}

/// `1, 2, 3`.
fn list(replicas: &BTreeSet<ReplicaId>) -> String {
    let replicas: Vec<_> = replicas.iter().map(ToString::to_string).collect();
    replicas.join(", ")
}

/// A random UUID (version 4).
fn new_incarnation() -> io::Result<Incarnation> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Ok(Incarnation(bytes))
}

fn io_error(path: &Path, source: io::Error) -> DirectoryError {
    DirectoryError::Io {
        path: path.to_owned(),
        source,
    }
}
