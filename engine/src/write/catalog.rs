//! The commit of a change of the catalog.

use std::sync::Arc;

use sonde_storage_format::{Durability, ObjectKind, SeqNo, SeqRange, State};

use super::Writer;
use crate::catalog::{Catalog, CatalogRequest};
use crate::engine::Inner;
use crate::error::Result;
use crate::jobs::Job;
use crate::mask::TOMBSTONES;
use crate::state::{CURSORS, cursor_key};
use crate::widen;

impl Writer {
    pub(super) fn commit_catalog(&mut self, request: &CatalogRequest) -> Result<SeqRange> {
        self.inner.health.check()?;
        let mut catalog = Catalog::clone(&self.inner.catalog.load());
        let changes = catalog.plan(request)?;
        self.check_widening(&catalog, request)?;
        if changes.is_empty() {
            // It is so already, as of the last commit.
            let last = self.last_seq();
            return Ok(SeqRange { first: last, last });
        }
        let seq = SeqRange { first: self.next_seq, last: self.next_seq };
        let mut records = self.records();
        changes.iter().for_each(|change| records.catalog(change));
        let cursor = cursor_of(&self.inner, request, seq.last);
        cursor.iter().for_each(|state| records.state(state));
        self.append(records, self.next_seq.plus(1), Durability::Fsync)?;
        changes.iter().for_each(|change| catalog.apply(change));
        // Before the catalog: who sees the rule finds its cursor.
        cursor.into_iter().for_each(|state| self.inner.state.apply(state));
        self.inner.catalog.store(Arc::new(catalog));
        if let CatalogRequest::DropTable(table) = request {
            self.active.drop_table(*table);
            self.inner.versions.drop_table(*table);
            self.inner.state.remove_prefix(TOMBSTONES, &table.0.to_be_bytes());
            self.inner.send_job(Job::Retain);
        }
        self.inner.publish(seq.last, &self.active);
        Ok(seq)
    }

    fn check_widening(&self, catalog: &Catalog, request: &CatalogRequest) -> Result<()> {
        let CatalogRequest::Widen(table, column, kind) = request else { return Ok(()) };
        let known = catalog.table_by_id(*table).and_then(|table| table.column_by_id(*column));
        match known.filter(|column| column.kind != *kind) {
            Some(column) => widen::check(&self.inner.versions.current(), &self.active, *table, column, *kind),
            None => Ok(()),
        }
    }
}

/// What becomes of a rule's cursor when the rule is made or dropped: it stands at the commit that made the rule, unless
/// the rule replaces one of its name.
fn cursor_of(inner: &Inner, request: &CatalogRequest, seq: SeqNo) -> Option<State> {
    let cursor = |database: &str, name: &str, value| State {
        namespace: CURSORS.into(),
        key: cursor_key(database, name),
        value,
    };
    match request {
        CatalogRequest::PutObject { object, .. } if object.kind == ObjectKind::Rule => {
            let state = cursor(&object.database, &object.name, Some(seq.0.to_le_bytes().to_vec()));
            inner.state.get(CURSORS, &state.key).is_none().then_some(state)
        }
        CatalogRequest::DropObject { kind: ObjectKind::Rule, database, name } => {
            Some(cursor(database, name, None))
        }
        _ => None,
    }
}
