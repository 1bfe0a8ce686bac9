//! How a file falls into parts, each behind a length or under a checksum. A mutation of one part, in which lengths,
//! offsets and checksums follow, comes to the code behind them; one of the whole file seldom does.
//!
//! # Invariants
//! - `join` of what `split` made is the file again. `split` gives up on files that are not whole.

use sonde_storage_format::{crc32, crc32_seeded};

/// libFuzzer's own mutation of the first bytes of a buffer: it takes their number and the most there may be, and tells how
/// many there are now.
pub type Mutate = fn(&mut [u8], usize, usize) -> usize;

/// The shape of one kind of file.
#[derive(Debug)]
pub struct Shape {
    /// The parts of a file, `None` where it has another shape.
    pub split: fn(&[u8]) -> Option<Vec<Vec<u8>>>,
    /// The file of these parts.
    pub join: fn(&[Vec<u8>]) -> Vec<u8>,
}

impl Shape {
    /// Mutates the file in `data[..size]`, most often in one of its parts, and tells how many bytes it has then.
    pub fn mutate(&self, data: &mut [u8], size: usize, max_size: usize, seed: u32, mutate: Mutate) -> usize {
        let (what, which) = (seed % 16, seed as usize / 16);
        let parts = if what == 0 { None } else { (self.split)(&data[..size]) };
        let Some(mut parts) = parts else { return mutate(data, size, max_size) };
        let at = which % parts.len();
        match what {
            1 => drop(parts.remove(at)),
            2 => parts.insert(at, parts[at].clone()),
            _ => {
                let part = &mut parts[at];
                let len = part.len();
                let room = len + max_size.saturating_sub(size) + 1;
                part.resize(room, 0);
                let len = mutate(part, len, room);
                part.truncate(len);
            }
        }
        let joined = (self.join)(&parts);
        if joined.len() > max_size {
            return mutate(data, size, max_size);
        }
        data[..joined.len()].copy_from_slice(&joined);
        joined.len()
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    let mut little = [0; 8];
    little.get_mut(..N)?.copy_from_slice(bytes.get(at..)?.get(..N)?);
    usize::try_from(u64::from_le_bytes(little)).ok()
}

fn range(bytes: &[u8], start: usize, len: usize) -> Option<&[u8]> {
    bytes.get(start..)?.get(..len)
}

/// A page: head, cell map, dictionary, vectors.
pub const PAGE: Shape = Shape { split: split_page, join: join_page };

/// Kind, cells, grid, zero, rows, present.
const PAGE_HEAD: usize = 12;

fn split_page(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut at = PAGE_HEAD + 8;
    let mut parts = vec![range(bytes, 0, PAGE_HEAD)?.to_vec()];
    for len in [number::<4>(bytes, PAGE_HEAD)?, number::<4>(bytes, PAGE_HEAD + 4)?] {
        parts.push(range(bytes, at, len)?.to_vec());
        at += len;
    }
    let present = number::<4>(bytes, 8)?;
    let vectors = if bytes[2] == 1 { present.min(1) } else { present.div_ceil(1024) };
    let mut start = 0;
    let body = bytes.get(at..)?.get(4 * vectors..)?;
    for vector in 0..vectors {
        let end = number::<4>(bytes, at + 4 * vector)?;
        parts.push(body.get(start..end)?.to_vec());
        start = end;
    }
    Some(parts)
}

fn join_page(parts: &[Vec<u8>]) -> Vec<u8> {
    let empty = Vec::new();
    let part = |i| parts.get(i).unwrap_or(&empty);
    let (head, map, dictionary) = (part(0), part(1), part(2));
    let vectors = parts.get(3..).unwrap_or_default();
    let mut bytes = head.clone();
    bytes.resize(PAGE_HEAD, 0);
    bytes.extend((map.len() as u32).to_le_bytes());
    bytes.extend((dictionary.len() as u32).to_le_bytes());
    bytes.extend(map);
    bytes.extend(dictionary);
    let mut end = 0;
    for vector in vectors {
        end += vector.len() as u32;
        bytes.extend(end.to_le_bytes());
    }
    vectors.iter().for_each(|vector| bytes.extend(vector));
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    bytes
}

/// A chunk file: head and pages, the sections that the root names, what the root says besides.
pub const CHUNK: Shape = Shape { split: split_chunk, join: join_chunk };

const CHUNK_TAIL: usize = 16;
/// Bytes of the root before its sections, of each of which it says offset, length and checksum.
const ROOT_HEAD: usize = 68;
const ROOT_SECTION: usize = 20;

fn split_chunk(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let tail = bytes.len().checked_sub(CHUNK_TAIL)?;
    let root = tail.checked_sub(number::<4>(bytes, tail)?)?;
    let sections = (tail - root).checked_sub(ROOT_HEAD)? / ROOT_SECTION;
    let mut parts = vec![Vec::new()];
    let mut end = None;
    for section in 0..sections {
        let at = root + ROOT_HEAD + section * ROOT_SECTION;
        let (offset, len) = (number::<8>(bytes, at)?, number::<8>(bytes, at + 8)?);
        if end.is_some_and(|end| end != offset) {
            return None;
        }
        if end.is_none() {
            parts[0] = range(bytes, 0, offset)?.to_vec();
        }
        parts.push(range(bytes, offset, len)?.to_vec());
        end = Some(offset + len);
    }
    parts.push(range(bytes, root, ROOT_HEAD)?.to_vec());
    (end == Some(root)).then_some(parts)
}

fn join_chunk(parts: &[Vec<u8>]) -> Vec<u8> {
    let Some((root, parts)) = parts.split_last() else { return Vec::new() };
    let mut root = root.clone();
    let mut bytes = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            root.extend((bytes.len() as u64).to_le_bytes());
            root.extend((part.len() as u64).to_le_bytes());
            root.extend(crc32(part).to_le_bytes());
        }
        bytes.extend(part);
    }
    bytes.extend(&root);
    bytes.extend((root.len() as u32).to_le_bytes());
    bytes.extend(crc32(&root).to_le_bytes());
    bytes.extend(b"SONDECHK");
    bytes
}

/// A segment of the log: the head, each frame, what is no frame.
pub const WAL: Shape = Shape { split: split_wal, join: join_wal };

const SEGMENT_HEAD: usize = 64;
const FRAME_HEAD: usize = 32;
/// Of the frame's head, what stands behind length and checksum.
const FRAME_SAYS: usize = FRAME_HEAD - 8;

fn split_wal(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut parts = vec![range(bytes, 0, SEGMENT_HEAD - 4)?.to_vec()];
    let mut at = SEGMENT_HEAD;
    while let Some(len) = number::<4>(bytes, at).and_then(|stated| stated.checked_sub(1)) {
        let Some(frame) = range(bytes, at, FRAME_HEAD + len.next_multiple_of(8)) else { break };
        parts.push(frame[8..FRAME_HEAD + len].to_vec());
        at += frame.len();
    }
    parts.push(bytes.get(at..)?.to_vec());
    Some(parts)
}

fn join_wal(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = parts.first().cloned().unwrap_or_default();
    bytes.resize(SEGMENT_HEAD - 4, 0);
    bytes.extend(crc32(&bytes).to_le_bytes());
    let segment = number::<8>(&bytes, 16).unwrap_or_default() as u64;
    let (last, frames) = parts.get(1..).unwrap_or_default().split_last().unwrap_or((&EMPTY, &[]));
    for part in frames {
        let offset = bytes.len();
        let mut says = part.clone();
        says.resize(says.len().max(FRAME_SAYS), 0);
        let len = says.len() - FRAME_SAYS;
        says.resize(FRAME_SAYS + len.next_multiple_of(8), 0);
        let stated = (len as u32 + 1).to_le_bytes();
        let crc = crc32_seeded(segment, offset as u64, &[&stated[..], &says].concat());
        bytes.extend(stated);
        bytes.extend(crc.to_le_bytes());
        bytes.extend(says);
    }
    bytes.extend(last);
    bytes
}

static EMPTY: Vec<u8> = Vec::new();

/// A manifest: the head, each frame's steps, what is no frame.
pub const MANIFEST: Shape = Shape { split: split_manifest, join: join_manifest };

const MANIFEST_HEAD: usize = 24;

fn split_manifest(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut parts = vec![range(bytes, 0, MANIFEST_HEAD - 4)?.to_vec()];
    let mut at = MANIFEST_HEAD;
    while let Some(len) = number::<4>(bytes, at + 4) {
        let Some(body) = range(bytes, at + 8, len) else { break };
        parts.push(body.to_vec());
        at += 8 + len;
    }
    parts.push(bytes.get(at..)?.to_vec());
    Some(parts)
}

fn join_manifest(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = parts.first().cloned().unwrap_or_default();
    bytes.resize(MANIFEST_HEAD - 4, 0);
    bytes.extend(crc32_seeded(0, 0, &bytes).to_le_bytes());
    let manifest = number::<8>(&bytes, 12).unwrap_or_default() as u64;
    let (last, frames) = parts.get(1..).unwrap_or_default().split_last().unwrap_or((&EMPTY, &[]));
    for body in frames {
        let covered = [&(body.len() as u32).to_le_bytes()[..], body].concat();
        let crc = crc32_seeded(manifest, bytes.len() as u64, &covered);
        bytes.extend(crc.to_le_bytes());
        bytes.extend(covered);
    }
    bytes.extend(last);
    bytes
}

/// A checkpoint: everything but its checksum.
pub const CHECKPOINT: Shape = Shape {
    split: |bytes| Some(vec![bytes.get(..bytes.len().checked_sub(4)?)?.to_vec()]),
    join: |parts| {
        let body = parts.concat();
        [&body[..], &crc32(&body).to_le_bytes()].concat()
    },
};

/// Packets: of each, the first byte and the body; then what is no packet.
pub const MQTT: Shape = Shape { split: split_mqtt, join: join_mqtt };

fn split_mqtt(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    let mut rest = bytes;
    while let Some((packet, behind)) = split_packet(rest) {
        parts.push(packet);
        rest = behind;
    }
    parts.push(rest.to_vec());
    Some(parts)
}

fn split_packet(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let end = rest.iter().take(4).position(|byte| byte & 0x80 == 0)?;
    let digits = rest[..=end].iter().rev();
    let len = digits.fold(0, |len, byte| len << 7 | usize::from(byte & 0x7f));
    let (body, behind) = rest[end + 1..].split_at_checked(len)?;
    Some(([&[*first], body].concat(), behind))
}

fn join_mqtt(parts: &[Vec<u8>]) -> Vec<u8> {
    let (last, packets) = parts.split_last().unwrap_or((&EMPTY, &[]));
    let mut bytes = Vec::new();
    for packet in packets {
        let Some((first, body)) = packet.split_first() else { continue };
        bytes.push(*first);
        let mut len = body.len();
        while len >= 0x80 {
            bytes.push(len as u8 | 0x80);
            len >>= 7;
        }
        bytes.push(len as u8);
        bytes.extend(body);
    }
    bytes.extend(last);
    bytes
}
