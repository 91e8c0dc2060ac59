//! `synod outbox unsubscribe`: what a consumer has not got is dropped. Asked without `--yes` it only says how much that is.

use super::super::client::block_on;
use super::super::exit::{Exit, Failure};
use super::operate::{Word, show};
use super::{Service, answered, connect};
use serde::Serialize;
use synod_proto::v1;

/// Whose messages.
#[derive(Debug, clap::Args)]
pub(in super::super) struct Unsubscribe {
    /// The consumer's name.
    #[arg(value_name = "CONSUMER")]
    consumer: String,
    /// Only what is left of this topic, which was taken away from it.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    topic: String,
    /// Drop them: without it, only how many they are is told.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    word: Word,
    #[command(flatten)]
    service: Service,
}

#[derive(Serialize)]
struct Unsubscribed {
    action: &'static str,
    consumer: String,
    topic: Option<String>,
    count: u64,
}

pub(super) fn run(unsubscribe: Unsubscribe) -> Result<Exit, Failure> {
    let Unsubscribe {
        consumer,
        topic,
        yes,
        word,
        service,
    } = unsubscribe;
    let count = block_on(async {
        let mut client = connect(&service).await?;
        if yes {
            let request = v1::OutboxUnsubscribeRequest {
                consumer: consumer.clone(),
                topic: topic.clone(),
                author: word.author,
                reason: word.reason,
            };
            return Ok(answered(&service, client.unsubscribe(request)).await?.count);
        }
        let request = v1::OutboxUndeliveredCountRequest {
            consumer: consumer.clone(),
            topic: topic.clone(),
        };
        Ok(answered(&service, client.undelivered_count(request)).await?.count)
    })?;
    let topic = Some(topic).filter(|topic| !topic.is_empty());
    let of = topic.iter().map(|topic| format!(" of the topic `{topic}`"));
    let of: String = of.collect();
    if !yes {
        let text = format!(
            "nothing was done: {count} messages{of} that `{consumer}` has not got would be dropped for good; add --yes to drop them"
        );
        return Err(Failure::new(Exit::Failed, text));
    }
    let text =
        format!("{consumer}: unsubscribed, and {count} messages{of} that it had not got were dropped\n");
    let unsubscribed = Unsubscribed {
        action: "unsubscribed",
        consumer,
        topic,
        count,
    };
    show(&service, &unsubscribed, &text)
}
