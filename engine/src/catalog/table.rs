//! A table of the catalog: its definition, its columns by name and id, and its series.

use std::sync::Arc;

use foldhash::HashMap;
use sonde_storage_format::{CatalogChange, ColumnDef, ColumnId, ColumnRole, TableDef, TableId, TableOptions};

use crate::series::TableSeries;
use crate::series_budget::SeriesBudget;

/// A table as the catalog knows it.
#[derive(Clone, Debug)]
pub struct Table {
    def: TableDef,
    /// The place of each column in `def`.
    by_name: HashMap<String, usize>,
    /// Shared by all snapshots of the table.
    series: Arc<TableSeries>,
    /// Above the ids of all columns that it ever had.
    next_column: u32,
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.def == other.def
    }
}

impl Eq for Table {}

impl Table {
    /// A table whose series are in this account.
    pub(super) fn new(def: TableDef, budget: &Arc<SeriesBudget>) -> Self {
        let next_column = def.columns.iter().map(|column| column.id.0 + 1).max().unwrap_or_default();
        let series = Arc::new(TableSeries::new(budget));
        let mut table = Self { def, by_name: HashMap::default(), series, next_column };
        table.index_names();
        table
    }

    fn index_names(&mut self) {
        let places = self.def.columns.iter().enumerate();
        self.by_name = places.map(|(place, column)| (column.name.clone(), place)).collect();
    }

    pub(super) fn set_options(&mut self, options: TableOptions) {
        self.def.options = options;
    }

    pub(super) fn rename(&mut self, name: &str) {
        name.clone_into(&mut self.def.name);
    }

    /// No column to come gets an id below `next`.
    pub(super) fn reserve_columns(&mut self, next: ColumnId) {
        self.next_column = self.next_column.max(next.0);
    }

    /// The ids that it has given away beyond those of its columns, where there are any.
    pub(super) fn reserved(&self) -> Option<CatalogChange> {
        let last = self.def.columns.last().map_or(0, |column| column.id.0 + 1);
        let next = ColumnId(self.next_column);
        (last < self.next_column).then_some(CatalogChange::ReserveColumns { table: self.id(), next })
    }

    /// The id of the next column.
    pub(super) fn next_column(&self) -> u32 {
        self.next_column
    }

    pub(super) fn push_column(&mut self, column: ColumnDef) {
        self.by_name.insert(column.name.clone(), self.def.columns.len());
        self.next_column = self.next_column.max(column.id.0 + 1);
        self.def.columns.push(column);
    }

    /// Changes one of its columns, or takes it out.
    pub(super) fn change_column(
        &mut self,
        id: ColumnId,
        change: impl FnOnce(ColumnDef) -> Option<ColumnDef>,
    ) {
        if let Ok(place) = self.def.columns.binary_search_by_key(&id, |column| column.id) {
            let changed = change(self.def.columns.remove(place));
            changed.into_iter().for_each(|column| self.def.columns.insert(place, column));
            self.index_names();
        }
    }

    /// Its definition.
    #[must_use]
    pub fn def(&self) -> &TableDef {
        &self.def
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> TableId {
        self.def.id
    }

    /// The column of exactly this name.
    #[must_use]
    pub fn exact(&self, name: &str) -> Option<&ColumnDef> {
        self.def.columns.get(*self.by_name.get(name)?)
    }

    /// The column of this name: an exact match, else the only one that matches without regard to case.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&ColumnDef> {
        if let Some(column) = self.exact(name) {
            return Some(column);
        }
        let mut matches = self.def.columns.iter().filter(|column| column.name.eq_ignore_ascii_case(name));
        let first = matches.next()?;
        matches.next().is_none().then_some(first)
    }

    /// The column of this id.
    #[must_use]
    pub fn column_by_id(&self, id: ColumnId) -> Option<&ColumnDef> {
        // Columns are appended with ascending ids.
        let place = self.def.columns.binary_search_by_key(&id, |column| column.id).ok()?;
        self.def.columns.get(place)
    }

    /// How many series it may have: what it was given, else `default`.
    #[must_use]
    pub fn max_series(&self, default: usize) -> usize {
        match self.def.options.max_series {
            0 => default,
            most => most as usize,
        }
    }

    /// Its series, those that were registered after this snapshot included.
    pub(crate) fn series(&self) -> &Arc<TableSeries> {
        &self.series
    }

    /// Its tags, in ColumnId order, as series keys have them.
    pub fn tags(&self) -> impl Iterator<Item = &ColumnDef> + Clone {
        self.def.columns.iter().filter(|column| column.role == ColumnRole::Tag)
    }

    /// The place of a tag in the series key.
    #[must_use]
    pub fn tag_index(&self, id: ColumnId) -> Option<usize> {
        self.tags().position(|tag| tag.id == id)
    }

    /// `database.name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.def.database, self.def.name)
    }
}
