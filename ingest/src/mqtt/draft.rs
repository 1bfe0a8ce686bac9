//! A message on its way in: what it says lies in the packet that brought it, and is copied where somebody keeps it.

use std::cell::OnceCell;
use std::sync::Arc;

use sonde_engine::{MessageRef, SeqNo, Timestamp};
use sonde_proto::mqtt::Publish;

use super::message::Message;

/// What a message comes as.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form<'a> {
    /// As a packet of a client, or something that looks like one.
    Packet(&'a Publish<'a>),
    /// As a message that has yet to arrive: a will, or what a rule says.
    Message(&'a Message),
}

/// A message that arrived, of which a copy is made when one is asked for.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    form: Form<'a>,
    arrival: Timestamp,
    copy: OnceCell<Arc<Message>>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(form: Form<'a>, arrival: Timestamp) -> Self {
        Self { form, arrival, copy: OnceCell::new() }
    }

    /// A message that arrived before.
    pub(super) fn again(message: &'a Arc<Message>) -> Self {
        let (form, copy) = (Form::Message(message), OnceCell::from(Arc::clone(message)));
        Self { form, arrival: message.arrival, copy }
    }

    pub(super) fn topic(&self) -> &str {
        match self.form {
            Form::Packet(publish) => publish.topic,
            Form::Message(message) => &message.topic,
        }
    }

    /// The message, to be kept.
    pub(super) fn whole(&self) -> &Arc<Message> {
        self.copy.get_or_init(|| {
            Arc::new(match self.form {
                Form::Packet(publish) => Message::of(publish, self.arrival),
                Form::Message(message) => Message { arrival: self.arrival, ..message.clone() }.weighed(),
            })
        })
    }

    /// The packet, where nothing of it is left out of a message that is made of it.
    fn plain(&self) -> Option<&'a Publish<'a>> {
        match self.form {
            Form::Packet(publish) if publish.properties.is_empty() => Some(publish),
            _ => None,
        }
    }

    /// Bytes that the message takes, for quotas.
    pub(super) fn bytes(&self) -> usize {
        match self.plain() {
            Some(publish) => Message::bytes_of(publish.topic, publish.payload, &[]),
            None => self.whole().bytes(),
        }
    }

    /// Gives the message as the log keeps it.
    pub(super) fn log<R>(&self, log: impl FnOnce(&MessageRef<'_>) -> R) -> R {
        let Some(publish) = self.plain() else {
            let message = self.whole();
            return log(&message.raw(&message.properties_to_keep()));
        };
        log(&MessageRef {
            seq: SeqNo(0),
            received: self.arrival,
            qos: publish.qos as u8,
            retain: publish.retain,
            topic: publish.topic,
            properties: &[],
            payload: publish.payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use sonde_proto::mqtt::{Properties, PropertiesBuilder, Property, QoS};

    use super::*;

    /// Whether it was copied or not, a message is the same in the log, and counts the same.
    #[test]
    fn a_copy_says_what_the_packet_says() {
        let mut some = PropertiesBuilder::new();
        some.push(Property::MessageExpiryInterval(9));
        some.push(Property::UserProperty("a", "b"));
        some.push(Property::TopicAlias(3));
        let arrival = Timestamp::from_secs(7);
        for properties in [Properties::from_encoded(&[]), some.as_properties()] {
            let (dup, qos, retain, packet_id) = (false, QoS::ExactlyOnce, true, 4);
            let publish =
                Publish { dup, qos, retain, topic: "a/b", packet_id, properties, payload: b"\x00x" };
            let draft = Draft::new(Form::Packet(&publish), arrival);
            let (bytes, logged) = (draft.bytes(), draft.log(|message| message.to_message()));
            assert_eq!(draft.copy.get().is_none(), publish.properties.is_empty());
            let whole = draft.whole();
            assert_eq!((bytes, draft.topic()), (whole.bytes(), "a/b"));
            assert_eq!(logged, whole.raw(&whole.properties_to_keep()).to_message());
            assert_eq!((whole.arrival, whole.expiry.is_some()), (arrival, !publish.properties.is_empty()));
            assert_eq!(Message::of_log(&logged.borrowed()), **whole);
        }
    }

    #[test]
    fn a_message_from_inside_arrives_when_it_is_taken() {
        let message = Message::new("t", b"x", QoS::AtLeastOnce, false);
        let arrival = Timestamp::from_secs(7);
        let draft = Draft::new(Form::Message(&message), arrival);
        assert_eq!(**draft.whole(), Message { arrival, ..message.clone() });
        assert!(Arc::ptr_eq(Draft::again(draft.whole()).whole(), draft.whole()), "it has arrived");
    }
}
