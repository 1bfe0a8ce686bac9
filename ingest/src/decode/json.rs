//! JSON objects as named scalars: nested objects are flattened with `_`, arrays become JSON text, null is absent.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use sonde_engine::{EXACT_INTEGER, FieldValue};

use super::{DecodeError, Rows};
use crate::limits::{ITEM_NAME, JSON_DEPTH, ROW_ITEMS};

/// What a payload turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An object, or an array of objects: each is a row.
    Objects,
    /// A number, a boolean, a string or null that stands alone: one row with one item, which has no name.
    Scalar,
}

/// Decodes a payload into `rows`, which is emptied first; strings borrow from it where they have no escapes.
pub fn decode<'a>(payload: &'a [u8], rows: &mut Rows<'a>) -> Result<Shape, DecodeError> {
    decode_each(payload, rows, |_| {})
}

/// The same, and calls `each` at the end of every object, which may take the rows out, so that they never are all in
/// memory. What was taken before an error is the caller's to discard.
pub fn decode_each<'a>(
    payload: &'a [u8],
    rows: &mut Rows<'a>,
    each: impl FnMut(&mut Rows<'a>),
) -> Result<Shape, DecodeError> {
    rows.clear();
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let wrong = |error: serde_json::Error| DecodeError(format!("not JSON: {error}"));
    let shape = Top { rows, each }.deserialize(&mut deserializer).map_err(wrong)?;
    deserializer.end().map_err(wrong)?;
    Ok(shape)
}

/// A number without a declared type is a float, unless it is an integer that a float cannot hold.
fn integer<'a>(value: i64) -> FieldValue<'a> {
    if value.unsigned_abs() <= EXACT_INTEGER {
        FieldValue::Float(value as f64)
    } else {
        FieldValue::Int(value)
    }
}

fn unsigned<'a>(value: u64) -> FieldValue<'a> {
    match i64::try_from(value) {
        Ok(value) => integer(value),
        Err(_) => FieldValue::UInt(value),
    }
}

struct Top<'r, 'de, F> {
    rows: &'r mut Rows<'de>,
    each: F,
}

impl<'de, F> Top<'_, 'de, F> {
    fn scalar(self, value: FieldValue<'de>) -> Shape {
        self.rows.push((Cow::Borrowed(""), value));
        self.rows.end_row();
        Shape::Scalar
    }
}

impl<'de, F: FnMut(&mut Rows<'de>)> DeserializeSeed<'de> for Top<'_, 'de, F> {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(&mut Rows<'de>)> Visitor<'de> for Top<'_, 'de, F> {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object, an array of objects, a number, a boolean or a string")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<Shape, A::Error> {
        Object { prefix: "", depth: 0, rows: self.rows }.visit_map(map)?;
        self.rows.end_row();
        (self.each)(self.rows);
        Ok(Shape::Objects)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Shape, A::Error> {
        while seq.next_element_seed(Object { prefix: "", depth: 0, rows: self.rows })?.is_some() {
            self.rows.end_row();
            (self.each)(self.rows);
        }
        Ok(Shape::Objects)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Shape, E> {
        Ok(self.scalar(FieldValue::Float(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Shape, E> {
        Ok(self.scalar(integer(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Shape, E> {
        Ok(self.scalar(unsigned(value)))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Shape, E> {
        Ok(self.scalar(FieldValue::Bool(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Shape, E> {
        Ok(self.scalar(FieldValue::Text(Cow::Borrowed(value))))
    }

    fn visit_str<E>(self, value: &str) -> Result<Shape, E> {
        Ok(self.scalar(FieldValue::Text(Cow::Owned(value.to_owned()))))
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(self.scalar(FieldValue::Null))
    }
}

/// Flattens an object into the current row.
struct Object<'r, 'de> {
    prefix: &'r str,
    depth: usize,
    rows: &'r mut Rows<'de>,
}

impl<'de> DeserializeSeed<'de> for Object<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.depth > JSON_DEPTH {
            return Err(A::Error::custom(format!("more than {JSON_DEPTH} objects inside each other")));
        }
        while let Some(key) = map.next_key_seed(Key)? {
            if self.prefix.len() + 1 + key.len() > ITEM_NAME {
                return Err(A::Error::custom(format!("a key of more than {ITEM_NAME} bytes")));
            }
            if self.rows.row_len() >= ROW_ITEMS {
                return Err(A::Error::custom(format!("more than {ROW_ITEMS} values in one object")));
            }
            let name =
                if self.prefix.is_empty() { key } else { Cow::Owned(format!("{}_{key}", self.prefix)) };
            map.next_value_seed(Value { name, depth: self.depth, rows: self.rows })?;
        }
        Ok(())
    }
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(value.to_owned()))
    }
}

/// One value of an object.
struct Value<'r, 'de> {
    name: Cow<'de, str>,
    depth: usize,
    rows: &'r mut Rows<'de>,
}

impl<'de> Value<'_, 'de> {
    fn push(self, value: FieldValue<'de>) {
        self.rows.push((self.name, value));
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.push(FieldValue::Float(value));
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.push(integer(value));
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.push(unsigned(value));
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.push(FieldValue::Bool(value));
        Ok(())
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<(), E> {
        self.push(FieldValue::Text(Cow::Borrowed(value)));
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.push(FieldValue::Text(Cow::Owned(value.to_owned())));
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(()) // null is absent
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Object { prefix: &self.name, depth: self.depth + 1, rows: self.rows }.visit_map(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut text = String::from("[");
        while let Some(element) = seq.next_element::<&RawValue>()? {
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(element.get());
        }
        text.push(']');
        self.push(FieldValue::Text(Cow::Owned(text)));
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn decoded(payload: &str) -> Result<(Shape, Rows<'_>), DecodeError> {
        let mut rows = Rows::default();
        decode(payload.as_bytes(), &mut rows).map(|shape| (shape, rows))
    }

    fn row(payload: &str) -> Vec<(String, FieldValue<'_>)> {
        let (shape, rows) = decoded(payload).unwrap();
        assert_eq!((shape, rows.count()), (Shape::Objects, 1));
        rows.iter().flatten().map(|(name, value)| (name.to_string(), value.clone())).collect()
    }

    #[test]
    fn objects_are_flattened_and_null_is_absent() {
        let found = row(r#"{"a":1,"b":{"c":true,"d":{"e":"x\n"}},"f":null,"g":[1, {"h":2}]}"#);
        let expected = [
            ("a", FieldValue::Float(1.0)),
            ("b_c", FieldValue::Bool(true)),
            ("b_d_e", FieldValue::Text("x\n".into())),
            ("g", FieldValue::Text(r#"[1,{"h":2}]"#.into())),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn integers_beyond_a_double_stay_integers() {
        let found = row(r#"{"a":9007199254740993,"b":18446744073709551615,"c":-9007199254740992}"#);
        let values: Vec<_> = found.into_iter().map(|(_, value)| value).collect();
        assert_eq!(
            values,
            [
                FieldValue::Int(9_007_199_254_740_993),
                FieldValue::UInt(u64::MAX),
                FieldValue::Float(-9_007_199_254_740_992.0)
            ]
        );
    }

    #[test]
    fn arrays_are_rows_and_scalars_stand_alone() {
        let (shape, rows) = decoded(r#"[{"a":1},{},{"a":2,"b":3}]"#).unwrap();
        assert_eq!((shape, rows.iter().map(<[_]>::len).collect::<Vec<_>>()), (Shape::Objects, vec![1, 0, 2]));
        let (shape, rows) = decoded("23.5").unwrap();
        assert_eq!(
            (shape, rows.iter().collect::<Vec<_>>()),
            (Shape::Scalar, vec![&[("".into(), FieldValue::Float(23.5))][..]])
        );
        assert!(decoded("[1,2]").is_err() && decoded("{\"a\":").is_err() && decoded("{} x").is_err());
    }

    #[test]
    fn what_would_swell_is_refused() {
        let long = "k".repeat(200);
        assert!(decoded(&format!(r#"{{"{long}":{{"{long}":1}}}}"#)).is_err());
        assert!(decoded(&format!(r#"{{"{long}":{{"a":1}}}}"#)).is_ok());
        let many: Vec<String> = (0..5000).map(|i| format!("\"k{i}\":1")).collect();
        assert!(decoded(&format!("{{{}}}", many.join(","))).is_err());
    }

    #[test]
    fn rows_can_be_taken_one_by_one() {
        let (mut rows, mut most) = (Rows::default(), 0);
        let shape = decode_each(br#"[{"a":1},{"a":2},{"a":3}]"#, &mut rows, |rows| {
            most = most.max(rows.count());
            rows.clear();
        });
        assert_eq!((shape, most), (Ok(Shape::Objects), 1));
    }

    #[test]
    fn deep_objects_are_refused() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(40), "}".repeat(40));
        assert!(decoded(&deep).is_err());
    }
}
