//! A bank: accounts in a redb file, behind one method that takes part in global transactions.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use synod::resource::ResourceManager as _;
use synod::resource::redb::{RedbOptions, RedbResource};
use synod::{Participant, Resource};
use synod_examples::process;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::proto::bank_server::{Bank, BankServer};
use crate::proto::{InDoubtReply, InDoubtRequest, MoveReply, MoveRequest};

/// Account to cents.
pub(crate) const ACCOUNTS: &str = "accounts";
/// Transfer's id to cents, with its sign: this bank's half of the book.
pub(crate) const BOOK: &str = "book";

/// How long it waits for a coordinator that is losing its leader just now.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How the driver starts a bank.
#[derive(Debug, Args)]
pub(crate) struct BankArgs {
    #[arg(long)]
    pub(crate) database: PathBuf,
    /// The replicas' addresses, `http://host:port`
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) coordinators: Vec<String>,
    /// Where it listens: a killed bank comes back on the same port
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    pub(crate) listen: SocketAddr,
}

struct BankService {
    database: Resource<RedbResource>,
}

#[tonic::async_trait]
impl Bank for BankService {
    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<MoveReply>, Status> {
        self.database
            .branch(request, async |mut tx, request| {
                let MoveRequest {
                    account,
                    cents,
                    transfer,
                } = request;
                let Some(balance) = tx.get_u64_for_update(ACCOUNTS, &account).await? else {
                    return Err(Status::not_found(format!("{account} is no account of this bank")));
                };
                let Some(balance) = balance.checked_add_signed(cents) else {
                    return Err(Status::out_of_range(format!("{account} has {balance} cents")));
                };
                tx.put_u64(ACCOUNTS, &account, balance).await?;
                // Refuses a transfer that is in the book already, whoever sends it again.
                tx.insert(BOOK, &transfer, cents.to_be_bytes().to_vec()).await?;
                Ok(MoveReply { balance })
            })
            .await
    }

    async fn in_doubt(&self, _request: Request<InDoubtRequest>) -> Result<Response<InDoubtReply>, Status> {
        let count = self.database.manager().in_doubt().await?.len() as u64;
        Ok(Response::new(InDoubtReply { count }))
    }
}

/// In a bank's process: runs until the driver ends it, or kills it.
pub(crate) fn main(args: &BankArgs) -> Result<(), Box<dyn Error>> {
    process::start_trace(std::io::stderr);
    let shutdown = process::until_driver_ends();
    tokio::runtime::Runtime::new()?.block_on(async {
        let participant = Participant::builder()
            .coordinators(&args.coordinators)
            .connect_timeout(CONNECT_TIMEOUT)
            .connect()
            .await?;
        // A branch that the killed process left in doubt has its locks again, and asks for its outcome. A lock is waited for
        // a second only: a transfer the other way round may be waiting for the first one's other account.
        let store = RedbOptions::default().lock_timeout(Duration::from_secs(1));
        let database = participant.resource(store.open(&args.database)?).await?;
        let listener = TcpListener::from_std(process::bind(args.listen)?)?;
        process::announce(listener.local_addr()?)?;
        Server::builder()
            .layer(participant.layer())
            .add_service(BankServer::new(BankService { database }))
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                shutdown.cancelled_owned(),
            )
            .await?;
        participant.shutdown().await;
        Ok(())
    })
}
