//! Configuration: flag > environment `SONDE_SECTION__KEY` > `sonde.toml` > default, checked once.
//!
//! # Invariants
//! - A key that is not in `KEYS` is an error, wherever it comes from.
//! - Crates see only their own options, never this file's keys.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sonde_access::Expected;
use sonde_ingest::mqtt::{Offers, Overflow, QueueLimits};
use sonde_proto::mqtt::{is_shared, validate_filter};
use sonde_query::statement::parse_duration;

use crate::auth::JwtOptions;
use crate::cli::{ConfigArgs, Exit, Failure, Result};
use crate::listeners::{self, Listeners};
use crate::memory::{Split, available_bytes};

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
    ("mqtt.server_reference", "", "where MQTT 5.0 clients are sent while this server stops or cannot store"),
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
    ("query.memory", "", "memory of all queries together; empty is three eighths of memory.limit"),
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

/// Who may come in over MQTT without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anonymous {
    Loopback,
    Always,
    Never,
}

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

/// One key as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) key: &'static str,
    pub(crate) value: String,
    pub(crate) origin: String,
    pub(crate) help: &'static str,
}

pub(crate) fn wrong(text: impl Into<String>) -> Failure {
    Failure::new(Exit::Config, text)
}

/// Below this the program itself does not fit.
const MEMORY_LEAST: u64 = 64 << 20;

/// Values of keys, each with its origin, and the tables of further listeners.
#[derive(Default)]
pub(crate) struct Values {
    keys: BTreeMap<&'static str, (String, String)>,
    pub(crate) listeners: Vec<Table>,
}

/// One `[[mqtt.listener]]`, and the file that has it.
pub(crate) struct Table {
    pub(crate) table: toml::Table,
    pub(crate) origin: String,
}

impl Values {
    fn insert(&mut self, key: &'static str, value: (String, String)) {
        self.keys.insert(key, value);
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &'static str) -> &str {
        self.keys.get(key).map(|(value, _)| value.as_str()).unwrap_or_default()
    }

    /// Whether nobody set the key.
    pub(crate) fn is_default(&self, key: &'static str) -> bool {
        self.keys.get(key).is_none_or(|(_, origin)| origin == DEFAULT)
    }
}

/// The origin of what nobody set.
const DEFAULT: &str = "default";

fn known(key: &str, origin: &str) -> Result<&'static str> {
    if let Some((known, ..)) = KEYS.iter().find(|(known, ..)| *known == key) {
        return Ok(known);
    }
    let near = sonde_engine::nearest(key, KEYS.iter().map(|(key, ..)| *key));
    let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    Err(wrong(format!("unknown configuration key {key} in {origin}{hint}")))
}

fn defaults() -> Values {
    let key =
        |(key, default, _): &(&'static str, &str, &str)| (*key, ((*default).to_owned(), DEFAULT.to_owned()));
    Values { keys: KEYS.iter().map(key).collect(), listeners: Vec::new() }
}

/// The file that was named, else `sonde.toml` where there is one.
fn add_file(values: &mut Values, named: Option<&Path>) -> Result<()> {
    let usual = || Some(PathBuf::from("sonde.toml")).filter(|file| file.exists());
    let Some(file) = named.map(Path::to_owned).or_else(usual) else { return Ok(()) };
    let origin = file.display().to_string();
    let text = std::fs::read_to_string(&file).map_err(|error| wrong(format!("read {origin}: {error}")))?;
    let mut table: toml::Table = toml::from_str(&text).map_err(|error| {
        wrong(format!("{origin}: {}", error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")))
    })?;
    if let Some(mqtt) = table.get_mut("mqtt").and_then(toml::Value::as_table_mut)
        && let Some(listeners) = mqtt.remove("listener")
    {
        values.listeners = listeners::tables(listeners, &origin)?;
    }
    let mut flat = Vec::new();
    flatten("", &table, &mut flat);
    for (key, value) in flat {
        values.insert(known(&key, &origin)?, (value, origin.clone()));
    }
    Ok(())
}

fn add_environment(values: &mut Values) -> Result<()> {
    for (name, value) in std::env::vars() {
        let Some(rest) = name.strip_prefix("SONDE_").filter(|rest| rest.contains("__")) else { continue };
        let key = rest.replace("__", ".").to_ascii_lowercase();
        values.insert(known(&key, &format!("environment variable {name}"))?, (value, name));
    }
    Ok(())
}

fn add_flags(values: &mut Values, args: &ConfigArgs) -> Result<()> {
    for set in &args.set {
        let (key, value) =
            set.split_once('=').ok_or_else(|| wrong(format!("--set {set}: expected key=value")))?;
        values.insert(known(key.trim(), "--set")?, (value.trim().to_owned(), "--set".into()));
    }
    if let Some(dir) = &args.data_dir {
        values.insert("storage.data_dir", (dir.display().to_string(), "--data-dir".into()));
    }
    Ok(())
}

fn flatten(prefix: &str, table: &toml::Table, flat: &mut Vec<(String, String)>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, flat),
            toml::Value::Array(items) => {
                flat.push((name, items.iter().map(scalar).collect::<Vec<_>>().join(",")));
            }
            other => flat.push((name, scalar(other))),
        }
    }
}

/// A value as text; what is no scalar is refused by whoever reads the key.
fn scalar(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(value) => value.to_string(),
        toml::Value::Datetime(time) => time.to_string(),
        toml::Value::Array(_) | toml::Value::Table(_) => "(nested)".to_owned(),
    }
}

/// How much waits for an MQTT session.
fn queue_limits<'v>(get: &impl Fn(&'static str) -> &'v str) -> Result<QueueLimits> {
    let messages = get("mqtt.queued_messages");
    let messages = messages.parse().ok().filter(|count| *count > 0);
    let messages =
        messages.ok_or_else(|| wrong("mqtt.queued_messages is a number above 0, such as 10000"))?;
    let overflow = match get("mqtt.queue_overflow") {
        "drop_new" => Overflow::DropNew,
        "drop_oldest" => Overflow::DropOldest,
        "disconnect" => Overflow::Disconnect,
        other => {
            let known = "drop_new, drop_oldest or disconnect";
            return Err(wrong(format!("mqtt.queue_overflow is {known}, not '{other}'")));
        }
    };
    let bytes = bytes("mqtt.queued_bytes", get("mqtt.queued_bytes"))?;
    Ok(QueueLimits { messages, bytes: usize::try_from(bytes).unwrap_or(usize::MAX), overflow })
}

/// What 5.0 clients are told.
fn offers(keep_alive: &str, reference: &str) -> Result<Offers> {
    let mut offers = Offers::default();
    if !keep_alive.is_empty() {
        let key = "mqtt.keep_alive_maximum";
        let seconds = duration(key, keep_alive)?.as_secs();
        let fits = u16::try_from(seconds).ok().filter(|seconds| *seconds > 0);
        let most = offers.keep_alive_maximum;
        offers.keep_alive_maximum =
            fits.ok_or_else(|| wrong(format!("{key} is {keep_alive}; expected 1 second to {most} seconds")))?;
    }
    if reference.len() > usize::from(u16::MAX) || reference.contains('\0') {
        return Err(wrong("mqtt.server_reference is longer than 65,535 bytes, or has U+0000".to_owned()));
    }
    offers.server_reference = (!reference.is_empty()).then(|| reference.into());
    Ok(offers)
}

impl Config {
    /// Gathers the values of all keys, the strongest origin last, and checks them.
    pub(crate) fn load(args: &ConfigArgs, insecure: bool) -> Result<Self> {
        let mut values = defaults();
        add_file(&mut values, args.config.as_deref())?;
        add_environment(&mut values)?;
        add_flags(&mut values, args)?;
        Self::check(&values, insecure)
    }

    /// The defaults and these flags alone: neither a file nor the environment has a say.
    pub(crate) fn of_flags(args: &ConfigArgs) -> Result<Self> {
        let mut values = defaults();
        add_flags(&mut values, args)?;
        Self::check(&values, false)
    }

    fn check(values: &Values, insecure: bool) -> Result<Self> {
        let get = |key: &'static str| values.get(key);
        let data_dir = match get("storage.data_dir") {
            "" => default_data_dir()?,
            dir => PathBuf::from(dir),
        };
        let split = Split::of(match get("memory.limit") {
            "" => available_bytes() / 2,
            text => bytes("memory.limit", text)?,
        });
        if split.limit < MEMORY_LEAST {
            let (found, least) = (split.limit >> 20, MEMORY_LEAST >> 20);
            return Err(wrong(format!("memory.limit is {found} MiB; sonde needs {least} MiB at least")));
        }
        let or = |key: &'static str, default: u64| match get(key) {
            "" => Ok(default),
            text => bytes(key, text),
        };
        let anonymous = match get("mqtt.anonymous") {
            "loopback" => Anonymous::Loopback,
            "always" => Anonymous::Always,
            "never" => Anonymous::Never,
            other => {
                return Err(wrong(format!("mqtt.anonymous is loopback, always or never, not '{other}'")));
            }
        };
        let config = Self {
            mqtt: Listeners::check(values, insecure)?,
            mqtt_offers: offers(get("mqtt.keep_alive_maximum"), get("mqtt.server_reference"))?,
            http_listen: listen("http.listen", get("http.listen"))?,
            grpc_listen: listen("grpc.listen", get("grpc.listen"))?,
            anonymous,
            insecure,
            jwt: jwt(&get),
            cold_dir: cold_dir(get("cold.url"), &data_dir)?,
            copy_locations: paths(get("copy.locations")),
            backup_locations: paths(get("backup.locations")),
            mqtt_queue: queue_limits(&get)?,
            raw_retention: match get("mqtt.raw_retention") {
                "" => Duration::ZERO,
                text => duration("mqtt.raw_retention", text)?,
            },
            early: filters("mqtt.early", get("mqtt.early"))?,
            log_max_bytes: bytes("log.max_bytes", get("log.max_bytes"))?,
            log_max_age: duration("log.max_age", get("log.max_age"))?,
            memory: Split {
                queries: or("query.memory", split.queries)?,
                memtable: or("storage.memtable", split.memtable)?,
                ..split
            },
            query_timeout: duration("query.timeout", get("query.timeout"))?,
            data_dir,
            effective: settings(values),
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

pub(crate) fn flag(key: &str, text: &str) -> Result<bool> {
    text.parse().map_err(|_| wrong(format!("{key} is true or false, not '{text}'")))
}

/// A number that is not negative.
pub(crate) fn count<T: std::str::FromStr>(key: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| wrong(format!("{key} is a number from 0 on, not '{text}'")))
}

fn settings(values: &Values) -> Vec<Setting> {
    let setting = |(key, _, help): &(&'static str, &str, &'static str)| {
        let (value, origin) = values.keys.get(key).cloned().unwrap_or_default();
        Setting { key, value, origin, help }
    };
    let listener = |listener: &Table| Setting {
        key: "mqtt.listener",
        value: {
            let mut flat = Vec::new();
            flatten("", &listener.table, &mut flat);
            flat.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join(", ")
        },
        origin: listener.origin.clone(),
        help: "a further listener",
    };
    KEYS.iter().map(setting).chain(values.listeners.iter().map(listener)).collect()
}

fn jwt<'a>(get: &impl Fn(&'static str) -> &'a str) -> Option<JwtOptions> {
    let text = |key| Some(get(key).to_owned()).filter(|text| !text.is_empty());
    let expected =
        Expected { issuer: text("auth.issuer"), audience: text("auth.audience"), roles: text("auth.roles") };
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

pub(crate) fn listen(key: &str, text: &str) -> Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.replace("localhost:", "127.0.0.1:").parse();
    parsed
        .map(Some)
        .map_err(|_| wrong(format!("{key} is an address and a port such as 127.0.0.1:1883, not '{text}'")))
}

/// A list of topic filters, separated by commas.
fn filters(key: &str, text: &str) -> Result<Vec<String>> {
    let filters: Vec<&str> = text.split(',').map(str::trim).filter(|filter| !filter.is_empty()).collect();
    if let Some(filter) = filters.iter().find(|filter| is_shared(filter) || validate_filter(filter).is_err())
    {
        return Err(wrong(format!("{key} has topic filters such as site/+/alarm, not '{filter}'")));
    }
    Ok(filters.into_iter().map(str::to_owned).collect())
}

/// A list of paths, separated by commas.
pub(crate) fn paths(text: &str) -> Vec<PathBuf> {
    text.split(',').map(str::trim).filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

pub(crate) fn duration(key: &str, text: &str) -> Result<Duration> {
    let nanos = parse_duration(text).map_err(|error| wrong(format!("{key}: {error}")))?;
    Ok(Duration::from_nanos(nanos.unsigned_abs()))
}

fn bytes(key: &str, text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(wrong(format!("{key} is a number of bytes such as 512MiB, not '{text}'"))),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| wrong(format!("{key} is a number of bytes such as 512MiB, not '{text}'")))?;
    number
        .checked_shl(shift)
        .filter(|bytes| bytes >> shift == number)
        .ok_or_else(|| wrong(format!("{key} = {text} is too large")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

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

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("k", "512MiB").ok(), Some(512 << 20));
        assert_eq!(bytes("k", "1g").ok(), Some(1 << 30));
        assert!(bytes("k", "lots").is_err() && bytes("k", "99999999999g").is_err());
    }
}
