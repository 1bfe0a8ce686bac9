//! The dense profile: one unit of all present values of a page, by `pco` (Loncaric, 2024), which takes less and decodes
//! some ten times slower than the vectors of the fast profile.
//! zstd takes over where values repeat in long patterns.

use pco::data_types::Number;
use pco::standalone::{simple_compress, simple_decompress_into};
use pco::{ChunkConfig, DEFAULT_COMPRESSION_LEVEL};

use super::{CodecId, alp, dictionary, read_codec};
use crate::cursor::{Cursor, Result};
use crate::limits::PLAIN_BYTES;

/// Values below which a page is not worth a unit.
const LEAST_VALUES: usize = 1024;
/// Levels of zstd: to see what it could do, and to do it.
const HASTY_LEVEL: i32 = 1;
const THOROUGH_LEVEL: i32 = 9;
/// Shares of the vectors' bytes that a unit may take at most.
const SAVES: (usize, usize) = (9, 10);

fn compress<T: Number>(values: &[T], out: &mut Vec<u8>) {
    let config = ChunkConfig::default().with_compression_level(DEFAULT_COMPRESSION_LEVEL);
    match simple_compress(values, &config) {
        Ok(bytes) => out.extend_from_slice(&bytes),
        // It refuses configurations and more than 2^24 values, and gets neither.
        Err(error) => panic!("BUG: pco of {} values: {error}", values.len()),
    }
}

/// Reads a pco file that fills the rest of the cursor into as many values as `out` has.
fn decompress<T: Number>(cursor: &mut Cursor<'_>, out: &mut [T]) -> Result<()> {
    let bytes = cursor.rest();
    match simple_decompress_into(bytes, out) {
        Ok(progress) if progress.finished && progress.n_processed == out.len() => Ok(()),
        Ok(progress) => Err(cursor.invalid("as many values as the page has", progress.n_processed as u64)),
        Err(_) => Err(cursor.invalid("a pco file", bytes.len() as u64)),
    }
}

/// Whether a unit of so many bytes is worth it.
fn pays(unit: usize, vectors: usize) -> bool {
    unit * SAVES.1 < vectors * SAVES.0
}

/// The values as one unit, tag included, where it takes a tenth less than `vectors` bytes.
pub(crate) fn encode_floats(values: &[f64], vectors: usize) -> Option<Vec<u8>> {
    if values.len() < LEAST_VALUES {
        return None;
    }
    let mut plain = vec![CodecId::Pco as u8];
    compress(values, &mut plain);
    let mut decimal = vec![CodecId::AlpPco as u8];
    let smaller = encode_decimal(values, &mut decimal) && decimal.len() < plain.len();
    let unit = if smaller { decimal } else { plain };
    let unit = or_zstd(values.iter().map(|value| value.to_bits()), unit);
    pays(unit.len(), vectors).then_some(unit)
}

/// The words under zstd where that is smaller. A hasty try tells whether the thorough one is worth its time.
fn or_zstd(words: impl Iterator<Item = u64>, unit: Vec<u8>) -> Vec<u8> {
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    if dictionary::compress_at(HASTY_LEVEL, &bytes).len() * 4 > unit.len() * 5 {
        return unit;
    }
    let mut packed = vec![CodecId::ZstdWords as u8];
    packed.extend(dictionary::compress_at(THOROUGH_LEVEL, &bytes));
    if packed.len() < unit.len() { packed } else { unit }
}

fn encode_decimal(values: &[f64], out: &mut Vec<u8>) -> bool {
    let Some(unit) = alp::whole(values) else { return false };
    out.extend_from_slice(&[unit.exponents.0 as u8, unit.exponents.1 as u8]);
    out.extend_from_slice(&(unit.exceptions.len() as u32).to_le_bytes());
    unit.exceptions.iter().for_each(|at| out.extend_from_slice(&(*at as u32).to_le_bytes()));
    let bits = unit.exceptions.iter().filter_map(|at| values.get(*at)).map(|value| value.to_bits());
    bits.for_each(|bits| out.extend_from_slice(&bits.to_le_bytes()));
    compress(&unit.integers, out);
    true
}

/// The words as one unit, tag included, where it takes a tenth less than `vectors` bytes.
pub(crate) fn encode_words(words: &[u64], vectors: usize) -> Option<Vec<u8>> {
    if words.len() < LEAST_VALUES {
        return None;
    }
    let mut unit = vec![CodecId::Pco as u8];
    compress(words, &mut unit);
    let unit = or_zstd(words.iter().copied(), unit);
    pays(unit.len(), vectors).then_some(unit)
}

/// Reads a page's one unit of floats, which fills the cursor.
pub(crate) fn decode_floats(cursor: &mut Cursor<'_>, out: &mut [f64]) -> Result<()> {
    match read_codec(cursor)? {
        CodecId::Pco => decompress(cursor, out)?,
        CodecId::AlpPco => decode_decimal(cursor, out)?,
        CodecId::ZstdWords => decode_zstd(cursor, out, f64::from_bits)?,
        other => return Err(cursor.invalid("a codec for a unit of floats", other as u64)),
    }
    cursor.finish()
}

fn decode_decimal(cursor: &mut Cursor<'_>, out: &mut [f64]) -> Result<()> {
    let exponents = alp::read_exponents(cursor)?;
    let exceptions = cursor.u32()? as usize;
    if exceptions > out.len() {
        return Err(cursor.invalid("no more exceptions than values", exceptions as u64));
    }
    let mut positions = Cursor::new("ALP exceptions", cursor.take(4 * exceptions)?);
    let mut bits = Cursor::new("ALP exceptions", cursor.take(8 * exceptions)?);
    let mut integers = vec![0_i64; out.len()];
    decompress(cursor, &mut integers)?;
    alp::to_floats(&integers, exponents, out);
    for _ in 0..exceptions {
        let at = positions.u32()? as usize;
        match out.get_mut(at) {
            Some(slot) => *slot = f64::from_bits(bits.u64()?),
            None => return Err(cursor.invalid("an exception inside the unit", at as u64)),
        }
    }
    Ok(())
}

fn decode_zstd<T>(cursor: &mut Cursor<'_>, out: &mut [T], value: impl Fn(u64) -> T) -> Result<()> {
    let bytes = dictionary::decompress(cursor, PLAIN_BYTES)?;
    if bytes.len() != 8 * out.len() {
        return Err(cursor.invalid("eight bytes for each value of the page", bytes.len() as u64));
    }
    let mut words = Cursor::new("words under zstd", &bytes);
    for slot in out {
        *slot = value(words.u64()?);
    }
    Ok(())
}

/// Reads a page's one unit of words, which fills the cursor.
pub(crate) fn decode_words(cursor: &mut Cursor<'_>, out: &mut [u64]) -> Result<()> {
    match read_codec(cursor)? {
        CodecId::Pco => decompress(cursor, out)?,
        CodecId::ZstdWords => decode_zstd(cursor, out, |word| word)?,
        codec @ (CodecId::DeltaRle | CodecId::Sequence) => super::int::decode(codec, cursor, out)?,
        other => return Err(cursor.invalid("a codec for a unit of integers", other as u64)),
    }
    cursor.finish()
}
