//! How commands find their server: `--url` and `--token`, then `SONDE_URL` and `SONDE_TOKEN`, then `endpoints.json` and
//! `admin.token` of the data directory.

use std::io::Read;
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
        let url = match (url, &endpoints) {
            (Some(url), _) => url,
            (None, Some(endpoints)) => match endpoints.get("http").and_then(|http| http.as_str()) {
                Some(http) => format!("http://{http}"),
                None => return Err(Failure::new(Exit::Unreachable, "the server listens on no HTTP address")),
            },
            (None, None) => {
                let tried = config.data_dir.join(path::ENDPOINTS);
                return Err(Failure::new(
                    Exit::Unreachable,
                    format!(
                        "no server found: neither --url nor SONDE_URL is given, and there is no {}; start one with `sonde serve`",
                        tried.display()
                    ),
                ));
            }
        };
        let token = token.or_else(|| {
            let file = std::fs::read_to_string(config.data_dir.join(path::ADMIN_TOKEN)).ok()?;
            Some(file.trim().to_owned())
        });
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

    /// Runs a statement; the one text that it answers with.
    pub(crate) fn sql_text(&self, sql: &str) -> Result<String> {
        let mut text = String::new();
        self.sql(sql, "application/json", None)?.read_to_string(&mut text)?;
        let answer: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| Failure::new(Exit::Failed, format!("the answer is no JSON: {error}")))?;
        let cell = answer.pointer("/rows/0/0").cloned().unwrap_or_default();
        Ok(cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
    }
}

impl Reply {
    /// The body, or the error that it says.
    pub(crate) fn ok(mut self) -> Result<Box<dyn Read>> {
        if self.status < 300 {
            return Ok(self.body);
        }
        let mut text = String::new();
        self.body.read_to_string(&mut text)?;
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
