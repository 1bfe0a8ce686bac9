//! What others ask of the event loop: rules that publish, statements that look or end, listeners of HTTP and gRPC.

use sonde_engine::Origin;

use super::Command;
use super::message::Message;
use super::turn::{ConnectionKey, Reply};
use super::worker::Worker;
use crate::limits::TURN_BYTES;

impl Worker {
    pub(super) fn serve_inbox(&mut self) {
        for command in self.inbox.take() {
            match command {
                Command::Publish(messages, reply) => self.publish_all(&messages, reply),
                Command::Kill(client, reply) => {
                    let key = self.by_client.get(&client).copied();
                    if let Some(key) = key {
                        if let Some(place) = self.sessions.get(key).and_then(|session| session.connection) {
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

    /// Publishes what a rule says, in turns of their own; answered with the last of them.
    fn publish_all(&mut self, messages: &[Message], reply: Reply) {
        self.begin_turn_from(messages.first().map_or(Origin::Client, |message| message.origin));
        let outcome = messages.iter().try_for_each(|message| {
            self.publish_internal(message, None)?;
            if self.turn.builder.bytes() >= TURN_BYTES {
                self.submit_turn();
            }
            Ok(())
        });
        match outcome {
            Ok(()) => self.turn.replies.push(reply),
            // Whoever asked may have gone.
            Err(error) => drop(reply.send(Err(error))),
        }
        self.begin_turn_from(Origin::Client);
    }

    /// Ends the turn: what comes now has this origin.
    fn begin_turn_from(&mut self, origin: Origin) {
        self.submit_turn();
        self.origin = origin;
        self.turn.builder.set_origin(origin);
    }
}
