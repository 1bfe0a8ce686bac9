//! The MQTT listeners of the configuration: those that have keys of their own, `[[mqtt.listener]]`, certificates and
//! limits, checked together.
//!
//! # Invariants
//! - A listener that others can reach has TLS, or was asked for by `mqtt.allow_plaintext`.
//! - A key that is not known in `[[mqtt.listener]]` is an error.

use std::path::PathBuf;

use serde::Deserialize;
use sonde_ingest::mqtt::{
    AddressRange, ClientCertificates, ConnectionLimits, ListenAddress, ListenerOptions, TenantLimits,
    TlsFiles,
};

use crate::cli::{Failure, Result};
use crate::config::{Table, Values, bytes, count, duration, flag, listen, open_door, wrong};

/// The listeners with keys of their own: key, what endpoints.json and the banner call it, TLS, WebSocket.
const NAMED: [(&str, &str, bool, bool); 4] = [
    ("mqtt.listen", "mqtt", false, false),
    ("mqtt.tls_listen", "mqtts", true, false),
    ("mqtt.ws_listen", "mqtt_ws", false, true),
    ("mqtt.wss_listen", "mqtt_wss", true, true),
];

/// Everything about how MQTT comes in.
#[derive(Clone, Debug)]
pub(crate) struct Listeners {
    /// Those with keys of their own first; their `name` is that of endpoints.json.
    pub(crate) listeners: Vec<ListenerOptions>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) limits: ConnectionLimits,
}

/// A `[[mqtt.listener]]` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Further {
    /// `host:port`, or `unix:/path`.
    listen: String,
    #[serde(default)]
    tls: bool,
    #[serde(default)]
    websocket: bool,
    /// `none`, `optional` or `required`; as `tls.client_certificates` says where it is not given.
    client_certificates: Option<String>,
    /// Addresses of proxies that tell the client's address.
    #[serde(default)]
    proxy_from: Vec<String>,
    max_connections: Option<usize>,
}

/// Whether the name is of a listener with a key of its own.
pub(crate) fn is_named(name: &str) -> bool {
    NAMED.iter().any(|(_, known, ..)| *known == name)
}

/// Takes `[[mqtt.listener]]` out of a file.
pub(crate) fn tables(value: toml::Value, origin: &str) -> Result<Vec<Table>> {
    let toml::Value::Array(items) = value else { return Err(no_table(origin)) };
    let table = |item| match item {
        toml::Value::Table(table) => Ok(Table { table, origin: origin.to_owned() }),
        _ => Err(no_table(origin)),
    };
    items.into_iter().map(table).collect()
}

fn no_table(origin: &str) -> Failure {
    wrong(format!("{origin}: mqtt.listener is a table of its own for each listener: [[mqtt.listener]]"))
}

impl Listeners {
    /// Checks what the configuration says of them.
    pub(crate) fn check(values: &Values, insecure: bool) -> Result<Self> {
        let tls = tls_files(values)?;
        let certificates = certificates(values, tls.as_ref())?;
        let max_connections = count("mqtt.max_connections", values.get("mqtt.max_connections"))?;
        let mut listeners = Vec::new();
        for (key, name, with_tls, websocket) in NAMED {
            let Some(address) = listen(key, values.get(key))? else { continue };
            if with_tls && tls.is_none() {
                if values.is_default(key) {
                    continue;
                }
                return Err(wrong(format!(
                    "{key} = {address} needs a certificate: set tls.cert and tls.key"
                )));
            }
            listeners.push(ListenerOptions {
                name: name.to_owned(),
                address: ListenAddress::Tcp(address),
                tls: with_tls,
                websocket,
                client_certificates: if with_tls { certificates } else { ClientCertificates::None },
                proxies: Vec::new(),
                max_connections,
                optional: key != "mqtt.listen" && values.is_default(key),
            });
        }
        for (n, further) in values.listeners.iter().enumerate() {
            let origin = format!("{}: [[mqtt.listener]] {}", further.origin, n + 1);
            let raw: Further = further.table.clone().try_into().map_err(|error: toml::de::Error| {
                wrong(format!(
                    "{origin}: {}",
                    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
                ))
            })?;
            let listener = further_listener(&raw, &origin, certificates, max_connections)?;
            if listener.tls && tls.is_none() {
                return Err(wrong(format!(
                    "{origin}: tls = true needs a certificate: set tls.cert and tls.key"
                )));
            }
            if listener.client_certificates != ClientCertificates::None
                && tls.as_ref().is_none_or(|tls| tls.client_authorities.is_none())
            {
                return Err(wrong(format!(
                    "{origin}: client_certificates needs their authorities: set tls.client_ca"
                )));
            }
            listeners.push(listener);
        }
        let allowed = flag("mqtt.allow_plaintext", values.get("mqtt.allow_plaintext"))? || insecure;
        for listener in &listeners {
            let ListenAddress::Tcp(address) = listener.address else { continue };
            if !address.ip().is_loopback() && !listener.tls && !allowed {
                let key = NAMED.iter().find(|(_, name, ..)| *name == listener.name).map(|(key, ..)| *key);
                let what = key.unwrap_or(&listener.name);
                return Err(open_door(what, &address.to_string(), "mqtt.allow_plaintext"));
            }
        }
        Ok(Self { listeners, tls, limits: limits(values)? })
    }
}

fn tls_files(values: &Values) -> Result<Option<TlsFiles>> {
    let path = |key| Some(values.get(key)).filter(|path| !path.is_empty()).map(PathBuf::from);
    match (path("tls.cert"), path("tls.key")) {
        (Some(certificate), Some(key)) => {
            Ok(Some(TlsFiles { certificate, key, client_authorities: path("tls.client_ca") }))
        }
        (None, None) if path("tls.client_ca").is_none() => Ok(None),
        (Some(_), None) => Err(wrong("tls.cert needs its private key: set tls.key")),
        (None, Some(_)) => Err(wrong("tls.key needs its certificate: set tls.cert")),
        (None, None) => {
            Err(wrong("tls.client_ca needs a certificate of the server: set tls.cert and tls.key"))
        }
    }
}

fn certificates(values: &Values, tls: Option<&TlsFiles>) -> Result<ClientCertificates> {
    let key = "tls.client_certificates";
    let asked = tls.is_some_and(|tls| tls.client_authorities.is_some());
    match values.get(key) {
        "required" if asked => Ok(ClientCertificates::Required),
        "required" => Err(wrong(format!("{key} = required needs their authorities: set tls.client_ca"))),
        "optional" if asked => Ok(ClientCertificates::Optional),
        "optional" => Ok(ClientCertificates::None),
        other => Err(wrong(format!("{key} is optional or required, not '{other}'"))),
    }
}

fn further_listener(
    raw: &Further,
    origin: &str,
    certificates: ClientCertificates,
    max_connections: usize,
) -> Result<ListenerOptions> {
    let address = match raw.listen.strip_prefix("unix:") {
        Some(path) => ListenAddress::Unix(PathBuf::from(path)),
        None => match listen(&format!("{origin}: listen"), &raw.listen)? {
            Some(address) => ListenAddress::Tcp(address),
            None => return Err(wrong(format!("{origin}: listen is empty"))),
        },
    };
    let client_certificates = match raw.client_certificates.as_deref() {
        None if raw.tls => certificates,
        None | Some("none") => ClientCertificates::None,
        Some(_) if !raw.tls => return Err(wrong(format!("{origin}: client_certificates needs tls = true"))),
        Some("optional") => ClientCertificates::Optional,
        Some("required") => ClientCertificates::Required,
        Some(other) => {
            return Err(wrong(format!(
                "{origin}: client_certificates is none, optional or required, not '{other}'"
            )));
        }
    };
    let proxy = |text: &String| {
        AddressRange::parse(text).ok_or_else(|| {
            wrong(format!("{origin}: proxy_from has addresses such as 10.0.0.5 or 10.0.0.0/8, not '{text}'"))
        })
    };
    Ok(ListenerOptions {
        name: origin.to_owned(),
        address,
        tls: raw.tls,
        websocket: raw.websocket,
        client_certificates,
        proxies: raw.proxy_from.iter().map(proxy).collect::<Result<_>>()?,
        max_connections: raw.max_connections.unwrap_or(max_connections),
        optional: false,
    })
}

fn limits(values: &Values) -> Result<ConnectionLimits> {
    let number = |key| count(key, values.get(key));
    let time = |key| duration(key, values.get(key));
    let per_address = "mqtt.max_connections_per_address";
    Ok(ConnectionLimits {
        per_address: count(per_address, values.get(per_address))?,
        accepts_per_second: number("mqtt.max_connects_per_second")?,
        messages_per_second: number("mqtt.max_messages_per_second")?,
        bytes_per_second: number("mqtt.max_bytes_per_second")?,
        connects_per_minute: number("mqtt.flapping_connects")?,
        ban: time("mqtt.flapping_ban")?,
        unread: time("mqtt.unread_timeout")?,
        tenant: TenantLimits {
            connections: count("mqtt.tenant_connections", values.get("mqtt.tenant_connections"))?,
            messages_per_second: number("mqtt.tenant_messages_per_second")?,
            bytes_per_second: number("mqtt.tenant_bytes_per_second")?,
            queued_bytes: bytes("mqtt.tenant_queued_bytes", values.get("mqtt.tenant_queued_bytes"))?,
        },
        origins: values
            .get("mqtt.ws_origins")
            .split(',')
            .map(str::trim)
            .filter(|origin| !origin.is_empty())
            .map(str::to_owned)
            .collect(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use crate::cli::ConfigArgs;
    use crate::config::Config;

    fn load(text: &str, set: &[&str]) -> Result<Listeners> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sonde.toml");
        std::fs::write(&file, text).unwrap();
        let args = ConfigArgs {
            data_dir: Some("/tmp/none".into()),
            config: Some(file),
            set: set.iter().map(|s| (*s).to_owned()).collect(),
        };
        Config::load(&args, false).map(|config| config.mqtt)
    }

    fn names(listeners: &Listeners) -> Vec<&str> {
        listeners.listeners.iter().map(|listener| listener.name.as_str()).collect()
    }

    #[test]
    fn tls_listeners_come_with_a_certificate() {
        assert_eq!(names(&load("", &[]).unwrap()), ["mqtt", "mqtt_ws"]);
        let tls = load("[tls]\ncert = 'c'\nkey = 'k'", &[]).unwrap();
        assert_eq!(names(&tls), ["mqtt", "mqtts", "mqtt_ws", "mqtt_wss"]);
        assert!(tls.listeners.iter().all(|l| l.client_certificates == ClientCertificates::None));
        let mutual =
            load("[tls]\ncert = 'c'\nkey = 'k'\nclient_ca = 'a'", &["tls.client_certificates=required"]);
        let asked: Vec<_> = mutual.unwrap().listeners.iter().map(|l| l.client_certificates).collect();
        let (none, required) = (ClientCertificates::None, ClientCertificates::Required);
        assert_eq!(asked, [none, required, none, required]);
        assert!(names(&load("", &["mqtt.listen=", "mqtt.ws_listen="]).unwrap()).is_empty());
        let failure = load("", &["mqtt.tls_listen=127.0.0.1:0"]).unwrap_err();
        assert!(failure.text.contains("set tls.cert and tls.key"), "{}", failure.text);
        for half in ["tls.cert=c", "tls.key=k", "tls.client_ca=a", "tls.client_certificates=required"] {
            assert!(load("", &[half]).is_err(), "{half}");
        }
    }

    #[test]
    fn what_others_reach_without_tls_must_be_asked_for() {
        for key in ["mqtt.listen", "mqtt.ws_listen"] {
            let set = format!("{key}=0.0.0.0:0");
            let failure = load("", &[&set]).unwrap_err();
            assert!(failure.text.contains("mqtt.allow_plaintext = true") && failure.text.contains(key));
            assert!(load("", &[&set, "mqtt.allow_plaintext=true"]).is_ok());
        }
        assert!(load("[[mqtt.listener]]\nlisten = '0.0.0.0:1'", &[]).is_err());
        assert!(
            load("[[mqtt.listener]]\nlisten = '0.0.0.0:1'\ntls = true", &["tls.cert=c", "tls.key=k"]).is_ok()
        );
    }

    #[test]
    fn further_listeners_are_tables() {
        let text = "[[mqtt.listener]]\nlisten = 'unix:/run/s'\n[[mqtt.listener]]\nlisten = '127.0.0.1:0'\n\
                    websocket = true\nproxy_from = ['10.0.0.0/8']\nmax_connections = 5\n[mqtt]\nmax_connections = 9";
        let listeners = load(text, &[]).unwrap().listeners;
        let [.., unix, proxied] = &listeners[..] else { panic!("{listeners:?}") };
        assert_eq!((&unix.address, unix.max_connections), (&ListenAddress::Unix("/run/s".into()), 9));
        assert_eq!((proxied.websocket, proxied.max_connections, proxied.proxies.len()), (true, 5, 1));
        for (wrong, says) in [
            ("lisen = 'x'", "lisen"),
            ("tls = true", "listen"),
            ("listen = 'nonsense'", "nonsense"),
            ("listen = '127.0.0.1:0'\ntls = true", "tls.cert"),
            ("listen = '127.0.0.1:0'\nproxy_from = ['proxy']", "'proxy'"),
            ("listen = '127.0.0.1:0'\nclient_certificates = 'required'", "tls = true"),
        ] {
            let failure = load(&format!("[[mqtt.listener]]\n{wrong}"), &[]).unwrap_err();
            assert!(failure.text.contains(says) && failure.text.contains("sonde.toml"), "{}", failure.text);
        }
        assert!(load("[mqtt]\nlistener = 'x'", &[]).is_err());
    }
}
