//! Which neighbours among chunks of one range are worth merging, by their rows alone; oldest first.
//!
//! # Invariants
//! - A merge by size at least makes `FAN`ths of a chunk into a chunk: none of its inputs is more than a `FAN`th of what
//!   they come to. So a row is rewritten at most log(`CHUNK_ROWS` / `SMALLEST`) / log(`FAN`) = 6 times on its way, and once
//!   or twice when its partition has gone quiet, or its chunk was wide.
//! - An old large chunk is rewritten for newer ones only when they are half of it, or an eighth where all is small: at
//!   most nine, and for large ones three, rows are written for a late one.
//! - A cell that has `CELL_CHUNKS` chunks is merged, unless no two neighbours fit into one chunk of `CHUNK_ROWS`.

use std::ops::Range;

use crate::limits::{CELL_CHUNKS, CHUNK_ROWS, COMPACT_CHUNKS as FAN, JOIN_ROWS};

/// What a smaller chunk counts for: each takes a file.
pub(super) const SMALLEST: u64 = 1024;

/// What is to be merged while rows come.
pub(super) fn due(sizes: &[u64]) -> Option<Range<usize>> {
    by_size(sizes).or_else(|| by_count(sizes))
}

/// How many of these fit into one chunk.
pub(super) fn fitting(sizes: &[u64]) -> usize {
    let mut sum = 0;
    let fits = |size: &&u64| {
        sum += **size;
        sum <= CHUNK_ROWS
    };
    sizes.iter().take_while(fits).count()
}

/// The longest run, of those the newest, of which none is more than a `FAN`th of all.
fn by_size(sizes: &[u64]) -> Option<Range<usize>> {
    let mut best: Option<Range<usize>> = None;
    for start in 0..sizes.len() {
        let (mut sum, mut most) = (0, 0);
        for (place, size) in sizes.iter().enumerate().skip(start) {
            sum += size;
            most = most.max(*size);
            if sum > CHUNK_ROWS {
                break;
            }
            let run = start..place + 1;
            if most * FAN as u64 <= sum && best.as_ref().is_none_or(|best| run.len() >= best.len()) {
                best = Some(run);
            }
        }
    }
    best
}

/// The cheapest run of `FAN` where there are too many for a reader; of fewer where so many do not fit into a chunk.
fn by_count(sizes: &[u64]) -> Option<Range<usize>> {
    if sizes.len() < CELL_CHUNKS {
        return None;
    }
    let cheapest = |count: usize| {
        let runs = sizes.windows(count).enumerate().map(|(start, run)| (run.iter().sum::<u64>(), start));
        runs.min().filter(|(sum, _)| *sum <= CHUNK_ROWS).map(|(_, start)| start..start + count)
    };
    (2..=FAN).rev().find_map(cheapest)
}

/// An old chunk is rewritten for newer ones of at least this share of its rows, where there are so many in all.
pub(super) fn share(all: u64) -> u64 {
    if all <= JOIN_ROWS { 8 } else { 2 }
}

/// What is merged when a cell has gone quiet: the newest ones with the largest old one that they are worth rewriting.
pub(super) fn at_rest(sizes: &[u64]) -> Option<Range<usize>> {
    let mut newer: u64 = sizes.iter().sum();
    for (start, size) in sizes.iter().enumerate() {
        newer -= size;
        let worth_it = newer.saturating_mul(share(size + newer)) >= *size;
        if newer > 0 && size + newer <= CHUNK_ROWS && worth_it {
            return Some(start..sizes.len());
        }
    }
    None
}
