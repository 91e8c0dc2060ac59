//! The business call: a unary gRPC method in which a service does one branch's work on its own file (steps 2 and 3).
//!
//! The method's client and server are what `tonic` generates from a `.proto` file, by hand: no public protocol is meant.

use bytes::Bytes;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use synod::Resource;
use synod::resource::redb::RedbResource;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Body as HttpBody, StdError};
use tonic::server::{NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// Where every branch writes its row.
pub(super) const TABLE: &str = "work";

const PATH: &str = "/synod.bench.Work/Do";

/// One row to write.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Row {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) value: Bytes,
}

/// It is written, and the branch has voted.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Done {}

/// The caller's side.
pub(super) struct WorkClient<T>(tonic::client::Grpc<T>);

impl<T> WorkClient<T>
where
    T: GrpcService<Body>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    pub(super) fn new(channel: T) -> Self {
        Self(tonic::client::Grpc::new(channel))
    }

    pub(super) async fn call(&mut self, row: Row) -> Result<Response<Done>, Status> {
        self.0
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.into().to_string()))?;
        let codec = ProstCodec::<Row, Done>::default();
        let path = PathAndQuery::from_static(PATH);
        self.0.unary(Request::new(row), path, codec).await
    }
}

/// The service's side.
#[derive(Clone, Debug)]
pub(super) struct WorkServer {
    database: Resource<RedbResource>,
}

impl WorkServer {
    pub(super) fn new(database: Resource<RedbResource>) -> Self {
        Self { database }
    }
}

impl NamedService for WorkServer {
    const NAME: &'static str = "synod.bench.Work";
}

type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl UnaryService<Row> for WorkServer {
    type Response = Done;
    type Future = Answer<Response<Done>, Status>;

    fn call(&mut self, request: Request<Row>) -> Self::Future {
        let database = self.database.clone();
        Box::pin(async move {
            let work = async |mut tx: synod::BranchTransaction<RedbResource>, row: Row| {
                tx.put(TABLE, &row.key, &row.value).await?;
                Ok(Done {})
            };
            database.branch(request, work).await
        })
    }
}

impl tower::Service<http::Request<Body>> for WorkServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let codec = ProstCodec::<Done, Row>::default();
            Ok(tonic::server::Grpc::new(codec).unary(method, request).await)
        })
    }
}
