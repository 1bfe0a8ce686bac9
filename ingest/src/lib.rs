//! From a socket to `Engine::write`: the MQTT listener, sources, decoders, dead letters, rules, rows over HTTP and gRPC.
//!
//! # Invariants
//! - A message becomes rows, a dead letter, or neither because nothing stores it; it never stops the stream.
//! - An acknowledgement follows the commit that it stands for.

mod bodies;
mod body;
mod dead_letter;
mod repeat;
mod row;
mod source;
mod topics;

pub mod decode;
pub mod grpc;
pub mod http;
pub mod limits;
pub mod mqtt;
pub mod rule;
pub mod tail;

use std::sync::Arc;

use sonde_engine::Engine;
use sonde_query::system::FnTable;
use sonde_query::{QueryEngine, StatementHandler};

pub use bodies::Bodies;
pub use topics::Topics;

/// What ingest keeps in the catalog from the first start on: the default source, the dead letters' table.
pub fn prepare(engine: &Engine) -> sonde_engine::Result<()> {
    source::ensure_default(engine)?;
    dead_letter::table(engine).map(drop)
}

/// `KILL SESSION 'client'`.
#[derive(Debug)]
struct KillSession(Arc<mqtt::Mqtt>);

impl StatementHandler for KillSession {
    fn prefix(&self) -> &'static [&'static str] {
        &["KILL", "SESSION"]
    }

    fn run(&self, argument: &str) -> sonde_query::Result<String> {
        let client = argument.trim_matches('\'');
        if self.0.kill_session(client) {
            return Ok("session ended".into());
        }
        Err(sonde_query::Error::Invalid(format!("no session of client '{client}'; see system.sessions")))
    }
}

/// Offers the live state of the rules to SQL.
pub fn register_rules(query: &QueryEngine, rules: &Arc<rule::Rules>) {
    let (rules, engine) = (Arc::clone(rules), query.engine().clone());
    query.register_table(Arc::new(FnTable::new("rules", move || rules.batch(&engine))));
}

/// Offers the live state of the MQTT listener to SQL.
pub fn register_mqtt(query: &QueryEngine, mqtt: &Arc<mqtt::Mqtt>) {
    let sessions = Arc::clone(mqtt);
    query.register_table(Arc::new(FnTable::new("sessions", move || sessions.sessions())));
    let subscriptions = Arc::clone(mqtt);
    query.register_table(Arc::new(FnTable::new("subscriptions", move || subscriptions.subscriptions())));
    let topics = Arc::clone(mqtt.topics());
    query.register_table(Arc::new(FnTable::new("topics", move || topics.batch())));
    query.register_statement(Arc::new(KillSession(Arc::clone(mqtt))));
}
