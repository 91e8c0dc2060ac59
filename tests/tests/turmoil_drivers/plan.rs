//! What a seed means: the transfers, the faults and when they happen. Drawn before the run, from the seed alone.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::ledger::{ACCOUNT_COUNT, account};
use crate::{office, replica};

/// Faults and transfers begin before this; then everything is healed.
pub const TURBULENCE: Duration = Duration::from_secs(8);

/// The longest deadline of a transaction in milliseconds. Short, so that abandoned ones end within a run (T6).
pub const DEADLINE_MS_MAX: u64 = 4_000;

/// How far a host's wall clock may be off, in milliseconds; both ways.
pub const CLOCK_OFFSET_MS_MAX: i64 = 1_500;

/// One request to an office to begin a transfer.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub at_ms: u64,
    pub office: usize,
    pub transfer: String,
    pub account: String,
    pub amount: u64,
    pub deadline_ms: u64,
    /// The caller goes away then: its request is cancelled wherever it is.
    pub patience_ms: u64,
    /// A caller that got no answer asks again under the same name; so does one that was refused.
    pub try_count_max: u32,
}

/// One fault, from its begin to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub at_ms: u64,
    pub for_ms: u64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The process dies and its kernel closes its connections; started again at the end.
    Kill(String),
    /// The machine vanishes without a word; started again at the end.
    PowerLoss(String),
    /// A replica is stopped in good order; started again at the end.
    Stop(u8),
    /// Messages between the two are lost, those under way too.
    Partition(String, String),
    /// Messages from the first to the second are lost.
    OneWay(String, String),
    /// Cut off from everybody.
    Isolate(String),
    /// Messages between the two wait until the end, then arrive all at once.
    Hold(String, String),
    /// Messages between the two take up to so many milliseconds.
    Slow(String, String, u64),
}

impl What {
    /// The kind, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(host) if host.starts_with("office") => "office killed",
            Self::Kill(_) => "replica killed",
            Self::PowerLoss(host) if host.starts_with("office") => "office lost power",
            Self::PowerLoss(_) => "replica lost power",
            Self::Stop(_) => "replica stopped",
            Self::Partition(..) => "partition",
            Self::OneWay(..) => "one-way partition",
            Self::Isolate(_) => "isolation",
            Self::Hold(..) => "hold",
            Self::Slow(..) => "slow link",
        }
    }

    /// The process that is down meanwhile.
    fn process(&self) -> Option<String> {
        match self {
            Self::Kill(host) | Self::PowerLoss(host) => Some(host.clone()),
            Self::Stop(number) => Some(replica::host(*number)),
            _ => None,
        }
    }

    /// The links that are not as usual meanwhile.
    pub fn links(&self) -> Vec<(String, String)> {
        match self {
            Self::Partition(a, b) | Self::OneWay(a, b) | Self::Hold(a, b) | Self::Slow(a, b, _) => {
                vec![ordered(a, b)]
            }
            Self::Isolate(host) => hosts()
                .iter()
                .filter(|other| *other != host)
                .map(|other| ordered(host, other))
                .collect(),
            Self::Kill(_) | Self::PowerLoss(_) | Self::Stop(_) => Vec::new(),
        }
    }
}

/// A pair of hosts, the same whichever comes first.
pub fn ordered(a: &str, b: &str) -> (String, String) {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    (low.to_owned(), high.to_owned())
}

/// The hosts that faults strike.
pub fn hosts() -> [String; 5] {
    [
        replica::host(1),
        replica::host(2),
        replica::host(3),
        office::host(1),
        office::host(2),
    ]
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub seed: u64,
    pub latency_ms_max: u64,
    pub sync_latency_us: u64,
    /// Of each host's wall clock.
    pub clock_offsets_ms: BTreeMap<String, i64>,
    pub calls: Vec<Call>,
    pub faults: Vec<Fault>,
}

impl Plan {
    pub fn draw(seed: u64) -> Self {
        // One stream per concern: a new kind of fault does not change the transfers.
        let stream = |concern: u64| StdRng::seed_from_u64(seed.wrapping_mul(16) + concern);
        let mut random = stream(0);
        let offset = |_| random.random_range(-CLOCK_OFFSET_MS_MAX..=CLOCK_OFFSET_MS_MAX);
        let offsets = [(); 5].map(offset);
        Self {
            seed,
            latency_ms_max: random.random_range(1..=20),
            sync_latency_us: random.random_range(100..=8_000),
            clock_offsets_ms: hosts().into_iter().zip(offsets).collect(),
            calls: calls(&mut stream(1)),
            faults: faults(&mut stream(2)),
        }
    }
}

fn turbulence_ms() -> u64 {
    u64::try_from(TURBULENCE.as_millis()).expect("seconds")
}

fn calls(random: &mut StdRng) -> Vec<Call> {
    let count = random.random_range(20..40);
    let call = |index| Call {
        // The cluster needs a moment to be born, and is then at work all the time.
        at_ms: random.random_range(800..turbulence_ms()),
        office: random.random_range(1..=2),
        transfer: format!("transfer-{index:02}"),
        account: account(random.random_range(0..ACCOUNT_COUNT)),
        amount: random.random_range(1..300),
        deadline_ms: random.random_range(300..=DEADLINE_MS_MAX),
        patience_ms: if random.random_bool(0.15) {
            random.random_range(5..200)
        } else {
            8_000
        },
        try_count_max: random.random_range(1..=3),
    };
    (0..count).map(call).collect()
}

fn faults(random: &mut StdRng) -> Vec<Fault> {
    let hosts = hosts();
    // The swarm: each seed has kinds of its own, and one in ten has none.
    let kinds: Vec<u32> = (0..8).filter(|_| random.random_bool(0.5)).collect();
    let wanted_count = if random.random_bool(0.1) {
        0
    } else {
        random.random_range(3..10)
    };
    let mut faults: Vec<Fault> = Vec::new();
    for _ in 0..wanted_count {
        let Some(kind) = kinds.choose(random) else { break };
        let pair: Vec<_> = hosts.choose_multiple(random, 2).cloned().collect();
        let (a, b) = (pair[0].clone(), pair[1].clone());
        let what = match kind {
            0 => What::Kill(a),
            1 => What::PowerLoss(a),
            2 => What::Stop(random.random_range(1..=3)),
            3 => What::Partition(a, b),
            4 => What::OneWay(a, b),
            5 => What::Isolate(a),
            6 => What::Hold(a, b),
            _ => What::Slow(a, b, random.random_range(50..400)),
        };
        let fault = Fault {
            at_ms: random.random_range(500..turbulence_ms() - 500),
            for_ms: random.random_range(20..3_000),
            what,
        };
        // Two faults of one link or one process at a time would undo each other.
        let clashes = |other: &Fault| {
            let overlaps =
                other.at_ms <= fault.at_ms + fault.for_ms && fault.at_ms <= other.at_ms + other.for_ms;
            let same_process = fault.what.process().is_some() && fault.what.process() == other.what.process();
            let links = fault.what.links();
            overlaps && (same_process || other.what.links().iter().any(|link| links.contains(link)))
        };
        if !faults.iter().any(clashes) {
            faults.push(fault);
        }
    }
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}
