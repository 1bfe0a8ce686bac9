//! An allocator that counts calls and bytes, and the test that decoding does not allocate.
//!
//! # Invariants
//! - Counts are per thread: tests that run beside each other do not see each other's memory.
#![expect(unsafe_code, reason = "a global allocator cannot be written without; it only counts and passes on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use sonde_proto::mqtt::{Packet, decode};

use crate::{exemplar, malformed};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    /// Bytes that are allocated and not freed; below 0 where another thread allocated them.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A block of `before` bytes is one of `after` bytes now; 0 is none.
fn count(before: usize, after: usize) {
    if after > 0 {
        let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
    }
    let live = LIVE.try_with(|live| {
        live.set(live.get() + after as isize - before as isize);
        live.get()
    });
    if let Ok(live) = live {
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live)));
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(0, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(0, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// Runs `work` and tells how often it allocated.
pub(crate) fn allocations<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATIONS.get();
    let result = work();
    (result, ALLOCATIONS.get() - before)
}

/// What some work did with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// The most bytes that it held at once, which no single block of it exceeds.
    pub(crate) peak: usize,
    /// Bytes that it allocated and did not free.
    pub(crate) left: isize,
}

/// Runs `work` and tells what it did with memory.
pub(crate) fn memory<T>(work: impl FnOnce() -> T) -> (T, Memory) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, Memory { peak: (PEAK.get() - before) as usize, left: LIVE.get() - before })
}

/// Reads everything that a packet holds behind iterators and returns how much that was.
pub(crate) fn read_all(packet: &Packet<'_>) -> usize {
    match packet {
        Packet::Connect(p) => {
            p.properties.iter().count() + p.will.map_or(0, |will| will.properties.iter().count())
        }
        Packet::ConnAck(p) => p.properties.iter().count(),
        Packet::Publish(p) => p.properties.iter().count(),
        Packet::PubAck(p) | Packet::PubRec(p) | Packet::PubRel(p) | Packet::PubComp(p) => {
            p.properties.iter().count()
        }
        Packet::Subscribe(p) => p.properties.iter().count() + p.filters().count(),
        Packet::SubAck(p) | Packet::UnsubAck(p) => p.properties.iter().count() + p.reasons.len(),
        Packet::Unsubscribe(p) => p.properties.iter().count() + p.filters().count(),
        Packet::PingReq | Packet::PingResp => 0,
        Packet::Disconnect(p) => p.properties.iter().count(),
        Packet::Auth(p) => p.properties.iter().count(),
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| std::hint::black_box(vec![0_u8; 100])).1, 1);
    let (kept, found) = memory(|| {
        drop(std::hint::black_box(vec![0_u8; 1000]));
        let mut kept = std::hint::black_box(Vec::<u8>::with_capacity(10));
        kept.reserve_exact(100);
        kept
    });
    assert_eq!(found, Memory { peak: 1000, left: 100 });
    assert_eq!(memory(|| drop(kept)).1, Memory { peak: 0, left: -100 });
}

#[test]
fn decoding_allocates_nothing() {
    for (name, version, bytes) in exemplar::all() {
        let (read, allocations) = allocations(|| {
            let (packet, len) = decode(&bytes, version, bytes.len()).unwrap().unwrap();
            (len, read_all(&packet))
        });
        assert_eq!(read.0, bytes.len(), "{name}");
        assert_eq!(allocations, 0, "{name}");
    }
}

#[test]
fn refusing_allocates_nothing() {
    for (name, version, bytes) in malformed::all() {
        let (refused, allocations) = allocations(|| decode(&bytes, version, 1 << 20).is_err());
        assert!(refused, "{name}");
        assert_eq!(allocations, 0, "{name}");
    }
}
