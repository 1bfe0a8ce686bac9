//! Schemas as Flight announces them before the rows come: clients compare the two, and refuse rows that differ.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow_flight::encode::FlightDataEncoderBuilder;
use futures::stream;

/// The schema as the encoder sends it, dictionaries written out: clients compare it with the one announced.
pub(super) fn as_sent(schema: SchemaRef) -> SchemaRef {
    let encoder = FlightDataEncoderBuilder::new().with_schema(Arc::clone(&schema)).build(stream::empty());
    encoder.known_schema().unwrap_or(schema)
}

/// The schema with every field nullable and nothing but names and types: a plan's and its rows' differ in the rest.
pub(super) fn nullable(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new(nullable_fields(schema.fields())))
}

fn nullable_fields(fields: &Fields) -> Fields {
    fields.iter().map(|field| nullable_field(field)).collect()
}

fn nullable_field(field: &Field) -> Field {
    Field::new(field.name(), nullable_type(field.data_type()), true)
}

fn nullable_type(kind: &DataType) -> DataType {
    match kind {
        DataType::List(item) => DataType::List(Arc::new(nullable_field(item))),
        DataType::LargeList(item) => DataType::LargeList(Arc::new(nullable_field(item))),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(Arc::new(nullable_field(item)), *size),
        DataType::Struct(fields) => DataType::Struct(nullable_fields(fields)),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plan_and_its_rows_may_differ_in_is_left_out() {
        let list = |nullable| DataType::List(Arc::new(Field::new("item", DataType::Int64, nullable)));
        let schema = |nullable| Schema::new(vec![Field::new("a", list(nullable), nullable)]);
        assert_eq!(nullable(&schema(false)), nullable(&schema(true)));
        let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let tags = Arc::new(Schema::new(vec![Field::new("tag", text, true)]));
        assert_eq!(*as_sent(tags), Schema::new(vec![Field::new("tag", DataType::Utf8, true)]));
    }
}
