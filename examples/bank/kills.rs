//! Who is killed, and when: drawn from a seed. One at a time, and the next one only when everybody is back, so that a quorum
//! lives and the money keeps moving; both banks may be in doubt at once all the same.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use synod::BoxError;
use synod_examples::cluster::Cluster;
use synod_examples::process::{Process, ProcessError};

/// The pause between everybody's being back and the next kill.
const PAUSE_MS: std::ops::Range<u64> = 200..1_500;

/// How long a killed process stays away.
const AWAY_MS: std::ops::Range<u64> = 0..800;

/// The two banks' names; also the files', with `.redb` behind.
pub(crate) const BANKS: [&str; 2] = ["north", "south"];

/// Everything that can be killed.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) banks: Vec<Process>,
    data: PathBuf,
    traces: PathBuf,
}

/// How often each was killed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Kills {
    pub(crate) leaders: u32,
    pub(crate) followers: u32,
    pub(crate) banks: u32,
}

impl World {
    pub(crate) async fn start(data: &Path, traces: &Path) -> Result<Self, BoxError> {
        let mut world = Self {
            cluster: Cluster::start(data, traces).await?,
            banks: Vec::new(),
            data: data.to_owned(),
            traces: traces.to_owned(),
        };
        for name in BANKS {
            let bank = world.start_bank(name, "127.0.0.1:0").await?;
            world.banks.push(bank);
        }
        Ok(world)
    }

    async fn start_bank(&self, name: &str, listen: &str) -> Result<Process, ProcessError> {
        let args: Vec<OsString> = vec![
            "bank".into(),
            "--database".into(),
            database(&self.data, name).into(),
            "--coordinators".into(),
            self.cluster.coordinators().join(",").into(),
            "--listen".into(),
            listen.into(),
        ];
        Process::start(name, args, &self.traces).await
    }

    /// Kills at random until `end`. At the end everybody is back.
    pub(crate) async fn kill_until(&mut self, end: Instant, seed: u64) -> Result<Kills, BoxError> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut kills = Kills::default();
        loop {
            let pause = Duration::from_millis(random.random_range(PAUSE_MS));
            let away = Duration::from_millis(random.random_range(AWAY_MS));
            let victim = random.random_range(0..6);
            if Instant::now() + pause + away >= end {
                tokio::time::sleep(end.saturating_duration_since(Instant::now())).await;
                return Ok(kills);
            }
            tokio::time::sleep(pause).await;
            let since = end.saturating_duration_since(Instant::now());
            match victim {
                // The leader, wherever it is, as often as all the followers together.
                0..2 => {
                    let (leader, _) = self.cluster.kill_leader().await?;
                    eprintln!(
                        "{:>4} s left: SIGKILL to replica {leader}, the leader",
                        since.as_secs()
                    );
                    tokio::time::sleep(away).await;
                    self.cluster.restart(leader).await?;
                    kills.leaders += 1;
                }
                2..4 => {
                    let (leader, _) = self.cluster.await_leader(None).await?;
                    let follower = leader % 3 + 1;
                    self.cluster.kill(follower)?;
                    eprintln!("{:>4} s left: SIGKILL to replica {follower}", since.as_secs());
                    tokio::time::sleep(away).await;
                    self.cluster.restart(follower).await?;
                    self.cluster.await_caught_up(follower).await?;
                    kills.followers += 1;
                }
                bank => {
                    let index = bank - 4;
                    let name = BANKS[index];
                    self.banks[index].send_kill()?;
                    eprintln!("{:>4} s left: SIGKILL to bank {name}", since.as_secs());
                    self.banks[index].gone().await?;
                    tokio::time::sleep(away).await;
                    let address = self.banks[index].address.to_string();
                    self.banks[index] = self.start_bank(name, &address).await?;
                    kills.banks += 1;
                }
            }
            self.cluster.await_leader(None).await?;
        }
    }

    pub(crate) async fn stop(mut self) -> Result<(), BoxError> {
        for bank in &mut self.banks {
            bank.stop().await?;
        }
        Ok(self.cluster.stop().await?)
    }
}

/// A bank's file.
pub(crate) fn database(data: &Path, bank: &str) -> PathBuf {
    data.join(format!("{bank}.redb"))
}
