//! TLS (rustls) over a socket: records are decrypted from the event loop's buffer, never from one of their own.
//!
//! # Invariants
//! - Between reads a connection keeps its keys and the record that came in part, nothing else.
//! - rustls remembers places in the bytes that it was given, and panics where others come: it is asked again only with
//!   those that it has not discarded, and after an error for what is to be written alone.

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};

use super::certificate;
use crate::limits::{TLS_PENDING, TLS_RECORD};
use crate::mqtt::ClientCertificate;
use std::sync::Arc;

/// What encrypting and framing add to a record of [`TLS_RECORD`] bytes, and a key update before it.
const OVERHEAD: usize = 512;

/// Why a TLS connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("TLS: {0}")]
    Encode(#[from] EncodeError),
    #[error("TLS: {0}")]
    Encrypt(#[from] EncryptError),
    #[error("TLS: a record or handshake message of more than {TLS_PENDING} bytes")]
    TooLong,
    #[error("TLS: in no state to {0}")]
    State(&'static str),
}

/// What some bytes were.
#[derive(Debug)]
pub(super) struct Received {
    /// Bytes of plain text.
    pub(super) plain: usize,
    /// Whether the client said that nothing more comes.
    pub(super) ended: bool,
}

/// The server's side of a connection.
pub(super) struct Tls {
    connection: UnbufferedServerConnection,
    /// The record, or the handshake message, whose end has not come.
    pending: Vec<u8>,
    failed: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    pub(super) fn new(config: Arc<rustls::ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self { connection: UnbufferedServerConnection::new(config)?, pending: Vec::new(), failed: false })
    }

    /// Whether data may be sent.
    pub(super) fn is_open(&self) -> bool {
        !self.failed && !self.connection.is_handshaking()
    }

    /// Bytes of the record that came in part.
    pub(super) fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// The names of the client's certificate, which was verified.
    pub(super) fn client_certificate(&self) -> Option<ClientCertificate> {
        certificate::read(self.connection.peer_certificates()?.first()?)
    }

    /// Decrypts what came, which begins with what was pending, into `plain`; `plain` has as many bytes as came at
    /// least. What the handshake answers is appended to `wire`, where it fails too.
    pub(super) fn receive(
        &mut self,
        came: &mut [u8],
        plain: &mut [u8],
        wire: &mut Vec<u8>,
    ) -> Result<Received, TlsError> {
        let received = self.decrypt(came, plain, wire);
        self.failed |= received.is_err();
        received
    }

    fn decrypt(
        &mut self,
        came: &mut [u8],
        plain: &mut [u8],
        wire: &mut Vec<u8>,
    ) -> Result<Received, TlsError> {
        let (mut at, mut filled, mut ended) = (0, 0, false);
        loop {
            let bytes = came.get_mut(at..).unwrap_or_default();
            let UnbufferedStatus { mut discard, state } = self.connection.process_tls_records(bytes);
            let mut done = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        let end = filled + record.payload.len();
                        let place = plain.get_mut(filled..end).ok_or(TlsError::TooLong)?;
                        place.copy_from_slice(record.payload);
                        filled = end;
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, wire)?,
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => done = true,
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => (done, ended) = (true, true),
                Ok(_) => return Err(TlsError::State("read")),
                Err(error) => {
                    self.say_why(wire);
                    return Err(error.into());
                }
            }
            at += discard;
            if done {
                break;
            }
        }
        let rest = came.get(at..).unwrap_or_default();
        if rest.len() > TLS_PENDING {
            return Err(TlsError::TooLong);
        }
        self.pending = rest.to_vec();
        Ok(Received { plain: filled, ended })
    }

    /// Appends the alert of an error, and what was to be written before it.
    fn say_why(&mut self, wire: &mut Vec<u8>) {
        // IMPORTANT: while something is to be written, rustls does not look at bytes that came. Asked once more, it would
        // look at those that it has refused.
        while self.connection.wants_write() {
            let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut []);
            let Ok(ConnectionState::EncodeTlsData(data)) = state else { return };
            if encode(data, wire).is_err() {
                return;
            }
        }
    }

    /// Encrypts at most [`TLS_RECORD`] bytes onto `wire`.
    pub(super) fn encrypt(&mut self, plain: &[u8], wire: &mut Vec<u8>) -> Result<(), TlsError> {
        self.write(wire, |traffic, room| traffic.encrypt(plain, room))
    }

    /// Appends the alert that nothing more comes from us.
    pub(super) fn close(&mut self, wire: &mut Vec<u8>) -> Result<(), TlsError> {
        self.write(wire, |traffic, room| traffic.queue_close_notify(room))
    }

    fn write(
        &mut self,
        wire: &mut Vec<u8>,
        put: impl Fn(
            &mut rustls::unbuffered::WriteTraffic<'_, rustls::server::ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> Result<(), TlsError> {
        loop {
            let UnbufferedStatus { discard, state } = self.connection.process_tls_records(&mut self.pending);
            match state? {
                ConnectionState::EncodeTlsData(data) => encode(data, wire)?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::WriteTraffic(mut traffic) => {
                    let start = wire.len();
                    wire.resize(start + TLS_RECORD + OVERHEAD, 0);
                    let written = put(&mut traffic, wire.get_mut(start..).unwrap_or_default());
                    wire.truncate(start + written.as_ref().map_or(0, |written| *written));
                    written?;
                    return Ok(());
                }
                _ => return Err(TlsError::State("write")),
            }
            self.pending.drain(..discard);
        }
    }
}

/// Appends a record of the handshake.
fn encode(
    mut data: EncodeTlsData<'_, rustls::server::ServerConnectionData>,
    wire: &mut Vec<u8>,
) -> Result<(), TlsError> {
    let start = wire.len();
    let needed = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(error) => return Err(error.into()),
        Ok(_) => return Ok(()),
    };
    wire.resize(start + needed, 0);
    data.encode(wire.get_mut(start..).unwrap_or_default())?;
    Ok(())
}
