//! State that others keep in the log: namespaces of keys and values, as durable as rows.
//!
//! # Invariants
//! - The writer thread alone applies changes, in log order.
//! - A checkpoint holds every key, so that the log can go.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::RwLock;
use sonde_storage_format::{SeqNo, State, StateEntry};

/// Where each rule stands in the log. The engine makes and removes a cursor in the commit of its rule, and keeps the log
/// behind every one; whoever runs the rules moves them.
pub const CURSORS: &str = "rule.cursor";

/// Where others stand in the log, by name; values as those of [`CURSORS`]. Whoever puts one here moves it and takes it
/// away; the log behind it is kept, within its budget, from the start on.
pub const LOG_CURSORS: &str = "log.cursor";

/// The key of a rule's cursor; its value is a sequence number, u64 little endian.
#[must_use]
pub fn cursor_key(database: &str, name: &str) -> Vec<u8> {
    format!("{database}.{name}").into_bytes()
}

/// All namespaces.
#[derive(Debug, Default)]
pub(crate) struct StateStore(RwLock<BTreeMap<String, BTreeMap<Vec<u8>, Bytes>>>);

impl StateStore {
    pub(crate) fn apply(&self, change: State) {
        let mut namespaces = self.0.write();
        let keys = namespaces.entry(change.namespace).or_default();
        match change.value {
            Some(value) => keys.insert(change.key, value.into()),
            None => keys.remove(&change.key),
        };
    }

    /// Removes every key of a namespace that begins so.
    pub(crate) fn remove_prefix(&self, namespace: &str, prefix: &[u8]) {
        if let Some(keys) = self.0.write().get_mut(namespace) {
            keys.retain(|key, _| !key.starts_with(prefix));
        }
    }

    pub(crate) fn get(&self, namespace: &str, key: &[u8]) -> Option<Bytes> {
        self.0.read().get(namespace).and_then(|keys| keys.get(key)).cloned()
    }

    pub(crate) fn list(&self, namespace: &str) -> Vec<(Vec<u8>, Bytes)> {
        let namespaces = self.0.read();
        let keys = namespaces.get(namespace).into_iter().flatten();
        keys.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The oldest cursor of a rule or of another follower.
    pub(crate) fn oldest_cursor(&self) -> Option<SeqNo> {
        self.oldest_cursor_of().map(|(position, _)| position)
    }

    /// The same, and whose it is.
    pub(crate) fn oldest_cursor_of(&self) -> Option<(SeqNo, String)> {
        let namespaces = self.0.read();
        let position = |value: &Bytes| Some(SeqNo(u64::from_le_bytes(value.as_ref().try_into().ok()?)));
        let oldest = |namespace: &str| {
            let cursors = namespaces.get(namespace).into_iter().flatten();
            let oldest = cursors.filter_map(|(key, value)| Some((position(value)?, key))).min();
            oldest.map(|(position, key)| (position, String::from_utf8_lossy(key).into_owned()))
        };
        let rule = oldest(CURSORS).map(|(position, rule)| (position, format!("rule {rule}")));
        rule.into_iter().chain(oldest(LOG_CURSORS)).min()
    }

    /// Every key, for a checkpoint.
    pub(crate) fn entries(&self) -> Vec<StateEntry> {
        let namespaces = self.0.read();
        let entries =
            namespaces.iter().flat_map(|(namespace, keys)| keys.iter().map(move |entry| (namespace, entry)));
        entries
            .map(|(namespace, (key, value))| StateEntry {
                namespace: namespace.clone(),
                key: key.clone(),
                value: value.to_vec(),
            })
            .collect()
    }
}
