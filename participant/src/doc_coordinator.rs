// A coordinator of one replica in the process of a documentation example, so that the example really runs.

/// Runs the example under a coordinator with fresh directories, of which the second argument is the example's own.
pub fn run<F, Fut>(example: F)
where
    F: FnOnce(Vec<String>, std::path::PathBuf) -> Fut,
    Fut: std::future::Future<Output = Result<(), synod::BoxError>>,
{
    let directory = tempfile::tempdir().expect("a directory");
    let (data, own) = (directory.path().join("replica-1"), directory.path().join("own"));
    std::fs::create_dir(&own).expect("a directory");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let done = async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let replica = synod_proto::ids::ReplicaId(1);
        let peers = std::collections::BTreeMap::from([(replica, address.clone())]);
        let settings = synod_coordinator::config::Settings::new("example".parse()?, replica, peers, data);
        let shutdown = tokio_util::sync::CancellationToken::new();
        let serving = synod_coordinator::replica_process::run(settings, listener, shutdown.clone());
        let serving = tokio::spawn(serving);
        example(vec![format!("http://{address}")], own).await?;
        shutdown.cancel();
        serving.await??;
        Ok::<_, synod::BoxError>(())
    };
    let limit = std::time::Duration::from_secs(60);
    runtime
        .block_on(async { tokio::time::timeout(limit, done).await })
        .expect("the example ends in time")
        .expect("the example succeeds");
}
