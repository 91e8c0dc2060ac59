//! An office of the bank: the real participant library over its session, a redb file, and a server that takes part in
//! the other office's transactions.

use std::time::Duration;

use synod::resource::redb::{MemoryDisk as Disk, RedbTransaction};
use synod::{
    BoxError, CommitError, Gtid, Participant, ResolveError, Resource, Transaction, TransactionOptions,
};
use synod_proto::environment::WallClock;
use synod_tests::process::bank::bank_client::BankClient;
use synod_tests::process::bank::bank_server::{Bank, BankServer};
use synod_tests::process::bank::{
    LookReply, LookRequest, MoveReply, MoveRequest, TransferReply, TransferRequest, Verdict,
};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::ledger::{ACCOUNTS, Attempt, Ledger, TRANSFERS};
use crate::net;
use crate::replica::COORDINATORS;
use crate::store::{self, BlockingStore};

pub const PORT: u16 = 9_000;

/// How long a commit waits before it is in doubt: short, so that a leader change is felt.
const DECIDE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// The name of an office's host.
pub fn host(office: usize) -> String {
    format!("office-{office}")
}

/// What an office is started with, again after every crash.
#[derive(Clone, Debug)]
pub struct Start {
    pub office: usize,
    pub disk: Disk,
    pub clock: WallClock,
    pub ledger: Ledger,
    /// Takes a commit in doubt for a commit.
    pub guesses: bool,
}

struct Office {
    number: usize,
    participant: Participant,
    database: Resource<BlockingStore>,
    other: Channel,
    ledger: Ledger,
    guesses: bool,
}

/// The channel to an office. Its server may be killed or cut off at any time, so a silent one is given up soon.
pub fn channel(office: usize) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}:{PORT}", host(office))).expect("an address");
    net::lazy_channel(
        &endpoint
            .connect_timeout(Duration::from_secs(1))
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(1))
            .keep_alive_while_idle(true),
    )
}

/// The office's process: it has no end of its own.
pub async fn run(start: Start) -> turmoil::Result {
    let participant = loop {
        let connecting = Participant::builder()
            .coordinators(COORDINATORS)
            .decide_timeout(DECIDE_TIMEOUT)
            .clock(start.clock.clone())
            .connector(net::connector())
            .connect();
        match connecting.await {
            Ok(participant) => break participant,
            Err(error) => tracing::info!(%error, "the office waits for a coordinator"),
        }
    };
    let redb = store::open(&start.disk, start.clock.clone())?;
    let database = loop {
        match participant.resource(BlockingStore(redb.clone())).await {
            Ok(database) => break database,
            // Registration goes on by itself; a leader change can outlast one wait for it.
            Err(error) => tracing::info!(%error, "the office's database is not registered yet"),
        }
    };
    let office = Office {
        number: start.office,
        participant: participant.clone(),
        database,
        other: channel(3 - start.office),
        ledger: start.ledger,
        guesses: start.guesses,
    };
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(2)))
        .layer(participant.layer())
        .add_service(BankServer::new(office))
        .serve_with_incoming(net::listen(PORT).await?)
        .await?;
    Ok(())
}

/// One office's half of a transfer. The row is inserted, so that a second effect of the same transfer shows (T2).
async fn book(tx: &mut RedbTransaction, transfer: &str, account: &str, amount: i64) -> Result<u64, Status> {
    let amount_bytes = amount.to_be_bytes().to_vec();
    if !tx.insert(TRANSFERS, transfer, amount_bytes).await? {
        return Err(Status::already_exists(format!("{transfer} is booked already")));
    }
    let balance = tx.get_u64_for_update(ACCOUNTS, account).await?;
    let balance = balance.ok_or_else(|| Status::not_found(format!("no account {account}")))?;
    let balance = balance
        .checked_add_signed(amount)
        .ok_or_else(|| Status::out_of_range("not that much there"))?;
    tx.put_u64(ACCOUNTS, account, balance).await?;
    Ok(balance)
}

impl Office {
    async fn work(&self, txn: &Transaction, request: &TransferRequest, amount: i64) -> Result<(), BoxError> {
        let (transfer, account) = (request.transfer.clone(), request.account.clone());
        txn.branch(&self.database, async move |mut tx| {
            book(&mut tx, &transfer, &account, -amount).await?;
            Ok(())
        })
        .await?;
        let mut there = Request::new(MoveRequest {
            transfer: request.transfer.clone(),
            account: request.account.clone(),
            amount,
        });
        there.set_timeout(Duration::from_millis(request.deadline_ms));
        txn.client(&self.other, BankClient::new).r#move(there).await?;
        Ok(())
    }

    async fn decide(&self, txn: Transaction) -> (Verdict, String, bool) {
        match txn.commit().await {
            Ok(_committed) => (Verdict::Committed, String::new(), false),
            Err(CommitError::InDoubt(_)) if self.guesses => (Verdict::Committed, String::new(), true),
            Err(CommitError::InDoubt(in_doubt)) => match in_doubt.resolve().await {
                Ok(_committed) => (Verdict::Committed, String::new(), true),
                Err(error @ ResolveError::Aborted { .. }) => (Verdict::Aborted, error.to_string(), true),
                Err(error) => (Verdict::Unspecified, error.to_string(), true),
            },
            Err(error @ CommitError::Aborted { .. }) => (Verdict::Aborted, error.to_string(), false),
            Err(error @ CommitError::Mismatch { .. }) => (Verdict::Unspecified, error.to_string(), false),
            Err(error) => (Verdict::Refused, error.to_string(), false),
        }
    }

    fn begun(&self, gtid: Gtid, request: &TransferRequest, amount: i64) {
        let attempt = Attempt {
            transfer: request.transfer.clone(),
            office: self.number,
            account: request.account.clone(),
            amount,
            told: None,
            was_in_doubt: false,
        };
        self.ledger.begun(gtid, attempt);
    }
}

#[tonic::async_trait]
impl Bank for Office {
    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<MoveReply>, Status> {
        self.database
            .branch(request, async |mut tx, request: MoveRequest| {
                let MoveRequest {
                    transfer,
                    account,
                    amount,
                } = request;
                let balance = book(&mut tx, &transfer, &account, amount).await?;
                Ok(MoveReply { balance })
            })
            .await
    }

    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<TransferReply>, Status> {
        let request = request.into_inner();
        let amount = i64::try_from(request.amount).map_err(|_| Status::invalid_argument("too much"))?;
        let options = TransactionOptions::default().deadline(Duration::from_millis(request.deadline_ms));
        let txn = self.participant.begin_with(options);
        let gtid = txn.gtid();
        self.begun(gtid, &request, amount);
        let (verdict, text, was_in_doubt) = match self.work(&txn, &request, amount).await {
            Ok(()) => self.decide(txn).await,
            // Nobody asked for the commit, so none comes, whatever becomes of the abort.
            Err(error) => {
                let _told = txn.abort("the work failed").await;
                (Verdict::Refused, error.to_string(), false)
            }
        };
        tracing::info!(%gtid, ?verdict, %text, was_in_doubt, transfer = %request.transfer, "told");
        self.ledger.told(gtid, verdict, was_in_doubt);
        Ok(Response::new(TransferReply {
            gtid: gtid.to_string(),
            verdict: verdict.into(),
            text,
            was_in_doubt,
        }))
    }

    async fn look(&self, _: Request<LookRequest>) -> Result<Response<LookReply>, Status> {
        let in_doubt_count = u32::try_from(self.participant.in_doubt().len()).unwrap_or(u32::MAX);
        let resource = self.database.id().0.to_vec();
        Ok(Response::new(LookReply {
            in_doubt_count,
            resource,
        }))
    }
}
