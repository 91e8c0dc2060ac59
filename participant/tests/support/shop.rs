//! A gRPC service written out by hand: one unary method and one that streams its replies, both given as
//! closures.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, Bytes, Service, StdError};
use tonic::server::{NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Item {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int64, tag = "2")]
    pub amount: i64,
}

pub fn item(name: &str, amount: i64) -> Item {
    Item {
        name: name.to_owned(),
        amount,
    }
}

pub type Reply = Result<Response<Item>, Status>;
pub type Handler = Arc<dyn Fn(Request<Item>) -> BoxFuture<'static, Reply> + Send + Sync>;

pub fn handler<F, Fut>(method: F) -> Handler
where
    F: Fn(Request<Item>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    Arc::new(move |request| Box::pin(method(request)))
}

#[derive(Clone)]
pub struct ShopServer {
    handler: Handler,
}

impl ShopServer {
    pub fn new(handler: Handler) -> Self {
        Self { handler }
    }
}

impl NamedService for ShopServer {
    const NAME: &'static str = "test.Shop";
}

struct Unary(Handler);

impl UnaryService<Item> for Unary {
    type Response = Item;
    type Future = BoxFuture<'static, Reply>;

    fn call(&mut self, request: Request<Item>) -> Self::Future {
        (self.0)(request)
    }
}

/// Streams the unary reply twice.
struct Twice(Handler);

impl ServerStreamingService<Item> for Twice {
    type Response = Item;
    type ResponseStream = BoxStream<'static, Result<Item, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Item>) -> Self::Future {
        let reply = (self.0)(request);
        Box::pin(async move {
            let item = reply.await?.into_inner();
            let stream: Self::ResponseStream = Box::pin(futures::stream::iter([Ok(item.clone()), Ok(item)]));
            Ok(Response::new(stream))
        })
    }
}

impl Service<http::Request<Body>> for ShopServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let handler = self.handler.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Item, Item>::default());
            Ok(match request.uri().path() {
                "/test.Shop/Stream" => grpc.server_streaming(Twice(handler), request).await,
                _ => grpc.unary(Unary(handler), request).await,
            })
        })
    }
}

#[derive(Clone)]
pub struct ShopClient<T> {
    inner: tonic::client::Grpc<T>,
}

impl<T> ShopClient<T>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    pub fn new(channel: T) -> Self {
        Self {
            inner: tonic::client::Grpc::new(channel),
        }
    }

    pub async fn call(&mut self, request: impl tonic::IntoRequest<Item>) -> Reply {
        self.ready().await?;
        let path = PathAndQuery::from_static("/test.Shop/Call");
        self.inner
            .unary(request.into_request(), path, ProstCodec::<Item, Item>::default())
            .await
    }

    pub async fn stream(
        &mut self,
        request: impl tonic::IntoRequest<Item>,
    ) -> Result<Response<tonic::Streaming<Item>>, Status> {
        self.ready().await?;
        let path = PathAndQuery::from_static("/test.Shop/Stream");
        self.inner
            .server_streaming(request.into_request(), path, ProstCodec::<Item, Item>::default())
            .await
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.inner
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.into().to_string()))
    }
}
