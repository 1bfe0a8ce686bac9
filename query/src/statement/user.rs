//! `CREATE USER`, `CREATE ROLE`, `GRANT`, `DENY`, `REVOKE` and their kin, as they are written.
//!
//! # Invariants
//! - A password is in no error message and in no Debug output.

use sonde_access::{Retain, TopicAction, check_filter};

use super::Name;
use super::parser::{OptionValue, Parser};
use crate::error::{Error, Result};

/// Words that GRANT knows, which no role is called.
const RIGHTS: [&str; 6] = ["PUBLISH", "SUBSCRIBE", "ALL", "QUERY", "WRITE", "ADMIN"];

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// By what a user is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// `PASSWORD '...'`.
    Password(Secret),
    /// `PASSWORD HASH '...'`, as a PHC string or as Mosquitto writes it.
    Hash(Secret),
    /// `CERTIFICATE '...'`: a common name, or an alternative name.
    Certificate(String),
}

/// What `WITH (...)` says of a user; what it does not name stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserOptions {
    /// `client_id = '...'`.
    pub client_id: Option<String>,
    /// `device = '...'`.
    pub device: Option<String>,
    /// `tenant = '...'`.
    pub tenant: Option<String>,
    /// `scram = false`: keep no keys for SCRAM-SHA-256.
    pub scram: Option<bool>,
}

/// Something that is granted, denied or revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Right {
    /// Topics.
    Topics {
        /// Publishing, subscribing, or both.
        actions: Vec<TopicAction>,
        /// Which topics.
        filter: String,
        /// The largest QoS to publish with.
        qos: u8,
        /// Which messages to publish.
        retain: Retain,
    },
    /// `QUERY`.
    Query,
    /// `WRITE`.
    Write,
    /// `ADMIN`.
    Admin,
    /// A role.
    Role(String),
}

/// To whom a right is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grantee(pub String);

/// A statement about who may do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessStatement {
    /// `CREATE USER`.
    CreateUser {
        /// The user.
        name: String,
        /// How it is recognised.
        logins: Vec<Login>,
        /// What else it is.
        options: UserOptions,
        /// Whether one of this name may be replaced, with its rights.
        replace: bool,
        /// Whether one of this name is no error.
        if_not_exists: bool,
    },
    /// `ALTER USER`.
    AlterUser {
        /// The user.
        name: String,
        /// New ways to be recognised.
        logins: Vec<Login>,
        /// What changes.
        options: UserOptions,
    },
    /// `DROP USER`.
    DropUser {
        /// The user.
        name: String,
        /// Whether a missing one is no error.
        if_exists: bool,
    },
    /// `DROP TOKEN`.
    DropToken {
        /// The token.
        name: String,
        /// Whether a missing one is no error.
        if_exists: bool,
    },
    /// `CREATE ROLE`.
    CreateRole {
        /// The role.
        name: String,
        /// Whether one of this name may be replaced by one without rights.
        replace: bool,
        /// Whether one of this name is no error.
        if_not_exists: bool,
    },
    /// `DROP ROLE`.
    DropRole {
        /// The role.
        name: String,
        /// Whether a missing one is no error.
        if_exists: bool,
    },
    /// `GRANT`, or `DENY`.
    Grant {
        /// Whether it denies.
        deny: bool,
        /// What.
        right: Right,
        /// To whom.
        to: Grantee,
    },
    /// `REVOKE`, which takes back what GRANT or DENY said.
    Revoke {
        /// What.
        right: Right,
        /// From whom.
        from: Grantee,
    },
}

/// A name of a user or role, which belongs to no database.
pub(super) fn bare(name: Name) -> Result<String> {
    match name.database {
        None => Ok(name.name),
        Some(_) => {
            Err(Error::Invalid("users and roles belong to no database; quote a name with dots".into()))
        }
    }
}

fn new_name(parser: &mut Parser<'_>) -> Result<String> {
    let name = bare(parser.name()?)?;
    sonde_access::check_name(&name).map_err(Error::Invalid)?;
    Ok(name)
}

fn if_not_exists(parser: &mut Parser<'_>) -> Result<bool> {
    let found = parser.optional("IF");
    if found {
        parser.words(&["NOT", "EXISTS"])?;
    }
    Ok(found)
}

/// Behind `CREATE [OR REPLACE] USER`.
pub(super) fn create_user(parser: &mut Parser<'_>, replace: bool) -> Result<AccessStatement> {
    parser.keep_secrets();
    let if_not_exists = if_not_exists(parser)?;
    let name = new_name(parser)?;
    let logins = logins(parser)?;
    let options = user_options(parser)?;
    Ok(AccessStatement::CreateUser { name, logins, options, replace, if_not_exists })
}

/// From `ALTER USER` on.
pub(super) fn alter(parser: &mut Parser<'_>) -> Result<AccessStatement> {
    parser.keep_secrets();
    parser.words(&["ALTER", "USER"])?;
    let name = bare(parser.name()?)?;
    let logins = logins(parser)?;
    let options = user_options(parser)?;
    if logins.is_empty() && options == UserOptions::default() {
        return Err(Error::Invalid(
            "ALTER USER changes PASSWORD '...', CERTIFICATE '...' or WITH (...)".into(),
        ));
    }
    Ok(AccessStatement::AlterUser { name, logins, options })
}

fn logins(parser: &mut Parser<'_>) -> Result<Vec<Login>> {
    let mut logins = Vec::new();
    loop {
        if parser.optional("PASSWORD") {
            let login = if parser.optional("HASH") { Login::Hash } else { Login::Password };
            logins.push(login(Secret(parser.text("a password in single quotes")?)));
        } else if parser.optional("CERTIFICATE") {
            logins.push(Login::Certificate(parser.text("a certificate's name in single quotes")?));
        } else {
            return Ok(logins);
        }
    }
}

fn user_options(parser: &mut Parser<'_>) -> Result<UserOptions> {
    let mut options = UserOptions::default();
    if !parser.optional("WITH") {
        return Ok(options);
    }
    for (key, value) in parser.options()? {
        match (key.as_str(), value) {
            ("client_id", OptionValue::Text(value)) => options.client_id = Some(value),
            ("device", OptionValue::Text(value)) => options.device = Some(value),
            ("tenant", OptionValue::Text(value)) => options.tenant = Some(value),
            ("scram", OptionValue::Bool(value)) => options.scram = Some(value),
            _ => {
                return Err(Error::Invalid(format!(
                    "unknown option {key}; a user has client_id = '...', device = '...', tenant = '...' and \
                     scram = true|false"
                )));
            }
        }
    }
    Ok(options)
}

/// Behind `CREATE [OR REPLACE] ROLE`.
pub(super) fn create_role(parser: &mut Parser<'_>, replace: bool) -> Result<AccessStatement> {
    let if_not_exists = if_not_exists(parser)?;
    let name = new_name(parser)?;
    if RIGHTS.iter().any(|right| right.eq_ignore_ascii_case(&name)) {
        return Err(Error::Invalid(format!("no role is called {name}: GRANT {name} means something else")));
    }
    Ok(AccessStatement::CreateRole { name, replace, if_not_exists })
}

/// From `GRANT`, `DENY` or `REVOKE` on.
pub(super) fn grant(parser: &mut Parser<'_>) -> Result<AccessStatement> {
    let verb = parser.word("GRANT, DENY or REVOKE")?.to_ascii_uppercase();
    let right = right(parser, &verb)?;
    if verb == "DENY" && !matches!(right, Right::Topics { .. }) {
        return Err(Error::Invalid("DENY takes PUBLISH, SUBSCRIBE or ALL ON 'filter'".into()));
    }
    parser.words(&[if verb == "REVOKE" { "FROM" } else { "TO" }])?;
    let to = Grantee(bare(parser.name()?)?);
    Ok(match verb.as_str() {
        "REVOKE" => AccessStatement::Revoke { right, from: to },
        verb => AccessStatement::Grant { deny: verb == "DENY", right, to },
    })
}

fn right(parser: &mut Parser<'_>, verb: &str) -> Result<Right> {
    let word = parser.peek_word().map(str::to_ascii_uppercase);
    let actions = match word.as_deref() {
        Some("PUBLISH") => vec![TopicAction::Publish],
        Some("SUBSCRIBE") => vec![TopicAction::Subscribe],
        Some("ALL") => vec![TopicAction::Publish, TopicAction::Subscribe],
        simple => {
            let right = match simple {
                Some("QUERY") => Right::Query,
                Some("WRITE") => Right::Write,
                Some("ADMIN") => Right::Admin,
                _ => return Ok(Right::Role(bare(parser.name()?)?)),
            };
            parser.skip(1);
            return Ok(right);
        }
    };
    parser.skip(1);
    parser.words(&["ON"])?;
    let filter = parser.text("a topic filter such as 'acme/${device}/#'")?;
    check_filter(&filter).map_err(Error::Invalid)?;
    let (mut qos, mut retain) = (2, Retain::Either);
    if verb != "REVOKE" && actions.contains(&TopicAction::Publish) {
        if verb == "GRANT" && parser.optional("QOS") {
            qos = u8::try_from(parser.number()?).ok().filter(|qos| *qos <= 2).ok_or_else(|| {
                Error::Invalid("QOS is 0, 1 or 2: the largest that may be published with".into())
            })?;
        }
        if verb == "GRANT" && parser.optional("NO") {
            parser.words(&["RETAIN"])?;
            retain = Retain::Never;
        } else if parser.optional("RETAIN") && verb == "DENY" {
            retain = Retain::Only;
        }
    }
    Ok(Right::Topics { actions, filter, qos, retain })
}

/// Behind `SHOW GRANTS`.
pub(super) fn show_grants(parser: &mut Parser<'_>) -> String {
    let mut query = "SELECT * FROM system.grants".to_owned();
    if parser.optional("FOR")
        && let Ok(name) = parser.name()
    {
        query.push_str(&format!(" WHERE grantee = '{}'", name.name.replace('\'', "''")));
    }
    query + " ORDER BY 1, 2, 3, 4, 5"
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use crate::statement::{Statement, parse};

    #[test]
    fn statements_about_users_are_read() {
        for sql in [
            "CREATE USER pump PASSWORD 'correct horse'",
            "CREATE OR REPLACE USER \"pump-7\" CERTIFICATE 'pump.acme' WITH (client_id = '${username}', tenant = 'a')",
            "CREATE USER IF NOT EXISTS a PASSWORD HASH '$argon2id$x' WITH (scram = false)",
            "ALTER USER pump PASSWORD 'another one'",
            "DROP USER IF EXISTS pump",
            "CREATE ROLE readers",
            "DROP ROLE readers",
            "DROP TOKEN IF EXISTS \"press-1\"",
            "GRANT PUBLISH ON 'acme/${device}/#' QOS 1 NO RETAIN TO pump",
            "GRANT ALL ON 'x' RETAIN TO pump",
            "GRANT QUERY TO pump",
            "GRANT readers TO pump",
            "DENY PUBLISH ON 'acme/secret/#' RETAIN TO pump",
            "REVOKE SUBSCRIBE ON 'x' FROM pump",
            "REVOKE readers FROM pump",
        ] {
            assert!(matches!(parse(sql), Ok(Statement::Access(_))), "{sql}: {:?}", parse(sql));
        }
        assert!(matches!(parse("SHOW GRANTS FOR pump"), Ok(Statement::Query(_))));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for sql in [
            "GRANT PUBLISH ON 'a/#/b' TO pump",
            "GRANT PUBLISH ON '${nobody}' TO pump",
            "GRANT PUBLISH ON 'a' QOS 3 TO pump",
            "GRANT SUBSCRIBE ON 'a' QOS 1 TO pump",
            "DENY QUERY TO pump",
            "CREATE ROLE admin",
            "CREATE USER a.b PASSWORD 'long enough'",
            "ALTER USER pump",
            "CREATE USER pump WITH (colour = 'red')",
        ] {
            assert!(parse(sql).is_err(), "{sql}");
        }
    }

    #[test]
    fn no_error_repeats_a_password() {
        for sql in [
            "CREATE USER pump 'geheim99'",
            "CREATE USER pump PASSWORD 'geheim99' 'geheim99'",
            "CREATE USER pump PASSWORD HASH HASH 'geheim99'",
            "CREATE USER pump WITH (client_id = 'a') 'geheim99'",
            "ALTER USER pump TO 'geheim99'",
            "ALTER USER pump PASSWORD 'geheim99",
        ] {
            let error = parse(sql).unwrap_err().to_string();
            assert!(!error.contains("geheim99"), "{error}");
        }
        let debug = format!("{:?}", parse("CREATE USER pump PASSWORD 'geheim99'"));
        assert!(!debug.contains("geheim99"), "{debug}");
    }
}
