//! The record that holds a message as it came.

use crate::cursor::{Cursor, Result, Writer};
use crate::ids::SeqNo;
use crate::limits::{FRAME_BYTES, KEY_BYTES};
use crate::time::Timestamp;

/// A message as it came, where a session or a setting wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its sequence number.
    pub seq: SeqNo,
    /// When it came.
    pub received: Timestamp,
    /// Quality of service, 0 to 2.
    pub qos: u8,
    /// Whether it is to be retained.
    pub retain: bool,
    /// Its topic.
    pub topic: String,
    /// Its properties as MQTT 5 encodes them, without their length and without a topic alias.
    pub properties: Vec<u8>,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The same, borrowed: what a writer logs without copies, and what a reader finds in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRef<'a> {
    /// Its sequence number.
    pub seq: SeqNo,
    /// When it came.
    pub received: Timestamp,
    /// Quality of service, 0 to 2.
    pub qos: u8,
    /// Whether it is to be retained.
    pub retain: bool,
    /// Its topic.
    pub topic: &'a str,
    /// Its properties as MQTT 5 encodes them, without their length and without a topic alias.
    pub properties: &'a [u8],
    /// Its payload.
    pub payload: &'a [u8],
}

impl Message {
    /// The message, borrowed.
    #[must_use]
    pub fn borrowed(&self) -> MessageRef<'_> {
        let Self { seq, received, qos, retain, topic, properties, payload } = self;
        let (seq, received, qos, retain) = (*seq, *received, *qos, *retain);
        MessageRef { seq, received, qos, retain, topic, properties, payload }
    }
}

impl<'a> MessageRef<'a> {
    /// A copy of it.
    #[must_use]
    pub fn to_message(&self) -> Message {
        Message {
            seq: self.seq,
            received: self.received,
            qos: self.qos,
            retain: self.retain,
            topic: self.topic.to_owned(),
            properties: self.properties.to_vec(),
            payload: self.payload.to_vec(),
        }
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        assert!(self.qos <= 2, "a message of quality of service {}", self.qos);
        writer.u64(self.seq.0);
        writer.i64(self.received.as_nanos());
        writer.u8(self.qos | u8::from(self.retain) << 2);
        writer.bytes(self.topic.as_bytes());
        writer.bytes(self.properties);
        writer.put(self.payload);
    }

    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self> {
        let (seq, received) = (SeqNo(cursor.u64()?), Timestamp::from_nanos(cursor.i64()?));
        let flags = cursor.u8()?;
        let (qos, retain) = (flags & 3, flags & 4 != 0);
        if qos > 2 || flags > 7 {
            return Err(cursor.invalid("a quality of service of at most 2", flags.into()));
        }
        let topic = cursor.text(KEY_BYTES)?;
        let properties = cursor.bytes(FRAME_BYTES)?;
        Ok(Self { seq, received, qos, retain, topic, properties, payload: cursor.rest() })
    }
}
