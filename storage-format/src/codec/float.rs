//! The choice of a codec for a vector of floats, by size and by what decoding costs.

use super::{CodecId, Codes, STREAMS_SAVE, alp, alp_rd, chimp, gorilla};

/// Tenths of the values' bytes above which bit streams are tried.
const STREAMS_ABOVE: usize = 5;
/// Values at the start of a vector that show whether a bit stream is worth trying.
const TRIAL: usize = 128;

/// Appends the values as a bit stream; `false`, with nothing appended, once they take so many bytes.
type Stream = fn(&[f64], usize, &mut Vec<u8>) -> bool;

const STREAMS: [(CodecId, Stream); 2] =
    [(CodecId::Chimp128, chimp::encode), (CodecId::Gorilla, gorilla::encode_floats)];

/// The smallest encoding of a vector so far, at the end of `out`; none is the values as they are.
struct Smallest<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    /// Its bytes.
    len: usize,
    scratch: Vec<u8>,
}

impl<'a> Smallest<'a> {
    fn of_raw(values: &[f64], out: &'a mut Vec<u8>) -> Self {
        Self { start: out.len(), out, len: 1 + 8 * values.len(), scratch: Vec::new() }
    }

    /// Keeps what `encode` writes, if it writes something of less than `limit` bytes, tag included.
    fn consider(&mut self, codec: CodecId, limit: usize, encode: impl FnOnce(&mut Vec<u8>) -> bool) {
        self.scratch.clear();
        self.scratch.push(codec as u8);
        if encode(&mut self.scratch) && self.scratch.len() < limit {
            self.out.truncate(self.start);
            self.out.extend_from_slice(&self.scratch);
            self.len = self.scratch.len();
        }
    }

    fn codec(&self) -> CodecId {
        let tag = self.out.get(self.start).copied();
        tag.and_then(CodecId::from_byte).unwrap_or(CodecId::Raw)
    }
}

/// A page of floats, and what its vectors share.
#[derive(Debug)]
pub(crate) struct FloatPage<'a> {
    values: &'a [f64],
    /// Exponents and lanes that ALP chooses from.
    alp: Vec<(alp::Exponents, u32)>,
    /// Where ALP-RD cuts, if that pays; found out when first wanted.
    right_bits: Option<Option<u32>>,
    scratch: alp::Scratch,
}

impl<'a> FloatPage<'a> {
    /// Looks at the values of a page.
    pub(crate) fn of(values: &'a [f64]) -> Self {
        Self { values, alp: alp::candidates(values), right_bits: None, scratch: alp::Scratch::default() }
    }

    /// Appends one vector of the page in the smallest encoding, where a slower one must save something.
    pub(crate) fn encode(&mut self, values: &[f64], codes: Option<&mut Codes>, out: &mut Vec<u8>) {
        let Some(first) = values.first() else { return };
        if values.iter().all(|value| value.to_bits() == first.to_bits()) {
            out.push(CodecId::Constant as u8);
            out.extend_from_slice(&first.to_bits().to_le_bytes());
            return;
        }
        let mut smallest = Smallest::of_raw(values, out);
        let limit = smallest.len;
        smallest.consider(CodecId::Alp, limit, |out| alp::encode(values, &self.alp, &mut self.scratch, out));
        let uncoded = smallest.len;
        if let Some(codes) = codes.as_deref() {
            consider_codes(values, codes, &mut smallest);
        }
        self.consider_reals(values, &mut smallest);
        consider_streams(values, &mut smallest);
        match (smallest.codec(), codes) {
            (CodecId::Raw, _) => write_raw(values, smallest.out),
            (CodecId::Dictionary, Some(codes)) => codes.saved += uncoded - smallest.len,
            _ => {}
        }
    }

    /// Real doubles, of which ALP leaves more than 48 bits (section 3.4 of its paper).
    fn consider_reals(&mut self, values: &[f64], smallest: &mut Smallest<'_>) {
        if smallest.len <= 6 * values.len() {
            return;
        }
        let right = *self.right_bits.get_or_insert_with(|| alp_rd::right_bits(self.values));
        let limit = smallest.len;
        smallest.consider(CodecId::AlpRd, limit, |out| {
            right.inspect(|right| alp_rd::encode(values, *right, out)).is_some()
        });
    }
}

pub(super) fn write_raw(values: &[f64], out: &mut Vec<u8>) {
    out.push(CodecId::Raw as u8);
    values.iter().for_each(|value| out.extend_from_slice(&value.to_bits().to_le_bytes()));
}

fn consider_codes(values: &[f64], codes: &Codes, smallest: &mut Smallest<'_>) {
    let limit = smallest.len;
    if codes.may_save(values, limit) {
        smallest.consider(CodecId::Dictionary, limit, |out| {
            codes.dictionary.encode(values.iter().map(|value| value.to_bits()), out);
            true
        });
    }
}

/// XOR pays on slowly moving doubles and on repeats.
fn consider_streams(values: &[f64], smallest: &mut Smallest<'_>) {
    let packed = smallest.len;
    if packed * 10 <= 8 * values.len() * STREAMS_ABOVE {
        return;
    }
    for (codec, encode) in STREAMS {
        let limit = smallest.len.min(packed * (10 - STREAMS_SAVE) / 10);
        let trial = values.get(..TRIAL).unwrap_or(values);
        let trial_limit = limit * trial.len() / values.len() + trial.len() / 2;
        if encode(trial, trial_limit, &mut Vec::new()) {
            smallest.consider(codec, limit, |out| encode(values, limit - 1, out));
        }
    }
}
