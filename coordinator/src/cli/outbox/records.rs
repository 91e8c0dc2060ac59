//! `synod outbox records`: what operators did to a service's messages, and what came of it.

use super::super::client::block_on;
use super::super::exit::{Exit, Failure};
use super::super::output::{age, now_unix_ms, table};
use super::operate::show;
use super::{Service, answered, connect, page_length, printable};
use serde::Serialize;
use synod_proto::v1;

/// How many.
#[derive(Debug, clap::Args)]
pub(in super::super) struct Records {
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: usize,
    #[command(flatten)]
    service: Service,
}

#[derive(Serialize)]
struct Record {
    number: u64,
    recorded_at_unix_ms: u64,
    text: String,
}

pub(super) fn run(asked: &Records) -> Result<Exit, Failure> {
    let service = &asked.service;
    let records = block_on(async {
        let mut client = connect(service).await?;
        let mut records = Vec::new();
        let mut before = None;
        while records.len() < asked.count {
            let request = v1::OutboxRecordsRequest {
                before,
                count_max: page_length(asked.count - records.len()),
            };
            let reply = answered(service, client.records(request)).await?;
            records.extend(reply.records.into_iter().map(record));
            before = reply.next_before;
            if before.is_none() {
                break;
            }
        }
        Ok(records)
    })?;
    let now = now_unix_ms();
    let row = |record: &Record| {
        vec![
            record.number.to_string(),
            age(now, record.recorded_at_unix_ms),
            printable(&record.text),
        ]
    };
    let rows: Vec<_> = records.iter().map(row).collect();
    show(service, &records, &table(&["NUMBER", "RECORDED", "TEXT"], &rows))
}

fn record(record: v1::OutboxRecord) -> Record {
    Record {
        number: record.number,
        recorded_at_unix_ms: record.recorded_at_unix_ms,
        text: record.text,
    }
}
