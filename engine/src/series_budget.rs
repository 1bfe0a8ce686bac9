//! How much memory the series of all tables take, and what they may take: a share of the process' memory of their own.
//!
//! What a series takes is charged when it is registered, by an estimate of what it will have taken once everybody has
//! asked for it: the order of the keys and the index of the tags are built by the queries that need them. Where the index
//! takes more than its part of the estimate, that is charged once it is there.
//!
//! # Invariants
//! - Rows of new series reserve what these will take when the batch is built, and whoever finds no room is refused then:
//!   the writer thread never refuses. What is reserved is given back when the batch is committed or dropped.
//! - What was acknowledged counts, whether or not there is room: recovery charges beyond the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

use sonde_storage_format::Tags;

/// What a series takes beside its key and its tags, in bytes: 4 where its key ends, 5 in a hash table that is up to 16/7
/// of them, 8 in the order of the keys and 16 more while that is built, 8 in the newest times of files.
const SERIES_BYTES: usize = 48;
/// What its first tag takes in the index of tags: a value of its own, 17 bytes in a hash table that is up to 16/7 of
/// them, and two in a set.
const FIRST_TAG_BYTES: usize = 40;
/// What a further tag takes there: mostly a place in the set of a value that others have too.
const TAG_BYTES: usize = 4;

/// About the bytes that the tags of a series take in the index of tags.
pub(crate) fn tag_bytes(tags: usize) -> usize {
    match tags {
        0 => 0,
        more => FIRST_TAG_BYTES + (more - 1) * TAG_BYTES,
    }
}

/// About the bytes that a series of this key takes. An eighth of the key is what allocators and lists that grow add.
pub(crate) fn series_bytes(key: &[u8]) -> usize {
    key.len() + key.len() / 8 + SERIES_BYTES + tag_bytes(tags(key))
}

/// How many tags of a key are present.
fn tags(key: &[u8]) -> usize {
    Tags::of(key).filter(|tag| matches!(tag, Ok(Some(_)))).count()
}

/// The account of all tables of an engine.
#[derive(Debug)]
pub(crate) struct SeriesBudget {
    limit: usize,
    /// Signed, because tables that give back at the same time do so in parts.
    used: AtomicIsize,
    /// Whether it was said that there is no room.
    said: AtomicBool,
}

impl Default for SeriesBudget {
    /// Without a limit, for catalogs that nobody writes to.
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl SeriesBudget {
    /// An account that may hold so many bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, used: AtomicIsize::new(0), said: AtomicBool::new(false) }
    }

    /// What may be held.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// What is held and reserved.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed).max(0).cast_unsigned()
    }

    /// Counts more, or less, whether or not there is room.
    fn charge(&self, bytes: isize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts more, if there is room. When there is none for the first time, the log says so.
    fn try_charge(&self, bytes: usize) -> bool {
        let limit = isize::try_from(self.limit).unwrap_or(isize::MAX);
        let add = |used: isize| used.checked_add_unsigned(bytes).filter(|sum| *sum <= limit);
        let fits = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok();
        if !fits && !self.said.swap(true, Ordering::Relaxed) {
            let (used, limit) = (self.used(), self.limit);
            tracing::warn!(used, limit, "no memory for more series; rows of new ones are refused");
        }
        fits
    }
}

/// What somebody holds of an account: a table for its series, a batch for those that it will add. It is given back when it
/// is dropped.
#[derive(Debug, Default)]
pub(crate) struct Charged {
    budget: Arc<SeriesBudget>,
    bytes: AtomicIsize,
}

impl Charged {
    /// Nothing yet.
    pub(crate) fn new(budget: &Arc<SeriesBudget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: AtomicIsize::new(0) }
    }

    /// The account.
    pub(crate) fn budget(&self) -> &Arc<SeriesBudget> {
        &self.budget
    }

    /// Holds more, or less, whether or not there is room.
    pub(crate) fn add(&self, bytes: isize) {
        self.budget.charge(bytes);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Holds what one more series takes, whether or not there is room.
    pub(crate) fn add_series(&self, key: &[u8]) {
        self.add(series_bytes(key).cast_signed());
    }

    /// The same if there is room. A series without tags always has it: a table has one of them.
    pub(crate) fn try_add_series(&self, key: &[u8]) -> bool {
        let bytes = series_bytes(key);
        if tags(key) == 0 {
            self.budget.charge(bytes.cast_signed());
        } else if !self.budget.try_charge(bytes) {
            return false;
        }
        self.bytes.fetch_add(bytes.cast_signed(), Ordering::Relaxed);
        true
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.budget.charge(-*self.bytes.get_mut());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeSet;
    use std::process::Command;

    use sonde_storage_format::{ChunkId, SeriesId, SeriesKey, Timestamp};

    use super::*;
    use crate::newest::FileName;
    use crate::series::TableSeries;

    #[test]
    fn what_is_reserved_is_given_back_and_what_has_no_tags_has_room() {
        let (key, none) = (SeriesKey::encode([Some("a"), None]), SeriesKey::encode([None]));
        let bytes = series_bytes(key.as_bytes());
        let budget = Arc::new(SeriesBudget::new(2 * bytes));
        let reserved = Charged::new(&budget);
        assert!(reserved.try_add_series(key.as_bytes()) && reserved.try_add_series(key.as_bytes()));
        assert!(!Charged::new(&budget).try_add_series(key.as_bytes()));
        assert!(Charged::new(&budget).try_add_series(none.as_bytes()));
        assert_eq!(budget.used(), 2 * bytes);
        drop(reserved);
        assert_eq!(budget.used(), 0);
        budget.charge(2 * bytes.cast_signed());
        assert!(!Charged::new(&budget).try_add_series(key.as_bytes()));
    }

    const MEASURED: &str = "SONDE_MEASURED_TAGS";

    /// The tags of a series: how many a table has, and how often their values repeat, differs.
    fn key(shape: &str, i: usize) -> SeriesKey {
        let device = format!("device-number-{i:08}");
        let tags: Vec<String> = match shape {
            "device" => vec![device],
            "device and site" => vec![device, format!("plant-{:05}", i % 1000)],
            "two of a device" => vec![device, format!("serial-{i:010}")],
            "ten" => (0..9).map(|tag| format!("value-{tag}-{}", i % (tag + 2))).chain([device]).collect(),
            other => panic!("no such shape: {other}"),
        };
        SeriesKey::encode(tags.iter().map(|tag| Some(tag.as_str())))
    }

    fn anonymous_bytes() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() << 10
    }

    /// Registers series of a shape in parts, and asks for everything that is built of them after some and after all.
    /// Returns what they take by the account, and by what the system says of the process.
    fn measure(shape: &str, count: usize) -> (usize, usize) {
        let budget = Arc::new(SeriesBudget::default());
        let series = TableSeries::new(&budget);
        let wanted = BTreeSet::from([Some("device-number-00000007".to_owned())]);
        let before = anonymous_bytes();
        for from in (0..count).step_by(5_000) {
            let part: Vec<SeriesKey> = (from..(from + 5_000).min(count)).map(|i| key(shape, i)).collect();
            series.allocate(&part);
            if from > 0 && from % (count / 2) == 0 {
                series.order();
            }
        }
        let order = series.order();
        let place = if shape == "ten" { 9 } else { 0 };
        assert_eq!(series.select(order.keys(), &[(place, &wanted)]).len(), 1);
        let times = (0..count).map(|id| (SeriesId(id as u64), Timestamp::from_nanos(1)));
        series.newest().write().add(FileName::Chunk(ChunkId(1)), times);
        (budget.used(), anonymous_bytes() - before)
    }

    /// In a process of its own, of which the system says what it takes.
    #[test]
    fn the_account_is_near_what_series_take() {
        let count = 60_000;
        if let Ok(shape) = std::env::var(MEASURED) {
            let (counted, found) = measure(&shape, count);
            println!("measured {counted} {found}");
            return;
        }
        for shape in ["device", "device and site", "two of a device", "ten"] {
            let this = "series_budget::tests::the_account_is_near_what_series_take";
            let mut child = Command::new(std::env::current_exe().unwrap());
            let child = child.args(["--exact", this, "--nocapture", "--test-threads=1"]).env(MEASURED, shape);
            let said = String::from_utf8(child.output().unwrap().stdout).unwrap();
            let line = said.lines().find_map(|line| line.split_once("measured ")).unwrap().1;
            let bytes: Vec<usize> = line.split(' ').map(|bytes| bytes.parse().unwrap()).collect();
            let [counted, found] = bytes[..] else { panic!("{said}") };
            println!("{shape}: {} bytes a series counted, {} found", counted / count, found / count);
            assert!(found <= counted && counted <= 2 * found, "{shape}: {counted} counted, {found} found");
        }
    }
}
