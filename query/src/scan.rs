//! Rows of a table, as an engine scan gives them.

use std::fmt;
use std::sync::Arc;

use arrow::array::make_array;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::scalar::copy_array_data;
use datafusion::common::stats::Precision;
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::physical_plan::execution_plan::EmissionType;
use sonde_engine::Scan;

use crate::leaf::{Leaf, Reader, Source, external};

/// A batch and the bytes that it holds. Where it is a small part of larger buffers it is copied out of them: whoever
/// keeps the parts of a window would hold, and count, the whole of it as often as it has parts.
fn compact(batch: RecordBatch) -> Result<(RecordBatch, usize)> {
    let mut own = 0;
    for column in batch.columns() {
        own += column.to_data().get_slice_memory_size()?;
    }
    let held = get_record_batch_memory_size(&batch);
    if held <= 2 * own {
        return Ok((batch, held));
    }
    let copy = batch.columns().iter().map(|column| make_array(copy_array_data(&column.to_data()))).collect();
    Ok((RecordBatch::try_new(batch.schema(), copy)?, own))
}

/// An engine scan.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub(crate) scan: Arc<Scan>,
    /// What was asked of the scan, for EXPLAIN.
    description: String,
}

/// Reads an engine scan.
pub(crate) type SondeScan = Leaf<Rows>;

impl SondeScan {
    pub(crate) fn of(scan: Arc<Scan>, target_partitions: usize, description: String) -> Self {
        let partitions = scan.groups().clamp(1, target_partitions.max(1));
        Self::new(Rows { scan, description }, partitions)
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, groups={}", self.description, self.scan.groups())
    }
}

impl Source for Rows {
    const NAME: &'static str = "SondeScan";
    const EMISSION: EmissionType = EmissionType::Incremental;

    fn schema(&self) -> SchemaRef {
        self.scan.schema()
    }

    fn read(&self, partition: usize, partitions: usize, reader: &Reader) -> Result<()> {
        for batch in self.scan.open(partition, partitions) {
            let (batch, bytes) = compact(batch.map_err(external)?)?;
            // It is in memory already: it is counted, so that those who can spill do, and cannot be refused.
            reader.memory.resize(bytes);
            if !reader.take(batch) {
                break;
            }
        }
        Ok(())
    }

    fn rows_at_most(&self) -> Precision<usize> {
        Precision::Inexact(self.scan.rows_at_most() as usize)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    #[test]
    fn a_small_part_holds_its_own_bytes_only() {
        let texts: StringArray = (0..10_000).map(|n| (n % 7 > 0).then(|| format!("text {n}"))).collect();
        let numbers: Int64Array = (0..10_000).map(Some).collect();
        let columns = [("s", Arc::new(texts) as ArrayRef), ("n", Arc::new(numbers) as ArrayRef)];
        let whole = RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, array)| (name, array, true)),
        )
        .unwrap();
        let part = whole.slice(5_000, 100);
        let (copy, bytes) = compact(part.clone()).unwrap();
        assert_eq!(copy, part);
        assert!(bytes < 10_000 && get_record_batch_memory_size(&copy) < 20_000);
        let (_, all) = compact(whole.clone()).unwrap();
        assert_eq!(all, get_record_batch_memory_size(&whole));
    }
}
