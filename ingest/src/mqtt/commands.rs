//! What others ask of the event loop: rules that publish, statements that look or end, listeners of HTTP and gRPC.

use sonde_engine::Origin;
use sonde_proto::mqtt::ReasonCode;

use super::Command;
use super::message::Message;
use super::turn::{ConnectionKey, Reply};
use super::worker::Worker;

/// What a rule says, as far as it is not published.
#[derive(Debug)]
pub(super) struct Publishing {
    messages: std::vec::IntoIter<Message>,
    reply: Reply,
}

impl Worker {
    pub(super) fn serve_inbox(&mut self) {
        for command in self.inbox.take() {
            match command {
                Command::Publish(messages, reply) => {
                    self.publishing.push_back(Publishing { messages: messages.into_iter(), reply });
                }
                Command::Kill(client, reply) => {
                    let key = self.by_client.get(&client).copied();
                    if let Some(key) = key {
                        if let Some(place) = self.sessions.get(key).and_then(|session| session.connection) {
                            self.tell_end(place, ReasonCode::ADMINISTRATIVE_ACTION);
                            self.close(place);
                        }
                        self.drop_session(key);
                    }
                    let _ = reply.send(key.is_some());
                }
                Command::Recognised { place, generation, answer } => {
                    self.recognised(ConnectionKey { place, generation }, answer);
                }
                Command::Tail(begin) => self.begin_tail(begin),
                Command::EndTail(key, ended) => self.leave_tail(key, &ended),
                Command::Past(work) => self.take_rows(work),
                Command::List(reply) => drop(reply.send(self.list())),
                Command::Subscriptions(reply) => drop(reply.send(self.list_subscriptions())),
                Command::ReloadCertificates => self.doors.refresh_certificates(true),
                Command::Stop => self.stopping = true,
            }
        }
    }

    /// Publishes what rules say, in turns of their own, while few commits are outstanding; answered with the last of them.
    pub(super) fn publish_on(&mut self) {
        while self.may_read() {
            let Some(mut publishing) = self.publishing.pop_front() else { return };
            let first = publishing.messages.as_slice().first();
            self.begin_turn_from(first.map_or(Origin::Client, |message| message.origin));
            match self.publish_some(&mut publishing.messages) {
                Ok(true) => self.turn.replies.push(publishing.reply),
                Ok(false) => self.publishing.push_front(publishing),
                // Whoever asked may have gone.
                Err(error) => drop(publishing.reply.send(Err(error))),
            }
            self.begin_turn_from(Origin::Client);
        }
    }

    /// Whether that was all.
    fn publish_some(&mut self, messages: &mut std::vec::IntoIter<Message>) -> sonde_engine::Result<bool> {
        while self.may_read() {
            let Some(message) = messages.next() else { return Ok(true) };
            self.publish_internal(&message, None)?;
            if self.turn.is_full() {
                self.submit_turn();
            }
        }
        Ok(messages.as_slice().is_empty())
    }

    /// Ends the turn: what comes now has this origin.
    fn begin_turn_from(&mut self, origin: Origin) {
        self.submit_turn();
        self.origin = origin;
        self.turn.builder.set_origin(origin);
    }
}
