//! Merges sources in (key, time) order; the newest write of a field wins.
//!
//! # Invariants
//! - Sources stand oldest first. Each is sorted and holds a point at most once.
//! - A merge holds one window of each source, never a whole source.

use std::sync::Arc;

use sonde_storage_format::{Cell, Cells, Column, ColumnId, PhysicalType, Texts, Values};

use crate::error::Result;
use crate::scan::ScanContext;
use crate::scan::source::Source;

/// Rows in (key, time) order: ranks and times by row, and the scan's fields. Of a source that is merged with nothing,
/// ranks and times that nobody asks for may be left out.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    rows: usize,
    pub(crate) ranks: Vec<u32>,
    pub(crate) times: Vec<i64>,
    pub(crate) columns: Vec<Column>,
}

impl Window {
    pub(crate) fn new(ranks: Vec<u32>, times: Vec<i64>, columns: Vec<Column>) -> Self {
        Self { rows: times.len(), ranks, times, columns }
    }

    /// Fields alone.
    pub(crate) fn of_fields(rows: usize, columns: Vec<Column>) -> Self {
        Self { rows, ranks: Vec::new(), times: Vec::new(), columns }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    fn point(&self, row: usize) -> Option<(u32, i64)> {
        self.ranks.get(row).copied().zip(self.times.get(row).copied())
    }

    /// These rows, in this order.
    pub(crate) fn gather(&self, rows: &[usize]) -> Self {
        Self {
            rows: rows.len(),
            ranks: rows.iter().filter_map(|row| self.ranks.get(*row).copied()).collect(),
            times: rows.iter().filter_map(|row| self.times.get(*row).copied()).collect(),
            columns: self.columns.iter().map(|column| column.gather(rows)).collect(),
        }
    }

    fn slice(&self, rows: std::ops::Range<usize>) -> Self {
        Self {
            rows: rows.len(),
            ranks: self.ranks.get(rows.clone()).unwrap_or_default().to_vec(),
            times: self.times.get(rows.clone()).unwrap_or_default().to_vec(),
            columns: self.columns.iter().map(|column| column.slice(rows.clone())).collect(),
        }
    }
}

/// A row of an input on its way into a window. Sorting keeps the inputs' order among equal points.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowRef {
    pub(crate) rank: u32,
    pub(crate) time: i64,
    pub(crate) input: u32,
    pub(crate) row: u32,
}

impl RowRef {
    pub(crate) fn point(&self) -> (u32, i64) {
        (self.rank, self.time)
    }
}

/// The types of the scan's fields.
pub(crate) fn kinds(context: &ScanContext) -> Vec<PhysicalType> {
    let kind =
        |id: &ColumnId| context.table.column_by_id(*id).map_or(PhysicalType::Float64, |column| column.kind);
    context.fields.iter().map(kind).collect()
}

/// Makes a window of sorted rows. `columns` gives for each field and input its column, if the input has it; where
/// several rows are one point, the newest cell that is not absent is taken.
pub(crate) fn assemble(
    kinds: &[PhysicalType],
    columns: &[Vec<Option<&Column>>],
    refs: &[RowRef],
    fold: bool,
) -> Window {
    let next = refs.get(1..).unwrap_or_default();
    if !fold || refs.iter().zip(next).all(|(row, next)| row.point() != next.point()) {
        let out = kinds.iter().zip(columns).map(|(kind, inputs)| pick(*kind, inputs, refs)).collect();
        return Window::new(
            refs.iter().map(|row| row.rank).collect(),
            refs.iter().map(|row| row.time).collect(),
            out,
        );
    }
    let points: Vec<&[RowRef]> = refs.chunk_by(|a, b| a.point() == b.point()).collect();
    let newest = |point: &&[RowRef]| point.last().copied();
    let out = kinds.iter().zip(columns).map(|(kind, inputs)| gather(*kind, inputs, &points)).collect();
    Window::new(
        points.iter().filter_map(newest).map(|row| row.rank).collect(),
        points.iter().filter_map(newest).map(|row| row.time).collect(),
        out,
    )
}

/// The cells of rows that are all points of their own. A cell without a value has a slot, which is empty.
fn pick(kind: PhysicalType, inputs: &[Option<&Column>], rows: &[RowRef]) -> Column {
    macro_rules! slots {
        ($variant:ident) => {{
            let slots = inputs.iter().map(|column| match column.map(|column| &column.values) {
                Some(Values::$variant(values)) => values.as_slice(),
                _ => &[],
            });
            let inputs: Vec<&[_]> = slots.collect();
            let slot = |row: &RowRef| inputs.get(row.input as usize)?.get(row.row as usize).copied();
            Values::$variant(rows.iter().map(|row| slot(row).unwrap_or_default()).collect())
        }};
    }
    let is_of_kind = |column: &&Column| column.values.kind() == kind;
    let full = |column: &&Column| matches!(column.cells, Cells::Values(_));
    if !inputs.iter().flatten().all(is_of_kind) || kind == PhysicalType::Text {
        return gather(kind, inputs, &rows.chunks(1).collect::<Vec<_>>());
    }
    let cells = if inputs.iter().all(|column| column.as_ref().is_some_and(full)) {
        Cells::Values(rows.len())
    } else {
        let column = |row: &RowRef| inputs.get(row.input as usize).copied().flatten();
        let mut cells = Cells::Values(0);
        let cell = |row| column(row).map_or(Cell::Absent, |column| column.cells.get(row.row as usize));
        rows.iter().for_each(|row| cells.push(cell(row)));
        cells
    };
    let values = match kind {
        PhysicalType::Float64 => slots!(Float),
        PhysicalType::Int64 => slots!(Int),
        PhysicalType::UInt64 => slots!(UInt),
        PhysicalType::Boolean => slots!(Bool),
        PhysicalType::Text => unreachable!("strings have no slots of one size"),
    };
    Column { cells, values }
}

/// The newest value of each point where no input lacks a cell; `None` where one does, and for strings.
fn newest_values(kind: PhysicalType, inputs: &[Option<&Column>], points: &[&[RowRef]]) -> Option<Values> {
    macro_rules! newest {
        ($variant:ident) => {{
            let mut whole = Vec::with_capacity(inputs.len());
            for input in inputs {
                match input {
                    Some(Column { cells: Cells::Values(_), values: Values::$variant(values) }) => {
                        whole.push(values.as_slice());
                    }
                    _ => return None,
                }
            }
            let newest = points.iter().filter_map(|point| point.last());
            let value = |row: &RowRef| whole.get(row.input as usize)?.get(row.row as usize).copied();
            Values::$variant(newest.map(|row| value(row).unwrap_or_default()).collect())
        }};
    }
    Some(match kind {
        PhysicalType::Float64 => newest!(Float),
        PhysicalType::Int64 => newest!(Int),
        PhysicalType::UInt64 => newest!(UInt),
        PhysicalType::Boolean => newest!(Bool),
        PhysicalType::Text => return None,
    })
}

fn gather(kind: PhysicalType, inputs: &[Option<&Column>], points: &[&[RowRef]]) -> Column {
    if let Some(values) = newest_values(kind, inputs, points) {
        return Column::of(values);
    }
    let input = |row: &RowRef| inputs.get(row.input as usize).copied().flatten();
    let cell = |row: &RowRef| input(row).map_or(Cell::Absent, |column| column.cells.get(row.row as usize));
    let mut cells = Cells::Values(0);
    let mut picks: Vec<Option<RowRef>> = Vec::with_capacity(points.len());
    for point in points {
        let written = point.iter().rev().find(|row| cell(row) != Cell::Absent);
        let state = written.map_or(Cell::Absent, &cell);
        cells.push(state);
        picks.push(written.copied().filter(|_| state == Cell::Value));
    }
    macro_rules! pick {
        ($variant:ident) => {
            Values::$variant(
                picks
                    .iter()
                    .map(|pick| match pick.as_ref().and_then(|row| Some((input(row)?, row.row as usize))) {
                        Some((Column { values: Values::$variant(values), .. }, row)) => {
                            values.get(row).copied().unwrap_or_default()
                        }
                        _ => Default::default(),
                    })
                    .collect(),
            )
        };
    }
    let values = match kind {
        PhysicalType::Float64 => Values::Float(picks.iter().map(|pick| float_of(pick, input)).collect()),
        PhysicalType::Int64 => pick!(Int),
        PhysicalType::UInt64 => pick!(UInt),
        PhysicalType::Boolean => pick!(Bool),
        PhysicalType::Text => {
            let mut texts = Texts::default();
            for pick in &picks {
                match pick.as_ref().and_then(|row| Some((input(row)?, row.row as usize))) {
                    Some((Column { values: Values::Text(values), .. }, row)) => texts.push(values.get(row)),
                    _ => texts.push(b""),
                }
            }
            Values::Text(texts)
        }
    };
    Column { cells, values }
}

/// A picked cell of a float column, which may have been one of integers when it was written.
fn float_of<'c>(pick: &Option<RowRef>, input: impl Fn(&RowRef) -> Option<&'c Column>) -> f64 {
    let Some((column, row)) = pick.as_ref().and_then(|row| Some((input(row)?, row.row as usize))) else {
        return 0.0;
    };
    let value = match &column.values {
        Values::Float(values) => values.get(row).copied(),
        Values::Int(values) => values.get(row).map(|value| *value as f64),
        Values::UInt(values) => values.get(row).map(|value| *value as f64),
        Values::Bool(_) | Values::Text(_) => None,
    };
    value.unwrap_or_default()
}

#[derive(Debug)]
struct Input {
    source: Source,
    window: Option<Window>,
    /// Rows of the window that are out already.
    done: usize,
}

impl Input {
    /// Loads the next window if the last one is used up; `false` at the end of the source.
    fn fill(&mut self) -> Result<bool> {
        loop {
            if self.window.as_ref().is_some_and(|window| self.done < window.rows()) {
                return Ok(true);
            }
            self.done = 0;
            self.window = self.source.next_window()?;
            if self.window.is_none() {
                return Ok(false);
            }
        }
    }
}

/// The merged rows of a group's sources.
#[derive(Debug)]
pub(crate) struct Merge {
    context: Arc<ScanContext>,
    kinds: Vec<PhysicalType>,
    inputs: Vec<Input>,
}

impl Merge {
    /// Merges sources that stand oldest first.
    pub(crate) fn newest_wins(context: Arc<ScanContext>, sources: Vec<Source>) -> Self {
        let inputs = sources.into_iter().map(|source| Input { source, window: None, done: 0 }).collect();
        Self { kinds: kinds(&context), context, inputs }
    }

    /// The next rows in order: everything up to the smallest last point of the sources' windows.
    pub(crate) fn next_window(&mut self) -> Result<Option<Window>> {
        let mut alive = Vec::with_capacity(self.inputs.len());
        for mut input in std::mem::take(&mut self.inputs) {
            if input.fill()? {
                alive.push(input);
            }
        }
        self.inputs = alive;
        if let [input] = self.inputs.as_mut_slice() {
            let done = std::mem::take(&mut input.done);
            let Some(window) = input.window.take() else { return Ok(None) };
            return Ok(Some(if done == 0 { window } else { window.slice(done..window.rows()) }));
        }
        let last = |input: &Input| input.window.as_ref().and_then(|window| window.point(window.rows() - 1));
        let Some(boundary) = self.inputs.iter().filter_map(last).min() else { return Ok(None) };
        let mut refs = Vec::new();
        let mut starts = Vec::new();
        for (i, input) in self.inputs.iter_mut().enumerate() {
            let Some(window) = &input.window else { continue };
            let start = input.done;
            while let Some((rank, time)) = window.point(input.done).filter(|point| *point <= boundary) {
                refs.push(RowRef { rank, time, input: i as u32, row: input.done as u32 });
                input.done += 1;
            }
            if input.done > start {
                starts.push((i, start..input.done));
            }
        }
        if let [(only, rows)] = starts.as_slice() {
            let window = self.inputs.get(*only).and_then(|input| input.window.as_ref());
            return Ok(window.map(|window| window.slice(rows.clone())));
        }
        // Stable: among equal points the oldest source stays first. The runs are sorted, so this merges them.
        refs.sort_by_key(RowRef::point);
        let columns: Vec<Vec<Option<&Column>>> = (0..self.kinds.len())
            .map(|field| self.inputs.iter().map(|input| input.window.as_ref()?.columns.get(field)).collect())
            .collect();
        Ok(Some(assemble(&self.kinds, &columns, &refs, self.context.folds())))
    }
}
