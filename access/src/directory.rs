//! Users, roles and tokens as the catalog has them, and the principals that are made of them.
//!
//! # Invariants
//! - A directory is immutable; rights that did not change keep their place in memory, so that who holds them need not be
//!   looked at again.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::filter::{Identity, Place};
use crate::limits::{NAME_BYTES, ROLES_OF_USER, RULES};
use crate::rights::{By, Origin, Principal, Privileges, Proof, Realm, Rights, check_filter};
use crate::scram::ScramKeys;
use crate::token::{Grants, StoredToken, digest, fingerprint};

/// What the catalog keeps of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRole {
    /// What those who have it may do.
    #[serde(flatten)]
    pub privileges: Privileges,
}

/// What the catalog keeps of a user.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredUser {
    /// The PHC string of the password.
    #[serde(default)]
    pub password: Option<String>,
    /// The password's keys for SCRAM.
    #[serde(default)]
    pub scram: Option<ScramKeys>,
    /// Tells the user from others who had the name before; any number.
    #[serde(default)]
    pub incarnation: u64,
    /// Tells the password from those before; the hash can be another one of the same password.
    #[serde(default)]
    pub password_number: u64,
    /// The name in the client certificate: its common name, or one of its alternative names.
    #[serde(default)]
    pub certificate: Option<String>,
    /// The client id that the user connects with; any where it is missing. `${username}` is the name.
    #[serde(default)]
    pub client_id: Option<String>,
    /// What `${device}` is.
    #[serde(default)]
    pub device: Option<String>,
    /// What `${tenant}` is.
    #[serde(default)]
    pub tenant: Option<String>,
    /// The roles.
    #[serde(default)]
    pub roles: Vec<String>,
    /// What the user may do besides.
    #[serde(flatten)]
    pub privileges: Privileges,
}

impl std::fmt::Debug for StoredUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither hash nor keys.
        f.debug_struct("StoredUser").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Privileges {
    /// Fails where the rules are too many, or one's filter is none.
    pub fn check(&self) -> Result<(), String> {
        if self.rules.len() > RULES {
            return Err(format!("{} topic rules; expected {RULES} at most: use wildcards", self.rules.len()));
        }
        self.rules.iter().try_for_each(|rule| check_filter(&rule.filter))
    }
}

impl StoredUser {
    /// Fails where something of it is beyond its limit.
    pub fn check(&self) -> Result<(), String> {
        if self.roles.len() > ROLES_OF_USER {
            return Err(format!("{} roles; expected {ROLES_OF_USER} at most", self.roles.len()));
        }
        self.privileges.check()
    }

    /// What someone has in hand who was recognised by its credential of this kind.
    fn proof(&self, by: By, of_key: u64) -> Proof {
        let credential = match by {
            By::Other => 0,
            By::Password => self.password_number,
            By::Certificate => self.certificate.as_deref().map_or(0, |name| fingerprint(name.as_bytes())),
            By::Key => of_key,
        };
        Proof { by, user: self.incarnation, credential }
    }

    /// Whether the user may connect with this client id.
    #[must_use]
    pub fn may_be(&self, name: &str, client_id: &str) -> bool {
        self.client_id.as_deref().is_none_or(|bound| bound.replace("${username}", name) == client_id)
    }
}

/// Fails unless this can be the name of a user or role.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES || name.chars().any(char::is_control) {
        return Err(format!("a name has 1 to {NAME_BYTES} bytes and no control characters"));
    }
    Ok(())
}

/// What a connection says of itself besides its secret.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claim<'a> {
    /// The client id, on MQTT.
    pub client_id: Option<&'a str>,
    /// The common name of the client's certificate.
    pub common_name: Option<&'a str>,
}

/// A user, with everything that its roles give.
#[derive(Debug)]
pub struct User {
    /// The name.
    pub name: String,
    /// What the catalog keeps.
    pub stored: StoredUser,
    rights: Arc<Rights>,
}

#[derive(Debug)]
struct Token {
    name: String,
    rights: Arc<Rights>,
}

/// Everyone the catalog knows.
#[derive(Debug, Default)]
pub struct Directory {
    /// By digest.
    tokens: HashMap<String, Token>,
    users: HashMap<String, Arc<User>>,
    /// Names of users by the name in their certificates.
    certificates: HashMap<String, String>,
    roles: HashMap<String, Privileges>,
}

impl Directory {
    /// Of what the catalog has; `before` is the directory that this one replaces.
    #[must_use]
    pub fn new(
        before: &Self,
        tokens: impl Iterator<Item = (String, StoredToken)>,
        users: impl Iterator<Item = (String, StoredUser)>,
        roles: impl Iterator<Item = (String, StoredRole)>,
    ) -> Self {
        let roles = roles.map(|(name, role)| (name, role.privileges)).collect();
        let mut directory = Self { roles, ..Self::default() };
        for (name, stored) in tokens {
            let known = before.tokens.get(&stored.digest).map(|token| &token.rights);
            let rights = kept(known, Principal::new(&name, stored.grants).rights);
            directory.tokens.insert(stored.digest, Token { name, rights });
        }
        for (name, stored) in users {
            let mut rights = Rights::default();
            rights.add(&stored.privileges);
            directory.privileges(&stored.roles).for_each(|role| rights.add(role));
            let rights = kept(before.users.get(&name).map(|user| &user.rights), Arc::new(rights));
            if let Some(certificate) = &stored.certificate {
                directory.certificates.insert(certificate.clone(), name.clone());
            }
            directory.users.insert(name.clone(), Arc::new(User { name, stored, rights }));
        }
        directory
    }

    fn privileges<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a Privileges> {
        names.iter().filter_map(|name| self.roles.get(name))
    }

    /// The user of this name.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&Arc<User>> {
        self.users.get(name)
    }

    /// The user of a client certificate, by the first of its names that is someone's.
    #[must_use]
    pub fn user_of_certificate<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<&Arc<User>> {
        names.into_iter().find_map(|name| self.user(self.certificates.get(name)?))
    }

    /// The bearer of a token.
    #[must_use]
    pub fn token(&self, secret: &str, claim: Claim<'_>) -> Option<Principal> {
        let digest = digest(secret);
        let token = self.tokens.get(&digest)?;
        let identity = identity(claim).with(Place::Device, Some(&token.name));
        let rights = Arc::clone(&token.rights);
        Some(Principal {
            name: token.name.clone(),
            origin: Origin::Token(digest.into()),
            identity,
            rights,
            ..Principal::default()
        })
    }

    /// A user who was recognised by this kind of credential.
    #[must_use]
    pub fn principal(&self, user: &User, by: By, claim: Claim<'_>) -> Principal {
        Principal {
            name: user.name.clone(),
            origin: Origin::User,
            identity: of_user(identity(claim), user),
            rights: Arc::clone(&user.rights),
            proof: user.stored.proof(by, 0),
            ..Principal::default()
        }
    }

    /// The bearer of a JSON Web Token: the user of that name, or someone with the roles that the token names; `None` where
    /// it is neither.
    #[must_use]
    pub fn bearer(&self, claims: crate::jwt::Claims, claim: Claim<'_>) -> Option<Principal> {
        let expires = Some(claims.expires);
        if let Some(user) = self.user(&claims.subject) {
            let proof = user.stored.proof(By::Key, claims.key);
            return Some(Principal { expires, proof, ..self.principal(user, By::Key, claim) });
        }
        let roles: Vec<String> = claims.roles.into_iter().take(ROLES_OF_USER).collect();
        let rights = Arc::new(self.rights_of_roles(&roles)?);
        let identity = identity(claim)
            .with(Place::Username, Some(&claims.subject))
            .with(Place::Tenant, claims.tenant.as_deref());
        let proof = Proof { by: By::Key, user: 0, credential: claims.key };
        let realm = Realm { issuer: claims.issuer, tenant: claims.tenant };
        Some(Principal {
            name: claims.subject,
            origin: Origin::Bearer(roles),
            identity,
            rights,
            expires,
            proof,
            realm,
        })
    }

    /// What roles give together; `None` where there is none of them.
    fn rights_of_roles(&self, roles: &[String]) -> Option<Rights> {
        let mut rights = Rights::default();
        let mut known = false;
        for role in self.privileges(roles) {
            known = true;
            rights.add(role);
        }
        known.then_some(rights)
    }

    /// The same one with the rights it has now; `None` where it could not come in any more with the credential and the
    /// client id that it came with, if any. Whether the key of a JSON Web Token is still one is not asked here.
    #[must_use]
    pub fn renew(&self, principal: &Principal, client_id: Option<&str>) -> Option<Principal> {
        let Proof { by, credential, .. } = principal.proof;
        if principal.origin == Origin::User {
            let user = self.user(&principal.name)?;
            if user.stored.proof(by, credential) != principal.proof
                || client_id.is_some_and(|client| !user.stored.may_be(&user.name, client))
            {
                return None;
            }
        }
        self.rights_of(principal)
    }

    /// The same one with the rights it has now, whatever has become of its credential; `None` where it is gone.
    #[must_use]
    pub fn rights_of(&self, principal: &Principal) -> Option<Principal> {
        let mut renewed = principal.clone();
        match &principal.origin {
            Origin::Admin | Origin::Anonymous => {}
            // By its digest: one that was replaced is gone, whatever has its name now.
            Origin::Token(digest) => renewed.rights = Arc::clone(&self.tokens.get(&**digest)?.rights),
            Origin::User => {
                let same = |user: &&Arc<User>| user.stored.incarnation == principal.proof.user;
                let user = self.user(&principal.name).filter(same)?;
                renewed.rights = Arc::clone(&user.rights);
                renewed.identity = of_user(renewed.identity, user);
            }
            Origin::Bearer(roles) => {
                let rights = self.rights_of_roles(roles)?;
                renewed.rights = kept(Some(&principal.rights), Arc::new(rights));
            }
        }
        Some(renewed)
    }
}

/// The rights of before where they are the same.
fn kept(before: Option<&Arc<Rights>>, now: Arc<Rights>) -> Arc<Rights> {
    before.filter(|before| ***before == *now).map_or(now, Arc::clone)
}

fn identity(claim: Claim<'_>) -> Identity {
    Identity::default().with(Place::ClientId, claim.client_id).with(Place::Cn, claim.common_name)
}

fn of_user(identity: Identity, user: &User) -> Identity {
    identity
        .with(Place::Username, Some(&user.name))
        .with(Place::Device, user.stored.device.as_deref())
        .with(Place::Tenant, user.stored.tenant.as_deref())
}

impl Default for Principal {
    /// Someone without a name and without rights.
    fn default() -> Self {
        Self::new("", Grants::default())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::rights::{Action, Retain, TopicAction, TopicRule, allows};

    fn may_read(filter: &str) -> Privileges {
        let rule = TopicRule {
            deny: false,
            action: TopicAction::Subscribe,
            filter: filter.into(),
            qos: 2,
            retain: Retain::Either,
        };
        Privileges { rules: vec![rule], ..Privileges::default() }
    }

    fn directory(before: &Directory, role: &str) -> Directory {
        let pump = StoredUser {
            certificate: Some("pump.acme".into()),
            device: Some("d1".into()),
            roles: vec!["readers".into(), "missing".into()],
            privileges: may_read("own/${device}"),
            ..StoredUser::default()
        };
        let readers = StoredRole { privileges: may_read(role) };
        let token = StoredToken::new("secret", Grants { query: true, ..Grants::default() });
        Directory::new(
            before,
            [("t".to_owned(), token)].into_iter(),
            [("pump".to_owned(), pump)].into_iter(),
            [("readers".to_owned(), readers)].into_iter(),
        )
    }

    #[test]
    fn a_user_has_its_own_rights_and_those_of_its_roles() {
        let directory = directory(&Directory::default(), "plant/#");
        let names = ["x", "pump.acme"].into_iter();
        let user = directory.user_of_certificate(names).unwrap();
        let pump = directory.principal(user, By::Certificate, Claim::default());
        assert!(allows(&pump, Action::Subscribe("own/d1")) && allows(&pump, Action::Subscribe("plant/#")));
        assert!(!allows(&pump, Action::Subscribe("own/d2")) && !allows(&pump, Action::Query));
        assert_eq!(pump.owner().as_deref(), Some("user#0:pump"));
    }

    #[test]
    fn rights_change_with_the_directory_and_only_then() {
        let before = directory(&Directory::default(), "plant/#");
        let pump = before.principal(before.user("pump").unwrap(), By::Password, Claim::default());
        let same = directory(&before, "plant/#");
        assert!(same.renew(&pump, None).unwrap().has_rights_of(&pump));
        let after = directory(&same, "other/#");
        let renewed = after.renew(&pump, None).unwrap();
        assert!(!renewed.has_rights_of(&pump) && !allows(&renewed, Action::Subscribe("plant/#")));
        assert!(Directory::default().renew(&pump, None).is_none());
        let token = same.token("secret", Claim::default()).unwrap();
        assert!(allows(&token, Action::Query) && after.renew(&token, None).unwrap().has_rights_of(&token));
        assert!(same.token("Secret", Claim::default()).is_none());
    }

    #[test]
    fn a_bearer_is_a_user_or_has_roles() {
        let directory = directory(&Directory::default(), "plant/${username}");
        let claims = |subject: &str, roles: &[&str]| crate::jwt::Claims {
            subject: subject.into(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            issuer: Some("us".into()),
            tenant: Some("acme".into()),
            expires: 9,
            key: 3,
        };
        let who = directory.bearer(claims("guest", &["readers"]), Claim::default()).unwrap();
        assert!(allows(&who, Action::Subscribe("plant/guest")) && who.expires() == Some(9));
        assert_eq!(who.tenant(), Some("acme"));
        assert!(directory.bearer(claims("guest", &["nobody"]), Claim::default()).is_none());
        // What a user is, its user says.
        let pump = directory.bearer(claims("pump", &[]), Claim::default()).unwrap();
        assert_eq!((pump.origin(), pump.tenant()), (&Origin::User, None));
    }

    fn of_user(stored: StoredUser) -> Directory {
        let users = [("pump".to_owned(), stored)].into_iter();
        Directory::new(&Directory::default(), std::iter::empty(), users, std::iter::empty())
    }

    #[test]
    fn whoever_came_with_a_credential_of_before_is_gone() {
        let stored = StoredUser {
            incarnation: 1,
            password_number: 5,
            certificate: Some("pump.acme".into()),
            ..StoredUser::default()
        };
        let now = of_user(stored.clone());
        let of = |by| now.principal(now.user("pump").unwrap(), by, Claim::default());
        let (password, certificate) = (of(By::Password), of(By::Certificate));
        let claims = crate::jwt::Claims {
            subject: "pump".into(),
            roles: vec![],
            issuer: None,
            tenant: None,
            expires: 9,
            key: 3,
        };
        let token = now.bearer(claims, Claim::default()).unwrap();
        assert_eq!((token.signing_key(), password.signing_key()), (Some(3), None));
        // Who is still in: by password, by certificate, by JSON Web Token; and whether the user is the same.
        let cases = [
            (
                StoredUser { password: Some("a new hash of it".into()), ..stored.clone() },
                [true, true, true],
                true,
            ),
            (StoredUser { password_number: 6, ..stored.clone() }, [false, true, true], true),
            (StoredUser { certificate: Some("b".into()), ..stored.clone() }, [true, false, true], true),
            (StoredUser { certificate: None, ..stored.clone() }, [true, false, true], true),
            (StoredUser { client_id: Some("c/1".into()), ..stored.clone() }, [true, true, true], true),
            (StoredUser { client_id: Some("c/2".into()), ..stored.clone() }, [false, false, false], true),
            (StoredUser { incarnation: 2, ..stored.clone() }, [false, false, false], false),
        ];
        for (stored, expected, is_same) in cases {
            let after = of_user(stored);
            let is_in = |who: &Principal| after.renew(who, Some("c/1")).is_some();
            assert_eq!([is_in(&password), is_in(&certificate), is_in(&token)], expected, "{after:?}");
            assert_eq!(after.rights_of(&password).is_some(), is_same);
        }
    }

    #[test]
    fn a_principal_reads_back_and_has_the_rights_of_then() {
        let now = directory(&Directory::default(), "plant/${username}");
        let user = now.principal(now.user("pump").unwrap(), By::Password, Claim::default());
        let token = now.token("secret", Claim::default()).unwrap();
        let claims = crate::jwt::Claims {
            subject: "x".into(),
            roles: vec!["readers".into()],
            issuer: None,
            tenant: Some("acme".into()),
            expires: 9,
            key: 3,
        };
        let bearer = now.bearer(claims, Claim::default()).unwrap();
        for who in [&user, &token, &bearer] {
            let again = Principal::from_record(&who.to_record()).unwrap();
            assert!(!allows(&again, Action::Query) && !allows(&again, Action::Subscribe("plant/pump")));
            let again = now.rights_of(&again).unwrap();
            assert_eq!((&again.name, &again.origin, &again.rights), (&who.name, &who.origin, &who.rights));
            assert_eq!(again.identity, who.identity);
        }
        assert!(
            Directory::default().rights_of(&Principal::from_record(&user.to_record()).unwrap()).is_none()
        );
        let admin = Principal::from_record(&Principal::admin("root").to_record()).unwrap();
        assert!(allows(&admin, Action::Admin));
        let nobody = Principal::from_record(&Principal::anonymous_device().to_record()).unwrap();
        assert!(allows(&nobody, Action::Subscribe("a")) && nobody.owner().is_none());
        assert!(Principal::from_record(b"x").is_none());
    }

    #[test]
    fn a_client_id_may_be_bound() {
        let user = StoredUser { client_id: Some("c-${username}".into()), ..StoredUser::default() };
        assert!(user.may_be("a", "c-a") && !user.may_be("a", "c-b"));
        assert!(StoredUser::default().may_be("a", "x"));
    }

    #[test]
    fn debug_output_has_no_secret() {
        let user = StoredUser {
            password: Some(crate::password::NOBODY.into()),
            scram: ScramKeys::of("pencil00", &[0; 16]),
            ..StoredUser::default()
        };
        let said = format!("{user:?} {:?}", user.scram);
        assert!(!said.contains("argon2") && !said.contains("AAAA"), "{said}");
    }
}
