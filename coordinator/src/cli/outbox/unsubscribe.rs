//! `synod outbox unsubscribe`: what a consumer has not got is dropped. Asked without `--yes` it only says how much that is.

use super::super::client::block_on;
use super::super::exit::{Exit, Failure};
use super::operate::show;
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
    /// Who decides this; with `--yes`.
    #[arg(long, required_if_eq("yes", "true"))]
    author: Option<String>,
    /// Why; with `--yes`.
    #[arg(long, required_if_eq("yes", "true"))]
    reason: Option<String>,
    #[command(flatten)]
    service: Service,
}

#[derive(Serialize)]
struct Unsubscribed {
    /// `None` where nothing was done.
    action: Option<&'static str>,
    consumer: String,
    topic: Option<String>,
    count: u64,
}

pub(super) fn run(unsubscribe: Unsubscribe) -> Result<Exit, Failure> {
    let Unsubscribe {
        consumer,
        topic,
        yes,
        author,
        reason,
        service,
    } = unsubscribe;
    let count = block_on(async {
        let mut client = connect(&service).await?;
        if yes {
            let request = v1::OutboxUnsubscribeRequest {
                consumer: consumer.clone(),
                topic: topic.clone(),
                author: author.unwrap_or_default(),
                reason: reason.unwrap_or_default(),
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
    if !yes && !service.json {
        let text = format!(
            "nothing was done: {count} messages{of} that `{consumer}` has not got would be dropped for good; add --yes to drop them"
        );
        return Err(Failure::new(Exit::Failed, text));
    }
    let text =
        format!("{consumer}: unsubscribed, and {count} messages{of} that it had not got were dropped\n");
    let unsubscribed = Unsubscribed {
        action: yes.then_some("unsubscribed"),
        consumer,
        topic,
        count,
    };
    let done = show(&service, &unsubscribed, &text)?;
    Ok(if yes { done } else { Exit::Failed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        unsubscribe: Unsubscribe,
    }

    #[test]
    fn author_and_reason_are_wanted_only_where_something_is_dropped() {
        let parsed = |more: &[&str]| {
            Line::try_parse_from([&["unsubscribe", "billing", "--service", "h:1"], more].concat())
        };
        assert!(parsed(&[]).is_ok());
        let by = ["--author", "ada", "--reason", "gone"];
        let line = parsed(&[&["--yes"], &by[..]].concat()).expect("complete");
        assert_eq!(line.unsubscribe.author.as_deref(), Some("ada"));
        for missing in [
            &["--yes"][..],
            &["--yes", "--author", "ada"],
            &["--yes", "--reason", "gone"],
        ] {
            let refused = parsed(missing).expect_err("on whose word, and why?");
            assert_eq!(refused.kind(), clap::error::ErrorKind::MissingRequiredArgument);
        }
    }
}
