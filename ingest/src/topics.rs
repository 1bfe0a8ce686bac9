//! What became of the messages of each topic: the answer to "I published and see nothing".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::record_batch::RecordBatch;
use foldhash::HashMap;
use parking_lot::Mutex;
use sonde_query::system::{BatchBuilder, Kind};

use crate::limits::{REMEMBERED_TOPIC, TOPIC_ERROR_BYTES, TOPICS};

/// The columns of `system.topics`.
const COLUMNS: &[(&str, Kind)] = &[
    ("topic", Kind::Text),
    ("source", Kind::Text),
    ("messages", Kind::UInt),
    ("rows", Kind::UInt),
    ("rejected", Kind::UInt),
    ("last_error", Kind::Text),
];

/// Counters of one topic.
#[derive(Debug, Default)]
pub(crate) struct TopicStats {
    messages: AtomicU64,
    rows: AtomicU64,
    rejected: AtomicU64,
    detail: Mutex<Detail>,
}

#[derive(Debug, Default)]
struct Detail {
    source: Option<String>,
    last_error: Option<String>,
}

impl TopicStats {
    /// A message that became rows of a source, or none where no source matched.
    pub(crate) fn stored(&self, rows: u64) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// A message that became a dead letter.
    pub(crate) fn rejected(&self, reason: &str) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.rejected.fetch_add(1, Ordering::Relaxed);
        let reason = reason.get(..reason.floor_char_boundary(TOPIC_ERROR_BYTES)).unwrap_or(reason);
        self.detail.lock().last_error = Some(reason.to_owned());
    }

    /// The source that the topic's messages go to.
    pub(crate) fn set_source(&self, source: Option<&str>) {
        self.detail.lock().source = source.map(str::to_owned);
    }
}

/// All topics that were published to, up to a limit of their number, and of the length of each; the rest shares one entry.
#[derive(Debug, Default)]
pub struct Topics(Mutex<HashMap<Box<str>, Arc<TopicStats>>>);

/// The name of the entry that topics beyond the limits share.
const OTHERS: &str = "(other topics)";

impl Topics {
    /// The counters of a topic.
    pub(crate) fn of(&self, topic: &str) -> Arc<TopicStats> {
        let topic = if topic.len() > REMEMBERED_TOPIC { OTHERS } else { topic };
        let mut topics = self.0.lock();
        if let Some(stats) = topics.get(topic) {
            return Arc::clone(stats);
        }
        let name = if topics.len() < TOPICS { topic } else { OTHERS };
        Arc::clone(topics.entry(name.into()).or_default())
    }

    /// `system.topics`.
    pub fn batch(&self) -> sonde_query::Result<RecordBatch> {
        let topics = self.0.lock();
        let mut names: Vec<_> = topics.iter().collect();
        names.sort_by(|a, b| a.0.cmp(b.0));
        let mut rows = BatchBuilder::new(COLUMNS);
        for (topic, stats) in names {
            let detail = stats.detail.lock();
            rows.text(Some(topic));
            rows.text(detail.source.as_deref());
            rows.uint(stats.messages.load(Ordering::Relaxed));
            rows.uint(stats.rows.load(Ordering::Relaxed));
            rows.uint(stats.rejected.load(Ordering::Relaxed));
            rows.text(detail.last_error.as_deref());
            rows.end_row();
        }
        rows.finish()
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_topics_is_limited_in_number_and_length() {
        let topics = Topics::default();
        let long = |n: usize| format!("{n:08}{}", "x".repeat(REMEMBERED_TOPIC));
        (0..100).for_each(|n| topics.of(&long(n)).stored(1));
        assert!(topics.0.lock().keys().map(|name| &**name).eq([OTHERS]));
        assert_eq!(topics.of(OTHERS).messages.load(Ordering::Relaxed), 100);
        (0..TOPICS + 10).for_each(|n| topics.of(&n.to_string()).stored(1));
        assert_eq!(topics.0.lock().len(), TOPICS);
        topics.of("a").rejected(&"\u{e9}".repeat(TOPIC_ERROR_BYTES));
        let error = topics.of("a").detail.lock().last_error.clone().unwrap_or_default();
        assert!((TOPIC_ERROR_BYTES - 1..=TOPIC_ERROR_BYTES).contains(&error.len()));
    }
}
