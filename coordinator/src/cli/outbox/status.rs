//! `synod outbox status`: what a service's outbox holds, and how its consumers stand, side by side.

use super::super::client::block_on;
use super::super::exit::{Exit, Failure};
use super::super::output::table;
use super::operate::show;
use super::{Service, answered, connect, printable, uuid, warning};
use serde::Serialize;
use synod_proto::v1;

#[derive(Serialize)]
struct Status {
    source: String,
    next_position: u64,
    stored_count: u64,
    scheduled_count: u64,
    consumers: Vec<Consumer>,
}

#[derive(Serialize)]
struct Consumer {
    consumer: String,
    /// Of one that is named where the outbox is opened.
    endpoint: Option<String>,
    topics: Vec<String>,
    retired_topics: Vec<String>,
    mark: u64,
    dead_count: u64,
    unsettled_count: u64,
    trouble: Option<String>,
}

pub(super) fn run(service: &Service) -> Result<Exit, Failure> {
    let reply = block_on(async {
        let mut client = connect(service).await?;
        answered(service, client.status(v1::OutboxStatusRequest {})).await
    })?;
    for warning in reply.consumers.iter().filter_map(warning) {
        eprintln!("synod: {warning}");
    }
    let status = status(reply);
    show(service, &status, &people(&status))
}

fn status(reply: v1::OutboxStatusReply) -> Status {
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let consumer = |consumer: v1::ConsumerStatus| Consumer {
        consumer: consumer.consumer,
        endpoint: text(consumer.endpoint),
        topics: consumer.topics,
        retired_topics: consumer.retired_topics,
        mark: consumer.mark,
        dead_count: consumer.dead_count,
        unsettled_count: consumer.unsettled_count,
        trouble: text(consumer.trouble),
    };
    Status {
        source: uuid(&reply.source),
        next_position: reply.next_position,
        stored_count: reply.stored_count,
        scheduled_count: reply.scheduled_count,
        consumers: reply.consumers.into_iter().map(consumer).collect(),
    }
}

fn people(status: &Status) -> String {
    let listed = |names: &[String]| match names {
        [] => "-".to_owned(),
        names => printable(&names.join(", ")),
    };
    let told = |text: &Option<String>| text.as_deref().map_or("-".to_owned(), printable);
    let row = |consumer: &Consumer| {
        vec![
            printable(&consumer.consumer),
            told(&consumer.endpoint),
            listed(&consumer.topics),
            listed(&consumer.retired_topics),
            consumer.mark.to_string(),
            consumer.dead_count.to_string(),
            consumer.unsettled_count.to_string(),
            told(&consumer.trouble),
        ]
    };
    let header = [
        "CONSUMER",
        "ENDPOINT",
        "TOPICS",
        "RETIRED TOPICS",
        "MARK",
        "DEAD",
        "UNSETTLED",
        "TROUBLE",
    ];
    let rows: Vec<_> = status.consumers.iter().map(row).collect();
    format!(
        "outbox {}: {} messages stored, {} scheduled, next position {}\n{}",
        status.source,
        status.stored_count,
        status.scheduled_count,
        status.next_position,
        table(&header, &rows)
    )
}
