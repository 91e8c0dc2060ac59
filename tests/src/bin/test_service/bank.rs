//! The office: moves on its own accounts, and transfers to the other office's.

use std::time::Duration;

use synod::resource::ResourceError;
use synod::resource::redb::{RedbResource, RedbTransaction};
use synod::{
    BoxError, CommitError, Committed, Participant, ResolveError, Resource, Transaction, TransactionOptions,
};
use synod_tests::process::bank::bank_client::BankClient;
use synod_tests::process::bank::bank_server::Bank;
use synod_tests::process::bank::{
    LookReply, LookRequest, MoveReply, MoveRequest, TransferReply, TransferRequest, Verdict,
};
use synod_tests::process::{ACCOUNT_COUNT, ACCOUNTS, OPENING_BALANCE, Point, TRANSFERS, account};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::points::Points;
use crate::store::PausingStore;

pub(crate) struct Office {
    pub(crate) participant: Participant,
    pub(crate) database: Resource<PausingStore>,
    pub(crate) other: Channel,
    pub(crate) points: Points,
}

/// Opens the accounts, once in the database's life.
pub(crate) async fn open_accounts(redb: &RedbResource) -> Result<(), ResourceError> {
    if redb.snapshot()?.get(ACCOUNTS, account(0))?.is_some() {
        return Ok(());
    }
    redb.local(async |tx| {
        for index in 0..ACCOUNT_COUNT {
            tx.put_u64(ACCOUNTS, &account(index), OPENING_BALANCE).await?;
        }
        Ok(())
    })
    .await
}

/// One office's half of a transfer: a row under the transfer's name, and the balance. The row is inserted, so that a second
/// effect of the same transfer would show.
async fn book(tx: &mut RedbTransaction, transfer: &str, account: &str, amount: i64) -> Result<u64, Status> {
    if !tx
        .insert(TRANSFERS, transfer, amount.to_be_bytes().to_vec())
        .await?
    {
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
    /// Both halves, this office's first.
    async fn work(&self, txn: &Transaction, request: &TransferRequest) -> Result<(), BoxError> {
        let amount = i64::try_from(request.amount)?;
        let TransferRequest {
            transfer, account, ..
        } = request.clone();
        txn.branch(&self.database, async move |mut tx| {
            book(&mut tx, &transfer, &account, -amount).await?;
            Ok(())
        })
        .await?;
        for index in 0..request.extra_branch_count {
            let row = format!("{}/{index}", request.transfer);
            txn.branch(&self.database, async move |mut tx| {
                Ok(tx.put(TRANSFERS, row, 0_i64.to_be_bytes().to_vec()).await?)
            })
            .await?;
        }
        let there = MoveRequest {
            transfer: request.transfer.clone(),
            account: request.account.clone(),
            amount,
        };
        txn.client(&self.other, BankClient::new).r#move(there).await?;
        Ok(())
    }

    async fn decide(&self, txn: Transaction) -> (Result<Committed, (Verdict, String)>, bool) {
        let gtid = txn.gtid();
        self.points.at(Point::Voted, gtid).await;
        let mut commit = Box::pin(txn.commit());
        // The first poll hands the request over (T7).
        let first = futures::poll!(&mut commit);
        self.points.at(Point::Requested, gtid).await;
        let answer = match first {
            std::task::Poll::Ready(answer) => answer,
            std::task::Poll::Pending => commit.await,
        };
        match answer {
            Ok(committed) => (Ok(committed), false),
            Err(CommitError::InDoubt(in_doubt)) => {
                self.points.at(Point::Doubted, gtid).await;
                let resolved = in_doubt.resolve().await.map_err(|error| match &error {
                    ResolveError::Aborted { .. } => (Verdict::Aborted, error.to_string()),
                    _ => (Verdict::Unspecified, error.to_string()),
                });
                (resolved, true)
            }
            Err(error @ CommitError::Aborted { .. }) => (Err((Verdict::Aborted, error.to_string())), false),
            Err(error @ CommitError::Mismatch { .. }) => {
                (Err((Verdict::Unspecified, error.to_string())), false)
            }
            Err(error) => (Err((Verdict::Refused, error.to_string())), false),
        }
    }
}

#[tonic::async_trait]
impl Bank for Office {
    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<MoveReply>, Status> {
        self.database
            .branch(
                request,
                async |mut tx,
                       MoveRequest {
                           transfer,
                           account,
                           amount,
                       }| {
                    let balance = book(&mut tx, &transfer, &account, amount).await?;
                    Ok(MoveReply { balance })
                },
            )
            .await
    }

    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<TransferReply>, Status> {
        let request = request.into_inner();
        let options = TransactionOptions::default().deadline(Duration::from_millis(request.deadline_ms));
        let txn = self.participant.begin_with(options);
        let gtid = txn.gtid().to_string();
        let (verdict, text, was_in_doubt) = match self.work(&txn, &request).await {
            // Nobody asked for the commit, so none comes, whatever becomes of the abort.
            Err(error) => {
                let _told = txn.abort("the work failed").await;
                (Verdict::Refused, error.to_string(), false)
            }
            Ok(()) => match self.decide(txn).await {
                (Ok(_committed), was_in_doubt) => (Verdict::Committed, String::new(), was_in_doubt),
                (Err((verdict, text)), was_in_doubt) => (verdict, text, was_in_doubt),
            },
        };
        Ok(Response::new(TransferReply {
            gtid,
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
