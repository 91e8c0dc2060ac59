//! An inbox that follows a script instead of its duty, over real gRPC: what a relay must bear.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use synod_proto::v1;
use synod_proto::v1::delivery_answer::Answer;
use synod_proto::v1::messages_server::{Messages, MessagesServer};
use tokio::sync::{Barrier, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Serving, serve_router};

/// What becomes of a stream after its welcome.
#[derive(Clone, Copy)]
pub enum Script {
    /// Each delivery is answered at once.
    Answer(fn(&v1::MessageDelivery) -> Answer),
    /// Nothing is read, and nothing said.
    Deaf,
    /// The first frame ends the stream.
    End,
}

#[derive(Clone)]
pub struct Scripted {
    script: Script,
    /// So many streams get their welcome together; later ones at once.
    together: usize,
    barrier: Arc<Barrier>,
    stream_count: Arc<AtomicUsize>,
    delivered: Arc<Mutex<Vec<(usize, v1::MessageDelivery)>>>,
}

impl Scripted {
    pub fn new(script: Script) -> Self {
        Self::welcoming_together(script, 1)
    }

    pub fn welcoming_together(script: Script, together: usize) -> Self {
        Self {
            script,
            together,
            barrier: Arc::new(Barrier::new(together)),
            stream_count: Arc::default(),
            delivered: Arc::default(),
        }
    }

    /// Takes part in a welcome that streams wait for together.
    pub async fn welcome(&self) {
        self.barrier.wait().await;
    }

    pub fn stream_count(&self) -> usize {
        self.stream_count.load(Ordering::Acquire)
    }

    /// What was read, each with the number of its stream, from 0.
    pub fn delivered(&self) -> Vec<(usize, v1::MessageDelivery)> {
        self.delivered.lock().expect("no panic").clone()
    }

    pub async fn serve(&self) -> Serving {
        let service = MessagesServer::new(self.clone()).max_decoding_message_size(1 << 20);
        let router = tonic::transport::Server::builder().add_service(service);
        serve_router(router, "127.0.0.1:0".parse().expect("an address")).await
    }

    fn answer(&self, stream: usize, delivery: v1::MessageDelivery) -> Option<v1::DeliveryAnswer> {
        let Script::Answer(script) = self.script else {
            return None;
        };
        let answer = v1::DeliveryAnswer {
            position: delivery.position,
            fence: delivery.fence,
            answer: Some(script(&delivery)),
        };
        self.delivered.lock().expect("no panic").push((stream, delivery));
        Some(answer)
    }

    async fn follow(
        self,
        stream: usize,
        mut incoming: Streaming<v1::RelayFrame>,
        frames: mpsc::Sender<Result<v1::InboxFrame, Status>>,
    ) {
        let say = |frame| frames.send(Ok(v1::InboxFrame { frame: Some(frame) }));
        let Ok(Some(_hello)) = incoming.message().await else {
            return;
        };
        if stream < self.together {
            self.barrier.wait().await;
        }
        // Those that are welcomed together come to a database of their own each.
        let database = if self.together > 1 { stream + 1 } else { 1 };
        let welcome = v1::InboxWelcome {
            resource: vec![u8::try_from(database).expect("few streams"); 16].into(),
            mark: 0,
            highest_applied: 0,
            takes_cancelled: true,
        };
        let _ = say(v1::inbox_frame::Frame::Welcome(welcome)).await;
        match self.script {
            Script::End => return drop(incoming.message().await),
            Script::Deaf => return frames.closed().await,
            Script::Answer(_) => {}
        }
        while let Ok(Some(frame)) = incoming.message().await {
            let said = match frame.frame {
                Some(v1::relay_frame::Frame::Batch(batch)) => {
                    let answers = batch.deliveries.into_iter();
                    let answers = answers
                        .filter_map(|delivery| self.answer(stream, delivery))
                        .collect();
                    v1::inbox_frame::Frame::Answers(v1::DeliveryAnswers { answers })
                }
                Some(v1::relay_frame::Frame::LowWater(low_water)) => {
                    v1::inbox_frame::Frame::LowWaterReached(low_water.mark)
                }
                _ => return,
            };
            let _ = say(said).await;
        }
    }
}

#[tonic::async_trait]
impl Messages for Scripted {
    type DeliverStream = ReceiverStream<Result<v1::InboxFrame, Status>>;

    async fn deliver(
        &self,
        request: Request<Streaming<v1::RelayFrame>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let stream = self.stream_count.fetch_add(1, Ordering::AcqRel);
        let (frames, outgoing) = mpsc::channel(64);
        tokio::spawn(self.clone().follow(stream, request.into_inner(), frames));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}
