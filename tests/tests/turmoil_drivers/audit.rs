//! The auditor: a host that asks, over the network and once everything is healed, until the system has come to rest. It must.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use synod::{Gtid, Participant, TransactionStatus};
use synod_proto::environment::WallClock;
use synod_proto::v1;
use synod_proto::v1::coordinator_client::CoordinatorClient;
use synod_tests::process::bank::bank_client::BankClient;
use synod_tests::process::bank::{LookRequest, Verdict};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use crate::ledger::{Ledger, account};
use crate::plan::{CLOCK_OFFSET_MS_MAX, Call, DEADLINE_MS_MAX};
use crate::replica::COORDINATORS;
use crate::{clerk, net, office};

/// After healing: dead connections are noticed within a keep-alive's time, then everything resolves in a few round trips.
const REST_TIMEOUT: Duration = Duration::from_secs(60);
/// A single question.
const STEP: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);

/// What the auditor was told. Read when the simulation has ended.
#[derive(Clone, Debug, Default)]
pub struct Findings(Arc<Mutex<Found>>);

/// See [`Findings`].
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub outcomes: BTreeMap<Gtid, TransactionStatus>,
    /// How long after healing the system was at rest.
    pub rest_ms: u128,
    /// The counter of the leader's ballot: how often leadership was sought.
    pub round: u64,
}

impl Findings {
    pub fn take(&self) -> Found {
        std::mem::take(&mut self.0.lock().expect("no holder panics"))
    }
}

struct Auditor {
    replicas: Vec<CoordinatorClient<Channel>>,
    offices: [BankClient<Channel>; 2],
}

/// Waits for rest, makes one more transfer at each office, waits again, then asks for every outcome.
pub async fn run(ledger: Ledger, clock: WallClock, findings: Findings) -> turmoil::Result {
    let replicas = COORDINATORS.map(|address| {
        let endpoint = Endpoint::from_static(address)
            .connect_timeout(Duration::from_secs(1))
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(1));
        CoordinatorClient::new(net::lazy_channel(&endpoint))
    });
    let auditor = Auditor {
        replicas: replicas.into(),
        offices: [1, 2].map(|number| BankClient::new(office::channel(number))),
    };
    let started = Instant::now();
    // Nothing begins any more; by then work without a vote has ended too, by any clock (T14).
    let longest_ms = DEADLINE_MS_MAX + u64::try_from(2 * CLOCK_OFFSET_MS_MAX)?;
    let rest = auditor.rest(started + REST_TIMEOUT).await?;
    let rest_ms = started.elapsed().as_millis();
    sleep(Duration::from_millis(longest_ms)).await;
    for number in [1, 2] {
        auditor.transfer(number, &ledger).await?;
    }
    let round = auditor.rest(Instant::now() + REST_TIMEOUT).await?;
    if round != rest {
        return Err(format!("an election without a fault: round {rest} became {round}").into());
    }

    let participant = Participant::builder()
        .coordinators(COORDINATORS)
        .clock(clock)
        .connector(net::connector())
        .connect()
        .await?;
    let gtids: Vec<Gtid> = ledger.entries().attempts.keys().copied().collect();
    let mut outcomes = BTreeMap::new();
    for gtid in gtids {
        outcomes.insert(gtid, participant.outcome(gtid).await?);
    }
    participant.shutdown().await;
    *findings.0.lock().expect("no holder panics") = Found {
        outcomes,
        rest_ms,
        round: rest,
    };
    Ok(())
}

impl Auditor {
    /// Everything must go through again: a few tries, since a first one may meet a connection that is dead already.
    async fn transfer(&self, number: usize, ledger: &Ledger) -> turmoil::Result {
        let call = Call {
            at_ms: 0,
            office: number,
            transfer: format!("transfer-last-{number}"),
            account: account(number),
            // Whatever is left on the account.
            amount: 0,
            deadline_ms: DEADLINE_MS_MAX,
            patience_ms: DEADLINE_MS_MAX,
            try_count_max: 10,
        };
        let heard = clerk::ask(self.offices[number - 1].clone(), &call, ledger).await;
        if heard == Some(Verdict::Committed) {
            Ok(())
        } else {
            Err(format!("after healing, office {number} commits nothing; last heard: {heard:?}").into())
        }
    }

    /// Waits until nobody has anything left to do. Returns the leader's round.
    async fn rest(&self, deadline: Instant) -> turmoil::Result<u64> {
        loop {
            let restless = match self.look().await {
                Ok(round) => return Ok(round),
                Err(restless) => restless,
            };
            tracing::debug!(%restless, "not at rest");
            if Instant::now() >= deadline {
                return Err(format!("{} s after healing: {restless}", REST_TIMEOUT.as_secs()).into());
            }
            sleep(PAUSE).await;
        }
    }

    /// The leader's round, or what is not at rest yet.
    async fn look(&self) -> Result<u64, String> {
        let mut statuses = Vec::new();
        for (number, mut replica) in (1..).zip(self.replicas.iter().cloned()) {
            let reply = timeout(STEP, replica.status(v1::StatusRequest {})).await;
            let reply = reply.map_err(|_| format!("replica {number} does not answer"))?;
            let reply = reply.map_err(|status| format!("replica {number}: {status}"))?;
            statuses.push(reply.into_inner());
        }
        let round = at_rest(&statuses)?;
        for (number, mut office) in (1..).zip(self.offices.iter().cloned()) {
            let reply = timeout(STEP, office.look(LookRequest {})).await;
            let reply = reply.map_err(|_| format!("office {number} does not answer"))?;
            let reply = reply.map_err(|status| format!("office {number}: {status}"))?;
            let count = reply.into_inner().in_doubt_count;
            if count > 0 {
                return Err(format!("office {number} has {count} branches in doubt"));
            }
        }
        Ok(round)
    }
}

fn at_rest(statuses: &[v1::StatusReply]) -> Result<u64, String> {
    let seen = || {
        let one = |status: &v1::StatusReply| {
            format!(
                "replica {} is {}, follows {}, applied {}, admission {}, {} unfinished",
                status.replica,
                status.role,
                status.leader,
                status.applied_up_to,
                status.admission,
                status.unfinished_count
            )
        };
        statuses.iter().map(one).collect::<Vec<_>>().join("; ")
    };
    let leaders: Vec<_> = statuses.iter().filter(|status| status.role == "leader").collect();
    let [leader] = leaders[..] else {
        return Err(format!("{} leaders: {}", leaders.len(), seen()));
    };
    let agrees = |status: &v1::StatusReply| {
        status.leader == leader.replica
            && status.applied_up_to == leader.applied_up_to
            && status.outcome_count == leader.outcome_count
            && status.lineage == leader.lineage
            && status.admission == "admitted"
            && status.unfinished_count == 0
            && status.hazard_count == 0
    };
    if statuses.iter().all(agrees) {
        Ok(leader.ballot.as_ref().map_or(0, |ballot| ballot.round))
    } else {
        Err(seen())
    }
}
