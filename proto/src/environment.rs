//! What a process takes from the machine that it runs on, where a simulation gives something else: the wall clock and the
//! way to another process. Everything else in the drivers is tokio's, and follows its virtual time.

use crate::ids::UnixMillis;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint, Error};

/// A wall clock: deadlines and stamps are in its terms, because several machines share them (T14). Cheap to clone.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> UnixMillis + Send + Sync>);

impl WallClock {
    /// The machine's own, whatever NTP makes of it. Before 1970 it reads 0.
    #[must_use]
    pub fn system() -> Self {
        Self::new(|| {
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
        })
    }

    /// Another one. It is read often and from any thread.
    #[must_use]
    pub fn new(now: impl Fn() -> UnixMillis + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        (self.0)()
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WallClock({})", self.now().0)
    }
}

/// A byte stream to another process.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// How connections to other processes are opened: TCP without delay, or a way of one's own. Cheap to clone.
#[derive(Clone, Default)]
pub struct Connector(Option<Arc<dyn Fn(Uri) -> Connecting + Send + Sync>>);

impl Connector {
    /// TCP, as the endpoint's own options say.
    #[must_use]
    pub fn tcp() -> Self {
        Self(None)
    }

    /// Another way. `connect` gets the address with scheme, host and port, and is called again for every connection; the
    /// endpoint's timeout for connecting holds around it.
    #[must_use]
    pub fn new<F, S>(connect: impl Fn(Uri) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: Io + 'static,
    {
        Self(Some(Arc::new(move |address| {
            let connecting = connect(address);
            Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Io>) })
        })))
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// As [`Endpoint::connect`].
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, Error> {
        let Some(connect) = self.0.clone() else {
            return endpoint.connect().await;
        };
        let connect = tower::service_fn(move |address| {
            let connecting = connect(address);
            async move { connecting.await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(connect).await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Connector(custom)"
        } else {
            "Connector(tcp)"
        })
    }
}
