//! Tokens: 256 random bits each, of which the catalog keeps a digest.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sonde_access::{Grants, StoredToken, hex};
use sonde_engine::{CatalogRequest, Engine, Object, ObjectKind, path};
use sonde_query::StatementHandler;

use crate::cli::{Exit, Failure, Result};

/// A new token.
pub(crate) fn generate() -> Result<String> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(Exit::Io, format!("no random numbers: {error}")))?;
    Ok(format!("sonde_{}", hex(&bytes)))
}

/// The administrator's token of a data directory, made at the first start.
pub(crate) fn admin(data_dir: &Path) -> Result<String> {
    let file = data_dir.join(path::ADMIN_TOKEN);
    match std::fs::read_to_string(&file) {
        Ok(token) => Ok(token.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let token = generate()?;
            let mut options = std::fs::OpenOptions::new();
            let created = options.write(true).create_new(true).mode(0o600).open(&file);
            let written = created.and_then(|mut file| writeln!(file, "{token}"));
            written.map_err(|error| Failure::new(Exit::Io, format!("write {}: {error}", file.display())))?;
            Ok(token)
        }
        Err(error) => Err(Failure::new(Exit::Io, format!("read {}: {error}", file.display()))),
    }
}

/// `CREATE TOKEN {"name": ..., "grants": {...}}`, by which `sonde token create` makes one.
#[derive(Debug)]
pub(crate) struct CreateToken(pub(crate) Engine);

#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct TokenRequest {
    pub(crate) name: String,
    pub(crate) grants: Grants,
}

impl StatementHandler for CreateToken {
    fn prefix(&self) -> &'static [&'static str] {
        &["CREATE", "TOKEN"]
    }

    fn run(&self, argument: &str) -> sonde_query::Result<String> {
        let invalid = |text: String| sonde_query::Error::Invalid(text);
        let request: TokenRequest =
            serde_json::from_str(argument).map_err(|error| invalid(format!("CREATE TOKEN: {error}")))?;
        let filters = request.grants.publish.iter().chain(&request.grants.subscribe);
        for filter in filters {
            sonde_proto::mqtt::validate_filter(filter)
                .map_err(|error| invalid(format!("filter '{filter}': {error}")))?;
        }
        let token = generate().map_err(|failure| sonde_query::Error::Internal(failure.text))?;
        let stored = StoredToken::new(&token, request.grants);
        let text = serde_json::to_string(&stored)
            .map_err(|error| sonde_query::Error::Internal(error.to_string()))?;
        let object = Object { kind: ObjectKind::Token, database: "public".into(), name: request.name, text };
        self.0.change_catalog(CatalogRequest::PutObject { object, replace: true })?;
        Ok(token)
    }
}
