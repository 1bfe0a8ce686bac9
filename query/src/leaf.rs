//! The one leaf of every plan: something of the engine, each of its partitions read by a thread that may block.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs,
};
use tokio::sync::mpsc::Sender;

use crate::limits::SCAN_AHEAD;

/// What a leaf reads. Its `Display` is what EXPLAIN says behind the name.
pub(crate) trait Source: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The name of the leaf in plans and metrics.
    const NAME: &'static str;
    /// Whether batches come one by one, or all when everything was read.
    const EMISSION: EmissionType;

    fn schema(&self) -> SchemaRef;

    /// Reads partition `partition` of `partitions`.
    fn read(&self, partition: usize, partitions: usize, reader: &Reader) -> Result<()>;

    /// What reads the same, partition by partition, where there is not enough memory for a reader that sets it aside
    /// before it begins.
    fn instead(&self, _memory: &MemoryReservation) -> Option<&Arc<dyn ExecutionPlan>> {
        None
    }

    /// How many rows it has at most, where that is known without reading.
    fn rows_at_most(&self) -> Precision<usize> {
        Precision::Absent
    }
}

/// Whoever waits for the batches of one partition.
pub(crate) struct Reader {
    sender: Sender<Result<RecordBatch>>,
    metrics: BaselineMetrics,
    /// What the partition holds, as the memory pool counts it.
    pub(crate) memory: MemoryReservation,
}

impl Reader {
    /// Hands on a batch, and waits while there are `SCAN_AHEAD`. False when the reader went away, which ends the read.
    pub(crate) fn take(&self, batch: RecordBatch) -> bool {
        self.metrics.record_output(batch.num_rows());
        self.sender.blocking_send(Ok(batch)).is_ok()
    }

    /// Whether it still waits.
    pub(crate) fn waits(&self) -> bool {
        !self.sender.is_closed()
    }
}

/// An error of the engine as the planner hands it on.
pub(crate) fn external(error: sonde_engine::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Reads a source.
#[derive(Debug)]
pub(crate) struct Leaf<S> {
    source: Arc<S>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl<S: Source> Leaf<S> {
    /// A plan that reads it in so many partitions, at least one.
    pub(crate) fn new(source: S, partitions: usize) -> Self {
        let equivalences = EquivalenceProperties::new(source.schema());
        let partitioning = Partitioning::UnknownPartitioning(partitions.max(1));
        let properties = PlanProperties::new(equivalences, partitioning, S::EMISSION, Boundedness::Bounded)
            .with_scheduling_type(SchedulingType::Cooperative);
        let metrics = ExecutionPlanMetricsSet::new();
        Self { source: Arc::new(source), properties: Arc::new(properties), metrics }
    }

    pub(crate) fn source(&self) -> &S {
        &self.source
    }

    pub(crate) fn partitions(&self) -> usize {
        self.properties.partitioning.partition_count()
    }
}

impl<S: Source> DisplayAs for Leaf<S> {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", S::NAME, self.source)
    }
}

impl<S: Source> ExecutionPlan for Leaf<S> {
    fn name(&self) -> &str {
        S::NAME
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
        let memory = MemoryConsumer::new(format!("{}[{partition}]", S::NAME)).register(context.memory_pool());
        if let Some(other) = self.source.instead(&memory) {
            return other.execute(partition, context);
        }
        let mut stream = RecordBatchReceiverStreamBuilder::new(self.source.schema(), SCAN_AHEAD);
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let reader = Reader { sender: stream.tx(), metrics, memory };
        let (source, partitions) = (Arc::clone(&self.source), self.partitions());
        stream.spawn_blocking(move || source.read(partition, partitions, &reader));
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
        let mut statistics = Statistics::new_unknown(&self.source.schema());
        statistics.num_rows = self.source.rows_at_most();
        Ok(Arc::new(statistics))
    }
}
