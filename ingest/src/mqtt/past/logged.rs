//! Which points came by messages that the log still has: those are delivered as they came, and not as rows.
//!
//! # Invariants
//! - A message and its rows have one sequence number in the log; so what a source says today does not matter.
//! - Where in the log such messages stand is remembered by stretches, not the points: of a log of 4 GiB some thousand.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::Duration;

use sonde_engine::{
    Engine, LogReader, LogTurn, MessageReader, SeqNo, SeqRange, SeriesId, Snapshot, TableId, TimeRange,
    Timestamp,
};
use sonde_proto::mqtt::filter_matches;

use super::inverse::append_tag;
use crate::limits::REPLAY_STRETCH;

/// How long a commit that a snapshot shows may take to be the log's last.
const PATIENCE: Duration = Duration::from_millis(10);

/// A point: its table, its tags, its time.
pub(super) type Point = (TableId, Vec<u8>, Timestamp);

/// A part of the log that has such messages.
#[derive(Debug)]
struct Stretch {
    /// Stands at its beginning.
    reader: LogReader,
    last: SeqNo,
    /// Bytes of log that had been read where it begins.
    at: u64,
    /// The first time of its points and the last.
    times: (Timestamp, Timestamp),
}

/// The messages of a filter in the log, from a position on.
#[derive(Debug)]
pub(super) struct Logged {
    engine: Engine,
    filter: String,
    /// What came before is not delivered as it came.
    from: Timestamp,
    tables: HashSet<TableId>,
    reader: LogReader,
    messages: MessageReader,
    stretches: Vec<Stretch>,
    bytes: u64,
}

impl Logged {
    pub(super) fn new(
        engine: &Engine,
        filter: &str,
        from: Timestamp,
        tables: HashSet<TableId>,
        position: SeqNo,
    ) -> Self {
        Self {
            engine: engine.clone(),
            filter: filter.to_owned(),
            from,
            tables,
            reader: LogReader::new(position),
            messages: MessageReader::new(),
            stretches: Vec::new(),
            bytes: 0,
        }
    }

    /// Whether it knows the log up to here.
    pub(super) fn knows(&self, seq: SeqNo) -> bool {
        self.reader.position() >= seq
    }

    /// Reads a piece of the log that came since.
    pub(super) fn read_on(&mut self) -> sonde_engine::Result<()> {
        let begin = self.reader.clone();
        let mut reader = begin.clone();
        let turn = self.engine.read_log(&mut reader, |table| self.tables.contains(&table))?;
        if turn.position == begin.position() {
            // The snapshot is ahead by a moment.
            let _ = self.engine.wait_published(begin.position(), PATIENCE);
            return Ok(());
        }
        self.reader = reader;
        let at = self.bytes;
        self.bytes += turn.bytes as u64;
        let mut times: Option<(Timestamp, Timestamp)> = None;
        self.points(begin.position(), turn.position, &turn, &mut |_, _, time| {
            times = Some(times.map_or((time, time), |(first, last)| (first.min(time), last.max(time))));
        })?;
        let Some(times) = times else { return Ok(()) };
        match self.stretches.last_mut().filter(|last| self.bytes - last.at <= REPLAY_STRETCH) {
            Some(last) => {
                last.last = turn.position;
                last.times = (last.times.0.min(times.0), last.times.1.max(times.1));
            }
            None => self.stretches.push(Stretch { reader: begin, last: turn.position, at, times }),
        }
        Ok(())
    }

    /// Whether a message in the log may have a point of these times.
    pub(super) fn reaches(&self, times: TimeRange) -> bool {
        self.stretches.iter().any(|stretch| stretch.reaches(times))
    }

    /// Takes out of `points` those that came by messages that the log has.
    pub(super) fn take_out<V>(
        &mut self,
        snapshot: &Snapshot,
        times: TimeRange,
        points: &mut HashMap<Point, V>,
        is_over: &dyn Fn() -> bool,
    ) -> sonde_engine::Result<()> {
        let meant: Vec<(LogReader, SeqNo)> = self
            .stretches
            .iter()
            .filter(|stretch| stretch.reaches(times))
            .map(|stretch| (stretch.reader.clone(), stretch.last))
            .collect();
        let mut tags: HashMap<(TableId, SeriesId), Vec<u8>> = HashMap::new();
        for (mut reader, last) in meant {
            while reader.position() < last && !points.is_empty() && !is_over() {
                let begin = reader.position();
                let turn = self.engine.read_log(&mut reader, |table| self.tables.contains(&table))?;
                if turn.position == begin {
                    break;
                }
                let engine = self.engine.clone();
                self.points(begin, turn.position.min(last), &turn, &mut |table, series, time| {
                    if !times.contains(time) {
                        return;
                    }
                    let key = tags.entry((table, series)).or_insert_with(|| {
                        let mut key = Vec::new();
                        if let Some(table) = snapshot.catalog().table_by_id(table) {
                            let tags = engine.series_tags(table, series);
                            tags.iter().for_each(|tag| append_tag(tag.as_deref(), &mut key));
                        }
                        key
                    });
                    points.remove(&(table, key.clone(), time));
                })?;
                // As many as there are in a stretch.
                tags.clear();
            }
        }
        Ok(())
    }

    /// Gives the points of the messages behind `begin` and up to `end` to `each`.
    fn points(
        &mut self,
        begin: SeqNo,
        end: SeqNo,
        turn: &LogTurn,
        each: &mut dyn FnMut(TableId, SeriesId, Timestamp),
    ) -> sonde_engine::Result<()> {
        if turn.rows.is_empty() || begin >= end {
            return Ok(());
        }
        let mut logged = HashSet::new();
        let range = SeqRange { first: begin.plus(1), last: end };
        self.engine.read_messages(&mut self.messages, &[range], &mut |raw| {
            if raw.received >= self.from && filter_matches(&self.filter, raw.topic) {
                logged.insert(raw.seq);
            }
            ControlFlow::Continue(())
        })?;
        if logged.is_empty() {
            return Ok(());
        }
        for rows in &turn.rows {
            for ((offset, series), time) in rows.seq_offsets.iter().zip(&rows.series).zip(&rows.times) {
                if logged.contains(&rows.first_seq.plus((*offset).into())) {
                    each(rows.table, *series, Timestamp::from_nanos(*time));
                }
            }
        }
        Ok(())
    }
}

impl Stretch {
    fn reaches(&self, times: TimeRange) -> bool {
        self.times.0 < times.end && times.start <= self.times.1
    }
}
