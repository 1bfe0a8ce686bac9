//! Writes one day of a table as Parquet.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Int16Array, TimestampMicrosecondArray};
use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use object_store::buffered::BufWriter;
use object_store::{ObjectStoreExt, path::Path as ObjectPath};
use parquet::arrow::AsyncArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use sonde_storage_format::{Cell, Cells, ColdFile, Column, ColumnId, ColumnRole, SeqNo, TimeRange, Values};

use crate::catalog::Table;
use crate::cold::{ColdOptions, TIME_NS, day_name, schema, store_error};
use crate::error::{Error, Result};
use crate::limits::GROUP_TEXT_BYTES;
use crate::scan::ScanContext;
use crate::scan::batch::{field_array, tag_arrays};
use crate::scan::merge::{Merge, Window};

/// Rows of a Parquet row group.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// A file that is to be written under a name of its own; its rows and bytes are not known yet.
pub(crate) fn new_file(table: &Table, day: TimeRange, position: SeqNo) -> ColdFile {
    let (database, name) = (&table.def().database, &table.def().name);
    let path = format!("{database}/{name}/day={}/part-{}.parquet", day_name(&day), uuid::Uuid::new_v4());
    ColdFile { table: table.id(), day, position, path, rows: 0, bytes: 0 }
}

/// Writes the merged rows of a day as `file` and verifies it; `None` where there is no row.
pub(crate) fn write_day(
    options: &ColdOptions,
    context: &Arc<ScanContext>,
    file: ColdFile,
    merge: Merge,
) -> Result<Option<ColdFile>> {
    let table = &context.table;
    if table.column(TIME_NS).is_some() {
        return Err(Error::Row(format!(
            "table {} has a column {TIME_NS}, a name that the cold tier needs; its days stay hot",
            table.full_name()
        )));
    }
    let path = &file.path;
    let object = ObjectPath::from(path.as_str());
    let Some((rows, bytes)) = upload(options, context, &object, merge)? else {
        return Ok(None);
    };
    if let Some(root) = &options.directory {
        // As the store names it: what a path may not hold is percent-encoded.
        sync_upwards(root, object.as_ref())?;
    }
    let found = options.runtime.block_on(options.store.head(&object));
    let found = found.map_err(store_error)?.size;
    if found != bytes {
        return Err(Error::Cold(format!("{path} has {found} bytes after the upload, {bytes} were written")));
    }
    Ok(Some(ColdFile { rows, bytes, ..file }))
}

/// Pulls the rows and sends them. Only the sending is async: the rows may come from the cold tier themselves, whose
/// reader blocks on the same runtime.
fn upload(
    options: &ColdOptions,
    context: &ScanContext,
    path: &ObjectPath,
    mut merge: Merge,
) -> Result<Option<(u64, u64)>> {
    let Some(mut window) = merge.next_window()? else { return Ok(None) };
    let schema = schema(&context.table);
    let sink = BufWriter::new(Arc::clone(&options.store), path.clone());
    let properties = properties(&context.table);
    let mut writer =
        AsyncArrowWriter::try_new(sink, Arc::clone(&schema), Some(properties)).map_err(store_error)?;
    let (mut rows, mut text) = (0, 0);
    loop {
        rows += window.rows() as u64;
        text += window.columns.iter().map(text_bytes).sum::<usize>();
        let batch = to_batch(context, &schema, window)?;
        options.runtime.block_on(writer.write(&batch)).map_err(store_error)?;
        if text >= GROUP_TEXT_BYTES {
            // Readers decode a row group's strings with 32-bit offsets.
            options.runtime.block_on(writer.flush()).map_err(store_error)?;
            text = 0;
        }
        match merge.next_window()? {
            Some(next) => window = next,
            None => break,
        }
    }
    options.runtime.block_on(writer.finish()).map_err(store_error)?;
    Ok(Some((rows, writer.bytes_written() as u64)))
}

fn text_bytes(column: &Column) -> usize {
    match &column.values {
        Values::Text(texts) => texts.byte_len(),
        _ => 0,
    }
}

fn properties(table: &Table) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_created_by(format!("sonde {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Page);
    for tag in table.tags() {
        properties = properties.set_column_bloom_filter_enabled(ColumnPath::from(tag.name.as_str()), true);
    }
    properties.build()
}

/// The window's rows in the types of the cold schema.
fn to_batch(context: &ScanContext, schema: &Arc<Schema>, window: Window) -> Result<RecordBatch> {
    let micros: Vec<i64> = window.times.iter().map(|time| time.div_euclid(1000)).collect();
    let rest: Vec<i16> = window.times.iter().map(|time| time.rem_euclid(1000) as i16).collect();
    let micros = TimestampMicrosecondArray::from(micros).with_timezone("UTC");
    let mut arrays: Vec<ArrayRef> = vec![Arc::new(micros), Arc::new(Int16Array::from(rest))];
    let tags: Vec<ColumnId> = context.table.tags().map(|tag| tag.id).collect();
    arrays.extend(tag_arrays(context, &tags, &window.ranks));
    let fields = context.table.def().columns.iter().filter(|column| column.role == ColumnRole::Field);
    for (_, column) in fields.zip(window.columns) {
        arrays.push(match &column.values {
            Values::UInt(values) => Arc::new(decimals(values, &column.cells)?),
            _ => field_array(column)?,
        });
    }
    RecordBatch::try_new(Arc::clone(schema), arrays).map_err(store_error)
}

fn decimals(values: &[u64], cells: &Cells) -> Result<Decimal128Array> {
    let value = |(row, value): (usize, &u64)| (cells.get(row) == Cell::Value).then_some(i128::from(*value));
    let array: Decimal128Array = values.iter().enumerate().map(value).collect();
    array.with_precision_and_scale(20, 0).map_err(store_error)
}

/// Makes a file of a local store durable: the file, then every directory up to the store's root.
fn sync_upwards(root: &Path, path: &str) -> Result<()> {
    let file = root.join(path);
    let sync = |path: &Path| std::fs::File::open(path).and_then(|file| file.sync_all());
    for path in file.ancestors().take_while(|path| path.starts_with(root)) {
        sync(path).map_err(|error| Error::io("sync", path, &error))?;
    }
    Ok(())
}

/// Makes it durable that a file of a local store is gone.
pub(crate) fn sync_directory_of(root: &Path, path: &str) -> Result<()> {
    let file = root.join(path);
    let dir = file.parent().unwrap_or(root);
    match std::fs::File::open(dir).and_then(|dir| dir.sync_all()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("sync", dir, &error)),
        _ => Ok(()),
    }
}
