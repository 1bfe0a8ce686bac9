//! JSON objects as named scalars: nested objects are flattened with `_`, arrays become JSON text, null is absent.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use sonde_engine::{EXACT_INTEGER, FieldValue};

use super::{DecodeError, Item};
use crate::limits::JSON_DEPTH;

/// A payload: one object, several, or a bare scalar.
#[derive(Debug, PartialEq)]
pub enum Payload<'a> {
    /// Objects, each one row.
    Rows(Vec<Vec<Item<'a>>>),
    /// A number, a boolean or a string that stands alone.
    Scalar(FieldValue<'a>),
}

/// Decodes a payload; strings borrow from it where they have no escapes.
pub fn decode(payload: &[u8]) -> Result<Payload<'_>, DecodeError> {
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let wrong = |error: serde_json::Error| DecodeError(format!("not JSON: {error}"));
    let decoded = Top.deserialize(&mut deserializer).map_err(wrong)?;
    deserializer.end().map_err(wrong)?;
    Ok(decoded)
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

struct Top;

impl<'de> DeserializeSeed<'de> for Top {
    type Value = Payload<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Top {
    type Value = Payload<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object, an array of objects, a number, a boolean or a string")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::with_capacity(8);
        Object { prefix: "", depth: 0, items: &mut items }.visit_map(map)?;
        Ok(Payload::Rows(vec![items]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut rows = Vec::new();
        loop {
            let mut items = Vec::with_capacity(8);
            match seq.next_element_seed(Object { prefix: "", depth: 0, items: &mut items })? {
                Some(()) => rows.push(items),
                None => return Ok(Payload::Rows(rows)),
            }
        }
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Payload::Scalar(FieldValue::Float(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Payload::Scalar(integer(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Payload::Scalar(unsigned(value)))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Payload::Scalar(FieldValue::Bool(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Payload::Scalar(FieldValue::Text(Cow::Borrowed(value))))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Payload::Scalar(FieldValue::Text(Cow::Owned(value.to_owned()))))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Payload::Scalar(FieldValue::Null))
    }
}

/// Flattens an object into `items`.
struct Object<'i, 'de> {
    prefix: &'i str,
    depth: usize,
    items: &'i mut Vec<Item<'de>>,
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
            let name =
                if self.prefix.is_empty() { key } else { Cow::Owned(format!("{}_{key}", self.prefix)) };
            map.next_value_seed(Value { name, depth: self.depth, items: self.items })?;
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
struct Value<'i, 'de> {
    name: Cow<'de, str>,
    depth: usize,
    items: &'i mut Vec<Item<'de>>,
}

impl<'de> Value<'_, 'de> {
    fn push(self, value: FieldValue<'de>) {
        self.items.push((self.name, value));
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
        Object { prefix: &self.name, depth: self.depth + 1, items: self.items }.visit_map(map)
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

/// Whether the bytes are one JSON value.
#[must_use]
pub fn is_json(payload: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(payload).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(payload: &str) -> Vec<(String, FieldValue<'_>)> {
        match decode(payload.as_bytes()) {
            Ok(Payload::Rows(mut rows)) => {
                assert_eq!(rows.len(), 1);
                rows.remove(0).into_iter().map(|(name, value)| (name.into_owned(), value)).collect()
            }
            other => panic!("{other:?}"),
        }
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
        assert!(matches!(decode(br#"[{"a":1},{"a":2}]"#), Ok(Payload::Rows(rows)) if rows.len() == 2));
        assert_eq!(decode(b"23.5"), Ok(Payload::Scalar(FieldValue::Float(23.5))));
        assert!(decode(b"[1,2]").is_err() && decode(b"{\"a\":").is_err() && decode(b"{} x").is_err());
    }

    #[test]
    fn deep_objects_are_refused() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(40), "}".repeat(40));
        assert!(decode(deep.as_bytes()).is_err());
    }
}
