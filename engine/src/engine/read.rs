//! What the handle reads: rows, series, state and the log.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sonde_storage_format::{MessageRef, SeqNo, SeqRange, SeriesId, TableId};

use super::Engine;
use crate::catalog::Table;
use crate::error::Result;
use crate::limits::LOG_READ_BYTES;
use crate::log_reader::{LogReader, LogTurn};
use crate::message_reader::{MessageReader, MessageTurn};
use crate::scan::latest::{Latest, LatestRequest, latest};
use crate::scan::{Scan, ScanRequest, Snapshot, scan};

impl Engine {
    /// Everything committed so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        // The version first: what it shows, the catalog knows.
        let version = self.inner.versions.current();
        Snapshot::new(version, self.catalog())
    }

    /// Chooses what a request needs of a snapshot.
    pub fn scan(&self, snapshot: &Snapshot, request: &ScanRequest) -> Result<Arc<Scan>> {
        scan(&self.inner, snapshot, request).map(Arc::new)
    }

    /// The newest point of each series that passes the request's filters.
    pub fn latest(&self, snapshot: &Snapshot, request: &LatestRequest) -> Result<Latest> {
        latest(&self.inner, snapshot, request)
    }

    /// Number of series of a table.
    #[must_use]
    pub fn series_count(&self, table: TableId) -> usize {
        self.catalog().table_by_id(table).map_or(0, |table| table.series().len())
    }

    /// Bytes of memory that the series of all tables take, by estimate, and how many they may take.
    #[must_use]
    pub fn series_memory(&self) -> (usize, usize) {
        let catalog = self.inner.catalog.load();
        (catalog.series_budget().used(), catalog.series_budget().limit())
    }

    /// The tag values of a series, in the order of the table's tags.
    #[must_use]
    pub fn series_tags(&self, table: &Table, id: SeriesId) -> Vec<Option<String>> {
        table.series().tags(id, table.tags().count())
    }

    /// The value of a key of a namespace.
    #[must_use]
    pub fn state(&self, namespace: &str, key: &[u8]) -> Option<Bytes> {
        self.inner.state.get(namespace, key)
    }

    /// All keys and values of a namespace.
    #[must_use]
    pub fn state_entries(&self, namespace: &str) -> Vec<(Vec<u8>, Bytes)> {
        self.inner.state.list(namespace)
    }

    /// The last committed sequence number.
    #[must_use]
    pub fn published(&self) -> SeqNo {
        self.inner.published.get()
    }

    /// Waits until something behind `after` is committed; returns the last committed sequence number.
    #[must_use]
    pub fn wait_published(&self, after: SeqNo, patience: Duration) -> SeqNo {
        self.inner.published.wait(after, patience)
    }

    /// Reads on in the log: committed rows of the tables that `wanted` names.
    pub fn read_log(&self, reader: &mut LogReader, wanted: impl Fn(TableId) -> bool) -> Result<LogTurn> {
        let published = self.published();
        reader.turn(self.inner.storage.as_ref(), &self.inner.segments, published, LOG_READ_BYTES, wanted)
    }

    /// Gives the logged messages of these ranges, which ascend, to `each` in their order, until it breaks.
    pub fn read_messages(
        &self,
        reader: &mut MessageReader,
        wanted: &[SeqRange],
        each: &mut dyn FnMut(MessageRef<'_>) -> ControlFlow<()>,
    ) -> Result<MessageTurn> {
        let published = self.published();
        reader.read(self.inner.storage.as_ref(), &self.inner.segments, published, wanted, each)
    }
}
