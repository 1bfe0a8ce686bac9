//! The one leaf of every plan: an engine scan, each of its partitions read by a blocking thread.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
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
                memory.try_resize(batch.get_array_memory_size())?;
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
