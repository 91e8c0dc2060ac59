//! The network between replicas: it delays, reorders, loses, repeats and replays, and links may be cut one way.

use crate::schedule::Micros;
use std::collections::{BTreeMap, BTreeSet};
use synod_coordinator_core::random::Random;
use synod_proto::ids::ReplicaId;

/// How the network behaves while no link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// The shortest and the longest way of an envelope.
    pub delay_us: (Micros, Micros),
    /// How many of a million envelopes are lost.
    pub loss_ppm: u64,
    /// How many of a million come twice.
    pub duplicate_ppm: u64,
    /// How much later than usual a repeated one may come: seconds make it a replay of old traffic.
    pub replay_us_max: Micros,
}

impl Weather {
    /// A quiet local network.
    pub const CALM: Self = Self {
        delay_us: (200, 600),
        loss_ppm: 0,
        duplicate_ppm: 0,
        replay_us_max: 0,
    };
    /// Every way takes the same time: for scripted runs, in which the order of events must not depend on chance.
    pub const EVEN: Self = Self {
        delay_us: (500, 500),
        loss_ppm: 0,
        duplicate_ppm: 0,
        replay_us_max: 0,
    };
}

/// What a script does to one envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is lost.
    Lost,
    /// It comes twice, the second time this much later.
    Repeated(Micros),
}

/// The network.
#[derive(Debug)]
pub struct Network {
    random: Random,
    /// How it behaves.
    pub weather: Weather,
    cut: BTreeSet<(ReplicaId, ReplicaId)>,
    script: BTreeMap<u64, Fate>,
    sent_count: u64,
}

impl Network {
    /// A network with its own stream of chance.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self {
            random: Random::new(seed),
            weather,
            cut: BTreeSet::new(),
            script: BTreeMap::new(),
            sent_count: 0,
        }
    }

    /// Sets the fate of the `number`-th envelope from now, from 0.
    pub fn set_fate(&mut self, number: u64, fate: Fate) {
        self.script.insert(self.sent_count + number, fate);
    }

    /// How many envelopes were handed to the network.
    #[must_use]
    pub fn sent_count(&self) -> u64 {
        self.sent_count
    }

    /// Cuts one direction. What is on its way is lost.
    pub fn cut(&mut self, from: ReplicaId, to: ReplicaId) {
        self.cut.insert((from, to));
    }

    /// Mends one direction; returns whether both directions hold now and one of them did not before.
    pub fn mend(&mut self, from: ReplicaId, to: ReplicaId) -> bool {
        self.cut.remove(&(from, to)) && !self.cut.contains(&(to, from))
    }

    /// Whether envelopes pass.
    #[must_use]
    pub fn is_open(&self, from: ReplicaId, to: ReplicaId) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Takes an envelope and returns after how long it arrives: never, once, or twice.
    pub fn carry(&mut self, from: ReplicaId, to: ReplicaId) -> Vec<Micros> {
        let number = self.sent_count;
        self.sent_count += 1;
        let weather = self.weather;
        let delay = self.random.between(weather.delay_us.0, weather.delay_us.1);
        let is_lost = self.happens(weather.loss_ppm);
        let is_repeated = self.happens(weather.duplicate_ppm);
        let replay = self.random.between(0, weather.replay_us_max);
        if !self.is_open(from, to) {
            return Vec::new();
        }
        match self.script.remove(&number) {
            Some(Fate::Lost) => Vec::new(),
            Some(Fate::Repeated(later)) => vec![delay, delay + later],
            None if is_lost => Vec::new(),
            None if is_repeated => vec![delay, delay + replay],
            None => vec![delay],
        }
    }

    fn happens(&mut self, ppm: u64) -> bool {
        self.random.between(0, 999_999) < ppm
    }
}
