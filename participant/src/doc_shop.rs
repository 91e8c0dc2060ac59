// A client and a server trait as `tonic` generates them from a .proto file, shortened: what the crate's examples call.

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReserveRequest {
    #[prost(string, tag = "1")]
    pub sku: String,
    #[prost(uint64, tag = "2")]
    pub quantity: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReserveReply {
    #[prost(uint64, tag = "1")]
    pub left: u64,
}

pub struct InventoryClient<T>(tonic::client::Grpc<T>);

impl<T> InventoryClient<T>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::ResponseBody: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
{
    pub fn new(channel: T) -> Self {
        Self(tonic::client::Grpc::new(channel))
    }

    pub async fn reserve(
        &mut self,
        request: impl tonic::IntoRequest<ReserveRequest>,
    ) -> Result<tonic::Response<ReserveReply>, tonic::Status> {
        self.0
            .ready()
            .await
            .map_err(|error| tonic::Status::unavailable(error.into().to_string()))?;
        let path = tonic::codegen::http::uri::PathAndQuery::from_static("/shop.Inventory/Reserve");
        let codec = tonic_prost::ProstCodec::<ReserveRequest, ReserveReply>::default();
        self.0.unary(request.into_request(), path, codec).await
    }
}
