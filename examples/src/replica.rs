//! A replica of the coordinator as a process of its own: what `synod start` runs, with the settings that the driver tells.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use synod_coordinator::config::Settings;
use synod_proto::ids::ReplicaId;

use crate::process;

/// How [`Cluster`](crate::cluster::Cluster) starts a replica: the arguments of a hidden sub-command `replica`, which every
/// example has.
#[derive(Debug, Args)]
pub struct ReplicaArgs {
    /// Its number.
    #[arg(long)]
    pub replica: u8,
    /// Its directory.
    #[arg(long)]
    pub data: PathBuf,
    /// Where it listens; port 0 for any.
    #[arg(long)]
    pub listen: SocketAddr,
}

/// Runs until the driver ends it. Only replicas of a cluster of the same name talk to each other.
///
/// # Errors
/// What `synod start` would say.
pub fn main(cluster: &str, args: &ReplicaArgs) -> Result<(), Box<dyn Error>> {
    process::start_trace(std::io::stderr);
    let listener = process::bind(args.listen)?;
    process::announce(listener.local_addr()?)?;
    let peers = parse_peers(&process::told()?)?;
    let settings = Settings::new(
        cluster.parse()?,
        ReplicaId(args.replica),
        peers,
        args.data.clone(),
    );
    let shutdown = process::until_driver_ends();
    // One reactor thread for each replica, and a storage thread beside it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        synod_coordinator::replica_process::run(settings, listener, shutdown).await?;
        Ok(())
    })
}

/// Reads `1=127.0.0.1:4001,2=127.0.0.1:4002,...`.
fn parse_peers(line: &str) -> Result<BTreeMap<ReplicaId, String>, Box<dyn Error>> {
    let peers = line.split(',').map(|peer| {
        let (id, address) = peer.split_once('=')?;
        Some((ReplicaId(id.parse().ok()?), address.to_owned()))
    });
    peers
        .collect::<Option<_>>()
        .ok_or_else(|| format!("`{line}` is no list of replicas").into())
}
