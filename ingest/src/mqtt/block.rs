//! A block of messages that wait in the log: their numbers as runs, each in the manner in which it is sent, and its record.
//!
//! # Invariants
//! - Runs ascend and do not overlap.
//! - A block is what one turn brought, or several that came one after the other and were folded into one; its state record
//!   holds what is left of it.

use std::collections::VecDeque;
use std::sync::Arc;

use sonde_proto::mqtt::QoS;

use crate::limits::BLOCK_OVERHEAD;

/// Version of a block's record.
const RECORD: u8 = 1;
/// Where a block's record has the number of its first message.
pub(super) const BASE_AT: usize = 1;

/// In the byte of a manner: identifiers follow.
const IDENTIFIERS: u8 = 8;
/// In the byte of a manner: identifiers that stand before in the record follow as their place among its lists.
const KNOWN: u8 = 16;
/// Lists of identifiers of a record that are looked through for one that is the same.
const LISTS: usize = 16;

/// How a message is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    /// The QoS it is sent with.
    pub(super) qos: QoS,
    /// The retain flag it is sent with.
    pub(super) retain: bool,
    /// The identifiers of the subscriptions that match ([MQTT-3.3.4-3]).
    pub(super) identifiers: Option<Arc<[u32]>>,
}

impl Manner {
    /// `flags u8: QoS, 4 retain, 8 identifiers follow, 16 those of an earlier run do`, and with 8 `count varint | identifiers
    /// varint each`, with 16 `place varint` among the lists of the record. `lists` are those that it has so far.
    fn encode<'m>(&'m self, lists: &mut Vec<&'m [u32]>, out: &mut Vec<u8>) {
        let flags = self.qos as u8 | u8::from(self.retain) << 2;
        let Some(identifiers) = self.identifiers.as_deref() else { return out.push(flags) };
        let from = lists.len().saturating_sub(LISTS);
        let late = lists.get(from..).unwrap_or_default();
        if let Some(place) = late.iter().position(|known| *known == identifiers) {
            out.push(flags | KNOWN);
            return put_varint(out, (from + place) as u64);
        }
        out.push(flags | IDENTIFIERS);
        put_varint(out, identifiers.len() as u64);
        identifiers.iter().for_each(|identifier| put_varint(out, (*identifier).into()));
        lists.push(identifiers);
    }

    /// Reads what `encode` wrote.
    fn decode(lists: &mut Vec<Arc<[u32]>>, bytes: &mut &[u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first()?;
        *bytes = rest;
        let qos = QoS::from_bits(flags & 3).ok()?;
        let identifiers = match flags & (IDENTIFIERS | KNOWN) {
            0 => None,
            IDENTIFIERS => {
                let count = take_varint(bytes)?;
                // Each takes a byte at least.
                (count <= bytes.len() as u64).then_some(())?;
                let all: Option<Vec<u32>> =
                    (0..count).map(|_| u32::try_from(take_varint(bytes)?).ok()).collect();
                let all: Arc<[u32]> = all?.into();
                lists.push(Arc::clone(&all));
                Some(all)
            }
            KNOWN => Some(Arc::clone(lists.get(usize::try_from(take_varint(bytes)?).ok()?)?)),
            _ => return None,
        };
        (*flags < 32).then_some(Self { qos, retain: flags & 4 != 0, identifiers })
    }

    /// Bytes that it takes in a block, in memory and in the record.
    fn weight(&self) -> usize {
        size_of::<Self>() + self.identifiers.as_deref().map_or(0, |list| 2 * size_of_val(list) + 32)
    }
}

/// Messages one behind the other that are sent in one manner.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) first: u64,
    count: u32,
    /// Its place among those of the block.
    manner: u32,
}

impl Run {
    /// One behind the last.
    pub(super) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

/// What one turn brought, or several.
#[derive(Clone, Debug, Default)]
pub(super) struct Block {
    /// The key of its record; ascends with the messages.
    pub(super) number: u64,
    pub(super) runs: VecDeque<Run>,
    /// In what manners they are sent.
    manners: Vec<Manner>,
    /// What those weigh.
    manners_weight: usize,
    /// Messages.
    pub(super) count: u64,
    /// Bytes of its messages, for quotas; what leaves takes the mean.
    pub(super) bytes: u64,
}

impl Block {
    pub(super) fn push(&mut self, number: u64, manner: Manner, bytes: u64) {
        let manner = self.place_of(manner);
        self.push_run(Run { first: number, count: 1, manner });
        self.bytes += bytes;
    }

    /// The place of a manner among those of the block, where it is one of the last of them from now on.
    fn place_of(&mut self, manner: Manner) -> u32 {
        let from = self.manners.len().saturating_sub(LISTS);
        let late = self.manners.get(from..).unwrap_or_default();
        let place = late.iter().position(|known| *known == manner).unwrap_or_else(|| {
            self.manners_weight += manner.weight();
            self.manners.push(manner);
            self.manners.len() - 1 - from
        });
        (from + place) as u32
    }

    /// Appends a run; one with the last where it can be.
    fn push_run(&mut self, run: Run) {
        self.count += u64::from(run.count);
        if let Some(last) = self.runs.back_mut()
            && last.end() == run.first
            && last.manner == run.manner
            && let Some(count) = last.count.checked_add(run.count)
        {
            last.count = count;
            return;
        }
        self.runs.push_back(run);
    }

    /// Appends a block that came behind it, whose number it gets.
    pub(super) fn append(&mut self, block: Self) {
        let Self { number, runs, manners, bytes, .. } = block;
        let places: Vec<u32> = manners.into_iter().map(|manner| self.place_of(manner)).collect();
        for run in runs {
            let manner = places.get(run.manner as usize).copied().unwrap_or_default();
            self.push_run(Run { manner, ..run });
        }
        self.bytes += bytes;
        self.number = number;
    }

    pub(super) fn manner(&self, run: &Run) -> Manner {
        let known = self.manners.get(run.manner as usize).cloned();
        known.unwrap_or(Manner { qos: QoS::AtLeastOnce, retain: false, identifiers: None })
    }

    /// It is to stay for a while.
    pub(super) fn shrink_to_fit(&mut self) {
        self.runs.shrink_to_fit();
        self.manners.shrink_to_fit();
    }

    /// Bytes that it takes, its record included.
    pub(super) fn weight(&self) -> usize {
        // In the record a run has two numbers and a manner of a few bytes.
        let of_run = size_of::<Run>() + 8;
        BLOCK_OVERHEAD + self.runs.len() * of_run + self.manners_weight
    }

    /// `1 u8 | first number u64 | bytes varint | (gap varint | count varint | manner) *`, little endian; a gap is that to
    /// the end of the run before.
    pub(super) fn encode(&self) -> Vec<u8> {
        let base = self.runs.front().map_or(0, |run| run.first);
        let mut value = vec![RECORD];
        value.extend_from_slice(&base.to_le_bytes());
        put_varint(&mut value, self.bytes);
        let (mut end, mut lists) = (base, Vec::new());
        for run in &self.runs {
            put_varint(&mut value, run.first - end);
            put_varint(&mut value, run.count.into());
            match self.manners.get(run.manner as usize) {
                Some(manner) => manner.encode(&mut lists, &mut value),
                None => self.manner(run).encode(&mut Vec::new(), &mut value),
            }
            end = run.end();
        }
        value
    }

    /// Reads what `encode` wrote.
    pub(super) fn decode(number: u64, value: &[u8]) -> Option<Self> {
        let (version, rest) = value.split_first()?;
        let (base, mut rest) = rest.split_first_chunk::<8>()?;
        let mut block = Self { number, ..Self::default() };
        block.bytes = take_varint(&mut rest)?;
        let (mut end, mut lists) = (u64::from_le_bytes(*base), Vec::new());
        while !rest.is_empty() {
            let first = end.checked_add(take_varint(&mut rest)?)?;
            let count = u32::try_from(take_varint(&mut rest)?).ok()?;
            let manner = Manner::decode(&mut lists, &mut rest)?;
            end = first.checked_add(count.into())?;
            let manner = block.place_of(manner);
            block.push_run(Run { first, count, manner });
        }
        block.shrink_to_fit();
        (*version == RECORD && block.count > 0).then_some(block)
    }

    pub(super) fn last(&self) -> u64 {
        self.runs.back().map_or(0, |run| run.end() - 1)
    }

    /// Takes out a message; `None` where it is not there, else its share of the bytes.
    pub(super) fn remove(&mut self, seq: u64) -> Option<u64> {
        let at = self.runs.partition_point(|run| run.end() <= seq);
        let run = self.runs.get_mut(at).filter(|run| run.first <= seq)?;
        let (first, end, manner) = (run.first, run.end(), run.manner);
        if seq == first {
            (run.first, run.count) = (first + 1, run.count - 1);
        } else {
            run.count = (seq - first) as u32;
            if seq + 1 < end {
                self.runs.insert(at + 1, Run { first: seq + 1, count: (end - seq - 1) as u32, manner });
            }
        }
        if self.runs.get(at).is_some_and(|run| run.count == 0) {
            self.runs.remove(at);
        }
        let share = self.bytes / self.count;
        self.bytes -= share;
        self.count -= 1;
        Some(share)
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_before_lists_were_shared_reads_back() {
        // Two runs, each with its list.
        let record = b"\x01\x05\0\0\0\0\0\0\0\x14\0\x01\x09\x02\x07\x08\x03\x01\x09\x02\x07\x08";
        let block = Block::decode(1, record).unwrap();
        let manner = Manner { qos: QoS::AtLeastOnce, retain: false, identifiers: Some([7, 8].into()) };
        assert_eq!((block.count, block.bytes, block.manners.clone()), (2, 20, vec![manner]));
        assert_eq!(Block::decode(1, &block.encode()).unwrap().encode(), block.encode());
        assert!(block.encode().len() < record.len());
    }
}
