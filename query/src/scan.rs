//! The one leaf of every plan: an engine scan, each of its partitions read by a blocking thread.

use std::fmt;
use std::sync::Arc;

use arrow::array::make_array;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::scalar::copy_array_data;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::common::{Result, Statistics};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs,
};
use sonde_engine::Scan;

use crate::limits::SCAN_AHEAD;

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

/// Reads an engine scan.
#[derive(Debug)]
pub(crate) struct SondeScan {
    scan: Arc<Scan>,
    /// What was asked of the scan, for EXPLAIN.
    description: String,
    partitions: usize,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl SondeScan {
    pub(crate) fn new(scan: Arc<Scan>, target_partitions: usize, description: String) -> Self {
        let partitions = scan.groups().clamp(1, target_partitions.max(1));
        let equivalences = EquivalenceProperties::new(scan.schema());
        let partitioning = Partitioning::UnknownPartitioning(partitions);
        let properties =
            PlanProperties::new(equivalences, partitioning, EmissionType::Incremental, Boundedness::Bounded)
                .with_scheduling_type(SchedulingType::Cooperative);
        let metrics = ExecutionPlanMetricsSet::new();
        Self { scan, description, partitions, properties: Arc::new(properties), metrics }
    }

    fn schema(&self) -> SchemaRef {
        self.scan.schema()
    }

    pub(crate) fn scan(&self) -> &Arc<Scan> {
        &self.scan
    }

    pub(crate) fn description(&self) -> &str {
        &self.description
    }
}

impl DisplayAs for SondeScan {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SondeScan: {}, groups={}", self.description, self.scan.groups())
    }
}

impl ExecutionPlan for SondeScan {
    fn name(&self) -> &str {
        "SondeScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let memory = MemoryConsumer::new(format!("SondeScan[{partition}]")).register(context.memory_pool());
        let mut stream = RecordBatchReceiverStreamBuilder::new(self.schema(), SCAN_AHEAD);
        let sender = stream.tx();
        let batches = self.scan.open(partition, self.partitions);
        stream.spawn_blocking(move || {
            for batch in batches {
                let batch = batch.map_err(|error| DataFusionError::External(Box::new(error)))?;
                let (batch, bytes) = compact(batch)?;
                // It is in memory already: it is counted, so that those who can spill do, and cannot be refused.
                memory.resize(bytes);
                metrics.record_output(batch.num_rows());
                // A reader that went away ends the scan.
                if sender.blocking_send(Ok(batch)).is_err() {
                    break;
                }
            }
            Ok(())
        });
        Ok(stream.build())
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(
        &self,
        _inputs: &[Arc<Statistics>],
        _args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        statistics.num_rows = Precision::Inexact(self.scan.rows_at_most() as usize);
        Ok(Arc::new(statistics))
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
