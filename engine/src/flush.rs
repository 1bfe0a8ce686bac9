//! Writes sorted rows as chunks, for flush, compaction and cooling; and the flush itself.
//!
//! # Invariants
//! - A flush's chunks, its position and its checkpoint count from one edit on, or none of them does.

use std::collections::BTreeSet;
use std::sync::Arc;

use sonde_storage_format::limits::ROW_GROUP_ROWS;
use sonde_storage_format::{
    ChunkMeta, ChunkWriter, Column, ColumnId, ColumnPages, ColumnRange, Edit, PhysicalType, Profile,
    SeqRange, SeriesRows, TableId, Texts, TimeRange, Timestamp, path,
};

use crate::checkpoint;
use crate::compact::width::lanes;
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::flushes::FlushInput;
use crate::limits::GROUP_TEXT_BYTES;
use crate::memtable::{Memtable, PartitionBlocks};
use crate::scan::ScanContext;
use crate::scan::merge::{Merge, Window};
use crate::scan::source::{MemorySource, Source};
use crate::version::{Chunk, FileEdit};

/// Flushes a frozen memtable: chunks, checkpoint, and the edit that makes both count; then what they replace goes. Returns
/// the bytes of the chunks.
pub(crate) fn flush(inner: &Arc<Inner>, input: &FlushInput) -> Result<u64> {
    let chunks = match input.memtable.seq {
        Some(seq) => write_chunks(inner, &input.memtable, seq)?,
        None => Vec::new(),
    };
    let bytes = chunks.iter().map(|chunk| chunk.meta.bytes).sum();
    let number = checkpoint::write(inner, input)?;
    let mut edits: Vec<Edit> = chunks.iter().flat_map(|chunk| chunk.edits()).collect();
    edits.extend([Edit::FlushedTo(input.position), Edit::Checkpoint(number)]);
    chunks.iter().for_each(|chunk| inner.compactions.flushed(&chunk.meta));
    let tables: BTreeSet<TableId> = chunks.iter().map(|chunk| chunk.meta.table).collect();
    inner.install(&edits, &FileEdit { add: chunks, flushed: true, ..FileEdit::default() })?;
    inner.learn_widths(&tables);
    checkpoint::remove_before(inner, number);
    inner.remove_expired_segments();
    Ok(bytes)
}

/// Writes a memtable as chunks, one for each partition; late rows of many partitions share some. The ranges of the
/// chunks do not overlap, so all of them can have the memtable's SeqNos.
fn write_chunks(inner: &Arc<Inner>, memtable: &Memtable, seq: SeqRange) -> Result<Vec<Arc<Chunk>>> {
    let catalog = inner.catalog.load_full();
    let mut chunks = Vec::new();
    let partitions: Vec<(TableId, &Arc<PartitionBlocks>)> = memtable.partitions().collect();
    for of_table in partitions.chunk_by(|a, b| a.0 == b.0) {
        // A table that was dropped since takes its rows with it.
        let Some(table) = of_table.first().and_then(|(table, _)| catalog.table_by_id(*table)) else {
            continue;
        };
        let order = table.series().order();
        let context =
            Arc::new(ScanContext::whole(table, order, TimeRange::ALL, Vec::new(), inner.options.merge_bytes));
        let sizes: Vec<(TimeRange, usize)> =
            of_table.iter().map(|(_, partition)| (partition.range, partition.rows())).collect();
        let mut rest = of_table.iter().map(|(_, partition)| *partition);
        for (range, count) in lanes(&sizes) {
            let mut together = PartitionBlocks::new(range);
            // Rows of one point lie in one partition, so they stay in log order.
            rest.by_ref()
                .take(count)
                .for_each(|partition| together.blocks.extend_from_slice(&partition.blocks));
            let sorted = Source::Memory(MemorySource::new(&context, &together.blocks, 1));
            let merge = Merge::newest_wins(Arc::clone(&context), vec![sorted]);
            chunks.extend(write_chunk(inner, &context, range, seq, Profile::Fast, merge)?);
        }
    }
    Ok(chunks)
}

/// Writes the merged rows of a partition as one chunk; `None` where there is no row.
pub(crate) fn write_chunk(
    inner: &Arc<Inner>,
    context: &Arc<ScanContext>,
    range: TimeRange,
    seq: SeqRange,
    profile: Profile,
    merge: Merge,
) -> Result<Option<Arc<Chunk>>> {
    let id = inner.manifest.lock().next_chunk()?;
    let table = context.table.id();
    let path = inner.options.data_dir.join(path::CHUNK_DIR).join(path::chunk(id));
    let writer = ChunkWriter::new(id, table, range, seq, profile);
    let mut build = Build::new(Arc::clone(context), merge, writer);
    let written = inner.storage.write_whole(&path, &mut build);
    let written = match (build.error.take(), written) {
        (Some(error), _) => Err(error),
        (None, written) => written.map_err(|error| Error::io("write", &path, &error)),
    };
    // A file that ends where reading failed, or of which nobody knows whether it is durable: should it stay, the next
    // start removes it.
    let bytes = written.inspect_err(|_| drop(inner.storage.remove(&path)))?;
    let Some(done) = build.done else {
        // Nothing was written but an empty file's head: the partition has no row.
        inner.storage.remove(&path).map_err(|error| Error::io("remove", &path, &error))?;
        return Ok(None);
    };
    let meta = ChunkMeta {
        id,
        table,
        range,
        times: done.times,
        seq,
        rows: done.rows,
        series: done.series,
        bytes,
        columns: done.columns.iter().map(column_range).collect(),
    };
    let chunk = Chunk::new(meta, path, Arc::clone(&inner.storage));
    chunk.purge(context.purged());
    Ok(Some(Arc::new(chunk)))
}

struct Done {
    columns: Vec<ColumnPages>,
    rows: u64,
    series: u64,
    times: (Timestamp, Timestamp),
}

/// Pulls windows from a merge and gives out the file's bytes, one row group at a time.
struct Build {
    context: Arc<ScanContext>,
    merge: Merge,
    writer: Option<ChunkWriter>,
    pending: Pending,
    rows: u64,
    times: (Timestamp, Timestamp),
    error: Option<Error>,
    done: Option<Done>,
}

/// Rows that wait for their row group to be full.
struct Pending {
    times: Vec<i64>,
    /// The series of the rows, and how many each has in a row.
    series: Vec<(u32, usize)>,
    columns: Vec<(ColumnId, Column)>,
    /// Bytes of strings in the columns.
    texts: usize,
}

impl Pending {
    /// How many of the window's rows from `start` on fit the row group; at least one fits an empty group.
    fn room_for(&self, window: &Window, start: usize) -> usize {
        let most = (ROW_GROUP_ROWS - self.times.len()).min(window.rows() - start);
        let texts = || window.columns.iter().filter_map(|column| column.values.texts());
        let mut left = GROUP_TEXT_BYTES.saturating_sub(self.texts);
        for taken in 0..most {
            let bytes: usize = texts().map(|texts| texts.get(start + taken).len()).sum();
            if bytes > left && taken + self.times.len() > 0 {
                return taken;
            }
            left = left.saturating_sub(bytes);
        }
        most
    }

    fn append(&mut self, window: &Window, rows: std::ops::Range<usize>) {
        self.times.extend_from_slice(window.times.get(rows.clone()).unwrap_or_default());
        for run in window.ranks.get(rows.clone()).unwrap_or_default().chunk_by(|a, b| a == b) {
            let rank = run.first().copied().unwrap_or_default();
            match self.series.last_mut() {
                Some((last, count)) if *last == rank => *count += run.len(),
                _ => self.series.push((rank, run.len())),
            }
        }
        for ((_, column), more) in self.columns.iter_mut().zip(&window.columns) {
            let before = column.values.texts().map_or(0, Texts::byte_len);
            column.extend_from(more, rows.clone());
            self.texts += column.values.texts().map_or(0, Texts::byte_len) - before;
        }
    }

    fn take(&mut self) -> Self {
        let columns =
            self.columns.iter().map(|(id, column)| (*id, Column::new(column.values.kind()))).collect();
        std::mem::replace(self, Self::of(columns))
    }

    fn of(columns: Vec<(ColumnId, Column)>) -> Self {
        Self { times: Vec::new(), series: Vec::new(), columns, texts: 0 }
    }
}

impl Build {
    fn new(context: Arc<ScanContext>, merge: Merge, writer: ChunkWriter) -> Self {
        let kind = |id: &ColumnId| {
            context.table.column_by_id(*id).map_or(PhysicalType::Float64, |column| column.kind)
        };
        let columns = context.fields.iter().map(|id| (*id, Column::new(kind(id)))).collect();
        Self {
            merge,
            writer: Some(writer),
            pending: Pending::of(columns),
            rows: 0,
            times: (Timestamp::MAX, Timestamp::MIN),
            error: None,
            done: None,
            context,
        }
    }

    /// The bytes up to the next full row group, or to the end of the file.
    fn next_part(&mut self) -> Result<Option<Vec<u8>>> {
        while let Some(window) = self.merge.next_window()? {
            self.note(&window);
            let mut start = 0;
            let mut out = Vec::new();
            while start < window.rows() {
                let take = self.pending.room_for(&window, start);
                self.pending.append(&window, start..start + take);
                start += take;
                // What does not fit, or no longer can, waits for the next group.
                if start < window.rows() || self.pending.times.len() == ROW_GROUP_ROWS {
                    out.extend(self.push_group());
                }
            }
            if !out.is_empty() {
                return Ok(Some(out));
            }
        }
        Ok(self.finish())
    }

    fn note(&mut self, window: &Window) {
        self.rows += window.rows() as u64;
        for time in &window.times {
            let time = Timestamp::from_nanos(*time);
            self.times = (self.times.0.min(time), self.times.1.max(time));
        }
    }

    fn push_group(&mut self) -> Vec<u8> {
        let group = self.pending.take();
        let order = &self.context.order;
        let series = |(rank, rows): &(u32, usize)| {
            let id = order.id(*rank);
            SeriesRows { id, key: order.key(id), rows: *rows }
        };
        let series: Vec<SeriesRows> = group.series.iter().map(series).collect();
        let Some(writer) = &mut self.writer else { return Vec::new() };
        writer.push_group(group.times, &group.columns, &series);
        writer.drain()
    }

    fn finish(&mut self) -> Option<Vec<u8>> {
        if self.rows == 0 {
            return None;
        }
        let mut out = if self.pending.times.is_empty() { Vec::new() } else { self.push_group() };
        let (tail, columns, series) = self.writer.take()?.finish();
        out.extend(tail);
        self.done = Some(Done { columns, rows: self.rows, series, times: self.times });
        Some(out)
    }
}

impl Iterator for Build {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        self.next_part().unwrap_or_else(|error| {
            self.error = Some(error);
            None
        })
    }
}

/// What the manifest says of a column of a chunk.
pub(crate) fn column_range(column: &ColumnPages) -> ColumnRange {
    let pages = || column.pages.iter().flatten();
    let order = |bits: u64| match column.kind {
        PhysicalType::Float64 => {
            let bits = bits.cast_signed();
            bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed()
        }
        PhysicalType::Int64 => bits.cast_signed(),
        PhysicalType::UInt64 | PhysicalType::Boolean | PhysicalType::Text => (bits ^ (1 << 63)).cast_signed(),
    };
    let ranges = || pages().filter_map(|page| page.stats.range);
    let low = ranges().map(|range| range.0).min_by_key(|bits| order(*bits));
    let high = ranges().map(|range| range.1).max_by_key(|bits| order(*bits));
    ColumnRange {
        id: column.id,
        kind: column.kind,
        present: pages().map(|page| u64::from(page.stats.present)).sum(),
        bytes: pages().map(|page| u64::from(page.len)).sum(),
        range: low.zip(high),
    }
}
