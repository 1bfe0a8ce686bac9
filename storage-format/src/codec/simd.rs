//! One body of code compiled for several processors, and the best of them chosen when it runs.
//!
//! # Invariants
//! - All versions are the same Rust code, so they give the same bits: no fused multiply-add, no reordered sums.

use std::sync::atomic::{AtomicBool, Ordering};

/// A loop over the values of a vector. Implementations mark `run` as `#[inline(always)]`: it is compiled anew wherever
/// [`dispatch`] calls it, with the instructions allowed there.
pub(crate) trait Kernel {
    /// Does the work.
    fn run(self);
}

static PORTABLE_ONLY: AtomicBool = AtomicBool::new(false);

/// Has the whole process do with the instructions that every processor of its architecture has, or no longer: for
/// benchmarks and tests of that code.
pub fn use_portable_code(only: bool) {
    PORTABLE_ONLY.store(only, Ordering::Relaxed);
}

/// Runs the kernel with the widest instructions that the processor has.
#[inline]
pub(crate) fn dispatch(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        #[expect(unsafe_code, reason = "a function compiled for a feature that was just detected")]
        return unsafe { with_avx2(kernel) };
    }
    kernel.run();
}

/// Whether code for AVX2 may run, and should.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && !PORTABLE_ONLY.load(Ordering::Relaxed)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2(kernel: impl Kernel) {
    kernel.run();
}
