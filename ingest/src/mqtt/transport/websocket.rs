//! MQTT over WebSocket (RFC 6455; MQTT 5, section 6): the server's side of its frames.
//!
//! # Invariants
//! - Payload is unmasked where it was read and moved to the front of it: MQTT's bytes need no buffer of their own, and
//!   neither the end of a frame nor that of a message is waited for.
//! - However the bytes are cut into reads, the same payload and the same answers come of them.
//! - What is kept between reads is bounded: the upgrade request, a frame's header, a control frame's payload.

use std::net::SocketAddr;

use super::upgrade;
use crate::limits::UPGRADE_BYTES;

/// The longest header: two bytes, eight of length, four of mask.
const HEADER: usize = 14;
/// The longest payload of a control frame (5.5).
const CONTROL: usize = 125;

/// Why a connection is closed (7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CloseCode(u16);

impl CloseCode {
    const NORMAL: Self = Self(1000);
    const PROTOCOL_ERROR: Self = Self(1002);
    const UNSUPPORTED: Self = Self(1003);

    /// Whether one side may send it to the other.
    fn may_be_sent(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

/// What some bytes were.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Bytes of payload, at the front of what was read.
    pub(super) payload: usize,
    /// Whether nothing more is read: the connection is closed, and the answer says so.
    pub(super) ended: bool,
}

/// One side of a connection.
#[derive(Debug)]
pub(super) struct WebSocket {
    /// The upgrade request up to its end; `None` from then on.
    request: Option<Vec<u8>>,
    frames: Frames,
    /// Whether either side has sent its last frame.
    has_ended: bool,
    /// Bytes of the packet that is being sent which are in no frame yet.
    left: usize,
}

#[derive(Debug, Default)]
struct Frames {
    header: Partial<HEADER>,
    frame: Option<Frame>,
    control: Partial<CONTROL>,
    /// Whether the frame before was not the last one of its message.
    fragmented: bool,
}

/// Bytes that came in part.
#[derive(Debug)]
struct Partial<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Partial<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Partial<N> {
    /// Takes as many as fit.
    fn extend(&mut self, bytes: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.len).zip(bytes) {
            *place = *byte;
            self.len += 1;
        }
    }

    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// A frame whose header has come.
#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: Opcode,
    /// Bytes of its payload that have not come.
    remaining: u64,
    mask: [u8; 4],
    /// How many bytes of the payload came, modulo 4: where in the mask it goes on.
    phase: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opcode {
    /// Binary, and what continues it.
    Data,
    Close,
    Ping,
    Pong,
}

impl WebSocket {
    pub(super) fn new() -> Self {
        Self { request: Some(Vec::new()), frames: Frames::default(), has_ended: false, left: 0 }
    }

    /// Whether the client was let in, so that frames may be sent to it.
    pub(super) fn is_open(&self) -> bool {
        self.request.is_none()
    }

    /// Takes the bytes that were read; what is to be answered at once is appended to `reply`.
    pub(super) fn decode(
        &mut self,
        bytes: &mut [u8],
        origins: &[String],
        peer: SocketAddr,
        reply: &mut Vec<u8>,
    ) -> Decoded {
        let decoded = self.decode_some(bytes, origins, peer, reply);
        self.has_ended |= decoded.ended;
        decoded
    }

    fn decode_some(
        &mut self,
        bytes: &mut [u8],
        origins: &[String],
        peer: SocketAddr,
        reply: &mut Vec<u8>,
    ) -> Decoded {
        let Some(request) = &mut self.request else { return self.frames.decode(bytes, reply) };
        let before = request.len();
        request
            .extend_from_slice(bytes.get(..bytes.len().min(UPGRADE_BYTES + 1 - before)).unwrap_or_default());
        let searched = before.saturating_sub(3);
        let end = memchr::memmem::find(request.get(searched..).unwrap_or_default(), b"\r\n\r\n");
        let Some(end) = end.map(|at| searched + at + 4) else {
            if request.len() > UPGRADE_BYTES {
                let why = format!("a request has {UPGRADE_BYTES} bytes at most");
                *reply = upgrade::refusal("431 Request Header Fields Too Large", "", &why);
                return Decoded { payload: 0, ended: true };
            }
            return Decoded { payload: 0, ended: false };
        };
        match upgrade::answer(request.get(..end).unwrap_or_default(), origins, peer) {
            Ok(answer) => reply.extend_from_slice(&answer),
            Err(answer) => {
                reply.extend_from_slice(&answer);
                return Decoded { payload: 0, ended: true };
            }
        }
        self.request = None;
        // What came behind the request are frames.
        let taken = end - before;
        let rest = bytes.len() - taken;
        bytes.copy_within(taken.., 0);
        self.frames.decode(bytes.get_mut(..rest).unwrap_or_default(), reply)
    }

    /// How many of the bytes that wait, which are whole packets but for one that has begun, go into the next frame:
    /// those of one packet, at most `most`. The standard allows more, but Eclipse Paho's C client then waits for the next
    /// frame before it looks at the second packet of this one.
    pub(super) fn next_frame(&mut self, waiting: &[u8], most: usize) -> usize {
        if self.left == 0 {
            self.left = packet_len(waiting);
        }
        let len = self.left.min(most).min(waiting.len());
        self.left -= len;
        len
    }

    /// Appends the close frame that ends a connection from our side, unless one was sent.
    pub(super) fn close(&self, out: &mut Vec<u8>) {
        if self.is_open() && !self.has_ended {
            close_frame(CloseCode::NORMAL, out);
        }
    }
}

/// Bytes of the MQTT packet at the start, by its Remaining Length (MQTT 5, section 2.1.4).
fn packet_len(bytes: &[u8]) -> usize {
    let mut remaining = 0;
    for (at, byte) in bytes.iter().skip(1).take(4).enumerate() {
        remaining |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return 2 + at + remaining;
        }
    }
    bytes.len()
}

/// Appends the header of a binary frame with so many bytes, which is a whole message.
pub(super) fn binary_header(len: usize, out: &mut Vec<u8>) {
    header(0x82, len, out);
}

fn header(first: u8, len: usize, out: &mut Vec<u8>) {
    out.push(first);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(len), _) if usize::from(len) <= CONTROL => out.push(len),
        (_, Ok(len)) => {
            out.push(126);
            out.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

fn close_frame(code: CloseCode, out: &mut Vec<u8>) {
    header(0x88, 2, out);
    out.extend_from_slice(&code.0.to_be_bytes());
}

impl Frames {
    fn decode(&mut self, bytes: &mut [u8], reply: &mut Vec<u8>) -> Decoded {
        let (mut at, mut payload) = (0, 0);
        loop {
            let Some(frame) = &mut self.frame else {
                let Some(byte) = bytes.get(at) else { break };
                self.header.extend(std::slice::from_ref(byte));
                at += 1;
                match self.begin() {
                    Ok(begun) => self.frame = begun,
                    Err(code) => {
                        close_frame(code, reply);
                        return Decoded { payload, ended: true };
                    }
                }
                continue;
            };
            let here = usize::try_from(frame.remaining).unwrap_or(usize::MAX).min(bytes.len() - at);
            if let Some(part) = bytes.get_mut(at..at + here) {
                frame.unmask(part);
                if frame.opcode != Opcode::Data {
                    self.control.extend(part);
                }
            }
            frame.remaining -= here as u64;
            if frame.opcode == Opcode::Data {
                bytes.copy_within(at..at + here, payload);
                payload += here;
            }
            at += here;
            if frame.remaining > 0 {
                break;
            }
            let opcode = frame.opcode;
            self.frame = None;
            if self.end(opcode, reply) {
                return Decoded { payload, ended: true };
            }
        }
        Decoded { payload, ended: false }
    }

    /// The frame whose header is whole now.
    fn begin(&mut self) -> Result<Option<Frame>, CloseCode> {
        let wrong = Err(CloseCode::PROTOCOL_ERROR);
        let header = self.header.as_slice();
        let [first, second, rest @ ..] = header else { return Ok(None) };
        // Bits of extensions, none of which was agreed on, and a payload that is not masked.
        if first & 0x70 != 0 || second & 0x80 == 0 {
            return wrong;
        }
        let is_last = first & 0x80 != 0;
        let (length, mask) = match second & 0x7F {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, mask)) => (u64::from(u16::from_be_bytes(*length)), mask),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((length, mask)) => (u64::from_be_bytes(*length), mask),
                None => return Ok(None),
            },
            length => (u64::from(length), rest),
        };
        // A length is written in as few bytes as it fits (5.2), the longest without its first bit.
        let shortest = match second & 0x7F {
            126 => length > CONTROL as u64,
            127 => length > u64::from(u16::MAX) && length >> 63 == 0,
            _ => true,
        };
        if !shortest {
            return wrong;
        }
        let opcode = match first & 0x0F {
            0x0 if self.fragmented => Opcode::Data,
            0x2 if !self.fragmented => Opcode::Data,
            0x1 => return Err(CloseCode::UNSUPPORTED),
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xA => Opcode::Pong,
            _ => return wrong,
        };
        if opcode != Opcode::Data && (!is_last || length > CONTROL as u64) {
            return wrong;
        }
        let Some(mask) = mask.first_chunk::<4>() else { return Ok(None) };
        let frame = Frame { opcode, remaining: length, mask: *mask, phase: 0 };
        if opcode == Opcode::Data {
            self.fragmented = !is_last;
        }
        self.header.len = 0;
        Ok(Some(frame))
    }

    /// Answers a control frame whose payload is whole; whether the connection ends.
    fn end(&mut self, opcode: Opcode, reply: &mut Vec<u8>) -> bool {
        let payload = self.control.as_slice();
        match opcode {
            Opcode::Data | Opcode::Pong => {}
            Opcode::Ping => {
                header(0x8A, payload.len(), reply);
                reply.extend_from_slice(payload);
            }
            Opcode::Close => {
                let code = match payload.first_chunk::<2>() {
                    Some(code) => CloseCode(u16::from_be_bytes(*code)),
                    None if payload.is_empty() => CloseCode::NORMAL,
                    None => CloseCode::PROTOCOL_ERROR,
                };
                close_frame(if code.may_be_sent() { code } else { CloseCode::PROTOCOL_ERROR }, reply);
            }
        }
        self.control.len = 0;
        opcode == Opcode::Close
    }
}

impl Frame {
    /// Takes the mask off the next bytes of the payload.
    fn unmask(&mut self, bytes: &mut [u8]) {
        let [a, b, c, d] = self.mask;
        let mut mask = [a, b, c, d];
        mask.rotate_left(self.phase);
        let wide = u64::from(u32::from_le_bytes(mask)) * 0x1_0000_0001;
        let (chunks, rest) = bytes.as_chunks_mut::<8>();
        for chunk in chunks {
            *chunk = (u64::from_le_bytes(*chunk) ^ wide).to_le_bytes();
        }
        rest.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        self.phase = (self.phase + bytes.len()) % 4;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REQUEST: &[u8] = b"GET /mqtt HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: mqtt\r\n\r\n";

    fn peer() -> SocketAddr {
        "127.0.0.1:1".parse().unwrap()
    }

    /// A client's frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        header(first, payload.len(), &mut bytes);
        bytes[1] |= 0x80;
        let mask = [0xA1, 0x05, 0x7F, 0xC3];
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    /// Payload, answers, and whether it ended, of bytes that come in pieces of these sizes, the last one over again.
    fn decode(bytes: &[u8], pieces: &[usize], opened: bool) -> (Vec<u8>, Vec<u8>, bool) {
        let mut socket = WebSocket::new();
        if opened {
            socket.request = None;
        }
        let (mut payload, mut reply, mut rest) = (Vec::new(), Vec::new(), bytes);
        for n in 0.. {
            let piece = *pieces.get(n).or(pieces.last()).unwrap_or(&bytes.len());
            let (now, later) = rest.split_at(piece.max(1).min(rest.len()));
            let mut now = now.to_vec();
            let decoded = socket.decode(&mut now, &[], peer(), &mut reply);
            payload.extend_from_slice(&now[..decoded.payload]);
            rest = later;
            if decoded.ended || rest.is_empty() {
                return (payload, reply, decoded.ended);
            }
        }
        unreachable!("the bytes come to an end")
    }

    #[test]
    fn packets_may_span_frames_and_control_frames_come_between() {
        let mut bytes = REQUEST.to_vec();
        bytes.extend(frame(0x02, b"one"));
        bytes.extend(frame(0x89, b"are you there"));
        bytes.extend(frame(0x00, &[b'x'; 300]));
        bytes.extend(frame(0x80, &[b'y'; 70_000]));
        bytes.extend(frame(0x8A, b"unasked"));
        bytes.extend(frame(0x82, b""));
        bytes.extend(frame(0x82, b"end"));
        let (payload, reply, ended) = decode(&bytes, &[], false);
        assert_eq!(payload, [&b"one"[..], &[b'x'; 300], &[b'y'; 70_000], b"end"].concat());
        assert!(reply.ends_with(b"\r\n\r\n\x8A\x0Dare you there"), "{:?}", String::from_utf8_lossy(&reply));
        assert!(!ended);
        assert_eq!(decode(&bytes, &[1], false), (payload, reply, ended));
    }

    #[test]
    fn what_breaks_the_rules_is_closed_with_its_code() {
        let unmasked = vec![0x82, 0x01, 0x00];
        let mut long_length = vec![0x82, 0xFE, 0x00, 0x05];
        long_length.extend([0; 9]);
        let too_long = [&[0x82, 0xFF][..], &[0xFF; 8], &[0; 4]].concat();
        for (bytes, code) in [
            (frame(0x81, b"text"), 1003_u16),
            (unmasked, 1002),
            (frame(0xC2, b"x"), 1002),
            (frame(0x80, b"continues nothing"), 1002),
            ([frame(0x02, b"a"), frame(0x82, b"b")].concat(), 1002),
            (frame(0x83, b"reserved"), 1002),
            (frame(0x09, b"fragmented ping"), 1002),
            (frame(0x89, &[0; 126]), 1002),
            (long_length, 1002),
            (too_long, 1002),
            (frame(0x88, b""), 1000),
            (frame(0x88, &[0x03, 0xE9]), 1001),
            (frame(0x88, &[0x03]), 1002),
            (frame(0x88, &[0x03, 0xED]), 1002),
        ] {
            let (_, reply, ended) = decode(&bytes, &[], true);
            assert!(ended, "{bytes:02x?}");
            assert_eq!(reply, [&[0x88, 2][..], &code.to_be_bytes()].concat(), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_request_is_bounded() {
        let (_, reply, ended) = decode(&vec![b'a'; 2 * UPGRADE_BYTES], &[1000], false);
        assert!(ended && reply.starts_with(b"HTTP/1.1 431 "), "{:?}", String::from_utf8_lossy(&reply));
    }

    #[test]
    fn each_packet_has_frames_of_its_own() {
        let mut socket = WebSocket::new();
        let mut out = vec![0x40, 2, 0, 1];
        out.extend([0x30, 0xc8, 1]);
        out.extend([7; 200]);
        out.extend([0xd0, 0]);
        let mut lens = Vec::new();
        while !out.is_empty() {
            lens.push(socket.next_frame(&out, 128));
            out.drain(..lens[lens.len() - 1]);
        }
        assert_eq!(lens, [4, 128, 75, 2]);
    }

    proptest! {
        #[test]
        fn the_same_comes_of_bytes_however_they_are_cut(
            frames in prop::collection::vec(
                (prop_oneof![
                    8 => Just(0x82_u8), 3 => Just(0x02), 3 => Just(0x80), 2 => Just(0x89), 1 => Just(0x8A),
                    1 => Just(0x88), 1 => any::<u8>(),
                ], prop::collection::vec(any::<u8>(), 0..200)),
                0..12,
            ),
            garbage in prop::collection::vec(any::<u8>(), 0..40),
            pieces in prop::collection::vec(1_usize..50, 0..60),
            opened in any::<bool>(),
        ) {
            let mut bytes = if opened { Vec::new() } else { REQUEST.to_vec() };
            for (first, payload) in &frames {
                bytes.extend(frame(*first, payload));
            }
            bytes.extend(garbage);
            prop_assert_eq!(decode(&bytes, &pieces, opened), decode(&bytes, &[], opened));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), opened in any::<bool>()) {
            let (payload, reply, _) = decode(&bytes, &[7], opened);
            prop_assert!(payload.len() <= bytes.len() && reply.len() <= bytes.len() + 400);
        }
    }
}
