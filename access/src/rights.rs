//! Who someone is, what they were given, and the one question every door asks.
//!
//! # Invariants
//! - What is not granted is denied; what is denied stays denied, whatever else is granted.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::filter::{Filter, Identity, Place};
use crate::token::Grants;

/// What someone wants to do, and to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Publish a message.
    Publish {
        /// Its topic.
        topic: &'a str,
        /// Its QoS, 0 to 2.
        qos: u8,
        /// Whether it is to be retained.
        retain: bool,
    },
    /// Subscribe to a filter, or read one topic.
    Subscribe(&'a str),
    /// Read by SQL.
    Query,
    /// Write rows.
    Write,
    /// Change tables, sources, rules, tokens, users; flush, compact, cool, kill.
    Admin,
}

/// What a topic rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TopicAction {
    /// Publishing.
    Publish,
    /// Subscribing.
    Subscribe,
}

/// Which messages a rule for publishing is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retain {
    /// All.
    #[default]
    Either,
    /// Those that are to be retained.
    Only,
    /// Those that are not.
    Never,
}

/// A rule about topics, as the catalog keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicRule {
    /// Whether it denies; else it allows.
    #[serde(default)]
    pub deny: bool,
    /// What it is about.
    pub action: TopicAction,
    /// The topics; `${clientid}`, `${username}`, `${cn}`, `${device}` and `${tenant}` stand for who asks.
    pub filter: String,
    /// The largest QoS that may be published with.
    #[serde(default = "largest_qos")]
    pub qos: u8,
    /// Which messages it is about.
    #[serde(default)]
    pub retain: Retain,
}

fn largest_qos() -> u8 {
    2
}

/// What a user or a role was given, as the catalog keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    /// Everything.
    #[serde(default)]
    pub admin: bool,
    /// SQL queries.
    #[serde(default)]
    pub query: bool,
    /// Writing rows.
    #[serde(default)]
    pub write: bool,
    /// Topics.
    #[serde(default)]
    pub rules: Vec<TopicRule>,
}

/// Fails unless this is the filter of a rule.
pub fn check_filter(filter: &str) -> Result<(), String> {
    Filter::parse(filter).map(drop)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    deny: bool,
    action: TopicAction,
    filter: Filter,
    qos: u8,
    retain: Retain,
}

/// Everything that someone was given, ready to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    admin: bool,
    query: bool,
    write: bool,
    rules: Vec<Rule>,
}

impl Rights {
    /// Adds what a user or role was given. A rule whose filter cannot be read takes everything of its action where it
    /// denies, and gives nothing where it allows.
    pub fn add(&mut self, privileges: &Privileges) {
        self.admin |= privileges.admin;
        self.query |= privileges.query;
        self.write |= privileges.write;
        for rule in &privileges.rules {
            let filter = Filter::parse(&rule.filter);
            let filter = if rule.deny { filter.or_else(|_| Filter::parse("#")) } else { filter };
            if let Ok(filter) = filter {
                let TopicRule { deny, action, qos, retain, .. } = *rule;
                self.rules.push(Rule { deny, action, filter, qos, retain });
            }
        }
    }

    fn of_token(grants: &Grants) -> Self {
        let rule = |action| {
            move |filter: &String| TopicRule {
                deny: false,
                action,
                filter: filter.clone(),
                qos: 2,
                retain: Retain::Either,
            }
        };
        let publish = grants.publish.iter().map(rule(TopicAction::Publish));
        let subscribe = grants.subscribe.iter().map(rule(TopicAction::Subscribe));
        let mut rights = Self::default();
        rights.add(&Privileges {
            admin: grants.admin,
            query: grants.query,
            write: grants.write,
            rules: publish.chain(subscribe).collect(),
        });
        rights
    }
}

/// What preceded the names of users and of bearers, as owners.
const EARLIER_USER: &str = "user:";

/// By what someone was recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// The administrator's token, or no authentication at all.
    Admin,
    /// Nothing: the listener lets anyone in.
    Anonymous,
    /// A token of the catalog; its digest.
    Token(Box<str>),
    /// A user of the catalog, by password, certificate, SCRAM or JSON Web Token.
    User,
    /// A JSON Web Token whose subject is no user; these are its roles.
    Bearer(Vec<String>),
}

/// The kind of a credential.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum By {
    /// One that cannot change: a token is found by its digest.
    #[default]
    Other,
    /// A user's password, by SCRAM too.
    Password,
    /// A client certificate.
    Certificate,
    /// A key that signs JSON Web Tokens.
    Key,
}

/// Which credential someone was recognised by, so that it is seen when it is not good any more. Has nothing secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof {
    pub(crate) by: By,
    /// Which of the users of this name; 0 where there was none.
    pub(crate) user: u64,
    /// Which password, certificate or key.
    pub(crate) credential: u64,
}

/// Whose names the subject of a JSON Web Token is one of; nobody's where it is no token, or its subject is a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Realm {
    pub(crate) issuer: Option<String>,
    /// As the token has it: `${tenant}` leaves out what could widen a rule.
    pub(crate) tenant: Option<String>,
}

/// Someone who was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Its name, for logs and system tables.
    pub name: String,
    pub(crate) origin: Origin,
    pub(crate) identity: Identity,
    pub(crate) rights: Arc<Rights>,
    /// Until when it was recognised, in seconds since the epoch.
    pub(crate) expires: Option<u64>,
    pub(crate) proof: Proof,
    pub(crate) realm: Realm,
}

/// A principal as it is kept where it outlives the process: everything but its rights.
#[derive(Serialize, Deserialize)]
struct Kept {
    name: String,
    origin: Origin,
    identity: Identity,
    proof: Proof,
    #[serde(default)]
    realm: Realm,
}

impl Principal {
    /// May do everything.
    #[must_use]
    pub fn admin(name: &str) -> Self {
        let grants = Grants { admin: true, ..Grants::default() };
        Self { origin: Origin::Admin, ..Self::new(name, grants) }
    }

    /// A device without credentials on a listener that lets it in: publishes to everything, subscribes to that and to
    /// what the server says of itself.
    #[must_use]
    pub fn anonymous_device() -> Self {
        let grants = Grants {
            publish: vec!["#".to_owned()],
            subscribe: vec!["#".to_owned(), "$SYS/#".to_owned()],
            ..Grants::default()
        };
        Self { origin: Origin::Anonymous, ..Self::new("anonymous", grants) }
    }

    /// The bearer of a token with these grants.
    #[must_use]
    pub fn new(name: &str, grants: Grants) -> Self {
        Self {
            name: name.to_owned(),
            origin: Origin::Token(Box::default()),
            identity: Identity::default().with(Place::Device, Some(name)),
            rights: Arc::new(Rights::of_token(&grants)),
            expires: None,
            proof: Proof::default(),
            realm: Realm::default(),
        }
    }

    /// The same one on a connection of this client id, with a certificate of this common name.
    #[must_use]
    pub fn on(mut self, client_id: &str, common_name: Option<&str>) -> Self {
        self.identity = self.identity.with(Place::ClientId, Some(client_id)).with(Place::Cn, common_name);
        self
    }

    /// By what it was recognised.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Until when it was recognised, in seconds since the epoch; `None` is for ever.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// The key that has signed its JSON Web Token, if it was recognised by one.
    #[must_use]
    pub fn signing_key(&self) -> Option<u64> {
        (self.proof.by == By::Key).then_some(self.proof.credential)
    }

    /// Everything but its rights, to be read back by `from_record`.
    #[must_use]
    pub fn to_record(&self) -> Vec<u8> {
        let Self { name, origin, identity, proof, realm, .. } = self.clone();
        serde_json::to_vec(&Kept { name, origin, identity, proof, realm }).unwrap_or_default()
    }

    /// Whether another one's record says the same.
    #[must_use]
    pub fn is_recorded_as(&self, other: &Self) -> bool {
        self.name == other.name
            && self.origin == other.origin
            && self.identity == other.identity
            && (self.proof, &self.realm) == (other.proof, &other.realm)
    }

    /// Reads what `to_record` wrote. Users and bearers of tokens have no rights until these are asked for again.
    #[must_use]
    pub fn from_record(record: &[u8]) -> Option<Self> {
        let Kept { name, origin, identity, proof, realm } = serde_json::from_slice(record).ok()?;
        let someone = match origin {
            Origin::Admin => Self::admin(&name),
            Origin::Anonymous => Self::anonymous_device(),
            Origin::Token(_) | Origin::User | Origin::Bearer(_) => Self::default(),
        };
        Some(Self { name, origin, identity, proof, realm, ..someone })
    }

    /// The tenant, `${tenant}` of the rights, whose limits it shares.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        self.identity.get(Place::Tenant)
    }

    /// As whom it owns MQTT sessions; `None` where nobody knows who it is. A user who was dropped and one who is created
    /// under the name are two, and so are the subjects of one name of two tenants.
    #[must_use]
    pub fn owner(&self) -> Option<String> {
        match self.origin {
            Origin::Anonymous => None,
            Origin::Admin => Some("admin".to_owned()),
            Origin::Token(_) => Some(format!("token:{}", self.name)),
            Origin::User => Some(format!("user#{}:{}", self.proof.user, self.name)),
            Origin::Bearer(_) => {
                let Realm { issuer, tenant } = &self.realm;
                Some(format!("bearer:{}", serde_json::json!([issuer, tenant, self.name])))
            }
        }
    }

    /// Whether it is whom a session was recorded as `owner`'s of; `recorded` is who that was, where it is known.
    #[must_use]
    pub fn is_owner(&self, owner: &str, recorded: Option<&Self>) -> bool {
        self.owner().as_deref() == Some(owner)
            || owner.strip_prefix(EARLIER_USER) == Some(&self.name) && self.is_earlier(recorded)
    }

    /// Whether it is a user or a bearer as builds before this one told them: by name, and by what they kept beside it.
    fn is_earlier(&self, recorded: Option<&Self>) -> bool {
        let is_named = matches!(self.origin, Origin::User | Origin::Bearer(_));
        is_named
            && recorded.is_none_or(|recorded| match (&recorded.origin, &self.origin) {
                (Origin::User, Origin::User) => recorded.proof.user == self.proof.user,
                (Origin::Bearer(_), Origin::Bearer(_)) => recorded.tenant() == self.tenant(),
                _ => false,
            })
    }

    /// Whether it has the same rights as another: what one may do the other may, too.
    #[must_use]
    pub fn has_rights_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rights, &other.rights) && self.identity == other.identity
    }
}

/// Whether `principal` may do `action`.
#[must_use]
pub fn allows(principal: &Principal, action: Action<'_>) -> bool {
    let rights = &*principal.rights;
    if rights.admin {
        return true;
    }
    match action {
        Action::Publish { topic, qos, retain } => rights.decide(
            |rule| rule.is_about(qos, retain) && rule.filter.covers(&principal.identity, topic),
            |rule| rule.is_about(qos, retain) && rule.filter.touches(&principal.identity, topic),
            TopicAction::Publish,
        ),
        Action::Subscribe(wanted) => rights.decide(
            |rule| rule.filter.covers(&principal.identity, wanted),
            |rule| rule.filter.touches(&principal.identity, wanted),
            TopicAction::Subscribe,
        ),
        Action::Query => rights.query,
        Action::Write => rights.write,
        Action::Admin => false,
    }
}

impl Rights {
    fn decide(
        &self,
        allows: impl Fn(&Rule) -> bool,
        denies: impl Fn(&Rule) -> bool,
        action: TopicAction,
    ) -> bool {
        let mut allowed = false;
        for rule in self.rules.iter().filter(|rule| rule.action == action) {
            if rule.deny {
                if denies(rule) {
                    return false;
                }
            } else {
                allowed = allowed || allows(rule);
            }
        }
        allowed
    }
}

impl Rule {
    fn is_about(&self, qos: u8, retain: bool) -> bool {
        let retained = match self.retain {
            Retain::Either => true,
            Retain::Only => retain,
            Retain::Never => !retain,
        };
        qos <= self.qos && retained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(topic: &str) -> Action<'_> {
        Action::Publish { topic, qos: 0, retain: false }
    }

    #[test]
    fn nothing_is_allowed_that_was_not_granted() {
        let grants = Grants { publish: vec!["acme/#".into()], ..Grants::default() };
        let device = Principal::new("d1", grants);
        assert!(allows(&device, publish("acme/x")));
        for action in [publish("x"), Action::Subscribe("acme/x"), Action::Query, Action::Write, Action::Admin]
        {
            assert!(!allows(&device, action), "{action:?}");
        }
        assert!(allows(&Principal::admin("root"), Action::Admin));
    }

    fn named(name: &str, origin: Origin, user: u64, tenant: Option<&str>) -> Principal {
        Principal {
            name: name.into(),
            identity: Identity::default().with(Place::Tenant, tenant),
            proof: Proof { user, ..Proof::default() },
            realm: Realm { issuer: Some("us".into()), tenant: tenant.map(str::to_owned) },
            origin,
            ..Principal::default()
        }
    }

    #[test]
    fn names_alone_own_nothing() {
        let bearer = |name, tenant| named(name, Origin::Bearer(vec![]), 0, tenant);
        let all = [
            named("a", Origin::User, 1, None),
            named("a", Origin::User, 2, None),
            named("1:a", Origin::User, 0, None),
            bearer("a", None),
            bearer("a", Some("acme")),
            bearer("a", Some("be/ta")),
            bearer("a", Some("gam/ma")),
            bearer("a\",\"b", None),
        ];
        for (at, one) in all.iter().enumerate() {
            for (other_at, other) in all.iter().enumerate() {
                let owner = other.owner().unwrap_or_default();
                assert_eq!(one.is_owner(&owner, Some(other)), at == other_at, "{owner}");
            }
            // Its session is still its own after a restart.
            let again = Principal::from_record(&one.to_record()).unwrap_or_default();
            assert!(again.is_recorded_as(one) && again.owner() == one.owner());
        }
    }

    #[test]
    fn sessions_of_earlier_builds_stay_with_their_owners() {
        let bearer = |tenant| named("a", Origin::Bearer(vec![]), 0, tenant);
        let user = |number| named("a", Origin::User, number, None);
        let is_owner = |who: &Principal, known: Option<&Principal>| who.is_owner("user:a", known);
        assert!(is_owner(&user(1), Some(&user(1))) && !is_owner(&user(2), Some(&user(1))));
        let earlier = |mut who: Principal| {
            who.realm = Realm::default();
            who
        };
        let (acme, beta) = (bearer(Some("acme")), bearer(Some("beta")));
        assert!(is_owner(&acme, Some(&earlier(acme.clone()))) && !is_owner(&beta, Some(&earlier(acme))));
        assert!(is_owner(&user(1), None) && !user(1).is_owner("user:b", None));
        assert!(!Principal::admin("a").is_owner("user:a", None));
        // What an earlier build kept has no realm.
        let kept = br#"{"name":"a","origin":{"Bearer":["r"]},"identity":IDENTITY,"proof":{"by":"Key","user":0,"credential":3}}"#;
        let identity = serde_json::to_string(&beta.identity).unwrap_or_default();
        let kept = String::from_utf8_lossy(kept).replace("IDENTITY", &identity);
        assert!(is_owner(&beta, Principal::from_record(kept.as_bytes()).as_ref()));
        assert!(Principal::from_record(kept.as_bytes()).is_some());
    }

    fn someone(rules: Vec<TopicRule>) -> Principal {
        let mut rights = Rights::default();
        rights.add(&Privileges { rules, ..Privileges::default() });
        Principal { rights: Arc::new(rights), ..Principal::new("someone", Grants::default()) }
    }

    fn rule(deny: bool, action: TopicAction, filter: &str) -> TopicRule {
        TopicRule { deny, action, filter: filter.into(), qos: 2, retain: Retain::Either }
    }

    #[test]
    fn what_is_denied_stays_denied() {
        let who = someone(vec![
            rule(true, TopicAction::Publish, "acme/secret/#"),
            rule(false, TopicAction::Publish, "acme/#"),
            rule(true, TopicAction::Subscribe, "acme/secret/#"),
            rule(false, TopicAction::Subscribe, "#"),
        ]);
        assert!(allows(&who, publish("acme/x")) && !allows(&who, publish("acme/secret/x")));
        assert!(allows(&who, Action::Subscribe("acme/x")));
        for filter in ["acme/secret/x", "acme/#", "#", "+/secret/+", "$share/g/acme/+"] {
            assert!(!allows(&who, Action::Subscribe(filter)), "{filter}");
        }
    }

    #[test]
    fn a_rule_that_cannot_be_read_gives_nothing_and_takes_all() {
        let who = someone(vec![rule(false, TopicAction::Publish, "a/#/b")]);
        assert!(!allows(&who, publish("a/x/b")));
        let who = someone(vec![
            rule(false, TopicAction::Publish, "#"),
            rule(true, TopicAction::Publish, "${nobody}"),
        ]);
        assert!(!allows(&who, publish("a")));
    }

    #[test]
    fn qos_and_retain_bound_what_is_published() {
        let mut low = rule(false, TopicAction::Publish, "a");
        low.qos = 0;
        low.retain = Retain::Never;
        let who = someone(vec![low]);
        let may = |qos, retain| allows(&who, Action::Publish { topic: "a", qos, retain });
        assert!(may(0, false) && !may(1, false) && !may(0, true));
        let mut retained = rule(true, TopicAction::Publish, "a");
        retained.retain = Retain::Only;
        let who = someone(vec![rule(false, TopicAction::Publish, "#"), retained]);
        let may = |qos, retain| allows(&who, Action::Publish { topic: "a", qos, retain });
        assert!(may(2, false) && !may(0, true));
    }
}
