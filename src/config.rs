//! Configuration: flag > environment `SONDE_SECTION__KEY` > `sonde.toml` > default, checked once.
//!
//! # Invariants
//! - A key that is not in `KEYS` is an error, wherever it comes from.
//! - Crates see only their own options, never this file's keys.

mod mqtt;
mod text;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sonde_access::Expected;
use sonde_ingest::mqtt::{Offers, QueueLimits};

use crate::auth::JwtOptions;
use crate::cli::{ConfigArgs, Failure, Result};
use crate::listeners::Listeners;
use crate::memory::{Split, available_bytes};
pub(crate) use mqtt::Anonymous;
pub(crate) use text::{bytes, count, duration, flag, listen, wrong};
use text::{filters, paths};
pub(crate) use values::{Setting, Table, Values};

/// Every key: its name, its default, what it is for.
const KEYS: &[(&str, &str, &str)] = &[
    (
        "auth.audience",
        "",
        "for whom a JSON Web Token must be (aud); empty takes those for nobody in particular",
    ),
    (
        "auth.issuer",
        "",
        "who must have signed a JSON Web Token (iss); empty is anyone with a key of auth.jwks",
    ),
    (
        "auth.jwks",
        "",
        "a file of public keys (JWKS), by which JSON Web Tokens are accepted; empty accepts none",
    ),
    ("auth.roles", "roles", "the claim of a JSON Web Token that names roles; empty is none"),
    ("auth.tenant", "tenant", "the claim of a JSON Web Token that names its tenant; empty is none"),
    ("backup.locations", "", "directories that BACKUP may write to, and below, separated by commas"),
    ("cold.url", "", "where cold days go: a directory or file:// URL; empty is cold/ in the data directory"),
    ("copy.locations", "", "directories below which COPY may write, separated by commas"),
    ("grpc.listen", "127.0.0.1:7481", "gRPC and Flight SQL; empty is off"),
    ("http.allow_plaintext", "false", "listen for HTTP and gRPC beyond loopback without TLS"),
    ("http.listen", "127.0.0.1:7480", "HTTP; empty is off"),
    (
        "log.max_age",
        "7 days",
        "how long the log is kept for rules and sessions that are behind, and for the next backup",
    ),
    (
        "log.max_bytes",
        "4GiB",
        "how much log is kept for rules and sessions that are behind, and for the next backup",
    ),
    ("memory.limit", "", "memory of the process; empty is half of the machine's"),
    ("mqtt.allow_plaintext", "false", "listen for MQTT beyond loopback without TLS"),
    ("mqtt.anonymous", "loopback", "who may come in without a token: loopback, always or never"),
    ("mqtt.flapping_ban", "5 minutes", "how long mqtt.flapping_connects refuses"),
    (
        "mqtt.flapping_connects",
        "0",
        "connects of a client id or address in a minute before it is refused; 0 is any number",
    ),
    (
        "mqtt.keep_alive_maximum",
        "",
        "the longest keep alive of MQTT 5.0 clients, as a duration; empty leaves them theirs",
    ),
    (
        "mqtt.early",
        "",
        "topic filters, separated by commas, whose messages are delivered before they are stored",
    ),
    ("mqtt.listen", "127.0.0.1:1883", "MQTT; empty is off"),
    ("mqtt.max_bytes_per_second", "0", "bytes that a connection may send in a second; 0 is any number"),
    ("mqtt.max_connections", "100000", "connections of a listener at once"),
    (
        "mqtt.max_connections_per_address",
        "1000",
        "connections of an address beyond loopback; 0 is any number",
    ),
    (
        "mqtt.max_connects_per_second",
        "20000",
        "connections that a listener accepts in a second; 0 is any number",
    ),
    (
        "mqtt.max_messages_per_second",
        "0",
        "messages that a connection may publish in a second; 0 is any number",
    ),
    (
        "mqtt.queue_overflow",
        "drop_new",
        "when as much waits for a session as may: drop_new, drop_oldest or disconnect",
    ),
    ("mqtt.queued_bytes", "64MiB", "bytes of messages that wait for an MQTT session"),
    ("mqtt.queued_messages", "10000", "messages that wait for an MQTT session"),
    (
        "mqtt.raw_retention",
        "",
        "how long messages that no source but default takes stay in the log; empty is not at all",
    ),
    (
        "mqtt.retained_bytes",
        "",
        "bytes of retained messages; empty is a thirty-second of memory.limit, at most 1 GiB",
    ),
    ("mqtt.server_reference", "", "where MQTT 5.0 clients are sent while this server stops or cannot store"),
    (
        "mqtt.tenant_bytes_per_second",
        "0",
        "bytes that the clients of one tenant may send in a second; 0 is any number",
    ),
    ("mqtt.tenant_connections", "0", "connections of one tenant at once; 0 is any number"),
    (
        "mqtt.tenant_messages_per_second",
        "0",
        "messages that the clients of one tenant may publish in a second; 0 is any number",
    ),
    (
        "mqtt.tenant_queued_bytes",
        "0",
        "bytes of messages that wait for the sessions of one tenant; 0 is any number",
    ),
    ("mqtt.tls_listen", "127.0.0.1:8883", "MQTT over TLS, once there is tls.cert; empty is off"),
    (
        "mqtt.unread_timeout",
        "1 minute",
        "how long a client may take nothing of what waits for it; 0 s is for ever",
    ),
    ("mqtt.ws_listen", "127.0.0.1:8083", "MQTT over WebSocket, on /mqtt; empty is off"),
    (
        "mqtt.ws_origins",
        "",
        "origins of web pages that may connect, separated by commas, * is any; empty: any, on loopback those of this machine",
    ),
    ("mqtt.wss_listen", "127.0.0.1:8084", "MQTT over secure WebSocket, once there is tls.cert; empty is off"),
    (
        "query.memory",
        "",
        "memory of all queries together; empty is five sixteenths of memory.limit, up to three eighths from 2 GiB on",
    ),
    ("query.timeout", "5 minutes", "how long a query may run"),
    ("storage.data_dir", "", "the data directory"),
    (
        "storage.memtable",
        "",
        "rows in memory before a flush; empty is a sixteenth of memory.limit, at most 64 MiB",
    ),
    ("tls.cert", "", "the server's certificate and those up to its root, PEM; read again when it changes"),
    (
        "tls.client_ca",
        "",
        "the authorities of clients' certificates, PEM; empty: clients are not asked for one",
    ),
    (
        "tls.client_certificates",
        "optional",
        "whether clients must show a certificate of tls.client_ca: optional or required",
    ),
    ("tls.key", "", "the private key of tls.cert, PEM"),
];

/// The checked configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) mqtt: Listeners,
    pub(crate) mqtt_offers: Offers,
    pub(crate) http_listen: Option<SocketAddr>,
    pub(crate) grpc_listen: Option<SocketAddr>,
    pub(crate) anonymous: Anonymous,
    pub(crate) insecure: bool,
    /// How JSON Web Tokens are accepted, if they are.
    pub(crate) jwt: Option<JwtOptions>,
    pub(crate) cold_dir: PathBuf,
    pub(crate) copy_locations: Vec<PathBuf>,
    pub(crate) backup_locations: Vec<PathBuf>,
    pub(crate) mqtt_queue: QueueLimits,
    pub(crate) raw_retention: Duration,
    pub(crate) early: Vec<String>,
    pub(crate) log_max_bytes: u64,
    pub(crate) log_max_age: Duration,
    pub(crate) memory: Split,
    pub(crate) query_timeout: Duration,
    /// All keys with their values and where they come from.
    pub(crate) effective: Vec<Setting>,
}

/// Below this the program itself does not fit.
const MEMORY_LEAST: u64 = 64 << 20;

impl Config {
    /// Gathers the values of all keys, the strongest origin last, and checks them.
    pub(crate) fn load(args: &ConfigArgs, insecure: bool) -> Result<Self> {
        let mut values = Values::defaults();
        values.add_file(args.config.as_deref())?;
        values.add_environment()?;
        values.add_flags(args)?;
        Self::check(&values, insecure)
    }

    /// The defaults and these flags alone: neither a file nor the environment has a say.
    pub(crate) fn of_flags(args: &ConfigArgs) -> Result<Self> {
        let mut values = Values::defaults();
        values.add_flags(args)?;
        Self::check(&values, false)
    }

    fn check(values: &Values, insecure: bool) -> Result<Self> {
        let get = |key: &'static str| values.get(key);
        let data_dir = match get("storage.data_dir") {
            "" => default_data_dir()?,
            dir => PathBuf::from(dir),
        };
        let config = Self {
            mqtt: Listeners::check(values, insecure)?,
            mqtt_offers: mqtt::offers(values)?,
            http_listen: listen("http.listen", get("http.listen"))?,
            grpc_listen: listen("grpc.listen", get("grpc.listen"))?,
            anonymous: mqtt::anonymous(values)?,
            insecure,
            jwt: jwt(&get),
            cold_dir: cold_dir(get("cold.url"), &data_dir)?,
            copy_locations: paths(get("copy.locations")),
            backup_locations: paths(get("backup.locations")),
            mqtt_queue: mqtt::queue_limits(values)?,
            raw_retention: match get("mqtt.raw_retention") {
                "" => Duration::ZERO,
                text => duration("mqtt.raw_retention", text)?,
            },
            early: filters("mqtt.early", get("mqtt.early"))?,
            log_max_bytes: bytes("log.max_bytes", get("log.max_bytes"))?,
            log_max_age: duration("log.max_age", get("log.max_age"))?,
            memory: memory(values)?,
            query_timeout: duration("query.timeout", get("query.timeout"))?,
            data_dir,
            effective: values.settings(),
        };
        config.refuse_open_doors(get("http.allow_plaintext"))?;
        Ok(config)
    }

    /// Whether commands of this user find the data directory without being told.
    pub(crate) fn has_default_dir(&self) -> bool {
        default_data_dir().is_ok_and(|dir| dir == self.data_dir)
    }

    /// A listener that others can reach needs to be asked for by name.
    fn refuse_open_doors(&self, allowed: &str) -> Result<()> {
        let allowed = flag("http.allow_plaintext", allowed)? || self.insecure;
        for (key, address) in [("http.listen", self.http_listen), ("grpc.listen", self.grpc_listen)] {
            if let Some(address) = address.filter(|address| !address.ip().is_loopback() && !allowed) {
                return Err(open_door(key, &address.to_string(), "http.allow_plaintext"));
            }
        }
        Ok(())
    }
}

/// What a listener beyond loopback without TLS is told.
pub(crate) fn open_door(what: &str, address: &str, allow_key: &str) -> Failure {
    wrong(format!(
        "{what} = {address} can be reached from the network without TLS; if that is meant, add {allow_key} = true"
    ))
}

/// How much memory the process has, and who of it gets how much.
fn memory(values: &Values) -> Result<Split> {
    let split = Split::of(match values.get("memory.limit") {
        "" => available_bytes() / 2,
        text => bytes("memory.limit", text)?,
    });
    if split.limit < MEMORY_LEAST {
        let (found, least) = (split.limit >> 20, MEMORY_LEAST >> 20);
        return Err(wrong(format!("memory.limit is {found} MiB; sonde needs {least} MiB at least")));
    }
    let or = |key: &'static str, default: u64| match values.get(key) {
        "" => Ok(default),
        text => bytes(key, text),
    };
    Ok(Split {
        queries: or("query.memory", split.queries)?,
        memtable: or("storage.memtable", split.memtable)?,
        retained: or("mqtt.retained_bytes", split.retained)?,
        ..split
    })
}

fn jwt<'a>(get: &impl Fn(&'static str) -> &'a str) -> Option<JwtOptions> {
    let text = |key| Some(get(key).to_owned()).filter(|text| !text.is_empty());
    let expected = Expected {
        issuer: text("auth.issuer"),
        audience: text("auth.audience"),
        roles: text("auth.roles"),
        tenant: text("auth.tenant"),
    };
    text("auth.jwks").map(|jwks| JwtOptions { jwks: jwks.into(), expected })
}

fn default_data_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()) {
        return Ok(Path::new(&dir).join("sonde"));
    }
    match std::env::var_os("HOME") {
        Some(home) => Ok(Path::new(&home).join(".local/share/sonde")),
        None => Err(wrong("no data directory: give --data-dir, or set XDG_DATA_HOME or HOME")),
    }
}

fn cold_dir(url: &str, data_dir: &Path) -> Result<PathBuf> {
    match url {
        "" => Ok(data_dir.join(sonde_engine::path::COLD_DIR)),
        url => match url.split_once("://") {
            None => Ok(PathBuf::from(url)),
            Some(("file", path)) => Ok(PathBuf::from(path)),
            Some((scheme, _)) => Err(wrong(format!(
                "cold.url: this build has no {scheme}:// store; a directory or file:// URL is expected"
            ))),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use crate::cli::Exit;

    fn load(set: &[&str]) -> Result<Config> {
        let args = ConfigArgs {
            data_dir: Some("/tmp/none".into()),
            config: None,
            set: set.iter().map(|s| (*s).to_owned()).collect(),
        };
        Config::load(&args, false)
    }

    #[test]
    fn unknown_keys_are_errors_that_name_the_likely_one() {
        let failure = load(&["mqtt.listn=x"]).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert!(failure.text.contains("did you mean mqtt.listen?"), "{}", failure.text);
    }

    #[test]
    fn a_public_listener_must_be_asked_for() {
        let failure = load(&["mqtt.listen=0.0.0.0:1883"]).unwrap_err();
        assert!(failure.text.contains("mqtt.allow_plaintext = true"), "{}", failure.text);
        assert!(load(&["mqtt.listen=0.0.0.0:1883", "mqtt.allow_plaintext=true"]).is_ok());
        assert!(load(&["http.listen=0.0.0.0:80", "mqtt.allow_plaintext=true"]).is_err());
    }
}
