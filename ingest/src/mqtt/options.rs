//! How the listeners are started: where, over what, who may come in, and how much of each.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sonde_engine::LogBudget;

use super::{Authenticate, MemoryLimits, Offers, QueueLimits};

/// How MQTT is served.
#[derive(Clone)]
pub struct MqttOptions {
    /// Where it listens, in the order in which the addresses are told.
    pub listeners: Vec<ListenerOptions>,
    /// The server's certificate; needed by listeners with TLS.
    pub tls: Option<TlsFiles>,
    /// What one connection, one address, one listener and one tenant may take.
    pub limits: ConnectionLimits,
    /// Who may come in.
    pub authenticate: Arc<dyn Authenticate>,
    /// What clients are told at CONNACK.
    pub offers: Offers,
    /// How much waits for a session.
    pub queue: QueueLimits,
    /// What all sessions together, and retained messages, may hold in memory.
    pub memory: MemoryLimits,
    /// How long messages that no source but `default` takes stay in the log for replays; zero is not at all.
    pub raw_retention: Duration,
    /// How much log the engine keeps: what sessions need of it is copied before it goes.
    pub log: LogBudget,
    /// Topic filters whose messages reach subscribers that are connected before they are stored: sooner on a slow disk, but
    /// a crash may undo what was seen. Sessions that outlive their connection get them afterwards, as always.
    pub early: Vec<String>,
}

impl std::fmt::Debug for MqttOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MqttOptions").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerOptions {
    /// What it is called in logs.
    pub name: String,
    /// Where it listens.
    pub address: ListenAddress,
    /// Whether clients speak TLS.
    pub tls: bool,
    /// Whether clients speak WebSocket, on `/mqtt`.
    pub websocket: bool,
    /// Whether clients show certificates; only with TLS.
    pub client_certificates: ClientCertificates,
    /// Addresses of proxies, each of whose connections begins with a PROXY header; empty is none, and no header.
    pub proxies: Vec<AddressRange>,
    /// Connections at once.
    pub max_connections: usize,
    /// Whether the others start without it where its address is taken: nobody asked for it by name.
    pub optional: bool,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An address and a port; port 0 is any free one.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ClientCertificates {
    /// They are not asked for one.
    #[default]
    None,
    /// They may; a certificate that does not verify is refused.
    Optional,
    /// They must.
    Required,
}

/// PEM files of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those up to its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that sign clients' certificates.
    pub client_authorities: Option<PathBuf>,
}

/// What one connection, one address, one listener and one tenant may take; 0 is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections of one address (IPv6: of one /64) at once; loopback and Unix sockets have no such limit.
    pub per_address: usize,
    /// Connections that one listener accepts in a second.
    pub accepts_per_second: u32,
    /// Messages that one connection may publish in a second; beyond that its socket is not read.
    pub messages_per_second: u32,
    /// Bytes that one connection may send in a second; beyond that its socket is not read.
    pub bytes_per_second: u32,
    /// Connects of one client id, or of one address that is not loopback, in a minute, before it is refused.
    pub connects_per_minute: u32,
    /// How long it is refused then.
    pub ban: Duration,
    /// How long a client may take none of what waits for it before its connection is closed.
    pub unread: Duration,
    /// What the clients of one tenant may take together.
    pub tenant: TenantLimits,
    /// Origins of web pages that may connect by WebSocket: `*` for any; empty for any, but on loopback only pages of
    /// this machine.
    pub origins: Vec<String>,
}

/// What the clients of one tenant may take together; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// Connections at once.
    pub connections: usize,
    /// Messages that they may publish in a second; beyond that their sockets are read in turns.
    pub messages_per_second: u32,
    /// Bytes that they may send in a second; beyond that their sockets are read in turns.
    pub bytes_per_second: u32,
    /// Bytes of messages that wait for their sessions.
    pub queued_bytes: u64,
}

/// Addresses that share a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    address: IpAddr,
    bits: u32,
}

impl AddressRange {
    /// `10.0.0.0/8`, `::1`, `192.0.2.7`; `None` where it is not an address with or without a number of bits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().ok()?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(whole);
        (bits <= whole).then_some(Self { address, bits })
    }

    /// Whether the address is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(range), IpAddr::V4(address)) => {
                let shift = 32 - self.bits;
                u32::from(range).checked_shr(shift) == u32::from(address).checked_shr(shift)
            }
            (IpAddr::V6(range), IpAddr::V6(address)) => {
                let shift = 128 - self.bits;
                u128::from(range).checked_shr(shift) == u128::from(address).checked_shr(shift)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_the_addresses_of_its_prefix() {
        let holds = |range: &str, address: &str| {
            AddressRange::parse(range).unwrap().contains(address.parse().unwrap())
        };
        assert!(holds("10.0.0.0/8", "10.255.1.2") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("192.0.2.7", "192.0.2.7") && !holds("192.0.2.7", "192.0.2.6"));
        assert!(holds("0.0.0.0/0", "203.0.113.9") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("2001:db8::/32", "2001:db8:1::1") && !holds("2001:db8::/32", "2001:db9::1"));
        // What a dual-stack listener sees of an IPv4 client.
        assert!(holds("127.0.0.1", "::ffff:127.0.0.1"));
        for wrong in ["", "10.0.0.0/33", "10.0.0.0/x", "proxy", "::1/129"] {
            assert_eq!(AddressRange::parse(wrong), None, "{wrong}");
        }
    }
}
