//! The target `jwt`: what it checks is in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sonde_fuzz::jwt(data));
