//! MQTT 3.1.1 (OASIS 2014) and 5.0 (OASIS 2019), and the CONNECT of 3.1: packets as borrowed views of the bytes that carry them.
//!
//! # Invariants
//! - Decoding allocates nothing; what a packet holds borrows from the read buffer.
//! - A packet that decodes is well-formed: UTF-8 without U+0000, lengths that add up, properties and
//!   reason codes where they belong.
//! - `remaining length` is checked against the limit before any of the body is looked at.
#![forbid(unsafe_code)]

mod ack;
mod connect;
mod error;
mod packet;
mod property;
mod publish;
mod subscribe;
mod topic;
mod wire;

pub use ack::{Ack, Auth, ConnAck, Disconnect, SubAck};
pub use connect::{Connect, Will};
pub use error::{DecodeError, ReasonCode};
pub use packet::{Packet, Version, decode};
pub use property::{Properties, PropertiesBuilder, Property};
pub use publish::{Publish, QoS};
pub use subscribe::{Filter, RetainHandling, Subscribe, Unsubscribe};
pub use topic::{MAX_LEVELS, filter_matches, is_shared, validate_filter, validate_topic};
