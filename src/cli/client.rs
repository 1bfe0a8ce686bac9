//! How commands find their server: `--url` and `--token`, then `SONDE_URL` and `SONDE_TOKEN`, then `endpoints.json` and
//! `admin.token` of the data directory.
//!
//! # Invariants
//! - What the data directory holds is for the server of this machine: its token goes to no other.

use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use sonde_engine::path;

use super::{Exit, Failure, Result, ServerArgs};
use crate::config::Config;

/// A server that was found.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) url: String,
    pub(crate) token: Option<String>,
    /// `host:port` of its MQTT listener, where that is known.
    pub(crate) mqtt: Option<String>,
    agent: ureq::Agent,
}

/// An answer: its status, and its body to be read.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Box<dyn Read>,
}

impl Client {
    /// Finds the server.
    pub(crate) fn find(args: &ServerArgs) -> Result<Self> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = args.url.clone().or_else(|| env("SONDE_URL"));
        let token = args.token.clone().or_else(|| env("SONDE_TOKEN"));
        let config = Config::load(&args.config, true)?;
        let endpoints = read_endpoints(&config.data_dir);
        let is_here = url.as_deref().is_none_or(is_loopback);
        let url = match url {
            Some(url) => url,
            None => local_url(endpoints.as_ref(), &config.data_dir)?,
        };
        let token = match token {
            Some(token) => Some(token),
            None if is_here => read_token(&config.data_dir),
            None => {
                return Err(Failure::new(
                    Exit::Auth,
                    format!(
                        "{url} needs a token, by --token or SONDE_TOKEN: the one of this machine's data directory is not sent to others"
                    ),
                ));
            }
        };
        let endpoints = endpoints.filter(|_| is_here);
        let mqtt = endpoints.and_then(|endpoints| Some(endpoints.get("mqtt")?.as_str()?.to_owned()));
        Ok(Self::new(url, token, mqtt))
    }

    /// A server whose addresses are known.
    pub(crate) fn new(url: String, token: Option<String>, mqtt: Option<String>) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_connect(Some(Duration::from_secs(5)))
            .build()
            .new_agent();
        Self { url: url.trim_end_matches('/').to_owned(), token, mqtt, agent }
    }

    /// Sends a body and waits for the status.
    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply> {
        let url = format!("{}{path}", self.url);
        let mut request = self.agent.post(&url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let reply = request.send(body).map_err(|error| {
            Failure::new(
                Exit::Unreachable,
                format!("{url} cannot be reached: {error}; is the server running?"),
            )
        })?;
        Ok(Reply { status: reply.status().as_u16(), body: Box::new(reply.into_body().into_reader()) })
    }

    /// Runs a statement; the body of its answer in the format that `accept` names.
    pub(crate) fn sql(&self, sql: &str, accept: &str, database: Option<&str>) -> Result<Box<dyn Read>> {
        let mut headers = vec![("accept", accept), ("content-type", "text/plain")];
        headers.extend(database.map(|database| ("database", database)));
        let reply = self.post("/api/v1/sql", &headers, sql.as_bytes())?;
        reply.ok()
    }

    /// Runs a statement whose answer is small; its rows.
    pub(crate) fn sql_rows(&self, sql: &str) -> Result<Vec<Vec<serde_json::Value>>> {
        let mut text = String::new();
        self.sql(sql, "application/json", None)?.read_to_string(&mut text).map_err(cut_off)?;
        let answer: Answer = serde_json::from_str(&text)
            .map_err(|error| Failure::new(Exit::Failed, format!("the answer cannot be read: {error}")))?;
        Ok(answer.rows)
    }

    /// Runs a statement; the one text that it answers with.
    pub(crate) fn sql_text(&self, sql: &str) -> Result<String> {
        let cell = self.sql_rows(sql)?.into_iter().flatten().next().unwrap_or_default();
        Ok(cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
    }
}

/// What is read of an answer in JSON.
#[derive(serde::Deserialize)]
struct Answer {
    rows: Vec<Vec<serde_json::Value>>,
}

impl Reply {
    /// The body, or the error that it says.
    pub(crate) fn ok(mut self) -> Result<Box<dyn Read>> {
        if self.status < 300 {
            return Ok(self.body);
        }
        let mut text = String::new();
        self.body.read_to_string(&mut text).map_err(cut_off)?;
        let parsed: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        let said = parsed.and_then(|value| Some(value.get("error")?.as_str()?.to_owned()));
        let exit = if matches!(self.status, 401 | 403) { Exit::Auth } else { Exit::Failed };
        Err(Failure::new(exit, said.unwrap_or_else(|| format!("HTTP {}: {}", self.status, text.trim()))))
    }
}

fn read_endpoints(data_dir: &Path) -> Option<serde_json::Value> {
    let text = std::fs::read_to_string(data_dir.join(path::ENDPOINTS)).ok()?;
    serde_json::from_str(&text).ok()
}

/// The address that `endpoints.json` has.
fn local_url(endpoints: Option<&serde_json::Value>, data_dir: &Path) -> Result<String> {
    let Some(endpoints) = endpoints else {
        let tried = data_dir.join(path::ENDPOINTS);
        return Err(Failure::new(
            Exit::Unreachable,
            format!(
                "no server found: neither --url nor SONDE_URL is given, and there is no {}; start one with `sonde serve`",
                tried.display()
            ),
        ));
    };
    match endpoints.get("http").and_then(|http| http.as_str()) {
        Some(http) => Ok(format!("http://{http}")),
        None => Err(Failure::new(Exit::Unreachable, "the server listens on no HTTP address")),
    }
}

fn read_token(data_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data_dir.join(path::ADMIN_TOKEN)).ok()?;
    Some(text.trim().to_owned()).filter(|token| !token.is_empty())
}

/// Whether an address is one of this machine. It is parsed as the HTTP client parses it, so that both see one host.
fn is_loopback(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// What it means that the body of an answer cannot be read to its end.
pub(crate) fn cut_off(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("the answer was cut off: {error}"))
}

/// Copies the body of an answer; returns its bytes. `unwritten` says what it means that they cannot be written.
pub(crate) fn copy_body(
    body: &mut dyn Read,
    out: &mut dyn Write,
    unwritten: impl Fn(std::io::Error) -> Failure,
) -> Result<u64> {
    let mut chunk = vec![0; 64 << 10];
    let mut copied = 0;
    loop {
        let len = match body.read(&mut chunk) {
            Ok(0) => return Ok(copied),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(cut_off(error)),
        };
        out.write_all(chunk.get(..len).unwrap_or_default()).map_err(&unwritten)?;
        copied += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_this_machine_stays_here() {
        for (url, here) in [
            ("http://127.0.0.1:7480", true),
            ("http://127.9.9.9", true),
            ("http://localhost:7480/", true),
            ("http://[::1]:7480", true),
            ("http://[::ffff:127.0.0.1]:7480", true),
            ("http://10.0.0.5:7480", false),
            ("https://example.com", false),
            ("http://127.0.0.1@example.com", false),
            ("http://127.0.0.1.example.com", false),
            ("http://localhost.example.com", false),
            ("", false),
        ] {
            assert_eq!(is_loopback(url), here, "{url}");
        }
    }

    #[test]
    fn a_body_that_breaks_off_is_the_servers_failure_and_a_full_disk_is_not() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(ErrorKind::UnexpectedEof.into())
            }
        }
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let exit = |body: &mut dyn Read, out: &mut dyn Write| {
            copy_body(body, out, Failure::from).map_err(|failure| failure.exit)
        };
        assert_eq!(exit(&mut &b"rows"[..], &mut Vec::<u8>::new()), Ok(4));
        assert_eq!(exit(&mut Broken, &mut Vec::<u8>::new()), Err(Exit::Failed));
        assert_eq!(exit(&mut &b"rows"[..], &mut Broken), Err(Exit::Io));
    }
}
