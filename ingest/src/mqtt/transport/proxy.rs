//! The PROXY protocol, version 2 (HAProxy's specification): from whom a proxy's connection really is.
//!
//! # Invariants
//! - Bytes that cannot become a header are refused as soon as they are seen, never waited for.
//! - Only the source address is taken; what a proxy says of the client's certificate is not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::limits::PROXY_HEADER_BYTES;

/// What every header begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version and command, family, and length.
const FIXED: usize = 16;

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProxyHeader {
    /// From where the client connects; `None` where the proxy speaks for itself, as in its health checks.
    pub(super) source: Option<SocketAddr>,
    /// Bytes that it takes.
    pub(super) len: usize,
}

/// Why something is not a header that we take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("expected a PROXY header of version 2 on this listener, found something else")]
    NoHeader,
    #[error("the PROXY header has version and command {0:#04x}; expected 0x20 or 0x21")]
    Command(u8),
    #[error("the PROXY header's family {0:#04x} tells no address of a TCP client; expected 0x11 or 0x21")]
    Family(u8),
    #[error(
        "the PROXY header has {0} bytes behind its start: too few for its addresses, or over the limit of {PROXY_HEADER_BYTES}"
    )]
    Length(usize),
}

/// Parses the header at the start of `bytes`; `None` where its end has not come.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyError> {
    if bytes.iter().zip(SIGNATURE).any(|(found, expected)| *found != expected) {
        return Err(ProxyError::NoHeader);
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let needed = match (command, family) {
        (0x20, _) => 0,
        (0x21, 0x11) => 12,
        (0x21, 0x21) => 36,
        (0x21, family) => return Err(ProxyError::Family(family)),
        (command, _) => return Err(ProxyError::Command(command)),
    };
    if length < needed || length > PROXY_HEADER_BYTES {
        return Err(ProxyError::Length(length));
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    Ok(Some(ProxyHeader { source: source(body, needed), len: FIXED + length }))
}

/// The source address and port: they lie before those of the destination.
fn source(body: &[u8], addresses: usize) -> Option<SocketAddr> {
    if addresses == 12 {
        let ip = Ipv4Addr::from(*body.first_chunk::<4>()?);
        let port = u16::from_be_bytes(*body.get(8..)?.first_chunk()?);
        Some(SocketAddr::new(IpAddr::V4(ip), port))
    } else if addresses == 36 {
        let ip = Ipv6Addr::from(*body.first_chunk::<16>()?);
        let port = u16::from_be_bytes(*body.get(32..)?.first_chunk()?);
        Some(SocketAddr::new(IpAddr::V6(ip).to_canonical(), port))
    } else {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    const BODY_4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x1F, 0x90, 0x07, 0x5B];

    #[test]
    fn the_source_of_a_header_is_its_client() {
        let found = parse(&header(0x21, 0x11, &BODY_4)).unwrap().unwrap();
        assert_eq!(found, ProxyHeader { source: Some("192.0.2.7:8080".parse().unwrap()), len: 28 });
        let mut body = "2001:db8::5".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        body.extend([0; 16]);
        body.extend([0x1F, 0x90, 0, 1]);
        // A type, length and value behind the addresses: passed over.
        body.extend([0x20, 0, 1, 9]);
        let found = parse(&header(0x21, 0x21, &body)).unwrap().unwrap();
        assert_eq!(found, ProxyHeader { source: Some("[2001:db8::5]:8080".parse().unwrap()), len: 56 });
        let local = parse(&header(0x20, 0x00, &[])).unwrap().unwrap();
        assert_eq!(local, ProxyHeader { source: None, len: 16 });
    }

    #[test]
    fn what_is_no_header_is_refused_at_its_first_wrong_byte() {
        assert_eq!(parse(&[0x10]), Err(ProxyError::NoHeader));
        assert_eq!(parse(b"PROXY TCP4 192.0.2.7"), Err(ProxyError::NoHeader));
        assert_eq!(parse(b"\r\n\r\n\0\r\nQUIX"), Err(ProxyError::NoHeader));
        assert_eq!(parse(&header(0x31, 0x11, &BODY_4)), Err(ProxyError::Command(0x31)));
        // Whoever it is for is not told: it must not pass for the proxy itself.
        assert_eq!(parse(&header(0x21, 0x00, &[])), Err(ProxyError::Family(0)));
        assert_eq!(parse(&header(0x21, 0x31, &[0; 216])), Err(ProxyError::Family(0x31)));
        assert_eq!(parse(&header(0x21, 0x11, &BODY_4[..11])), Err(ProxyError::Length(11)));
        let long = vec![0; PROXY_HEADER_BYTES + 1];
        assert_eq!(parse(&header(0x20, 0, &long)), Err(ProxyError::Length(long.len())));
    }

    proptest! {
        #[test]
        fn a_header_is_the_same_however_it_is_cut(
            family in prop_oneof![Just(0x11_u8), Just(0x21), any::<u8>()],
            command in prop_oneof![Just(0x21_u8), Just(0x20), any::<u8>()],
            body in prop::collection::vec(any::<u8>(), 0..80),
            behind in prop::collection::vec(any::<u8>(), 0..8),
        ) {
            let mut bytes = header(command, family, &body);
            let whole = parse(&bytes);
            let end = bytes.len();
            bytes.extend(behind);
            prop_assert_eq!(parse(&bytes), whole);
            for cut in 0..end {
                // Until its end a header is awaited, or refused as the whole one is.
                let part = parse(&bytes[..cut]);
                prop_assert!(part == Ok(None) || part == whole, "{} of {}: {:?}", cut, end, part);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }
    }
}
