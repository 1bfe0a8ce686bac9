//! The answer to a statement: a schema and a stream of record batches.

use std::sync::Arc;

use arrow::array::StringArray;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;

use crate::error::{Error, Result};

/// Rows on their way out. Dropping it ends the query.
pub struct Answer {
    schema: SchemaRef,
    stream: SendableRecordBatchStream,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answer({} columns)", self.schema.fields().len())
    }
}

impl Answer {
    pub(crate) fn new(stream: SendableRecordBatchStream) -> Self {
        Self { schema: stream.schema(), stream }
    }

    /// One row with one column `result`.
    pub(crate) fn of_text(text: &str) -> Result<Self> {
        let schema = Arc::new(Schema::new(vec![Field::new("result", DataType::Utf8, false)]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(StringArray::from(vec![text]))]);
        let batch = batch.map_err(|error| Error::Internal(error.to_string()))?;
        let stream = futures::stream::iter([Ok(batch)]);
        Ok(Self::new(Box::pin(RecordBatchStreamAdapter::new(schema, stream))))
    }

    /// The schema of the rows.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The next rows.
    pub async fn next(&mut self) -> Option<Result<RecordBatch>> {
        self.stream.next().await.map(|batch| batch.map_err(Error::from))
    }

    /// All rows, for answers that are known to be small.
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>> {
        let mut batches = Vec::new();
        while let Some(batch) = self.next().await {
            batches.push(batch?);
        }
        Ok(batches)
    }

    /// Waits for the first rows, so that an error shows before anything was sent.
    pub async fn started(mut self) -> Result<Self> {
        let first = match self.stream.next().await {
            Some(first) => vec![Ok(first?)],
            None => Vec::new(),
        };
        let schema = self.schema();
        let stream = futures::stream::iter(first).chain(self.stream);
        Ok(Self::new(Box::pin(RecordBatchStreamAdapter::new(schema, stream))))
    }
}
