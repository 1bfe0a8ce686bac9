//! Exhaustive damage: every single-bit flip and every truncation of a file.

/// Calls `check` with each copy of `bytes` that has one bit flipped, and with the byte that the bit is in.
pub(crate) fn each_flip(bytes: &[u8], mut check: impl FnMut(&[u8], usize)) {
    let mut copy = bytes.to_vec();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            copy[at] ^= 1 << bit;
            check(&copy, at);
            copy[at] = bytes[at];
        }
    }
}

/// Calls `check` with each proper prefix of `bytes`.
pub(crate) fn each_truncation(bytes: &[u8], mut check: impl FnMut(&[u8])) {
    (0..bytes.len()).for_each(|len| check(&bytes[..len]));
}

/// Fails unless `decode` refuses every flip and every truncation of `bytes`, and takes the bytes as they are.
pub(crate) fn all_refused<T>(bytes: &[u8], decode: impl Fn(&[u8]) -> sonde_storage_format::Result<T>) {
    assert!(decode(bytes).is_ok(), "undamaged bytes decode");
    each_flip(bytes, |flipped, at| assert!(decode(flipped).is_err(), "a flip in byte {at} went unnoticed"));
    each_truncation(bytes, |short| {
        assert!(decode(short).is_err(), "a cut to {} bytes went unnoticed", short.len())
    });
}
