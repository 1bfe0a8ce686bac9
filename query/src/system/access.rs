//! `system.users`, `system.roles` and `system.grants`: who may do what, without a secret or a hash.

use arrow::record_batch::RecordBatch;
use serde::de::DeserializeOwned;
use sonde_access::{Privileges, Retain, StoredRole, StoredToken, StoredUser, TopicAction, TopicRule};
use sonde_engine::{Engine, ObjectKind};

use super::{BatchBuilder, Kind};
use crate::error::Result;
use crate::running::Running;

const USERS: [(&str, Kind); 8] = [
    ("name", Kind::Text),
    ("password", Kind::Text),
    ("scram", Kind::Text),
    ("certificate", Kind::Text),
    ("client_id", Kind::Text),
    ("device", Kind::Text),
    ("tenant", Kind::Text),
    ("roles", Kind::Text),
];

/// What the catalog has of a kind, by name; what cannot be read is passed over, as it is at the doors.
fn stored<T: DeserializeOwned>(engine: &Engine, kind: ObjectKind) -> Vec<(String, T)> {
    let catalog = engine.catalog();
    let objects = catalog.objects(kind);
    objects
        .filter_map(|object| Some((object.name.clone(), serde_json::from_str(&object.text).ok()?)))
        .collect()
}

pub(super) fn users(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let mut rows = BatchBuilder::new(&USERS);
    for (name, user) in stored::<StoredUser>(engine, ObjectKind::User) {
        rows.text(Some(&name));
        // The name of the hash function leads a PHC string.
        rows.text(user.password.as_deref().and_then(|phc| phc.split('$').nth(1)));
        rows.text(user.scram.as_ref().map(|_| sonde_access::SCRAM));
        rows.text(user.certificate.as_deref());
        rows.text(user.client_id.as_deref());
        rows.text(user.device.as_deref());
        rows.text(user.tenant.as_deref());
        rows.text(Some(&user.roles.join(", ")));
        rows.end_row();
    }
    rows.finish()
}

const ROLES: [(&str, Kind); 2] = [("name", Kind::Text), ("users", Kind::UInt)];

pub(super) fn roles(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let users = stored::<StoredUser>(engine, ObjectKind::User);
    let mut rows = BatchBuilder::new(&ROLES);
    for (name, _) in stored::<StoredRole>(engine, ObjectKind::Role) {
        rows.text(Some(&name));
        rows.uint(users.iter().filter(|(_, user)| user.roles.contains(&name)).count() as u64);
        rows.end_row();
    }
    rows.finish()
}

const GRANTS: [(&str, Kind); 7] = [
    ("grantee", Kind::Text),
    ("kind", Kind::Text),
    ("effect", Kind::Text),
    ("action", Kind::Text),
    ("object", Kind::Text),
    ("qos", Kind::UInt),
    ("retain", Kind::Text),
];

pub(super) fn grants(engine: &Engine, _running: &Running) -> Result<RecordBatch> {
    let mut rows = BatchBuilder::new(&GRANTS);
    for (name, role) in stored::<StoredRole>(engine, ObjectKind::Role) {
        privileges(&mut rows, (&name, "role"), &role.privileges);
    }
    for (name, user) in stored::<StoredUser>(engine, ObjectKind::User) {
        for role in &user.roles {
            row(&mut rows, (&name, "user"), "role", Some(role));
        }
        privileges(&mut rows, (&name, "user"), &user.privileges);
    }
    for (name, token) in stored::<StoredToken>(engine, ObjectKind::Token) {
        let grants = token.grants;
        let simple =
            Privileges { admin: grants.admin, query: grants.query, write: grants.write, rules: Vec::new() };
        privileges(&mut rows, (&name, "token"), &simple);
        for (action, filters) in [("publish", &grants.publish), ("subscribe", &grants.subscribe)] {
            filters.iter().for_each(|filter| row(&mut rows, (&name, "token"), action, Some(filter)));
        }
    }
    rows.finish()
}

/// Who has a right: the name, and whether that is a user, a role or a token.
type Who<'a> = (&'a str, &'a str);

fn row(rows: &mut BatchBuilder, who: Who<'_>, action: &str, object: Option<&str>) {
    rows.text(Some(who.0));
    rows.text(Some(who.1));
    rows.text(Some("allow"));
    rows.text(Some(action));
    rows.text(object);
    rows.maybe_uint(None);
    rows.text(None);
    rows.end_row();
}

fn privileges(rows: &mut BatchBuilder, who: Who<'_>, privileges: &Privileges) {
    let simple = [("admin", privileges.admin), ("query", privileges.query), ("write", privileges.write)];
    simple.iter().filter(|(_, has)| *has).for_each(|(action, _)| row(rows, who, action, None));
    privileges.rules.iter().for_each(|rule| topic_rule(rows, who, rule));
}

fn topic_rule(rows: &mut BatchBuilder, who: Who<'_>, rule: &TopicRule) {
    let publishes = rule.action == TopicAction::Publish;
    rows.text(Some(who.0));
    rows.text(Some(who.1));
    rows.text(Some(if rule.deny { "deny" } else { "allow" }));
    rows.text(Some(if publishes { "publish" } else { "subscribe" }));
    rows.text(Some(&rule.filter));
    rows.maybe_uint(publishes.then_some(rule.qos.into()));
    rows.text(match rule.retain {
        Retain::Either => None,
        Retain::Only => Some("only"),
        Retain::Never => Some("never"),
    });
    rows.end_row();
}
