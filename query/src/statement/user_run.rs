//! Carries out statements about users, roles and their rights.
//!
//! # Invariants
//! - Changes of users and roles come one after the other, so that none is made of what another has just replaced.
//! - The catalog gets the hash of a password, never the password.

use parking_lot::Mutex;
use sonde_access::limits::{ROLES, USERS};
use sonde_access::{Privileges, ScramKeys, StoredRole, StoredUser, TopicRule, password};
use sonde_engine::{CatalogRequest, Engine, Object, ObjectKind, nearest};

use super::user::{AccessStatement, Grantee, Login, Right, UserOptions};
use crate::catalog::DEFAULT_DATABASE;
use crate::error::{Error, Result};

/// Held from reading an object to writing it. A process has one engine; the lock guards no data of its own.
static CHANGING: Mutex<()> = Mutex::new(());

/// A change of a user; `false` leaves it as it is.
pub type ChangeUser<'a> = &'a mut dyn FnMut(&mut StoredUser) -> bool;

fn internal(error: impl std::fmt::Display) -> Error {
    Error::Internal(error.to_string())
}

fn salt() -> Result<[u8; 16]> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|error| internal(format!("no random numbers: {error}")))?;
    Ok(salt)
}

/// A number that was not used before.
fn number() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| internal(format!("no random numbers: {error}")))?;
    Ok(u64::from_le_bytes(bytes))
}

fn get<T: serde::de::DeserializeOwned>(engine: &Engine, kind: ObjectKind, name: &str) -> Result<Option<T>> {
    match engine.catalog().object(kind, DEFAULT_DATABASE, name) {
        Some(object) => serde_json::from_str(&object.text).map(Some).map_err(internal),
        None => Ok(None),
    }
}

fn put(engine: &Engine, kind: ObjectKind, name: &str, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(internal)?;
    let object = Object { kind, database: DEFAULT_DATABASE.to_owned(), name: name.to_owned(), text };
    engine.change_catalog(CatalogRequest::PutObject { object, replace: true })?;
    Ok(())
}

fn remove(engine: &Engine, kind: ObjectKind, name: &str) -> Result<()> {
    let (database, name) = (DEFAULT_DATABASE.to_owned(), name.to_owned());
    engine.change_catalog(CatalogRequest::DropObject { kind, database, name })?;
    Ok(())
}

fn missing(engine: &Engine, what: &str, name: &str) -> Error {
    let catalog = engine.catalog();
    let kinds: &[ObjectKind] = match what {
        "user" => &[ObjectKind::User],
        "role" => &[ObjectKind::Role],
        "token" => &[ObjectKind::Token],
        _ => &[ObjectKind::User, ObjectKind::Role],
    };
    let names = kinds.iter().flat_map(|kind| catalog.objects(*kind)).map(|object| object.name.as_str());
    let hint = nearest(name, names).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    Error::Invalid(format!("there is no {what} {name}{hint}"))
}

/// Changes what the catalog keeps of a user, if there is one; whether there is.
pub fn change_user(engine: &Engine, name: &str, change: ChangeUser<'_>) -> Result<bool> {
    let _changing = CHANGING.lock();
    let Some(mut user) = get::<StoredUser>(engine, ObjectKind::User, name)? else { return Ok(false) };
    if change(&mut user) {
        put(engine, ObjectKind::User, name, &user)?;
    }
    Ok(true)
}

/// Runs a statement; blocks for as long as a hash takes.
pub(super) fn run(engine: &Engine, statement: AccessStatement) -> Result<String> {
    match statement {
        AccessStatement::CreateUser { name, logins, options, replace, if_not_exists } => {
            let mut user = StoredUser { incarnation: number()?, ..StoredUser::default() };
            let note = set(&mut user, logins, options)?;
            check_certificate(engine, &name, &user)?;
            create(engine, ObjectKind::User, &name, &user, Existing { replace, if_not_exists })
                .map(|done| done + &note)
        }
        AccessStatement::AlterUser { name, logins, options } => {
            // The hash is made before anyone waits for the lock.
            let Some(mut user) = get::<StoredUser>(engine, ObjectKind::User, &name)? else {
                return Err(missing(engine, "user", &name));
            };
            let note = set(&mut user, logins, options)?;
            check_certificate(engine, &name, &user)?;
            let mut change = |stored: &mut StoredUser| {
                let (roles, privileges) = (stored.roles.clone(), stored.privileges.clone());
                *stored = StoredUser { incarnation: stored.incarnation, roles, privileges, ..user.clone() };
                true
            };
            if !change_user(engine, &name, &mut change)? {
                return Err(missing(engine, "user", &name));
            }
            Ok(format!("user altered{note}"))
        }
        AccessStatement::DropUser { name, if_exists } => {
            drop_one(engine, (ObjectKind::User, "user"), &name, if_exists)
        }
        AccessStatement::DropToken { name, if_exists } => {
            drop_one(engine, (ObjectKind::Token, "token"), &name, if_exists)
        }
        AccessStatement::CreateRole { name, replace, if_not_exists } => {
            let existing = Existing { replace, if_not_exists };
            create(engine, ObjectKind::Role, &name, &StoredRole::default(), existing)
        }
        AccessStatement::DropRole { name, if_exists } => drop_role(engine, &name, if_exists),
        AccessStatement::Grant { deny, right, to } => {
            change(engine, &to, &right, Change { deny, add: true })?;
            Ok(if deny { "denied".into() } else { "granted".into() })
        }
        AccessStatement::Revoke { right, from } => {
            let changed = change(engine, &from, &right, Change { deny: false, add: false })?;
            Ok(if changed { "revoked".into() } else { "nothing to revoke".into() })
        }
    }
}

/// Sets how a user is recognised and what else it is. Returns what the caller should know.
fn set(user: &mut StoredUser, logins: Vec<Login>, options: UserOptions) -> Result<String> {
    let scram = options.scram.unwrap_or(true);
    let mut note = "";
    if options.scram == Some(false) {
        user.scram = None;
    }
    for login in logins {
        if matches!(login, Login::Password(_) | Login::Hash(_)) {
            user.password_number = number()?;
        }
        match login {
            Login::Password(secret) => {
                password::check_new(&secret.0).map_err(Error::Invalid)?;
                user.password = Some(password::hash(&secret.0, &salt()?).map_err(internal)?);
                user.scram = if scram { ScramKeys::of(&secret.0, &salt()?) } else { None };
                if scram && user.scram.is_none() {
                    note = "; not for SCRAM-SHA-256, which takes printable ASCII only";
                }
            }
            Login::Hash(secret) => {
                let phc = password::from_mosquitto(&secret.0).unwrap_or(secret.0);
                password::check_hash(&phc).map_err(Error::Invalid)?;
                user.password = Some(phc);
                user.scram = None;
                note = "; for SCRAM-SHA-256 it needs the password itself";
            }
            Login::Certificate(name) => {
                sonde_access::check_name(&name).map_err(Error::Invalid)?;
                user.certificate = Some(name);
            }
        }
    }
    let text = |new: Option<String>, old: &mut Option<String>| {
        if let Some(new) = new {
            *old = Some(new).filter(|text| !text.is_empty());
        }
    };
    text(options.client_id, &mut user.client_id);
    text(options.device, &mut user.device);
    text(options.tenant, &mut user.tenant);
    Ok(note.into())
}

/// Fails where the certificate is another user's.
fn check_certificate(engine: &Engine, name: &str, user: &StoredUser) -> Result<()> {
    let Some(certificate) = &user.certificate else { return Ok(()) };
    for object in engine.catalog().objects(ObjectKind::User).filter(|object| object.name != name) {
        let other: StoredUser = serde_json::from_str(&object.text).map_err(internal)?;
        if other.certificate.as_ref() == Some(certificate) {
            return Err(Error::Invalid(format!("certificate {certificate} is that of user {}", object.name)));
        }
    }
    Ok(())
}

/// What happens where the name is taken.
#[derive(Clone, Copy)]
struct Existing {
    replace: bool,
    if_not_exists: bool,
}

fn create(
    engine: &Engine,
    kind: ObjectKind,
    name: &str,
    value: &impl serde::Serialize,
    existing: Existing,
) -> Result<String> {
    let _changing = CHANGING.lock();
    let (what, other, limit) = match kind {
        ObjectKind::User => ("user", ObjectKind::Role, USERS),
        _ => ("role", ObjectKind::User, ROLES),
    };
    let catalog = engine.catalog();
    if catalog.object(other, DEFAULT_DATABASE, name).is_some() {
        return Err(Error::Invalid(format!("{name} exists already, as the other of user and role")));
    }
    let known = catalog.object(kind, DEFAULT_DATABASE, name).is_some();
    if known && existing.if_not_exists {
        return Ok(format!("{what} exists"));
    }
    if known && !existing.replace {
        return Err(Error::Invalid(format!("{what} {name} exists already: CREATE OR REPLACE replaces it")));
    }
    if !known && catalog.objects(kind).count() >= limit {
        return Err(Error::Invalid(format!("there are {limit} {what}s already, which is the limit")));
    }
    put(engine, kind, name, value)?;
    Ok(format!("{what} created"))
}

/// Drops a user or a token.
fn drop_one(
    engine: &Engine,
    (kind, what): (ObjectKind, &str),
    name: &str,
    if_exists: bool,
) -> Result<String> {
    let _changing = CHANGING.lock();
    match remove(engine, kind, name) {
        Err(Error::Engine(sonde_engine::Error::Conflict(_))) if if_exists => Ok("nothing to drop".into()),
        Err(Error::Engine(sonde_engine::Error::Conflict(_))) => Err(missing(engine, what, name)),
        other => other.map(|()| format!("{what} dropped")),
    }
}

/// Takes the role from everyone who has it, so that a new one of this name starts with nobody.
fn drop_role(engine: &Engine, name: &str, if_exists: bool) -> Result<String> {
    let _changing = CHANGING.lock();
    if get::<StoredRole>(engine, ObjectKind::Role, name)?.is_none() {
        return if if_exists { Ok("nothing to drop".into()) } else { Err(missing(engine, "role", name)) };
    }
    for object in engine.catalog().objects(ObjectKind::User) {
        let mut user: StoredUser = serde_json::from_str(&object.text).map_err(internal)?;
        if user.roles.iter().any(|role| role == name) {
            user.roles.retain(|role| role != name);
            put(engine, ObjectKind::User, &object.name, &user)?;
        }
    }
    remove(engine, ObjectKind::Role, name)?;
    Ok("role dropped".into())
}

#[derive(Clone, Copy)]
struct Change {
    deny: bool,
    add: bool,
}

/// Adds or takes back a right; whether that changed anything.
fn change(engine: &Engine, to: &Grantee, right: &Right, change: Change) -> Result<bool> {
    let name = &to.0;
    let _changing = CHANGING.lock();
    if let Right::Role(role) = right
        && change.add
        && get::<StoredRole>(engine, ObjectKind::Role, role)?.is_none()
    {
        return Err(missing(engine, "role", role));
    }
    if let Some(mut user) = get::<StoredUser>(engine, ObjectKind::User, name)? {
        let before = user.clone();
        match right {
            Right::Role(role) => {
                user.roles.retain(|known| known != role);
                if change.add {
                    user.roles.push(role.clone());
                }
            }
            right => change_privileges(&mut user.privileges, right, change),
        }
        user.check().map_err(Error::Invalid)?;
        let changed = user != before;
        if changed {
            put(engine, ObjectKind::User, name, &user)?;
        }
        return Ok(changed);
    }
    let Some(mut role) = get::<StoredRole>(engine, ObjectKind::Role, name)? else {
        return Err(missing(engine, "user or role", name));
    };
    if let Right::Role(other) = right {
        return Err(Error::Invalid(format!(
            "{name} is a role, and roles have no roles: grant {other} to users"
        )));
    }
    let before = role.clone();
    change_privileges(&mut role.privileges, right, change);
    role.privileges.check().map_err(Error::Invalid)?;
    let changed = role != before;
    if changed {
        put(engine, ObjectKind::Role, name, &role)?;
    }
    Ok(changed)
}

fn change_privileges(privileges: &mut Privileges, right: &Right, change: Change) {
    match right {
        Right::Query => privileges.query = change.add,
        Right::Write => privileges.write = change.add,
        Right::Admin => privileges.admin = change.add,
        Right::Topics { actions, filter, qos, retain } => {
            for action in actions {
                // REVOKE takes back both; a new rule replaces one of its own kind.
                privileges.rules.retain(|rule| {
                    rule.action != *action || rule.filter != *filter || change.add && rule.deny != change.deny
                });
                if change.add {
                    privileges.rules.push(TopicRule {
                        deny: change.deny,
                        action: *action,
                        filter: filter.clone(),
                        qos: *qos,
                        retain: *retain,
                    });
                }
            }
        }
        Right::Role(_) => {}
    }
}
