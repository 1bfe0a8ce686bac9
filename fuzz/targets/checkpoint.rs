//! The target `checkpoint`: what it checks, and how its input is mutated, is in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sonde_fuzz::checkpoint(data));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    sonde_fuzz::shape::CHECKPOINT.mutate(data, size, max_size, seed, libfuzzer_sys::fuzzer_mutate)
});
