//! The HTTP request by which a client asks for WebSocket (RFC 6455, 4.2), and its answer.

use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest;

/// What the key of a request is hashed with (RFC 6455, 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Where MQTT is.
const PATH: &str = "/mqtt";
/// What may be spoken there, the likeliest first.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// The headers that matter; of one that comes several times all values count.
#[derive(Default)]
struct Headers<'a> {
    upgrade: bool,
    connection: bool,
    version: Option<&'a str>,
    key: Option<&'a str>,
    subprotocol: Option<&'static str>,
    origin: Option<&'a str>,
}

/// Answers a whole request, its empty line included: `Ok` the answer that opens the connection, `Err` the one that
/// refuses it.
pub(super) fn answer(request: &[u8], origins: &[String], peer: SocketAddr) -> Result<Vec<u8>, Vec<u8>> {
    let bad = |why: &str| refusal("400 Bad Request", "", why);
    let text = std::str::from_utf8(request).map_err(|_| bad("the request is not text"))?;
    let mut lines = text.split("\r\n");
    let mut start = lines.next().unwrap_or_default().split(' ');
    let (method, target, version) = (start.next(), start.next().unwrap_or_default(), start.next());
    if version != Some("HTTP/1.1") {
        return Err(bad("HTTP/1.1 is expected"));
    }
    let path = target.split('?').next().unwrap_or_default();
    if path != PATH {
        return Err(refusal("404 Not Found", "", "MQTT is at /mqtt"));
    }
    if method != Some("GET") {
        return Err(refusal("405 Method Not Allowed", "Allow: GET\r\n", "WebSocket begins with GET"));
    }
    let headers = headers(lines).ok_or_else(|| bad("a header line has no colon"))?;
    if !headers.upgrade || !headers.connection {
        let why = "this is MQTT over WebSocket: Upgrade: websocket and Connection: Upgrade are expected";
        return Err(refusal("426 Upgrade Required", "Upgrade: websocket\r\n", why));
    }
    if headers.version != Some("13") {
        let header = "Sec-WebSocket-Version: 13\r\n";
        return Err(refusal("426 Upgrade Required", header, "WebSocket version 13 is expected"));
    }
    let key = headers.key.filter(|key| BASE64_STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
    let key = key.ok_or_else(|| bad("Sec-WebSocket-Key is not 16 bytes in base64"))?;
    let Some(subprotocol) = headers.subprotocol else {
        return Err(bad("Sec-WebSocket-Protocol: mqtt is expected"));
    };
    if let Some(origin) = headers.origin
        && !may_connect(origin, origins, peer.ip())
    {
        tracing::warn!(%peer, origin = origin.escape_debug().to_string(), "MQTT over WebSocket refused: add the page's origin to mqtt.ws_origins to let it in");
        return Err(refusal("403 Forbidden", "", "pages of this origin may not connect (mqtt.ws_origins)"));
    }
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n",
        accept(key)
    )
    .into_bytes())
}

/// An answer that refuses, and says why.
pub(super) fn refusal(status: &str, headers: &str, why: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{why}\n",
        why.len() + 1
    )
    .into_bytes()
}

fn headers<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Headers<'a>> {
    let mut headers = Headers::default();
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        let has = |token: &str| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token));
        if name.eq_ignore_ascii_case("upgrade") {
            headers.upgrade |= has("websocket");
        } else if name.eq_ignore_ascii_case("connection") {
            headers.connection |= has("upgrade");
        } else if name.eq_ignore_ascii_case("sec-websocket-version") {
            headers.version = Some(value);
        } else if name.eq_ignore_ascii_case("sec-websocket-key") {
            headers.key = Some(value);
        } else if name.eq_ignore_ascii_case("sec-websocket-protocol") {
            let found = SUBPROTOCOLS.into_iter().find(|known| value.split(',').any(|p| p.trim() == *known));
            headers.subprotocol = headers.subprotocol.or(found);
        } else if name.eq_ignore_ascii_case("origin") {
            headers.origin = Some(value);
        }
    }
    Some(headers)
}

fn accept(key: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(GUID);
    BASE64_STANDARD.encode(context.finish())
}

/// Whether pages of an origin may connect. Browsers let every page that their user opens connect to the user's own
/// machine, where clients may need no token: unless they are listed, only pages of this machine may do that.
fn may_connect(origin: &str, origins: &[String], peer: IpAddr) -> bool {
    if !origins.is_empty() {
        return origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin));
    }
    if !peer.to_canonical().is_loopback() {
        return true;
    }
    let authority = origin.split_once("://").map_or("", |(_, rest)| rest);
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// A request that opens a connection, with one line replaced or taken out.
    fn ask(change: (&str, &str), origins: &[&str], peer: &str) -> String {
        let request = "GET /mqtt HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Protocol: other, mqtt\r\n\r\n";
        assert!(request.contains(change.0));
        let request = request.replacen(change.0, change.1, 1);
        let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
        let peer = SocketAddr::new(peer.parse().unwrap(), 1);
        let (Ok(answer) | Err(answer)) = answer(request.as_bytes(), &origins, peer);
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn the_answer_has_the_key_of_the_standard() {
        // The key and its answer stand in RFC 6455, 1.3.
        let answer = ask(("", ""), &[], "127.0.0.1");
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
        assert!(
            answer.contains("Sec-WebSocket-Protocol: mqtt\r\n") && answer.ends_with("\r\n\r\n"),
            "{answer}"
        );
        let old = ask((": other, mqtt", ": mqttv3.1"), &[], "127.0.0.1");
        assert!(old.contains("Sec-WebSocket-Protocol: mqttv3.1\r\n"), "{old}");
        assert!(ask(("/mqtt", "/mqtt?x=1"), &[], "127.0.0.1").starts_with("HTTP/1.1 101 "));
    }

    #[test]
    fn what_asks_for_something_else_is_refused() {
        for (change, status) in [
            (("/mqtt", "/"), "404"),
            (("/mqtt", "/mqtt/x"), "404"),
            (("GET", "POST"), "405"),
            (("HTTP/1.1", "HTTP/1.0"), "400"),
            (("Upgrade: websocket", "X: y"), "426"),
            (("keep-alive, Upgrade", "close"), "426"),
            (("Version: 13", "Version: 8"), "426"),
            (("dGhlIHNhbXBsZSBub25jZQ==", "short"), "400"),
            (("other, mqtt", "other"), "400"),
            (("Host: h", "no colon"), "400"),
        ] {
            let answer = ask(change, &[], "127.0.0.1");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{change:?}: {answer}");
        }
    }

    #[test]
    fn pages_of_elsewhere_do_not_reach_this_machine_unless_listed() {
        let from = |origin: &str, origins: &[&str], peer: &str| {
            ask(("Host: h", &format!("Origin: {origin}")), origins, peer).starts_with("HTTP/1.1 101 ")
        };
        for local in ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:8084"] {
            assert!(from(local, &[], "127.0.0.1"), "{local}");
        }
        for foreign in
            ["https://example.com", "null", "http://localhost.example.com", "http://127.0.0.1.example.com"]
        {
            assert!(!from(foreign, &[], "127.0.0.1"), "{foreign}");
            assert!(from(foreign, &[], "192.0.2.1"), "{foreign}");
            assert!(from(foreign, &["*"], "127.0.0.1"), "{foreign}");
        }
        assert!(from("https://a.example", &["https://b.example", "https://a.example"], "192.0.2.1"));
        assert!(!from("http://a.example", &["https://a.example"], "192.0.2.1"));
    }
}
