//! Tombstones as scans use them: which rows of older sources are hidden.
//!
//! # Invariants
//! - A mask hides rows of lower sequence numbers only. Rows in the active memtable are removed when it is committed, so
//!   a source is either older than a mask as a whole, or has nothing that the mask hides.
//! - A mask is kept, in the version and as state, for as long as a file or a frozen memtable may hold what it hides.

use std::ops::Range;
use std::sync::Arc;

use sonde_storage_format::{SeqNo, SeriesId, State, TableId, TimeRange, Timestamp, Tombstone, TombstonePart};

use crate::error::Result;
use crate::limits::MASK_PARTS;
use crate::scan::merge::Window;
use crate::series::KeyOrder;

/// The namespace of the tombstones that are kept as state; the value is the body of the log's record.
pub(crate) const TOMBSTONES: &str = "engine.tombstones";

/// Rows of one table that are gone.
#[derive(Debug)]
pub(crate) struct Mask {
    pub(crate) seq: SeqNo,
    /// When it was committed, or recovered: from then on its age counts.
    pub(crate) since: Timestamp,
    /// No row outside is hidden.
    span: TimeRange,
    ranges: Vec<(TimeRange, Option<Vec<SeriesId>>)>,
    /// Ascending.
    points: Vec<(SeriesId, Timestamp)>,
}

impl Mask {
    pub(crate) fn new(tombstone: Tombstone, since: Timestamp) -> Self {
        let (mut ranges, mut points) = (Vec::new(), Vec::new());
        for part in tombstone.parts {
            match part {
                TombstonePart::Range { range, series } => ranges.push((range, series)),
                TombstonePart::Points(more) => points.extend(more),
            }
        }
        points.sort_unstable();
        points.dedup();
        let of_points = points.iter().map(|(_, time)| TimeRange {
            start: *time,
            end: Timestamp::from_nanos(time.as_nanos().saturating_add(1)),
        });
        let span = ranges.iter().map(|(range, _)| *range).chain(of_points).reduce(|a, b| a.union(&b));
        let span = span.unwrap_or(TimeRange { start: Timestamp::MIN, end: Timestamp::MIN });
        Self { seq: tombstone.seq, since, span, ranges, points }
    }

    /// The tombstone that it came from.
    pub(crate) fn to_tombstone(&self, table: TableId) -> Tombstone {
        let ranges = self.ranges.iter();
        let mut parts: Vec<TombstonePart> = ranges
            .map(|(range, series)| TombstonePart::Range { range: *range, series: series.clone() })
            .collect();
        if !self.points.is_empty() {
            parts.push(TombstonePart::Points(self.points.clone()));
        }
        Tombstone { table, seq: self.seq, parts }
    }

    /// The record by which the state keeps it, or forgets it.
    pub(crate) fn state(&self, table: TableId, kept: bool) -> State {
        let mut key = table.0.to_be_bytes().to_vec();
        key.extend_from_slice(&self.seq.0.to_be_bytes());
        let value = kept.then(|| self.to_tombstone(table).encode());
        State { namespace: TOMBSTONES.into(), key, value }
    }

    /// Both as one, where nothing lies between them that only the older one hides.
    pub(crate) fn joined(&self, newer: &Self) -> Option<Self> {
        let parts = |mask: &Self| mask.ranges.len() + mask.points.len();
        if parts(self) + parts(newer) > MASK_PARTS {
            return None;
        }
        let mut ranges = self.ranges.clone();
        ranges.extend(newer.ranges.iter().cloned());
        let mut points = self.points.clone();
        points.extend_from_slice(&newer.points);
        points.sort_unstable();
        points.dedup();
        // The older one's age: what it hides is to go within its time.
        Some(Self { seq: newer.seq, since: self.since, span: self.span.union(&newer.span), ranges, points })
    }

    /// Whether it may hide a row of these times, both inclusive.
    pub(crate) fn reaches(&self, first: Timestamp, last: Timestamp) -> bool {
        first < self.span.end && self.span.start <= last
    }

    /// Whether it may hide a row of a range of time.
    pub(crate) fn reaches_into(&self, range: &TimeRange) -> bool {
        range.start < self.span.end && self.span.start < range.end
    }

    /// Whether it hides every row of these times, both inclusive, whatever its series.
    pub(crate) fn hides_all(&self, first: Timestamp, last: Timestamp) -> bool {
        self.ranges.iter().any(|(range, series)| series.is_none() && range.start <= first && last < range.end)
    }

    /// Whether it hides a point, if that is old enough.
    pub(crate) fn hides(&self, series: SeriesId, time: Timestamp) -> bool {
        self.ranges_of(series).any(|range| range.contains(time))
            || self.points.binary_search(&(series, time)).is_ok()
    }

    /// Whether it may hide a row of a series of these times, both inclusive.
    pub(crate) fn may_hide(&self, id: SeriesId, first: Timestamp, last: Timestamp) -> bool {
        let from = self.points.partition_point(|point| *point < (id, first));
        self.ranges_of(id).any(|range| first < range.end && range.start <= last)
            || self.points.get(from).is_some_and(|point| *point <= (id, last))
    }

    fn ranges_of(&self, id: SeriesId) -> impl Iterator<Item = TimeRange> {
        let of_series = move |series: &Option<Vec<SeriesId>>| {
            series.as_ref().is_none_or(|s| s.binary_search(&id).is_ok())
        };
        self.ranges.iter().filter(move |(_, series)| of_series(series)).map(|(range, _)| *range)
    }

    /// The rows that it hides of one series, whose times ascend.
    fn hidden_of(&self, id: SeriesId, times: &[i64], mut each: impl FnMut(Range<usize>)) {
        let before = |end: Timestamp| times.partition_point(|time| *time < end.as_nanos());
        for range in self.ranges_of(id) {
            each(before(range.start)..before(range.end));
        }
        let (Some(first), Some(last)) = (times.first(), times.last()) else { return };
        let at = |time: &i64| (id, Timestamp::from_nanos(*time));
        let from = self.points.partition_point(|point| *point < at(first));
        let to = self.points.partition_point(|point| *point <= at(last));
        for (_, time) in self.points.get(from..to).unwrap_or_default() {
            each(before(*time)..times.partition_point(|row| *row <= time.as_nanos()));
        }
    }
}

/// The window without the rows that a mask hides.
pub(crate) fn hide(window: Window, order: &KeyOrder, masks: &[Arc<Mask>]) -> Window {
    let mut hidden: Vec<bool> = Vec::new();
    let mut start = 0;
    for run in window.ranks.chunk_by(|a, b| a == b) {
        let times = window.times.get(start..start + run.len()).unwrap_or_default();
        let id = order.id(run.first().copied().unwrap_or_default());
        for mask in masks {
            mask.hidden_of(id, times, |rows| {
                hidden.resize(window.rows(), false);
                let rows = hidden.get_mut(start + rows.start..start + rows.end);
                rows.into_iter().flatten().for_each(|row| *row = true);
            });
        }
        start += run.len();
    }
    if !hidden.contains(&true) {
        return window;
    }
    let kept: Vec<usize> =
        hidden.iter().enumerate().filter(|(_, gone)| !**gone).map(|(row, _)| row).collect();
    window.gather(&kept)
}

/// The masks among the state, by table and sequence number.
pub(crate) fn of_state(entries: &[(Vec<u8>, bytes::Bytes)], now: Timestamp) -> Result<Vec<(TableId, Mask)>> {
    let mask = |(_, value): &(Vec<u8>, bytes::Bytes)| {
        let corrupt = |source| crate::error::Error::Corrupt { path: TOMBSTONES.into(), source };
        let tombstone = Tombstone::decode(value).map_err(corrupt)?;
        Ok((tombstone.table, Mask::new(tombstone, now)))
    };
    entries.iter().map(mask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: i64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    fn range(start: i64, end: i64) -> TimeRange {
        TimeRange { start: at(start), end: at(end) }
    }

    fn mask(seq: u64, parts: Vec<TombstonePart>) -> Mask {
        Mask::new(Tombstone { table: TableId(1), seq: SeqNo(seq), parts }, at(0))
    }

    fn all(start: i64, end: i64) -> TombstonePart {
        TombstonePart::Range { range: range(start, end), series: None }
    }

    fn some(start: i64, end: i64, series: u64) -> TombstonePart {
        TombstonePart::Range { range: range(start, end), series: Some(vec![SeriesId(series)]) }
    }

    fn points(points: &[(u64, i64)]) -> TombstonePart {
        TombstonePart::Points(points.iter().map(|(id, time)| (SeriesId(*id), at(*time))).collect())
    }

    #[test]
    fn the_span_holds_every_part() {
        let mask = mask(5, vec![some(10, 20, 0), points(&[(1, 30), (0, 5)])]);
        assert!(mask.reaches(at(30), at(40)) && mask.reaches(at(0), at(5)) && mask.reaches(at(0), at(99)));
        assert!(!mask.reaches(at(31), at(40)) && !mask.reaches(at(0), at(4)));
        assert!(mask.reaches_into(&range(30, 40)) && mask.reaches_into(&range(0, 6)));
        assert!(!mask.reaches_into(&range(31, 40)) && !mask.reaches_into(&range(0, 5)));
        assert!(!mask.hides_all(at(10), at(12)), "another series is not hidden");
        assert!(!self::mask(1, vec![]).reaches(Timestamp::MIN, Timestamp::MAX));
        let all = self::mask(1, vec![all(10, 20)]);
        assert!(all.hides_all(at(10), at(19)) && !all.hides_all(at(10), at(20)));
    }

    /// Row by row and run by run say the same.
    #[test]
    fn a_window_loses_what_is_hidden() {
        let masks = [
            Arc::new(mask(5, vec![some(2, 4, 0), points(&[(1, 3), (1, 9), (0, 9)])])),
            Arc::new(mask(6, vec![all(7, 9)])),
        ];
        let keys: Vec<_> = ["a", "b"].map(|tag| sonde_storage_format::SeriesKey::encode([Some(tag)])).into();
        let series = crate::series::TableSeries::default();
        series.allocate(&keys);
        let order = series.order();
        let times: Vec<i64> = (0..12).chain(0..12).collect();
        let ranks: Vec<u32> = [[0; 12], [1; 12]].concat();
        let kept: Vec<(u32, i64)> = std::iter::zip(ranks.clone(), times.clone())
            .filter(|(rank, time)| !masks.iter().any(|mask| mask.hides(SeriesId((*rank).into()), at(*time))))
            .collect();
        let window = hide(Window::new(ranks, times, Vec::new()), &order, &masks);
        assert_eq!(std::iter::zip(window.ranks, window.times).collect::<Vec<_>>(), kept);
        assert_eq!(kept.len(), 24 - 2 - 3 - 4);
    }

    #[test]
    fn joined_masks_hide_what_both_did_and_survive_the_log() {
        let (old, new) = (mask(5, vec![some(2, 4, 0)]), mask(6, vec![points(&[(1, 3), (0, 9)])]));
        let both = old.joined(&new).unwrap_or_else(|| panic!("few parts"));
        let again = Mask::new(
            Tombstone::decode(&both.to_tombstone(TableId(1)).encode()).unwrap_or_else(|e| panic!("{e}")),
            at(0),
        );
        assert_eq!((again.seq, &again.ranges, &again.points), (SeqNo(6), &both.ranges, &both.points));
        assert!(again.hides(SeriesId(0), at(3)) && again.hides(SeriesId(0), at(9)));
        assert!(!again.hides(SeriesId(1), at(2)));
    }
}
