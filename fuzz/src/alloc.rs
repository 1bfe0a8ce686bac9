//! An allocator that remembers the largest block that was asked for: a decoder must not ask for more than its input can
//! need, whatever the input says about itself.
//!
//! # Invariants
//! - What is remembered is per thread: targets that run beside each other do not see each other's blocks.
#![expect(
    unsafe_code,
    reason = "a global allocator cannot be written without; it only remembers and passes on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;

/// No block of a decoder is larger: as much as one compressed part of a page may expand to.
pub const LIMIT: usize = 256 << 20;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watching;

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn watch(size: usize) {
    let _ = LARGEST.try_with(|largest| {
        let before = largest.replace(largest.get().max(size));
        // Said here and once, because the stack is gone when `bounded` fails.
        if size > LIMIT && before <= LIMIT {
            eprintln!("{size} bytes in one block:\n{}", Backtrace::force_capture());
        }
    });
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        watch(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        watch(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        watch(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// Runs `work` and fails where it asked for a block of more than `LIMIT` bytes.
pub(crate) fn bounded(work: impl FnOnce()) {
    LARGEST.set(0);
    work();
    let largest = LARGEST.get();
    assert!(largest <= LIMIT, "a block of {largest} bytes, the limit is {LIMIT}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_within_the_limit_passes() {
        bounded(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(LIMIT))));
    }

    #[test]
    #[should_panic(expected = "a block of 268435457 bytes")]
    fn a_block_beyond_the_limit_does_not() {
        bounded(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(LIMIT + 1))));
    }
}
