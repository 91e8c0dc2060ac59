//! A wire between an office and a replica that a test can make lose what goes one way.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards connections to one address. Dropping it cuts them.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    is_losing_replies: bool,
    /// Connections that were made before the last cut are gone.
    cut_count: u64,
}

impl Proxy {
    /// Listens on a port of its own.
    ///
    /// # Panics
    /// There is none.
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let state = watch::Sender::new(State::default());
        let of_connections = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target.clone(), of_connections.subscribe()));
            }
        });
        Self { address, state, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on requests go through and what is answered is lost.
    pub fn lose_replies(&self) {
        self.state.send_modify(|state| state.is_losing_replies = true);
    }

    /// Cuts every connection. New ones carry both ways.
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            state.is_losing_replies = false;
            state.cut_count += 1;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn carry(client: TcpStream, target: String, state: watch::Receiver<State>) {
    let cut_count = state.borrow().cut_count;
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut cuts = state.clone();
    let _ended = tokio::select! {
        ended = copy(from_client, to_server, || false) => ended,
        ended = copy(from_server, to_client, || state.borrow().is_losing_replies) => ended,
        _ = cuts.wait_for(|state| state.cut_count > cut_count) => Ok(()),
    };
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    is_lost: impl Fn() -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        if !is_lost() {
            to.write_all(&buffer[..count]).await?;
        }
    }
}
