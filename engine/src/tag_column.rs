//! Tags of many rows at once: which series each row is of, found once for every set of tags that occurs.
//!
//! # Invariants
//! - Rows of equal codes are of one series; rows of one series may have different codes.

use arrow::array::{Array, AsArray, StringArray};
use arrow::datatypes::DataType;
use foldhash::HashMap;
use hashbrown::HashTable;
use sonde_storage_format::{ColumnId, ColumnRole};

use crate::batch::BatchSeries;
use crate::catalog::Table;
use crate::error::Result;
use crate::open_part::column_of;

/// The code of a row that does not have the tag.
const ABSENT: u32 = u32::MAX;
/// An odd number with bits everywhere: two to the 64th over the golden ratio.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// A tag of many rows: the values that occur, and which of them each row has.
#[derive(Debug)]
pub struct TagColumn<'a> {
    id: ColumnId,
    values: Vec<&'a str>,
    codes: Vec<u32>,
}

impl<'a> TagColumn<'a> {
    /// The tag of an array of strings, or of a dictionary of strings. `None` where it is neither.
    #[must_use]
    pub fn new(id: ColumnId, array: &'a dyn Array) -> Option<Self> {
        if *array.data_type() == DataType::Utf8 {
            return Some(Self::of_strings(id, array.as_string()));
        }
        let dictionary = array.as_any_dictionary_opt()?;
        let values: &StringArray = dictionary.values().as_string_opt()?;
        // Of an empty dictionary no key can be looked at.
        if values.is_empty() {
            return Some(Self { id, values: Vec::new(), codes: vec![ABSENT; array.len()] });
        }
        let mut codes: Vec<u32> = dictionary
            .normalized_keys()
            .into_iter()
            .map(|key| u32::try_from(key).unwrap_or(ABSENT))
            .collect();
        if let Some(nulls) = array.logical_nulls() {
            codes
                .iter_mut()
                .zip(nulls.iter())
                .filter(|(_, valid)| !valid)
                .for_each(|(code, _)| *code = ABSENT);
        }
        Some(Self { id, values: values.iter().map(Option::unwrap_or_default).collect(), codes })
    }

    fn of_strings(id: ColumnId, strings: &'a StringArray) -> Self {
        let mut known: HashMap<&str, u32> = HashMap::default();
        let mut values = Vec::new();
        let code = |value: Option<&'a str>| {
            let Some(value) = value else { return ABSENT };
            *known.entry(value).or_insert_with(|| {
                values.push(value);
                values.len() as u32 - 1
            })
        };
        let codes = strings.iter().map(code).collect();
        Self { id, values, codes }
    }

    fn code(&self, row: usize) -> u32 {
        self.codes.get(row).copied().unwrap_or(ABSENT)
    }

    /// The value of a row, if it has one.
    pub(crate) fn value(&self, row: usize) -> Option<&'a str> {
        self.values.get(self.code(row) as usize).copied()
    }
}

/// The tags of a table as they stand in its keys, those that `tags` has. Fails where one of these is none of the table's.
pub(crate) fn in_key_order<'t, 'a>(
    table: &Table,
    tags: &'t [TagColumn<'a>],
) -> Result<Vec<Option<&'t TagColumn<'a>>>> {
    tags.iter().try_for_each(|tag| column_of(table, tag.id, ColumnRole::Tag).map(|_| ()))?;
    Ok(table.tags().map(|column| tags.iter().find(|tag| tag.id == column.id)).collect())
}

/// The series of every row; `find` is asked about the first row of every set of codes.
pub(crate) fn series_of(
    tags: &[TagColumn<'_>],
    rows: usize,
    mut find: impl FnMut(usize) -> Result<BatchSeries>,
) -> Result<Vec<BatchSeries>> {
    let mut hashes = vec![0_u64; rows];
    for tag in tags {
        assert_eq!(tag.codes.len(), rows, "tag {} has a code for every row", tag.id);
        for (hash, code) in hashes.iter_mut().zip(&tag.codes) {
            *hash = (*hash ^ u64::from(*code)).wrapping_mul(MIX).rotate_left(29);
        }
    }
    let equal = |one: usize, other: usize| tags.iter().all(|tag| tag.code(one) == tag.code(other));
    // Rows that have their codes first, by their hash.
    let mut firsts: HashTable<usize> = HashTable::new();
    let mut series: Vec<BatchSeries> = Vec::with_capacity(rows);
    for (row, hash) in hashes.iter().enumerate() {
        if let Some(found) =
            firsts.find(*hash, |first| equal(*first, row)).and_then(|first| series.get(*first))
        {
            series.push(*found);
            continue;
        }
        series.push(find(row)?);
        firsts.insert_unique(*hash, row, |row| hashes.get(*row).copied().unwrap_or_default());
    }
    Ok(series)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, DictionaryArray, Int8Array};

    use super::*;

    #[test]
    fn every_set_of_tags_is_looked_up_once() {
        let hosts = StringArray::from(vec![Some("a"), Some("b"), None, Some("a"), Some("b"), None]);
        let keys = Int8Array::from(vec![Some(0), Some(1), Some(0), Some(2), None, Some(0)]);
        let names = StringArray::from(vec![Some("x"), None, Some("x")]);
        let racks: ArrayRef = Arc::new(DictionaryArray::new(keys, Arc::new(names)));
        let tags = [
            TagColumn::new(ColumnId(1), &hosts).unwrap(),
            TagColumn::new(ColumnId(2), racks.as_ref()).unwrap(),
        ];
        let mut asked = Vec::new();
        let found = series_of(&tags, 6, |row| {
            let values = tags.iter().filter_map(|tag| Some(format!("{}{}", tag.id, tag.value(row)?)));
            asked.push(values.collect::<Vec<_>>().join(","));
            Ok(BatchSeries(asked.len() as u64 - 1))
        });
        // The fourth row is named by another code of the same value, the fifth by a NULL of another kind.
        assert_eq!(asked, ["1a,2x", "1b", "2x", "1a,2x"]);
        assert_eq!(found.unwrap().iter().map(|series| series.0).collect::<Vec<_>>(), [0, 1, 2, 3, 1, 2]);
        assert!(TagColumn::new(ColumnId(1), &Int8Array::from(vec![1])).is_none());
    }
}
