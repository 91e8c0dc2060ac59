//! A channel that repeats itself.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::transport::Channel;

/// Runs every request twice, one after the other, and returns the last reply: what a hedging or retrying
/// channel does.
#[derive(Clone)]
pub struct Twice(pub Channel);

impl tower::Service<http::Request<tonic::body::Body>> for Twice {
    type Response = http::Response<tonic::body::Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let mut channel = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = collect(body).await;
            let copy = |()| {
                http::Request::from_parts(parts.clone(), tonic::body::Body::new(Whole(Some(body.clone()))))
            };
            let first = send(&mut channel, copy(())).await?;
            collect(first.into_body()).await;
            send(&mut channel, copy(())).await
        })
    }
}

async fn send(
    channel: &mut Channel,
    request: http::Request<tonic::body::Body>,
) -> Result<http::Response<tonic::body::Body>, tonic::transport::Error> {
    std::future::poll_fn(|cx| tower::Service::poll_ready(channel, cx)).await?;
    tower::Service::call(channel, request).await
}

async fn collect(mut body: tonic::body::Body) -> bytes::Bytes {
    let mut whole = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx))
        .await
        .transpose()
        .expect("well")
    {
        whole.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
    }
    whole.into()
}

struct Whole(Option<bytes::Bytes>);

impl http_body::Body for Whole {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(|data| Ok(http_body::Frame::data(data))))
    }
}
