//! CRC32 (IEEE 802.3), plain and seeded with the place where the bytes stand.

/// The CRC32 of `bytes`.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The CRC32 of bytes that come in parts.
#[derive(Debug, Default)]
pub(crate) struct Crc32(crc32fast::Hasher);

impl Crc32 {
    /// Goes on with these bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The CRC32 of all of them.
    pub(crate) fn finish(self) -> u32 {
        self.0.finalize()
    }
}

/// The CRC32 of `bytes` as written to `offset` of the file numbered `file`, so that the same bytes anywhere else
/// (recycled space, a misplaced block) do not pass.
#[must_use]
pub fn crc32_seeded(file: u64, offset: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&file.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}
