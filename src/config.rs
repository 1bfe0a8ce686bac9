//! Configuration: flag > environment `SONDE_SECTION__KEY` > `sonde.toml` > default, checked once.
//!
//! # Invariants
//! - A key that is not in `KEYS` is an error, wherever it comes from.
//! - Crates see only their own options, never this file's keys.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sonde_query::statement::parse_duration;

use crate::cli::{ConfigArgs, Exit, Failure, Result};
use crate::memory::{Split, available_bytes};

/// Every key: its name, its default, what it is for.
const KEYS: [(&str, &str, &str); 16] = [
    ("backup.locations", "", "directories that BACKUP may write to, and below, separated by commas"),
    ("cold.url", "", "where cold days go: a directory or file:// URL; empty is cold/ in the data directory"),
    ("copy.locations", "", "directories below which COPY may write, separated by commas"),
    ("grpc.listen", "127.0.0.1:7481", "gRPC and Flight SQL; empty is off"),
    ("http.allow_plaintext", "false", "listen for HTTP and gRPC beyond loopback without TLS"),
    ("http.listen", "127.0.0.1:7480", "HTTP; empty is off"),
    ("log.max_age", "7 days", "how long the log is kept for rules that are behind, and for the next backup"),
    ("log.max_bytes", "4GiB", "how much log is kept for rules that are behind, and for the next backup"),
    ("memory.limit", "", "memory of the process; empty is half of the machine's"),
    ("mqtt.allow_plaintext", "false", "listen for MQTT beyond loopback without TLS"),
    ("mqtt.anonymous", "loopback", "who may come in without a token: loopback, always or never"),
    ("mqtt.listen", "127.0.0.1:1883", "MQTT; empty is off"),
    ("query.memory", "", "memory of all queries together; empty is three eighths of memory.limit"),
    ("query.timeout", "5 minutes", "how long a query may run"),
    ("storage.data_dir", "", "the data directory"),
    (
        "storage.memtable",
        "",
        "rows in memory before a flush; empty is a sixteenth of memory.limit, at most 64 MiB",
    ),
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
    pub(crate) mqtt_listen: Option<SocketAddr>,
    pub(crate) http_listen: Option<SocketAddr>,
    pub(crate) grpc_listen: Option<SocketAddr>,
    pub(crate) anonymous: Anonymous,
    pub(crate) insecure: bool,
    pub(crate) cold_dir: PathBuf,
    pub(crate) copy_locations: Vec<PathBuf>,
    pub(crate) backup_locations: Vec<PathBuf>,
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

fn wrong(text: impl Into<String>) -> Failure {
    Failure::new(Exit::Config, text)
}

/// Below this the program itself does not fit.
const MEMORY_LEAST: u64 = 64 << 20;

type Values = BTreeMap<&'static str, (String, String)>;

fn known(key: &str, origin: &str) -> Result<&'static str> {
    if let Some((known, ..)) = KEYS.iter().find(|(known, ..)| *known == key) {
        return Ok(known);
    }
    let near = sonde_engine::nearest(key, KEYS.iter().map(|(key, ..)| *key));
    let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    Err(wrong(format!("unknown configuration key {key} in {origin}{hint}")))
}

fn defaults() -> Values {
    KEYS.iter().map(|(key, default, _)| (*key, ((*default).to_owned(), "default".to_owned()))).collect()
}

/// The file that was named, else `sonde.toml` where there is one.
fn add_file(values: &mut Values, named: Option<&Path>) -> Result<()> {
    let usual = || Some(PathBuf::from("sonde.toml")).filter(|file| file.exists());
    let Some(file) = named.map(Path::to_owned).or_else(usual) else { return Ok(()) };
    let origin = file.display().to_string();
    let text = std::fs::read_to_string(&file).map_err(|error| wrong(format!("read {origin}: {error}")))?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        wrong(format!("{origin}: {}", error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")))
    })?;
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
        let get = |key: &'static str| values.get(key).map(|(value, _)| value.as_str()).unwrap_or_default();
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
            mqtt_listen: listen("mqtt.listen", get("mqtt.listen"))?,
            http_listen: listen("http.listen", get("http.listen"))?,
            grpc_listen: listen("grpc.listen", get("grpc.listen"))?,
            anonymous,
            insecure,
            cold_dir: cold_dir(get("cold.url"), &data_dir)?,
            copy_locations: paths(get("copy.locations")),
            backup_locations: paths(get("backup.locations")),
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
        config.refuse_open_doors(get("mqtt.allow_plaintext"), get("http.allow_plaintext"))?;
        Ok(config)
    }

    /// Whether commands of this user find the data directory without being told.
    pub(crate) fn has_default_dir(&self) -> bool {
        default_data_dir().is_ok_and(|dir| dir == self.data_dir)
    }

    /// A listener that others can reach needs to be asked for by name.
    fn refuse_open_doors(&self, mqtt: &str, http: &str) -> Result<()> {
        for (key, address, allowed, allow_key) in [
            ("mqtt.listen", self.mqtt_listen, mqtt, "mqtt.allow_plaintext"),
            ("http.listen", self.http_listen, http, "http.allow_plaintext"),
            ("grpc.listen", self.grpc_listen, http, "http.allow_plaintext"),
        ] {
            let allowed = match allowed {
                "true" => true,
                "false" => false,
                other => return Err(wrong(format!("{allow_key} is true or false, not '{other}'"))),
            };
            let open = address.is_some_and(|address| !address.ip().is_loopback());
            if open && !allowed && !self.insecure {
                let address = address.map(|address| address.to_string()).unwrap_or_default();
                return Err(wrong(format!(
                    "{key} = {address} can be reached from the network without TLS; if that is meant, add {allow_key} = true"
                )));
            }
        }
        Ok(())
    }
}

fn settings(values: &Values) -> Vec<Setting> {
    let setting = |(key, _, help): &(&'static str, &str, &'static str)| {
        let (value, origin) = values.get(key).cloned().unwrap_or_default();
        Setting { key, value, origin, help }
    };
    KEYS.iter().map(setting).collect()
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

fn listen(key: &str, text: &str) -> Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.replace("localhost:", "127.0.0.1:").parse();
    parsed
        .map(Some)
        .map_err(|_| wrong(format!("{key} is an address and a port such as 127.0.0.1:1883, not '{text}'")))
}

/// A list of paths, separated by commas.
fn paths(text: &str) -> Vec<PathBuf> {
    text.split(',').map(str::trim).filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

fn duration(key: &str, text: &str) -> Result<Duration> {
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
