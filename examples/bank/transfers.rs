//! The initiator: transfers between two banks, one global transaction each, whoever is dead just then.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use synod::{BoxError, CommitError, Participant, ResolveError, RetryError, RetryOptions, TransactionOptions};
use synod_examples::cluster::endpoint;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::proto::bank_client::BankClient;
use crate::proto::{InDoubtRequest, MoveRequest};

/// Short: a transfer whose bank died before its vote was heard is aborted then, and its account is free again.
const DEADLINE: Duration = Duration::from_secs(5);

/// How often a transfer is tried: through an election, and a bank's restart.
const ATTEMPT_COUNT_MAX: u32 = 20;

/// How long to ask for the outcome of one that is in doubt.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the last branches may take to hear their outcomes.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The most that a transfer moves, in cents: often more than an account has.
const CENTS_MAX: i64 = 400;

/// What the initiator knows of its transfers.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    /// Ids of those that it was told are committed.
    pub(crate) committed: BTreeSet<String>,
    pub(crate) refused: u64,
    /// Tried too often, and aborted.
    pub(crate) given_up: u64,
    pub(crate) resolved: u64,
    pub(crate) last_error: Option<String>,
    /// When each commit was known.
    pub(crate) at: Vec<Instant>,
}

pub(crate) struct Counter {
    participant: Participant,
    banks: Vec<Channel>,
    account_count: u32,
}

impl Counter {
    pub(crate) async fn open(
        coordinators: &[String],
        banks: &[SocketAddr],
        account_count: u32,
    ) -> Result<Self, BoxError> {
        let participant = Participant::builder()
            .coordinators(coordinators)
            .connect()
            .await?;
        // The channels find a bank again that was killed and is back on its port.
        let banks = banks.iter().map(|address| endpoint(*address).connect_lazy());
        Ok(Self {
            participant,
            banks: banks.collect(),
            account_count,
        })
    }

    /// Transfers until `end`, `in_flight` at a time.
    pub(crate) async fn transfer_until(
        &self,
        end: Instant,
        in_flight: u32,
        seed: u64,
    ) -> Result<Transfers, BoxError> {
        let workers = (0..in_flight).map(|worker| self.work_until(end, worker, seed));
        let mut all = Transfers::default();
        for transfers in futures::future::try_join_all(workers).await? {
            all.committed.extend(transfers.committed);
            all.refused += transfers.refused;
            all.given_up += transfers.given_up;
            all.resolved += transfers.resolved;
            all.last_error = transfers.last_error.or(all.last_error);
            all.at.extend(transfers.at);
        }
        all.at.sort_unstable();
        Ok(all)
    }

    async fn work_until(&self, end: Instant, worker: u32, seed: u64) -> Result<Transfers, BoxError> {
        let mut random = StdRng::seed_from_u64(seed ^ (u64::from(worker) + 1) << 32);
        let mut transfers = Transfers::default();
        for number in 0_u64.. {
            if Instant::now() >= end {
                break;
            }
            let from = random.random_range(0..2);
            let mut account = || format!("account-{}", random.random_range(0..self.account_count));
            let (debited, credited) = (account(), account());
            let cents = random.random_range(1..=CENTS_MAX);
            let id = format!("{worker}-{number}");
            let moves = [(from, debited, -cents), (1 - from, credited, cents)];
            if self.transfer(&id, &moves, &mut transfers).await? {
                transfers.committed.insert(id);
                transfers.at.push(Instant::now());
            }
        }
        Ok(transfers)
    }

    /// One transfer to its end: whether it is committed.
    async fn transfer(
        &self,
        id: &str,
        moves: &[(usize, String, i64); 2],
        transfers: &mut Transfers,
    ) -> Result<bool, BoxError> {
        let options = RetryOptions::default()
            .attempt_count_max(ATTEMPT_COUNT_MAX)
            .transaction(TransactionOptions::default().deadline(DEADLINE));
        let moved = synod::retry(&self.participant, options, async |txn| {
            for (bank, account, cents) in moves {
                let request = MoveRequest {
                    account: account.clone(),
                    cents: *cents,
                    transfer: id.to_owned(),
                };
                txn.client(&self.banks[*bank], BankClient::new)
                    .r#move(request)
                    .await?;
            }
            Ok(())
        });
        match moved.await {
            Ok(((), _committed)) => Ok(true),
            // The leader died with the request on its way: the log knows, and tells.
            Err(RetryError::Commit {
                source: CommitError::InDoubt(in_doubt),
                ..
            }) => {
                transfers.resolved += 1;
                let begun = Instant::now();
                loop {
                    match in_doubt.resolve().await {
                        Ok(_committed) => return Ok(true),
                        Err(ResolveError::Aborted { .. }) => return Ok(false),
                        Err(error) if begun.elapsed() > RESOLVE_TIMEOUT => return Err(error.into()),
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                }
            }
            Err(error) if is_short_of_money(&error) => {
                transfers.refused += 1;
                Ok(false)
            }
            // Nothing was handed over, or it was aborted: no money has moved.
            Err(error) => {
                transfers.given_up += 1;
                transfers.last_error = Some(chain(&error));
                Ok(false)
            }
        }
    }

    /// Waits until no bank is in doubt about anything; returns how many branches still are.
    pub(crate) async fn settle(&self) -> Result<u64, BoxError> {
        let begun = Instant::now();
        loop {
            let mut count = 0;
            for bank in &self.banks {
                let reply = BankClient::new(bank.clone()).in_doubt(InDoubtRequest {}).await?;
                count += reply.into_inner().count;
            }
            if count == 0 || begun.elapsed() > SETTLE_TIMEOUT {
                return Ok(count);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn close(self) {
        self.participant.shutdown().await;
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error: &&'a (dyn Error + 'static)| error.source())
}

fn is_short_of_money(error: &(dyn Error + 'static)) -> bool {
    let mut statuses = causes(error).filter_map(|cause| cause.downcast_ref::<Status>());
    statuses.any(|status| status.code() == Code::OutOfRange)
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let texts: Vec<_> = causes(error).map(ToString::to_string).collect();
    texts.join(": ")
}
