//! What subscribers recognise a message by: its client, its number, and when it was due, at any place of the payload.

/// What a stamp begins with.
const MARK: &[u8] = b"~sb";
const CLIENT: usize = 8;
const LONG: usize = 16;
/// Bytes of a stamp: the mark, then three numbers in hexadecimal.
pub(super) const LEN: usize = MARK.len() + CLIENT + LONG + LONG;

/// Who published a message, the how many-th it is, and when it was due, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) client: u32,
    pub(super) number: u64,
    pub(super) time: u64,
}

impl Stamp {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(MARK);
        write_hex(self.client.into(), CLIENT, out);
        write_hex(self.number, LONG, out);
        write_hex(self.time, LONG, out);
    }

    /// The first stamp of a payload.
    pub(super) fn find(payload: &[u8]) -> Option<Self> {
        let at = payload.windows(MARK.len()).position(|window| window == MARK)?;
        let digits = payload.get(at + MARK.len()..at + LEN)?;
        let (client, rest) = digits.split_at_checked(CLIENT)?;
        let (number, time) = rest.split_at_checked(LONG)?;
        Some(Self { client: read_hex(client)? as u32, number: read_hex(number)?, time: read_hex(time)? })
    }
}

fn write_hex(number: u64, digits: usize, out: &mut Vec<u8>) {
    out.extend((0..digits).rev().map(|place| {
        let nibble = (number >> (4 * place) & 15) as u8;
        nibble + if nibble < 10 { b'0' } else { b'a' - 10 }
    }));
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |number, digit| {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(nibble))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_found_wherever_it_is() {
        let stamp = Stamp { client: 12_345, number: u64::MAX, time: 1_708_700_000_123_456_789 };
        let mut bytes = Vec::new();
        stamp.write(&mut bytes);
        assert_eq!(bytes.len(), LEN);
        let payload = [b"{\"id\":\"~s", bytes.as_slice(), b"\"}"].concat();
        assert_eq!(Stamp::find(&payload), Some(stamp));
        assert_eq!(Stamp::find(bytes.get(..LEN - 1).unwrap_or_default()), None);
        assert_eq!(Stamp::find(b"~sbno hexadecimal digits follow this mark, so there is none"), None);
    }
}
