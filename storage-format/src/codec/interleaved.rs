//! Unpacking 1,024 interleaved values: the words themselves, or the floats of ALP in the same go. The layout is drawn in
//! `docs/format/page.md`.
//!
//! # Invariants
//! - The code for AVX2 and the portable code give the same bits: the same operations in the same order.
#![expect(clippy::indexing_slicing, reason = "there are as many lines of 16 words as the width has bits")]

use super::simd;
use crate::cursor::{Cursor, Result};
use crate::limits::VECTOR_VALUES;

/// Lanes of the layout.
pub(super) const LANES: usize = 16;
/// A word of each lane.
type Line = [u8; 8 * LANES];

/// 2^52 + 2^51: adding and subtracting it rounds to the nearest integer.
pub(crate) const MAGIC: f64 = 6_755_399_441_055_744.0;

/// How a word, less its base, becomes the float of a decimal: `(word + addend as a float - MAGIC) * factor * fraction`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decimal {
    /// A word's flipped sign bit, its base and the magic number are one addend.
    pub(crate) addend: u64,
    pub(crate) factor: f64,
    pub(crate) fraction: f64,
}

impl Decimal {
    #[inline(always)]
    pub(crate) fn of(self, word: u64) -> f64 {
        (f64::from_bits(word.wrapping_add(self.addend)) - MAGIC) * self.factor * self.fraction
    }
}

/// 1,024 interleaved values that are not unpacked yet.
pub(crate) struct Interleaved<'a> {
    /// As many as the width has bits, at most 64.
    lines: &'a [Line],
}

impl<'a> Interleaved<'a> {
    /// Takes their bytes.
    pub(crate) fn read(cursor: &mut Cursor<'a>, width: u32) -> Result<Self> {
        if width > 64 {
            return Err(cursor.invalid("a bit width of at most 64", width.into()));
        }
        let (lines, _) = cursor.take(width as usize * size_of::<Line>())?.as_chunks();
        Ok(Self { lines })
    }

    /// Unpacks the words.
    pub(crate) fn unpack(&self, out: &mut [u64; VECTOR_VALUES]) {
        let nothing = Decimal { addend: 0, factor: 0.0, fraction: 0.0 };
        unpack::<false, u64>(self.lines, nothing, out);
    }

    /// Unpacks the words and makes floats of them.
    pub(crate) fn unpack_decimals(&self, decimal: Decimal, out: &mut [f64; VECTOR_VALUES]) {
        unpack::<true, f64>(self.lines, decimal, out);
    }
}

/// What a word is unpacked to: eight bytes.
trait Slot: Copy {
    fn of(bits: u64) -> Self;
}

impl Slot for u64 {
    #[inline(always)]
    fn of(bits: u64) -> Self {
        bits
    }
}

impl Slot for f64 {
    #[inline(always)]
    fn of(bits: u64) -> Self {
        Self::from_bits(bits)
    }
}

/// Calls `kernel::<width, DECIMAL, T>` where the macro stands; each is compiled on its own, with its shifts known.
macro_rules! by_width {
    ($lines:ident, $decimal:ident, $out:ident) => {
        by_width!($lines, $decimal, $out, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27
            28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61
            62 63 64)
    };
    ($lines:ident, $decimal:ident, $out:ident, $($w:literal)*) => {
        match $lines.len() {
            0 => $out.fill(zero::<DECIMAL, T>($decimal)),
            $($w => kernel::<$w, DECIMAL, T>($lines, $decimal, $out),)*
            width => unreachable!("a width of {width} bits was not refused"),
        }
    };
}

fn unpack<const DECIMAL: bool, T: Slot>(lines: &[Line], decimal: Decimal, out: &mut [T; VECTOR_VALUES]) {
    #[cfg(target_arch = "x86_64")]
    if simd::has_avx2() {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        #[expect(unsafe_code, reason = "a function compiled for a feature that was just detected")]
        return unsafe { avx2::unpack::<DECIMAL, T>(lines, decimal, out) };
    }
    portable::<DECIMAL, T>(lines, decimal, out);
}

fn portable<const DECIMAL: bool, T: Slot>(lines: &[Line], decimal: Decimal, out: &mut [T; VECTOR_VALUES]) {
    by_width!(lines, decimal, out);
}

/// What the word 0 becomes.
fn zero<const DECIMAL: bool, T: Slot>(decimal: Decimal) -> T {
    T::of(if DECIMAL { decimal.of(0).to_bits() } else { 0 })
}

fn kernel<const W: usize, const DECIMAL: bool, T: Slot>(
    lines: &[Line],
    decimal: Decimal,
    out: &mut [T; VECTOR_VALUES],
) {
    let lines = &lines[..W];
    let mask = u64::MAX >> (64 - W);
    let (rows, _) = out.as_chunks_mut::<LANES>();
    for (row, slots) in rows.iter_mut().enumerate() {
        let (word, shift) = (row * W / 64, row * W % 64);
        let (low, _) = lines[word].as_chunks::<8>();
        // Where the value ends in this word, the next one adds nothing that the mask leaves.
        let straddles = shift + W > 64;
        let (high, _) = lines[if straddles { word + 1 } else { word }].as_chunks::<8>();
        for ((slot, low), high) in slots.iter_mut().zip(low).zip(high) {
            let (low, high) = (u64::from_le_bytes(*low), u64::from_le_bytes(*high));
            let high = if straddles { high << (64 - shift) } else { 0 };
            let value = (low >> shift | high) & mask;
            *slot = T::of(if DECIMAL { decimal.of(value).to_bits() } else { value });
        }
    }
}

/// The same with vectors of four words. Left to the compiler, the loops above become calls or scalars by turns of its
/// version and options, at a third of the speed.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "loads and stores of vectors")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm_cvtsi64_si128, _mm256_add_epi64, _mm256_and_si256, _mm256_castpd_si256,
        _mm256_castsi256_pd, _mm256_loadu_si256, _mm256_mul_pd, _mm256_or_si256, _mm256_set1_epi64x,
        _mm256_set1_pd, _mm256_sll_epi64, _mm256_srl_epi64, _mm256_storeu_si256, _mm256_sub_pd,
    };

    use super::{Decimal, LANES, Line, MAGIC, Slot, VECTOR_VALUES, zero};

    /// Words of a vector.
    const WORDS: usize = 4;

    #[target_feature(enable = "avx2")]
    pub(super) fn unpack<const DECIMAL: bool, T: Slot>(
        lines: &[Line],
        decimal: Decimal,
        out: &mut [T; VECTOR_VALUES],
    ) {
        by_width!(lines, decimal, out);
    }

    #[target_feature(enable = "avx2")]
    fn kernel<const W: usize, const DECIMAL: bool, T: Slot>(
        lines: &[Line],
        decimal: Decimal,
        out: &mut [T; VECTOR_VALUES],
    ) {
        const { assert!(size_of::<T>() == 8) };
        let lines = &lines[..W];
        let mask = _mm256_set1_epi64x((u64::MAX >> (64 - W)).cast_signed());
        let (rows, _) = out.as_chunks_mut::<LANES>();
        for (row, slots) in rows.iter_mut().enumerate() {
            let (word, shift) = (row * W / 64, row * W % 64);
            let right = _mm_cvtsi64_si128(shift as i64);
            let left = _mm_cvtsi64_si128(64 - shift as i64);
            let (vectors, _) = slots.as_chunks_mut::<WORDS>();
            for (at, vector) in vectors.iter_mut().enumerate() {
                let mut value = _mm256_srl_epi64(load(&lines[word], at), right);
                if shift + W > 64 {
                    value = _mm256_or_si256(value, _mm256_sll_epi64(load(&lines[word + 1], at), left));
                }
                value = _mm256_and_si256(value, mask);
                if DECIMAL {
                    value = to_floats(value, decimal);
                }
                // SAFETY: four slots of eight bytes each, of a type that takes any bits; no alignment is asked for.
                unsafe { _mm256_storeu_si256(vector.as_mut_ptr().cast(), value) };
            }
        }
    }

    /// Words `4 at ..` of a line.
    #[target_feature(enable = "avx2")]
    fn load(line: &Line, at: usize) -> __m256i {
        let bytes: &[u8] = &line[32 * at..][..32];
        // SAFETY: the slice has the 32 bytes that are read; no alignment is asked for.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn to_floats(words: __m256i, decimal: Decimal) -> __m256i {
        let shifted = _mm256_add_epi64(words, _mm256_set1_epi64x(decimal.addend.cast_signed()));
        let integers = _mm256_sub_pd(_mm256_castsi256_pd(shifted), _mm256_set1_pd(MAGIC));
        let scaled = _mm256_mul_pd(integers, _mm256_set1_pd(decimal.factor));
        _mm256_castpd_si256(_mm256_mul_pd(scaled, _mm256_set1_pd(decimal.fraction)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What the processor's own code gives, the portable code gives, and the drawing says.
        #[test]
        fn all_widths_come_back(width in 0_usize..=64, seed: u64, addend: u64) {
            let mut state = seed | 1;
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (state >> 56) as u8
            })
            .take(128 * width)
            .collect();
            let packed = Interleaved::read(&mut Cursor::new("test", &bytes), width as u32).unwrap();
            let (mut words, mut same) = ([1; VECTOR_VALUES], [2; VECTOR_VALUES]);
            packed.unpack(&mut words);
            let decimal = Decimal { addend, factor: 100.0, fraction: 1e-3 };
            portable::<false, u64>(packed.lines, decimal, &mut same);
            prop_assert_eq!(words, same);
            let bit = |lane: usize, at: usize| bytes[8 * (16 * (at / 64) + lane) + at % 64 / 8] >> (at % 8) & 1;
            let drawn = |i: usize| (0..width).map(|b| u64::from(bit(i % 16, i / 16 * width + b)) << b).sum::<u64>();
            prop_assert!((0..VECTOR_VALUES).all(|i| drawn(i) == words[i]));
            let (mut floats, mut same) = ([0.0; VECTOR_VALUES], [0.0; VECTOR_VALUES]);
            packed.unpack_decimals(decimal, &mut floats);
            portable::<true, f64>(packed.lines, decimal, &mut same);
            let bits = |floats: [f64; VECTOR_VALUES]| floats.map(f64::to_bits);
            prop_assert_eq!(bits(floats), bits(same));
            prop_assert!((0..VECTOR_VALUES).all(|i| decimal.of(words[i]).to_bits() == floats[i].to_bits()));
        }
    }
}
