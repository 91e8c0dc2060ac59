//! Calls to the servers that Synod is compared with, without code that is generated from their protocols.

use crate::Failure;
use http::uri::PathAndQuery;
use std::time::Duration;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// A client of one server. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Client {
    grpc: Grpc<Channel>,
    call_timeout: Duration,
}

impl Client {
    /// Connects; neither that nor a call may take longer than `call_timeout`.
    pub(crate) async fn connect(endpoint: &str, call_timeout: Duration) -> Result<Self, Failure> {
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}"))?
            .connect_timeout(call_timeout)
            .tcp_nodelay(true);
        Ok(Self {
            grpc: Grpc::new(endpoint.connect().await?),
            call_timeout,
        })
    }

    /// Asks and waits for the answer.
    pub(crate) async fn call<A, B>(&mut self, path: &'static str, message: A) -> Result<B, Status>
    where
        A: prost::Message + Send + Sync + 'static,
        B: prost::Message + Default + Send + Sync + 'static,
    {
        let call = async {
            self.grpc
                .ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let path = PathAndQuery::from_static(path);
            self.grpc
                .unary(Request::new(message), path, ProstCodec::default())
                .await
        };
        timeout(self.call_timeout, call)
            .await
            .map_err(|_| Status::deadline_exceeded("no answer in time"))?
            .map(Response::into_inner)
    }
}
