//! The codecs of docs/format/page.md, written from the drawing bit by bit, to be compared with the quick ones.

use sonde_storage_format::CodecId;

/// Bits one by one, most significant first.
#[derive(Default)]
pub(crate) struct Bits {
    bits: Vec<bool>,
    read: usize,
}

impl Bits {
    pub(crate) fn put(&mut self, value: u64, count: u32) {
        (0..count).rev().for_each(|i| self.bits.push(value >> i & 1 == 1));
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bits
            .chunks(8)
            .map(|byte| byte.iter().zip(0..8).map(|(bit, i)| u8::from(*bit) << (7 - i)).sum())
            .collect()
    }

    fn of(bytes: &[u8]) -> Self {
        let bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1 == 1));
        Self { bits: bits.collect(), read: 0 }
    }

    fn take(&mut self, count: u32) -> u64 {
        let from = self.read;
        self.read += count as usize;
        self.bits[from..self.read].iter().fold(0, |value, bit| value << 1 | u64::from(*bit))
    }

    /// Fails unless less than a byte of zeroes is left.
    fn finish(&self) {
        let left = &self.bits[self.read..];
        assert!(left.len() < 8 && !left.contains(&true), "{} bits are left", left.len());
    }
}

pub(crate) fn gorilla(values: &[f64]) -> Vec<u8> {
    let mut out = Bits::default();
    let mut window = None;
    out.put(values[0].to_bits(), 64);
    for pair in values.windows(2) {
        let xor = pair[0].to_bits() ^ pair[1].to_bits();
        if xor == 0 {
            out.put(0b0, 1);
            continue;
        }
        // Five bits hold at most 31 leading zeroes.
        let (leading, trailing) = (xor.leading_zeros().min(31), xor.trailing_zeros());
        match window {
            Some((first, last)) if leading >= first && trailing >= last => {
                out.put(0b10, 2);
                out.put(xor >> last, 64 - first - last);
            }
            _ => {
                out.put(0b11, 2);
                out.put(leading.into(), 5);
                out.put(u64::from(64 - leading - trailing) - 1, 6);
                out.put(xor >> trailing, 64 - leading - trailing);
                window = Some((leading, trailing));
            }
        }
    }
    out.into_bytes()
}

pub(crate) fn delta_of_delta(values: &[i64]) -> Vec<u8> {
    let mut out = Bits::default();
    out.put(values[0].cast_unsigned(), 64);
    let mut last_delta = 0_i64;
    for pair in values.windows(2) {
        let delta = pair[1].wrapping_sub(pair[0]);
        let change = delta.wrapping_sub(last_delta);
        last_delta = delta;
        let zigzag = if change < 0 { !(change.cast_unsigned() << 1) } else { change.cast_unsigned() << 1 };
        match zigzag {
            0 => out.put(0, 1),
            z if z < 1 << 14 => (out.put(0b10, 2), out.put(z, 14)).1,
            z if z < 1 << 24 => (out.put(0b110, 3), out.put(z, 24)).1,
            z if z < 1 << 36 => (out.put(0b1110, 4), out.put(z, 36)).1,
            z => (out.put(0b1111, 4), out.put(z, 64)).1,
        }
    }
    out.into_bytes()
}

/// Leading zeroes that the classes of Chimp128 stand for.
const CLASSES: [u32; 8] = [0, 8, 12, 16, 18, 20, 22, 24];

/// Compares with the latest of the last 128 values whose low 14 bits are the same, else with the value before.
pub(crate) fn chimp(values: &[f64]) -> Vec<u8> {
    let words: Vec<u64> = values.iter().map(|value| value.to_bits()).collect();
    let class_of = |xor: u64| (0..8).rev().find(|class| CLASSES[*class] <= xor.leading_zeros()).unwrap();
    let mut out = Bits::default();
    let mut last_class = None;
    out.put(words[0], 64);
    for (i, word) in words.iter().enumerate().skip(1) {
        let alike = |j: &usize| words[*j] & 0x3fff == word & 0x3fff;
        let Some(like) = (i.saturating_sub(128)..i).rev().find(alike) else {
            let xor = word ^ words[i - 1];
            let class = class_of(xor);
            if last_class == Some(class) {
                out.put(0b10, 2);
            } else {
                out.put(0b11, 2);
                out.put(class as u64, 3);
            }
            out.put(xor, 64 - CLASSES[class]);
            last_class = Some(class);
            continue;
        };
        let xor = word ^ words[like];
        out.put(if xor == 0 { 0b00 } else { 0b01 }, 2);
        out.put(like as u64 % 128, 7);
        if xor != 0 {
            let class = class_of(xor);
            let len = 64 - CLASSES[class] - xor.trailing_zeros();
            out.put(class as u64, 3);
            out.put(len.into(), 6);
            out.put(xor >> xor.trailing_zeros(), len);
        }
        last_class = None;
    }
    out.into_bytes()
}

/// Chimp128 read as drawn, without its tag.
pub(crate) fn from_chimp(bytes: &[u8], count: usize) -> Vec<f64> {
    let mut bits = Bits::of(bytes);
    let mut words = vec![bits.take(64)];
    let mut last_class = None;
    let mut slots = vec![words[0]; 128];
    while words.len() < count {
        let before = words[words.len() - 1];
        let word = match bits.take(2) {
            0b00 => slots[bits.take(7) as usize],
            0b01 => {
                let slot = slots[bits.take(7) as usize];
                let (class, len) = (bits.take(3) as usize, bits.take(6) as u32);
                slot ^ bits.take(len) << (64 - CLASSES[class] - len)
            }
            prefix => {
                let class = if prefix == 0b10 { last_class.unwrap() } else { bits.take(3) as usize };
                words.push(before ^ bits.take(64 - CLASSES[class]));
                last_class = Some(class);
                slots[(words.len() - 1) % 128] = words[words.len() - 1];
                continue;
            }
        };
        last_class = None;
        slots[words.len() % 128] = word;
        words.push(word);
    }
    bits.finish();
    words.into_iter().map(f64::from_bits).collect()
}

/// Value `i` of a plainly packed byte string, least significant bit of a byte first.
fn packed(bytes: &[u8], index: usize, width: usize) -> u64 {
    (0..width).fold(0, |value, i| {
        let at = index * width + i;
        value | u64::from(bytes[at / 8] >> (at % 8) & 1) << i
    })
}

/// The same of a vector: interleaved where there are 1,024 values.
fn packed_vector(bytes: &[u8], count: usize, index: usize, width: usize) -> u64 {
    if count != 1024 {
        return packed(bytes, index, width);
    }
    let (lane, row) = (index % 16, index / 16);
    (0..width).fold(0, |value, i| {
        let at = row * width + i;
        value | u64::from(bytes[8 * (16 * (at / 64) + lane) + at % 64 / 8] >> (at % 8) & 1) << i
    })
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn unzigzag(word: u64) -> u64 {
    if word & 1 == 1 { !(word >> 1) } else { word >> 1 }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
        shift += 7;
    }
}

/// `patched` of the drawing, to the end of the bytes.
fn patched(bytes: &[u8], count: usize) -> Vec<u64> {
    let (width, exceptions, high) = (usize::from(bytes[0]), u16_at(bytes, 1), usize::from(bytes[3]));
    let low = &bytes[4..];
    let mut values: Vec<u64> = (0..count).map(|i| packed_vector(low, count, i, width)).collect();
    let positions = &low[(count * width).div_ceil(8)..];
    let highs = &positions[2 * exceptions..];
    assert_eq!(highs.len(), (exceptions * high).div_ceil(8));
    for i in 0..exceptions {
        values[u16_at(positions, 2 * i)] |= packed(highs, i, high) << width;
    }
    values
}

/// A vector of integers, tag included, as the drawing has it.
pub(crate) fn words(vector: &[u8], count: usize) -> Vec<u64> {
    let mut rest = &vector[1..];
    match CodecId::from_byte(vector[0]).unwrap() {
        CodecId::Constant => vec![u64_at(rest, 0); count],
        CodecId::Sequence => {
            assert_eq!(rest.len(), 16);
            let (first, step) = (u64_at(rest, 0), u64_at(rest, 8));
            (0..count as u64).map(|i| first.wrapping_add(i.wrapping_mul(step))).collect()
        }
        CodecId::For => {
            let base = u64_at(rest, 0);
            patched(&rest[8..], count).into_iter().map(|word| word.wrapping_add(base)).collect()
        }
        CodecId::Delta => {
            let (first, centre) = (u64_at(rest, 0), u64_at(rest, 8));
            let steps = patched(&rest[16..], count);
            assert_eq!(steps[0], 0);
            let mut words = vec![first];
            for step in &steps[1..] {
                let step = unzigzag(*step).wrapping_add(centre);
                words.push(words[words.len() - 1].wrapping_add(step));
            }
            words
        }
        CodecId::DeltaRle => {
            let mut words = vec![varint(&mut rest)];
            while !rest.is_empty() {
                let (delta, run) = (unzigzag(varint(&mut rest)), varint(&mut rest));
                (0..run).for_each(|_| words.push(words[words.len() - 1].wrapping_add(delta)));
            }
            words
        }
        CodecId::Gcd => {
            let base = u64_at(rest, 0);
            rest = &rest[8..];
            let divisor = varint(&mut rest);
            assert_ne!(rest[0], CodecId::Gcd as u8);
            let quotients = self::words(rest, count);
            quotients.into_iter().map(|word| base.wrapping_add(word.wrapping_mul(divisor))).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// The words that a page's dictionary holds.
pub(crate) fn word_entries(dictionary: &[u8]) -> Vec<u64> {
    let mut frame = dictionary;
    let len = varint(&mut frame) as usize;
    let entries = zstd::bulk::decompress(frame, len).unwrap();
    assert_eq!(entries.len(), len);
    let mut rest = &entries[..];
    let count = varint(&mut rest) as usize;
    assert_eq!(rest.len(), 8 * count);
    (0..count).map(|i| u64_at(rest, 8 * i)).collect()
}

/// ALP as the drawing has it, tag included.
pub(crate) struct Alp {
    pub(crate) exponents: (u8, u8),
    pub(crate) lane: usize,
    pub(crate) exceptions: usize,
    pub(crate) integers: Vec<i64>,
    pub(crate) values: Vec<f64>,
}

pub(crate) fn alp(vector: &[u8], count: usize) -> Alp {
    assert_eq!(vector[0], CodecId::Alp as u8);
    let (e, f, lane) = (i32::from(vector[1]), i32::from(vector[2]), usize::from(vector[3]));
    let exceptions = u16_at(vector, 4);
    let positions = &vector[6..];
    let raw = &positions[2 * exceptions..];
    let lanes = &raw[8 * exceptions..];
    let lanes_len = (count * lane).div_ceil(8);
    let words = words(&lanes[lanes_len..], count);
    let integers: Vec<i64> = words.into_iter().map(|word| (word ^ 1 << 63).cast_signed()).collect();
    let power = |n: i32| format!("1e{n}").parse::<f64>().unwrap();
    let ulps = |i: usize| {
        if lane == 0 { 0 } else { packed_vector(lanes, count, i, lane) as i64 - (1 << (lane - 1)) }
    };
    let back = |(i, d): (usize, &i64)| {
        f64::from_bits((*d as f64 * power(f) * power(-e)).to_bits().wrapping_add_signed(ulps(i)))
    };
    let mut values: Vec<f64> = integers.iter().enumerate().map(back).collect();
    for i in 0..exceptions {
        values[u16_at(positions, 2 * i)] = f64::from_bits(u64_at(raw, 8 * i));
    }
    Alp { exponents: (vector[1], vector[2]), lane, exceptions, integers, values }
}

/// ALP-RD as the drawing has it, tag included.
pub(crate) fn alp_rd(vector: &[u8], count: usize) -> Vec<f64> {
    assert_eq!(vector[0], CodecId::AlpRd as u8);
    let (right, entries) = (usize::from(vector[1]), usize::from(vector[2]));
    assert!((48..=63).contains(&right) && (1..=8).contains(&entries));
    let left = |i: usize| u16_at(&vector[3..], 2 * i) as u64;
    let rest = &vector[3 + 2 * entries..];
    let exceptions = u16_at(rest, 0);
    // The bits that tell so many entries apart.
    let width = (0..).find(|width| 1 << width >= entries).unwrap();
    let codes = &rest[2..];
    let rights = &codes[(count * width).div_ceil(8)..];
    let positions = &rights[(count * right).div_ceil(8)..];
    let lefts = &positions[2 * exceptions..];
    assert_eq!(lefts.len(), 2 * exceptions);
    let right_part = |i: usize| packed_vector(rights, count, i, right);
    let join = |i: usize, left: u64| f64::from_bits(left << right | right_part(i));
    let code = |i: usize| packed_vector(codes, count, i, width) as usize;
    let mut values: Vec<f64> = (0..count).map(|i| join(i, left(code(i)))).collect();
    for i in 0..exceptions {
        let at = u16_at(positions, 2 * i);
        values[at] = join(at, u16_at(lefts, 2 * i) as u64);
    }
    values
}
