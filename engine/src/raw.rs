//! Messages as they came, on their way to the log: their bytes in one buffer, so that a message costs no allocation.

use sonde_storage_format::{MessageRef, SeqNo, Timestamp};

/// Bytes of a message besides its own, in the log and here.
const OVERHEAD: usize = 40;

/// Where a message's parts lie in the buffer.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Its place among the messages of the batch.
    message: u32,
    received: Timestamp,
    qos: u8,
    retain: bool,
    topic: usize,
    properties: usize,
    payload: usize,
}

/// The messages of a batch that are to be logged.
#[derive(Debug, Default)]
pub(crate) struct RawMessages {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
}

impl RawMessages {
    /// Bytes that a message adds to its batch.
    pub(crate) fn bytes_of(message: &MessageRef<'_>) -> usize {
        message.topic.len() + message.properties.len() + message.payload.len() + OVERHEAD
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Adds the message of this place in the batch; places ascend.
    pub(crate) fn push(&mut self, place: u32, message: &MessageRef<'_>) {
        let last = self.marks.last().map(|mark| mark.message);
        assert!(last.is_none_or(|last| last < place), "message {place} is logged behind message {last:?}");
        self.bytes.extend_from_slice(message.topic.as_bytes());
        self.bytes.extend_from_slice(message.properties);
        self.bytes.extend_from_slice(message.payload);
        self.marks.push(Mark {
            message: place,
            received: message.received,
            qos: message.qos,
            retain: message.retain,
            topic: message.topic.len(),
            properties: message.properties.len(),
            payload: message.payload.len(),
        });
    }

    /// The messages, given the sequence number of the batch's first.
    pub(crate) fn iter(&self, first: SeqNo) -> impl Iterator<Item = MessageRef<'_>> {
        let mut rest = self.bytes.as_slice();
        let mut take = move |len: usize| {
            let (taken, behind) = rest.split_at_checked(len).unwrap_or_default();
            rest = behind;
            taken
        };
        self.marks.iter().map(move |mark| MessageRef {
            seq: first.plus(mark.message.into()),
            received: mark.received,
            qos: mark.qos,
            retain: mark.retain,
            topic: std::str::from_utf8(take(mark.topic)).unwrap_or_default(),
            properties: take(mark.properties),
            payload: take(mark.payload),
        })
    }
}
