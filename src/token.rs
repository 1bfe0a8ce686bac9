//! Tokens: 256 random bits each, of which the catalog keeps a digest.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sonde_access::{Grants, StoredToken, hex};
use sonde_engine::{CatalogRequest, Engine, Object, ObjectKind, path};
use sonde_query::StatementHandler;

use crate::cli::{Exit, Failure, Result};

/// Characters that the administrator's token has at least; what is shorter was cut off, or could be guessed.
const ADMIN_CHARACTERS: usize = 32;

/// Random bytes, in hexadecimal.
pub(crate) fn random_hex<const BYTES: usize>() -> Result<String> {
    let mut bytes = [0_u8; BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(Exit::Io, format!("no random numbers: {error}")))?;
    Ok(hex(&bytes))
}

/// A new token.
pub(crate) fn generate() -> Result<String> {
    Ok(format!("sonde_{}", random_hex::<32>()?))
}

/// The administrator's token of a data directory, made at the first start.
pub(crate) fn admin(data_dir: &Path) -> Result<String> {
    let file = data_dir.join(path::ADMIN_TOKEN);
    match std::fs::read_to_string(&file) {
        Ok(text) => check_admin(text.trim(), &file),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let token = generate()?;
            store_admin(data_dir, &token)
                .map_err(|error| Failure::new(Exit::Io, format!("write {}: {error}", file.display())))?;
            Ok(token)
        }
        Err(error) => Err(Failure::new(Exit::Io, format!("read {}: {error}", file.display()))),
    }
}

fn check_admin(token: &str, file: &Path) -> Result<String> {
    if token.chars().count() >= ADMIN_CHARACTERS {
        return Ok(token.to_owned());
    }
    let text = format!(
        "{} holds no token of at least {ADMIN_CHARACTERS} characters: delete it, and the next start makes a new one",
        file.display()
    );
    Err(Failure::new(Exit::Config, text))
}

/// Writes the token's file so that a crash leaves it whole or not at all.
fn store_admin(data_dir: &Path, token: &str) -> std::io::Result<()> {
    let tmp = data_dir.join(format!("{}{}", path::ADMIN_TOKEN, path::TMP_SUFFIX));
    // What a crash has left here may be readable for others: it is not written on.
    match std::fs::remove_file(&tmp) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    std::fs::rename(&tmp, data_dir.join(path::ADMIN_TOKEN))?;
    // The name lasts only with its directory.
    File::open(data_dir)?.sync_all()
}

/// `CREATE TOKEN [OR REPLACE] {"name": ..., "grants": {...}}`, by which `sonde token create` makes one.
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
        let (replace, json) = split_replace(argument);
        let request: TokenRequest =
            serde_json::from_str(json).map_err(|error| invalid(format!("CREATE TOKEN: {error}")))?;
        let filters = request.grants.publish.iter().chain(&request.grants.subscribe);
        for filter in filters {
            sonde_proto::mqtt::validate_filter(filter)
                .map_err(|error| invalid(format!("filter '{filter}': {error}")))?;
        }
        let token = generate().map_err(|failure| sonde_query::Error::Internal(failure.text))?;
        let stored = StoredToken::new(&token, request.grants);
        let text = serde_json::to_string(&stored)
            .map_err(|error| sonde_query::Error::Internal(error.to_string()))?;
        let name = request.name;
        let object = Object { kind: ObjectKind::Token, database: "public".into(), name: name.clone(), text };
        match self.0.change_catalog(CatalogRequest::PutObject { object, replace }) {
            Ok(_) => Ok(token),
            Err(sonde_engine::Error::Conflict(_)) => Err(exists(&name)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether `OR REPLACE` leads, and what stands behind it.
fn split_replace(argument: &str) -> (bool, &str) {
    let mut rest = argument;
    for word in ["OR", "REPLACE"] {
        match rest.split_once(char::is_whitespace) {
            Some((first, behind)) if first.eq_ignore_ascii_case(word) => rest = behind.trim_start(),
            _ => return (false, argument),
        }
    }
    (true, rest)
}

/// A token that is in use would stop working at once: that has to be asked for.
fn exists(name: &str) -> sonde_query::Error {
    let text = format!(
        "token {name} exists already: CREATE TOKEN OR REPLACE, or `sonde token create --replace`, replaces it"
    );
    sonde_engine::Error::Conflict(text).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_admins_token_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("admin.token.tmp"), "half a to").unwrap();
        let token = admin(dir.path()).unwrap();
        assert_eq!(admin(dir.path()).unwrap(), token);
        let mode = std::fs::metadata(dir.path().join(path::ADMIN_TOKEN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_short_admins_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "\n", "sonde_0123456789abcdef"] {
            std::fs::write(dir.path().join(path::ADMIN_TOKEN), text).unwrap();
            let failure = admin(dir.path()).unwrap_err();
            assert_eq!(failure.exit, Exit::Config, "{text}");
            assert!(
                failure.text.contains("admin.token") && failure.text.contains("delete"),
                "{}",
                failure.text
            );
        }
    }

    #[test]
    fn or_replace_is_optional() {
        assert_eq!(split_replace("{\"name\": \"or replace\"}"), (false, "{\"name\": \"or replace\"}"));
        assert_eq!(split_replace("or  Replace\n{}"), (true, "{}"));
        assert_eq!(split_replace("OR {}"), (false, "OR {}"));
    }
}
