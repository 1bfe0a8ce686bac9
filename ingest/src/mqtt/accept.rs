//! The listeners: who may connect at all, over what, and how many.
//!
//! # Invariants
//! - A connection that is refused here costs no buffer and no handshake.
//! - The address by which a connection is judged and counted is the client's; behind a proxy it is known, and judged,
//!   once the proxy's header has come.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, UnixListener};
use mio::{Interest as Readiness, Registry, Token};
use socket2::SockRef;

use super::connection::{Connection, Parked};
use super::guard::{Addresses, Flapping, Verdict, Who, counted};
use super::options::{ConnectionLimits, ListenAddress, ListenerOptions, MqttOptions, TenantLimits};
use super::pace::{Meter, Pace};
use super::seldom::Seldom;
use super::stats::{Kind, Refused};
use super::transport::{Socket, Stack, TlsStore, Transport};
use super::turn::ConnectionKey;
use super::worker::Worker;
use crate::limits::{ACCEPT_BACKLOG, CONNECTIONS, LISTENERS, TLS_BUFFER, TURNED_AWAY};

/// The event loop's inbox.
pub(super) const INBOX: Token = Token(usize::MAX - 1);
/// The first listener; those behind it follow.
const FIRST_DOOR: usize = usize::MAX - 1 - LISTENERS;
/// For how long a connection of a rush is kept before it is closed: at least, and at random up to this much more.
const TURN_AWAY: (Duration, u32) = (Duration::from_millis(100), 900);
/// Who may use a Unix socket: its owner and group.
const SOCKET_MODE: u32 = 0o660;

/// The listeners, and what is known of those who come.
#[derive(Debug)]
pub(super) struct Doors {
    doors: Vec<Door>,
    tls: Option<TlsStore>,
    limits: ConnectionLimits,
    origins: Arc<[String]>,
    addresses: Addresses,
    flapping: Flapping,
    /// Connections of a rush, by when they are closed.
    turned_away: BTreeMap<(Instant, u64), Socket>,
    /// Connections that are over a rate, by when they are read again.
    pub(super) waiting: BTreeSet<(Instant, usize, u64)>,
    /// Connections that could not be accepted.
    not_accepted: Seldom,
    random: RandomState,
}

/// A listener.
#[derive(Debug)]
struct Door {
    options: ListenerOptions,
    kind: Kind,
    listening: Listening,
    connections: usize,
    rate: Option<Pace>,
    /// Whether clients may wait that could not be accepted.
    again: bool,
}

#[derive(Debug)]
enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket, which goes with it.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, socket = %self.0.display(), "cannot remove a Unix socket");
        }
    }
}

impl Listening {
    fn open(address: &ListenAddress) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => {
                let listener = TcpListener::bind(*address)?;
                // The standard library lets 128 wait; whoever comes beyond that is not heard, and tries again a second later.
                SockRef::from(&listener).listen(ACCEPT_BACKLOG)?;
                Ok(Self::Tcp(listener))
            }
            ListenAddress::Unix(path) => open_unix(path),
        }
    }

    fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (socket, peer) = listener.accept()?;
                // Acknowledgements are batched here; Nagle's algorithm would add 40 ms to them.
                if let Err(error) = socket.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                Ok((Socket::Tcp(socket), peer))
            }
            Self::Unix(listener, _) => {
                let (socket, _) = listener.accept()?;
                // Whoever may use the socket is on this machine.
                Ok((Socket::Unix(socket), SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)))
            }
        }
    }

    fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Self::Unix(_, file) => Ok(ListenAddress::Unix(file.0.clone())),
        }
    }
}

/// Makes a Unix socket that nobody but its owner and group could ever have used. What a server that is gone has left
/// is replaced.
fn open_unix(path: &Path) -> io::Result<Listening> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // It is given its mode under a name that nobody knows.
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    std::fs::rename(&new, path)?;
    Ok(Listening::Unix(listener, SocketFile(path.to_owned())))
}

impl Doors {
    /// Opens every listener and watches them.
    pub(super) fn open(options: &MqttOptions, registry: &Registry) -> io::Result<Self> {
        let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        if options.listeners.len() > LISTENERS {
            return Err(wrong(format!("{} listeners; the limit is {LISTENERS}", options.listeners.len())));
        }
        let tls = options.tls.as_ref().map(TlsStore::load).transpose().map_err(wrong)?;
        let now = Instant::now();
        let mut doors = Vec::new();
        for listener in &options.listeners {
            let config = tls.as_ref().and_then(|tls| tls.config(listener.client_certificates));
            if listener.tls && config.is_none() {
                let text = "TLS needs tls.cert and tls.key, and client certificates need tls.client_ca";
                return Err(wrong(format!("{} ({}): {text}", listener.address, listener.name)));
            }
            let mut listening = match Listening::open(&listener.address) {
                Ok(listening) => listening,
                Err(error) if listener.optional && error.kind() == io::ErrorKind::AddrInUse => {
                    let (name, address) = (&listener.name, &listener.address);
                    tracing::warn!(listener = name, %address, "this MQTT listener stays off: its address is taken, and it was not asked for");
                    continue;
                }
                Err(error) => {
                    let text = format!("{} ({}): {error}", listener.address, listener.name);
                    return Err(io::Error::new(error.kind(), text));
                }
            };
            let source: &mut dyn mio::event::Source = match &mut listening {
                Listening::Tcp(listener) => listener,
                Listening::Unix(listener, _) => listener,
            };
            registry.register(source, Token(FIRST_DOOR + doors.len()), Readiness::READABLE)?;
            doors.push(Door {
                kind: Kind::of(listener),
                options: listener.clone(),
                listening,
                connections: 0,
                rate: Pace::new(options.limits.accepts_per_second, now),
                again: false,
            });
        }
        let limits = options.limits.clone();
        Ok(Self {
            doors,
            tls,
            origins: limits.origins.clone().into(),
            addresses: Addresses::default(),
            flapping: Flapping::new(limits.connects_per_minute, limits.ban.as_secs()),
            limits,
            turned_away: BTreeMap::new(),
            waiting: BTreeSet::new(),
            not_accepted: Seldom::default(),
            random: RandomState::new(),
        })
    }

    /// Where they listen, by name.
    pub(super) fn addresses(&self) -> Vec<(String, ListenAddress)> {
        let address = |door: &Door| door.listening.address().unwrap_or_else(|_| door.options.address.clone());
        self.doors.iter().map(|door| (door.options.name.clone(), address(door))).collect()
    }

    /// Bytes of the buffer for what is to be decrypted.
    pub(super) fn scratch_bytes(&self) -> usize {
        if self.doors.iter().any(|door| door.options.tls) { TLS_BUFFER } else { 0 }
    }

    /// The listener of an event.
    pub(super) fn of_token(&self, token: Token) -> Option<usize> {
        token.0.checked_sub(FIRST_DOOR).filter(|door| *door < self.doors.len())
    }

    /// When something is due that brings no event.
    pub(super) fn due(&self) -> Option<Instant> {
        let away = self.turned_away.first_key_value().map(|((at, _), _)| *at);
        let read = self.waiting.first().map(|(at, ..)| *at);
        away.into_iter().chain(read).min()
    }

    /// Reads the certificate's files again, where they have changed, or `anyway`.
    pub(super) fn refresh_certificates(&mut self, anyway: bool) {
        if let Some(tls) = &mut self.tls {
            tls.refresh(anyway);
        }
    }

    /// For how long a client may take nothing of what waits for it, in seconds; 0 is for ever.
    pub(super) fn unread_seconds(&self) -> u64 {
        self.limits.unread.as_secs()
    }

    /// What the clients of one tenant may take together.
    pub(super) fn tenant_limits(&self) -> TenantLimits {
        self.limits.tenant
    }

    /// Keeps a connection of a rush for a moment.
    fn turn_away(&mut self, socket: Socket, number: u64, now: Instant) {
        if self.turned_away.len() < TURNED_AWAY {
            let (least, spread) = TURN_AWAY;
            let jitter = self.random.hash_one(number) % u64::from(spread);
            self.turned_away.insert((now + least + Duration::from_millis(jitter), number), socket);
        }
    }
}

impl Worker {
    /// Accepts where clients wait that brought an error before.
    pub(super) fn accept_again(&mut self) {
        for door in 0..self.doors.doors.len() {
            if self.doors.doors.get_mut(door).is_some_and(|door| std::mem::take(&mut door.again)) {
                self.accept(door);
            }
        }
    }

    /// Accepts everyone who waits at a listener.
    pub(super) fn accept(&mut self, place: usize) {
        while let Some(door) = self.doors.doors.get_mut(place) {
            match door.listening.accept() {
                Ok((socket, peer)) => self.admit(place, socket, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors, or the client has gone. Those behind it bring no event: they are tried again.
                    door.again = true;
                    if let Some(times) = self.doors.not_accepted.again(Instant::now()) {
                        tracing::warn!(%error, times, "cannot accept an MQTT connection");
                    }
                    return;
                }
            }
        }
    }

    fn admit(&mut self, place: usize, socket: Socket, peer: SocketAddr) {
        let now = Instant::now();
        let number = self.next_generation();
        let open = self.connections.len();
        let Some(door) = self.doors.doors.get_mut(place) else { return };
        let proxied = !door.options.proxies.is_empty();
        let unix = matches!(socket, Socket::Unix(_));
        let full = open >= CONNECTIONS || door.connections >= door.options.max_connections;
        let why = if full {
            Some(Refused::Connections)
        } else if door.rate.is_some_and(|rate| !rate.wait(now).is_zero()) {
            Some(Refused::Rate)
        } else if proxied && !unix && !door.options.proxies.iter().any(|range| range.contains(peer.ip())) {
            Some(Refused::Proxy)
        } else {
            None
        };
        if let Some(why) = why {
            self.stats.refuse(why);
            tracing::debug!(%peer, listener = door.options.name, ?why, "MQTT connection refused");
            if why != Refused::Proxy {
                self.doors.turn_away(socket, number, now);
            }
            return;
        }
        if let Some(rate) = &mut door.rate {
            rate.take(1, now);
        }
        let address = counted(peer.ip()).filter(|_| !proxied);
        if let Some(address) = address
            && !self.doors.addresses.enter(address, self.doors.limits.per_address)
        {
            self.stats.refuse(Refused::Address);
            tracing::debug!(%peer, limit = self.doors.limits.per_address, "MQTT connection refused: its address has as many as it may");
            return;
        }
        if let Err(error) = self.open(place, socket, peer, address, number) {
            tracing::warn!(%error, %peer, "cannot serve an MQTT connection");
            if let Some(address) = address {
                self.doors.addresses.leave(address);
            }
        }
    }

    fn open(
        &mut self,
        place: usize,
        socket: Socket,
        peer: SocketAddr,
        address: Option<IpAddr>,
        generation: u64,
    ) -> io::Result<()> {
        let now = self.now_millis();
        let Some(door) = self.doors.doors.get_mut(place) else { return Ok(()) };
        let tls = self.doors.tls.as_ref().filter(|_| door.options.tls);
        let stack = Stack {
            proxy: !door.options.proxies.is_empty(),
            tls: tls.and_then(|tls| tls.config(door.options.client_certificates)),
            websocket: door.options.websocket,
            origins: Arc::clone(&self.doors.origins),
        };
        if door.options.tls && stack.tls.is_none() {
            return Err(io::Error::other("its listener has no certificate"));
        }
        let transport = Transport::new(socket, stack).map_err(io::Error::other)?;
        let limits = &self.doors.limits;
        let meter = Meter::new(limits.messages_per_second, limits.bytes_per_second, Instant::now());
        let entry = self.connections.vacant_entry();
        let mut connection = Connection::new(transport, peer, place, door.kind, now);
        (connection.counted, connection.paced, connection.meter) = (address, meter.is_some(), meter);
        self.poll.registry().register(
            &mut connection.transport.socket,
            Token(entry.key()),
            Readiness::READABLE | Readiness::WRITABLE,
        )?;
        door.connections += 1;
        self.stats.opened(door.kind);
        self.sys.traffic.sockets += 1;
        entry.insert((generation, connection));
        Ok(())
    }

    /// Takes the address that a proxy has told; `false` where it has as many connections as it may.
    pub(super) fn take_peer(&mut self, key: ConnectionKey, source: SocketAddr) -> bool {
        let Some((_, connection)) = self.connections.get_mut(key.place) else { return false };
        connection.peer = source;
        let Some(address) = counted(source.ip()) else { return true };
        if self.doors.addresses.enter(address, self.doors.limits.per_address) {
            connection.counted = Some(address);
            return true;
        }
        self.stats.refuse(Refused::Address);
        false
    }

    /// Gives back the places that a connection had.
    pub(super) fn leave(&mut self, connection: &Connection) {
        self.stats.closed(connection.kind);
        if let Some(door) = self.doors.doors.get_mut(connection.door) {
            door.connections -= 1;
        }
        if let Some(address) = connection.counted {
            self.doors.addresses.leave(address);
        }
    }

    /// Whether a client that was recognised comes back too often, or its address does.
    pub(super) fn connects_too_often(
        &mut self,
        peer: IpAddr,
        client_id: &str,
        owner: Option<String>,
    ) -> bool {
        if !self.doors.flapping.is_on() {
            return false;
        }
        let now = self.now();
        let address = counted(peer).map(Who::Address);
        let client = (!client_id.is_empty())
            .then(|| Who::Client { owner: owner.map(Into::into), id: client_id.into() });
        let mut refused = false;
        for who in address.into_iter().chain(client) {
            let verdict = self.doors.flapping.connect(who.clone(), now);
            if verdict == Verdict::Banned {
                let (limit, ban) = (self.doors.limits.connects_per_minute, self.doors.limits.ban);
                tracing::warn!(
                    ?who,
                    limit,
                    ?ban,
                    "an MQTT client is refused for a while: it connects too often"
                );
            }
            refused |= verdict != Verdict::Welcome;
        }
        if refused {
            self.stats.refuse(Refused::Flapping);
        }
        self.stats.banned.store(self.doors.flapping.banned(now) as u64, Ordering::Relaxed);
        refused
    }

    /// Does what is due: closes those of a rush, reads those again that were over a rate.
    pub(super) fn serve_due(&mut self) {
        if self.doors.due().is_none() {
            return;
        }
        let now = Instant::now();
        while self.doors.turned_away.first_key_value().is_some_and(|((at, _), _)| *at <= now) {
            self.doors.turned_away.pop_first();
        }
        while let Some((at, place, generation)) =
            self.doors.waiting.first().copied().filter(|(at, ..)| *at <= now)
        {
            self.doors.waiting.remove(&(at, place, generation));
            self.unpark(ConnectionKey { place, generation }, Parked::Rate);
        }
    }

    /// Once a second: the certificate's files, and who is refused still.
    pub(super) fn sweep_doors(&mut self) {
        self.doors.refresh_certificates(false);
        if self.doors.flapping.is_on() {
            let now = self.now();
            self.doors.flapping.sweep(now);
            self.stats.banned.store(self.doors.flapping.banned(now) as u64, Ordering::Relaxed);
        }
    }
}
