//! What waits for a durable session: numbers of messages in the log, not the messages.
//!
//! A message that several sessions want is logged once, in the commit of its rows. Each session keeps the messages' sequence
//! numbers as runs, so that one that wants everything has a few bytes for each turn of the event loop, and one that wants
//! little a few bytes for each message.
//!
//! # Invariants
//! - Blocks ascend and do not overlap; the record of each goes with its last message.
//! - What all of it takes, records included, is in a gauge of the process, which has a limit.
//! - Numbers up to `fetched`, and those that are `resumed`, were handed to the session, whether or not it is done with them.

use std::collections::{BTreeSet, VecDeque};

use sonde_engine::{SeqNo, SeqRange};

use super::block::{Block, Manner, Run};
use super::budget::Tally;

/// Blocks that are folded into one once there are so many.
const FOLD: usize = 16;
/// Runs of a block that is folded no more: its record is written anew whenever some of it is done with.
const FOLDED_RUNS: usize = 256;

/// Messages that a session can be handed: one behind the other, all in one manner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) range: SeqRange,
    pub(super) manner: Manner,
    /// The block that they are of.
    pub(super) block: u64,
}
/// The messages in the log that a session has not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Backlog {
    blocks: VecDeque<Block>,
    /// What the present turn brings, numbered as its batch numbers it.
    gathering: Block,
    /// Messages, those of turns that are not durable yet included.
    count: u64,
    bytes: u64,
    fetched: u64,
    /// Numbers beyond `fetched` that the session has, since before the server started.
    resumed: BTreeSet<u64>,
    /// Blocks whose record is not what is left of them.
    changed: BTreeSet<u64>,
    /// What it takes of the memory for backlogs.
    tally: Tally,
}

impl Default for Backlog {
    fn default() -> Self {
        Self {
            blocks: VecDeque::new(),
            gathering: Block::default(),
            count: 0,
            bytes: 0,
            fetched: 0,
            resumed: BTreeSet::new(),
            changed: BTreeSet::new(),
            tally: Tally::of_backlogs(),
        }
    }
}

impl Backlog {
    /// Messages that wait or are in flight.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Notes a message of the present turn.
    pub(super) fn note(&mut self, number: u32, manner: Manner, bytes: u64) {
        let before = if self.is_gathering() { self.gathering.weight() } else { 0 };
        self.gathering.push(number.into(), manner, bytes);
        self.tally.add(self.gathering.weight() - before);
        self.count += 1;
        self.bytes += bytes;
    }

    /// Whether the present turn brought something.
    pub(super) fn is_gathering(&self) -> bool {
        self.gathering.count > 0
    }

    /// What the present turn brought, under the number that its record gets.
    pub(super) fn seal(&mut self, number: u64) -> Option<Block> {
        let mut block = std::mem::take(&mut self.gathering);
        block.shrink_to_fit();
        block.number = number;
        (block.count > 0).then_some(block)
    }

    /// A sealed block is durable; its messages are numbered from here on.
    pub(super) fn append(&mut self, mut block: Block, first: SeqNo) {
        block.runs.iter_mut().for_each(|run| run.first += first.0);
        self.blocks.push_back(block);
    }

    /// A sealed block is not going to be.
    pub(super) fn discard(&mut self, block: &Block) {
        self.count -= block.count;
        self.bytes -= block.bytes;
        self.tally.subtract(block.weight());
    }

    /// Makes one block of the last ones where many of them are small: a block and its record cost more than its messages
    /// where they come one at a time. Whether there was something to do.
    pub(super) fn fold(&mut self) -> bool {
        let small = self.blocks.iter().rev().take_while(|block| block.runs.len() < FOLDED_RUNS).count();
        if small < FOLD {
            return false;
        }
        let mut all = self.blocks.split_off(self.blocks.len() - small).into_iter();
        let Some(mut folded) = all.next() else { return false };
        self.tally.subtract(folded.weight());
        for block in all {
            self.tally.subtract(block.weight());
            self.changed.insert(folded.number);
            folded.append(block);
        }
        folded.shrink_to_fit();
        self.changed.insert(folded.number);
        self.tally.add(folded.weight());
        self.blocks.push_back(folded);
        true
    }

    /// Takes in a record that was recovered; they come in the order of their numbers.
    pub(super) fn restore(&mut self, number: u64, value: &[u8]) -> bool {
        let Some(block) = Block::decode(number, value) else { return false };
        self.count += block.count;
        self.bytes += block.bytes;
        self.tally.add(block.weight());
        self.blocks.push_back(block);
        true
    }

    /// The number of the oldest message.
    pub(super) fn oldest(&self) -> Option<SeqNo> {
        self.blocks.front().and_then(|block| block.runs.front()).map(|run| SeqNo(run.first))
    }

    /// The number of the oldest message that is meant.
    pub(super) fn oldest_where(&self, is_meant: impl Fn(SeqNo) -> bool) -> Option<SeqNo> {
        let runs = self.blocks.iter().flat_map(|block| &block.runs);
        runs.flat_map(|run| run.first..run.end()).map(SeqNo).find(|seq| is_meant(*seq))
    }

    /// Whether a message is there.
    pub(super) fn has(&self, seq: SeqNo) -> bool {
        let at = self.blocks.partition_point(|block| block.last() < seq.0);
        let Some(runs) = self.blocks.get(at).map(|block| &block.runs) else { return false };
        runs.get(runs.partition_point(|run| run.end() <= seq.0)).is_some_and(|run| run.first <= seq.0)
    }

    /// The messages behind `from` up to `to`, whether or not they were handed out.
    pub(super) fn ranges_between(&self, from: SeqNo, to: SeqNo) -> Vec<SeqRange> {
        let at = self.blocks.partition_point(|block| block.last() <= from.0);
        let runs = self.blocks.range(at..).flat_map(|block| &block.runs);
        let cut = |run: &Run| (run.first.max(from.0 + 1), (run.end() - 1).min(to.0));
        let cuts = runs.take_while(|run| run.first <= to.0).map(cut).filter(|(first, last)| first <= last);
        cuts.map(|(first, last)| SeqRange { first: SeqNo(first), last: SeqNo(last) }).collect()
    }

    /// The session is done with a message: whether it was there.
    pub(super) fn remove(&mut self, seq: SeqNo) -> bool {
        let at = self.blocks.partition_point(|block| block.last() < seq.0);
        let Some(block) = self.blocks.get_mut(at) else { return false };
        self.tally.subtract(block.weight());
        let bytes = block.remove(seq.0);
        if block.count > 0 {
            self.tally.add(block.weight());
        }
        let Some(bytes) = bytes else { return false };
        self.resumed.remove(&seq.0);
        self.changed.insert(block.number);
        if block.count == 0 {
            self.blocks.remove(at);
        }
        self.count -= 1;
        self.bytes -= bytes;
        true
    }

    /// The numbers of the blocks whose records have to be written, with what is left of each.
    pub(super) fn changes(&mut self) -> Vec<(u64, Option<Vec<u8>>)> {
        let changed = std::mem::take(&mut self.changed);
        let left = |number: u64| {
            let at = self.blocks.partition_point(|block| block.number < number);
            self.blocks.get(at).filter(|block| block.number == number).map(Block::encode)
        };
        changed.into_iter().map(|number| (number, left(number))).collect()
    }

    /// The record of a block was not written after all.
    pub(super) fn changed_again(&mut self, number: u64) {
        self.changed.insert(number);
    }

    /// The numbers of all records.
    pub(super) fn records(&self) -> impl Iterator<Item = u64> {
        self.blocks.iter().map(|block| block.number).chain(self.changed.iter().copied())
    }

    /// Whether messages are in the log that were not handed out.
    pub(super) fn has_unfetched(&self) -> bool {
        let has_behind = self.blocks.back().is_some_and(|block| block.last() > self.fetched);
        has_behind && (self.resumed.is_empty() || self.next_unfetched().is_some())
    }

    /// The first of them.
    pub(super) fn next_unfetched(&self) -> Option<SeqNo> {
        self.unfetched(1).first().map(|waiting| waiting.range.first)
    }

    /// The block that has it.
    pub(super) fn next_block(&self) -> Option<u64> {
        self.unfetched(1).first().map(|waiting| waiting.block)
    }

    /// So many of them, in order.
    pub(super) fn unfetched(&self, mut limit: u64) -> Vec<Waiting> {
        let mut found = Vec::new();
        let from = self.blocks.partition_point(|block| block.last() <= self.fetched);
        let runs = self.blocks.range(from..).flat_map(|block| block.runs.iter().map(move |run| (block, run)));
        for (block, run) in runs {
            let mut first = run.first.max(self.fetched + 1);
            while first < run.end() && limit > 0 {
                let has = self.resumed.range(first..run.end()).next().copied();
                let end = has.unwrap_or(run.end());
                let count = (end - first).min(limit);
                if count > 0 {
                    let range = SeqRange { first: SeqNo(first), last: SeqNo(first + count - 1) };
                    found.push(Waiting { range, manner: block.manner(run), block: block.number });
                }
                limit -= count;
                first = end + u64::from(has.is_some());
            }
            if limit == 0 {
                break;
            }
        }
        found
    }

    /// A message was handed out before the server started, and still is; how it is sent, where it is there.
    pub(super) fn resume(&mut self, seq: SeqNo) -> Option<Manner> {
        let at = self.blocks.partition_point(|block| block.last() < seq.0);
        let block = self.blocks.get(at)?;
        let run = block.runs.get(block.runs.partition_point(|run| run.end() <= seq.0))?;
        (run.first <= seq.0).then(|| {
            self.resumed.insert(seq.0);
            block.manner(run)
        })
    }

    /// Everything up to `seq` was handed out.
    pub(super) fn fetched_to(&mut self, seq: SeqNo) {
        self.fetched = self.fetched.max(seq.0);
    }

    /// `seq` and what is behind it have to be handed out again.
    pub(super) fn unfetch_from(&mut self, seq: SeqNo) {
        self.fetched = self.fetched.min(seq.0 - 1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use proptest::prelude::*;
    use sonde_proto::mqtt::QoS;

    use super::super::block::BASE_AT;
    use super::*;

    const ONE: Manner = Manner { qos: QoS::AtLeastOnce, retain: false, identifiers: None };

    fn two() -> Manner {
        Manner { qos: QoS::ExactlyOnce, retain: true, identifiers: Some([268_435_455, 1].into()) }
    }

    /// The numbers that are left.
    fn left(backlog: &Backlog) -> Vec<(u64, Manner)> {
        let all = backlog.unfetched(u64::MAX);
        all.iter()
            .flat_map(|w| (w.range.first.0..=w.range.last.0).map(|seq| (seq, w.manner.clone())))
            .collect()
    }

    /// What its blocks weigh.
    fn weight(backlog: &Backlog) -> usize {
        backlog.blocks.iter().map(Block::weight).sum()
    }

    fn turn(backlog: &mut Backlog, number: u64, first: u64, messages: &[(u32, Manner)]) -> Vec<u8> {
        messages.iter().for_each(|(message, manner)| backlog.note(*message, manner.clone(), 10));
        let block = backlog.seal(number).unwrap();
        let mut value = block.encode();
        let base = u64::from_le_bytes(value[BASE_AT..BASE_AT + 8].try_into().unwrap());
        value[BASE_AT..BASE_AT + 8].copy_from_slice(&(base + first).to_le_bytes());
        backlog.append(block, SeqNo(first));
        value
    }

    #[test]
    fn a_run_takes_a_few_bytes_however_long_it_is() {
        let mut backlog = Backlog::default();
        let all: Vec<_> = (0..10_000).map(|i| (i, ONE)).collect();
        assert!(turn(&mut backlog, 1, 500, &all).len() < 20);
        assert_eq!((backlog.count(), backlog.bytes()), (10_000, 100_000));
    }

    proptest! {
        #[test]
        fn what_is_not_done_with_comes_back(
            turns in proptest::collection::vec(proptest::collection::vec((0_u32..9, any::<bool>()), 1..9), 1..6),
            done in proptest::collection::vec(0_u64..100, 0..60),
            fetched in 0_u64..100,
            resumed in proptest::collection::vec(0_u64..100, 0..20),
        ) {
            let mut backlog = Backlog::default();
            let (mut records, mut expected) = (std::collections::BTreeMap::new(), Vec::new());
            for (i, messages) in turns.iter().enumerate() {
                let first = 1 + 20 * i as u64;
                let mut numbers: Vec<(u32, Manner)> =
                    messages.iter().map(|(n, is_two)| (*n, if *is_two { two() } else { ONE })).collect();
                numbers.sort_by_key(|(n, _)| *n);
                numbers.dedup_by_key(|(n, _)| *n);
                records.insert(i as u64, turn(&mut backlog, i as u64, first, &numbers));
                expected.extend(numbers.iter().map(|(n, manner)| (first + u64::from(*n), manner.clone())));
            }
            for seq in done {
                let known = expected.iter().position(|(known, _)| *known == seq);
                prop_assert_eq!(backlog.remove(SeqNo(seq)), known.is_some());
                known.map(|at| expected.remove(at));
            }
            prop_assert_eq!(left(&backlog), expected.clone());
            prop_assert_eq!(backlog.tally.bytes(), weight(&backlog));
            prop_assert_eq!(backlog.count(), expected.len() as u64);
            for (number, record) in backlog.changes() {
                match record {
                    Some(value) => drop(records.insert(number, value)),
                    None => drop(records.remove(&number)),
                }
            }
            prop_assert!(backlog.changes().is_empty());
            let mut again = Backlog::default();
            for (number, record) in records {
                prop_assert!(again.restore(number, &record));
            }
            let records = |of: &Backlog| of.blocks.iter().map(|b| (b.number, b.encode())).collect::<Vec<_>>();
            prop_assert_eq!(records(&again), records(&backlog));
            prop_assert_eq!((again.count, again.bytes), (backlog.count, backlog.bytes));
            again.fetched_to(SeqNo(fetched));
            for seq in &resumed {
                let known = expected.iter().find(|(known, _)| known == seq);
                prop_assert_eq!(again.resume(SeqNo(*seq)), known.map(|(_, manner)| manner.clone()));
            }
            expected.retain(|(seq, _)| *seq > fetched && !resumed.contains(seq));
            prop_assert_eq!(again.has_unfetched(), !expected.is_empty());
            prop_assert_eq!(again.next_unfetched(), expected.first().map(|(seq, _)| SeqNo(*seq)));
            let few: u64 = again.unfetched(3).iter().map(|w| w.range.last.0 + 1 - w.range.first.0).sum();
            prop_assert_eq!(few, expected.len().min(3) as u64);
            prop_assert_eq!(left(&again), expected);
        }
    }

    #[test]
    fn small_blocks_become_one() {
        let lists: [Manner; 2] = [1000, 1001].map(|n| Manner {
            qos: QoS::AtLeastOnce,
            retain: false,
            identifiers: Some((0..n).collect()),
        });
        for (manners, most) in [([ONE, two()], 24), (lists, 24 + 2 * 4 * 1000)] {
            let (mut backlog, mut records) = (Backlog::default(), std::collections::BTreeMap::new());
            let expected: Vec<_> = (0..1000).map(|n| (5 + 3 * n, manners[n as usize % 2].clone())).collect();
            for (seq, manner) in &expected {
                records.insert(*seq, turn(&mut backlog, *seq, *seq, &[(0, manner.clone())]));
                backlog.fold();
                for (number, record) in backlog.changes() {
                    match record {
                        Some(value) => records.insert(number, value),
                        None => records.remove(&number),
                    };
                }
                assert!(backlog.blocks.len() < FOLD + 1000 / FOLDED_RUNS + 1);
            }
            assert_eq!(left(&backlog), expected);
            let of_list = 2 * most;
            let bytes: usize = records.values().map(Vec::len).sum();
            assert!(bytes < 1000 * 6 + records.len() * of_list, "{bytes} bytes of {} records", records.len());
            assert_eq!(backlog.tally.bytes(), weight(&backlog));
            let mut again = Backlog::default();
            assert!(records.iter().all(|(number, record)| again.restore(*number, record)));
            assert_eq!(left(&again), expected);
            assert_eq!(again.tally.bytes(), weight(&again));
            expected.iter().for_each(|(seq, _)| assert!(again.remove(SeqNo(*seq))));
            assert_eq!((again.count(), again.bytes(), again.tally.bytes()), (0, 0, 0));
        }
    }

    #[test]
    fn what_lies_between_is_found_whether_or_not_it_was_handed_out() {
        let mut backlog = Backlog::default();
        turn(&mut backlog, 1, 5, &[(0, ONE), (1, ONE), (4, two())]);
        turn(&mut backlog, 2, 20, &[(0, ONE)]);
        backlog.fetched_to(SeqNo(6));
        let between = |from, to| {
            let found = backlog.ranges_between(SeqNo(from), SeqNo(to));
            found.iter().map(|range| (range.first.0, range.last.0)).collect::<Vec<_>>()
        };
        assert_eq!(between(0, 100), [(5, 6), (9, 9), (20, 20)]);
        assert_eq!(between(5, 19), [(6, 6), (9, 9)]);
        assert_eq!(between(9, 19), []);
        assert_eq!(backlog.oldest_where(|seq| seq > SeqNo(6)), Some(SeqNo(9)));
        assert!(backlog.has(SeqNo(9)) && !backlog.has(SeqNo(8)) && !backlog.has(SeqNo(21)));
    }

    #[test]
    fn a_record_that_is_cut_is_not_taken() {
        let mut backlog = Backlog::default();
        let value = turn(&mut backlog, 1, 5, &[(0, ONE), (3, two())]);
        assert!((0..value.len()).all(|end| end == 13 || Block::decode(1, &value[..end]).is_none()));
    }
}
