//! Rows of tables as the messages that they came from, in the order of their times, piece by piece.
//!
//! # Invariants
//! - A piece is of a window of time that is made so narrow that it is bounded; a single instant with too many rows comes in
//!   several. No table is in memory, and no snapshot is kept from piece to piece but for such an instant.
//! - A row whose message is in the log, and comes as it was, is left out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use sonde_engine::{Engine, ScanRequest, ScanStream, SeqNo, Snapshot, TimeRange, Timestamp};
use sonde_proto::mqtt::{PropertiesBuilder, Property, QoS};

use super::super::message::Message;
use super::inverse::{Bound, Inverse};
use super::logged::{Logged, Point};
use crate::limits::{FETCH_BYTES, REPLAY_ROWS, REPLAY_SCANNED};

/// The width of the first window: a second.
const FIRST_WIDTH: i64 = 1_000_000_000;
/// By how much the next window is wider than one with few rows.
const WIDER: i64 = 4;

/// Messages that rows became.
#[derive(Debug)]
pub(super) struct Piece {
    /// With their times, ascending.
    pub(super) rows: VecDeque<(Timestamp, Message)>,
    /// All rows before this have been given.
    pub(super) upto: Timestamp,
}

/// The rows of a replay that are still to be read.
#[derive(Debug)]
pub(super) struct History {
    engine: Engine,
    filter: String,
    inverses: Vec<Inverse>,
    logged: Logged,
    /// All rows before this have been given.
    at: Timestamp,
    /// How wide the next window is, in nanoseconds.
    width: i64,
    /// Where it ends instead, because up to its end there was too much.
    end: Option<Timestamp>,
    /// An instant that has too many rows for one piece.
    instant: Option<Reading>,
    /// The properties of all messages.
    properties: Arc<[u8]>,
}

/// A window that is being read.
#[derive(Debug)]
struct Reading {
    snapshot: Snapshot,
    times: TimeRange,
    streams: VecDeque<(Bound, ScanStream)>,
    /// What is left of a batch of the first stream, from this row on.
    rest: Option<(RecordBatch, usize)>,
}

/// What was read of a window.
#[derive(Default)]
struct Found {
    rows: Vec<(Timestamp, Option<Point>, Message)>,
    bytes: usize,
    scanned: usize,
}

impl Found {
    fn is_full(&self) -> bool {
        self.rows.len() >= REPLAY_ROWS || self.bytes >= FETCH_BYTES || self.scanned >= REPLAY_SCANNED
    }

    /// Where a window should end of which this is a part, and not all. Rows come series by series, so that their times say
    /// where in the window there are rows.
    fn narrower(&self, window: TimeRange) -> Timestamp {
        let mut times: Vec<Timestamp> = self.rows.iter().map(|(time, ..)| *time).collect();
        times.sort_unstable();
        let (start, end) = (window.start.as_nanos(), window.end.as_nanos());
        let middle = Timestamp::from_nanos(start.saturating_add(end.saturating_sub(start) / 2));
        let at = times.get(times.len() / 4).copied().unwrap_or(middle);
        at.max(Timestamp::from_nanos(start.saturating_add(1)))
    }

    /// Whether a wider window would probably do, too.
    fn is_small(&self) -> bool {
        let rows = self.rows.len() < REPLAY_ROWS / 8 && self.scanned < REPLAY_SCANNED / 8;
        rows && self.bytes < FETCH_BYTES / 8
    }
}

impl History {
    /// The rows from a time on; `position` is where the replay begins to read the log.
    pub(super) fn new(
        engine: &Engine,
        filter: &str,
        from: Timestamp,
        inverses: Vec<Inverse>,
        position: SeqNo,
    ) -> Self {
        let tables = inverses.iter().map(|inverse| inverse.table).collect();
        let mut properties = PropertiesBuilder::new();
        properties.push(Property::PayloadFormatIndicator(1));
        properties.push(Property::ContentType("application/json"));
        Self {
            engine: engine.clone(),
            filter: filter.to_owned(),
            inverses,
            logged: Logged::new(engine, filter, from, tables, position),
            at: from,
            width: FIRST_WIDTH,
            end: None,
            instant: None,
            properties: properties.as_properties().as_bytes().into(),
        }
    }

    /// Does a bounded piece of work; what came of it, if something did. `upto` is the end of time behind the last row.
    pub(super) fn step(&mut self, is_over: &dyn Fn() -> bool) -> sonde_engine::Result<Option<Piece>> {
        let mut reading = match self.instant.take() {
            Some(reading) => reading,
            None => {
                let snapshot = self.engine.snapshot();
                if !self.logged.knows(snapshot.seq()) {
                    self.logged.read_on()?;
                    // What comes meanwhile is little: a window is read of what is known now.
                    if !self.logged.knows(snapshot.seq()) {
                        return Ok(None);
                    }
                }
                self.open(snapshot)?
            }
        };
        let keyed = self.logged.reaches(reading.times);
        let found = self.read(&mut reading, keyed, is_over)?;
        let is_whole = reading.streams.is_empty();
        if !is_whole && reading.times.end > Timestamp::from_nanos(self.at.as_nanos().saturating_add(1)) {
            self.end = Some(found.narrower(reading.times));
            return Ok(None);
        }
        let empty = found.rows.is_empty();
        let (times, is_small) = (reading.times, found.is_small());
        let rows = self.without_logged(found, &reading, keyed, is_over)?;
        if is_whole {
            let width = times.end.as_nanos().saturating_sub(self.at.as_nanos());
            // An instant that had too many rows says nothing of how many there are in a second.
            if width > 1 {
                self.width = if is_small { width.saturating_mul(WIDER) } else { width };
            }
            (self.at, self.end) = (times.end, None);
        } else {
            self.instant = Some(reading);
        }
        // A window without rows is not worth to be told of, but for the last.
        let is_worth = !empty || self.at == Timestamp::MAX;
        Ok(is_worth.then_some(Piece { rows, upto: self.at }))
    }

    /// Opens the next window.
    fn open(&self, snapshot: Snapshot) -> sonde_engine::Result<Reading> {
        let end = Timestamp::from_nanos(self.at.as_nanos().saturating_add(self.width));
        let end = self.end.unwrap_or(end);
        let times = TimeRange { start: self.at, end };
        let mut streams = VecDeque::new();
        for inverse in &self.inverses {
            // A table that was dropped has no past any more.
            let Some(table) = snapshot.catalog().table_by_id(inverse.table) else { continue };
            let Some(bound) = inverse.bind(table, &self.filter) else { continue };
            let mut request = ScanRequest::all(Arc::clone(&bound.table), bound.columns.clone());
            request.time = times;
            request.tags.clone_from(&bound.filters);
            let stream = self.engine.scan(&snapshot, &request)?.open(0, 1);
            streams.push_back((bound, stream));
        }
        Ok(Reading { snapshot, times, streams, rest: None })
    }

    /// Reads on in a window, as far as a piece goes; the streams that have ended are gone from it.
    fn read(
        &self,
        reading: &mut Reading,
        keyed: bool,
        is_over: &dyn Fn() -> bool,
    ) -> sonde_engine::Result<Found> {
        let mut found = Found::default();
        while let Some((bound, stream)) = reading.streams.front_mut() {
            if found.is_full() || is_over() {
                break;
            }
            let (batch, start) = match reading.rest.take() {
                Some(rest) => rest,
                None => match stream.next() {
                    Some(batch) => (batch?, 0),
                    None => {
                        reading.streams.pop_front();
                        continue;
                    }
                },
            };
            for row in start..batch.num_rows() {
                if found.is_full() {
                    reading.rest = Some((batch, row));
                    break;
                }
                found.scanned += 1;
                let Some(time) = bound.time(&batch, row) else { continue };
                let Some((topic, payload)) = bound.row(&batch, row, &self.filter) else { continue };
                let point = keyed.then(|| (bound.table.id(), bound.point(&batch, row), time));
                let message = Message {
                    properties: Arc::clone(&self.properties),
                    arrival: time,
                    // The subscriber's own: what it was published with is not kept.
                    ..Message::new(&topic, &payload, QoS::ExactlyOnce, false)
                };
                found.bytes += message.bytes();
                found.rows.push((time, point, message));
            }
        }
        Ok(found)
    }

    /// The rows without those whose message is in the log, in the order of their times.
    fn without_logged(
        &mut self,
        found: Found,
        reading: &Reading,
        keyed: bool,
        is_over: &dyn Fn() -> bool,
    ) -> sonde_engine::Result<VecDeque<(Timestamp, Message)>> {
        let mut rows: Vec<(Timestamp, Message)> = Vec::with_capacity(found.rows.len());
        if keyed {
            let mut points = HashMap::new();
            for (place, (time, point, message)) in found.rows.into_iter().enumerate() {
                points.extend(point.map(|point| (point, (place, time, message))));
            }
            self.logged.take_out(&reading.snapshot, reading.times, &mut points, is_over)?;
            let mut left: Vec<_> = points.into_values().collect();
            left.sort_unstable_by_key(|(place, ..)| *place);
            rows.extend(left.into_iter().map(|(_, time, message)| (time, message)));
        } else {
            rows.extend(found.rows.into_iter().map(|(time, _, message)| (time, message)));
        }
        rows.sort_by_key(|(time, _)| *time);
        Ok(rows.into())
    }
}
