//! Password and ACL files of Mosquitto as statements. Pure: text in, text out.
//!
//! Mosquitto lets a client subscribe to anything and delivers what it may read; here a subscription that is wider than
//! its grants is refused. Clients that rely on that need narrower subscriptions.

use std::collections::BTreeSet;

use sonde_access::{check_filter, check_name, password};

/// The role that has the rules of `pattern` lines, which hold for every user.
const PATTERNS: &str = "mosquitto_patterns";

/// What two files come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Translation {
    /// Statements, in an order in which they can be run, again too.
    pub(super) statements: Vec<String>,
    /// What could not be translated, with its line; never with a hash.
    pub(super) notes: Vec<String>,
    /// Lines of the ACL file without which the others would give someone more than he had: they deny, or may, or they say
    /// whose the lines behind them are.
    pub(super) unsafe_lines: Vec<usize>,
}

/// A rule of the ACL file.
struct Rule {
    deny: bool,
    /// The action.
    right: &'static str,
    filter: String,
}

/// Whose the `topic` lines are.
enum Whose {
    /// Clients without a user.
    Nobody,
    User(String),
    /// That of this line, which cannot be translated.
    Unknown(usize),
}

impl Translation {
    pub(super) fn of(passwd: &str, acl: &str) -> Self {
        let mut this = Self::default();
        let mut users: Vec<(String, Option<String>)> = Vec::new();
        for (number, line) in lines(passwd) {
            match user(line) {
                Ok(user) => users.push(user),
                Err(why) => this.notes.push(format!("password file, line {number}: {why}")),
            }
        }
        let mut named: BTreeSet<String> = users.iter().map(|(name, _)| name.clone()).collect();
        let mut rules: Vec<(String, Rule)> = Vec::new();
        let mut patterns: Vec<Rule> = Vec::new();
        let mut whose = Whose::Nobody;
        for (number, line) in lines(acl) {
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let rest = rest.trim();
            let mut note = |why: &str| this.notes.push(format!("ACL file, line {number}: {why}: {line}"));
            match (word, &whose) {
                ("user", _) => match check_name(rest) {
                    Ok(()) => {
                        if named.insert(rest.to_owned()) {
                            users.push((rest.to_owned(), None));
                        }
                        whose = Whose::User(rest.to_owned());
                    }
                    Err(why) => {
                        note(&why);
                        this.unsafe_lines.push(number);
                        whose = Whose::Unknown(number);
                    }
                },
                ("topic" | "pattern", _) => match (topic(rest, word == "pattern"), word, &whose) {
                    (Ok(rule), "pattern", _) => patterns.push(rule),
                    (Ok(rule), _, Whose::User(user)) => rules.push((user.clone(), rule)),
                    (Ok(rule), _, Whose::Nobody) => {
                        note(
                            "rights of clients without a user; here mqtt.anonymous says whether these come in, with all \
                             rights to topics",
                        );
                        this.unsafe_lines.extend(rule.deny.then_some(number));
                    }
                    (Ok(rule), _, Whose::Unknown(line)) => {
                        note(&format!("rights of the user of line {line}, which cannot be translated"));
                        this.unsafe_lines.extend(rule.deny.then_some(number));
                    }
                    (Err(wrong), ..) => {
                        note(&wrong.why);
                        this.unsafe_lines.extend(wrong.may_deny.then_some(number));
                    }
                },
                // It may have been meant as `user`: what follows is not that of the user before.
                _ => {
                    note("expected user, topic or pattern");
                    this.unsafe_lines.push(number);
                    whose = Whose::Unknown(number);
                }
            }
        }
        // Should a statement fail, whoever has the rights so far has what is denied of them, too.
        patterns.sort_by_key(|rule| !rule.deny);
        if !patterns.is_empty() {
            this.statements.push(format!("CREATE ROLE IF NOT EXISTS {PATTERNS}"));
            patterns.iter().for_each(|rule| this.push(rule, PATTERNS));
        }
        for (name, hash) in &users {
            let login = match hash {
                Some(hash) => format!(" PASSWORD HASH {}", quoted(hash)),
                None => {
                    this.notes.push(format!(
                        "user {name} has no password that can be taken over: ALTER USER {} PASSWORD '...'",
                        identifier(name)
                    ));
                    String::new()
                }
            };
            this.statements.push(format!("CREATE USER IF NOT EXISTS {}{login}", identifier(name)));
        }
        let (denials, grants): (Vec<_>, Vec<_>) = rules.iter().partition(|(_, rule)| rule.deny);
        denials.into_iter().for_each(|(user, rule)| this.push(rule, &identifier(user)));
        for (name, _) in users.iter().filter(|_| !patterns.is_empty()) {
            this.statements.push(format!("GRANT {PATTERNS} TO {}", identifier(name)));
        }
        grants.into_iter().for_each(|(user, rule)| this.push(rule, &identifier(user)));
        this
    }

    fn push(&mut self, rule: &Rule, to: &str) {
        let verb = if rule.deny { "DENY" } else { "GRANT" };
        self.statements.push(format!("{verb} {} ON {} TO {to}", rule.right, quoted(&rule.filter)));
    }
}

/// The lines that say something, counted from 1.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

fn user(line: &str) -> Result<(String, Option<String>), String> {
    let (name, hash) = line.split_once(':').ok_or("expected user:hash")?;
    check_name(name)?;
    let known = password::from_mosquitto(hash).or_else(|| {
        // Mosquitto 2.1 writes argon2id as it is written everywhere.
        password::check_hash(hash).is_ok().then(|| hash.to_owned())
    });
    Ok((name.to_owned(), known))
}

/// Why a rule cannot be translated.
struct Wrong {
    why: String,
    /// Whether it denies, or cannot be understood and may.
    may_deny: bool,
}

fn topic(rest: &str, is_pattern: bool) -> Result<Rule, Wrong> {
    // A filter may have blanks in it, but only behind an access.
    let (access, filter) = rest.split_once(char::is_whitespace).unwrap_or(("readwrite", rest));
    let right = match access {
        "read" => "SUBSCRIBE",
        "write" => "PUBLISH",
        "readwrite" | "deny" => "ALL",
        _ => {
            let why = format!("the access {access:?}; expected read, write, readwrite or deny");
            return Err(Wrong { why, may_deny: true });
        }
    };
    let deny = access == "deny";
    let filter = filter.trim();
    let wrong = |why: String| Wrong { why, may_deny: deny };
    if filter.contains("${") {
        return Err(wrong("${ means something else here".into()));
    }
    let filter = match is_pattern {
        true => filter.replace("%c", "${clientid}").replace("%u", "${username}"),
        false => filter.to_owned(),
    };
    check_filter(&filter).map_err(wrong)?;
    Ok(Rule { deny, right, filter })
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use sonde_query::statement::parse;

    use super::*;

    const PASSWD: &str =
        "pump:$7$101$MTIzNDU2Nzg5MDEy$AAAAAAAAAAAAAAAAAAAAAAAAAAA=\n# nobody\nold:{SHA}x\nbad line\n";
    const ACL: &str = "topic read open/#\n\nuser pump\ntopic write acme/pump/#\ntopic deny acme/secret\ntopic readwrite a b/c\n\
        user o'\"neil\ntopic readwrite it's/mine\npattern read cmd/%u/%c/#\npattern write x/%u%c\nuser pump\n\
        topic read more/${x}\nallow all\n";

    #[test]
    fn files_become_statements_that_parse() {
        let translation = Translation::of(PASSWD, ACL);
        let expected = [
            "CREATE ROLE IF NOT EXISTS mosquitto_patterns",
            "GRANT SUBSCRIBE ON 'cmd/${username}/${clientid}/#' TO mosquitto_patterns",
            "CREATE USER IF NOT EXISTS \"pump\" PASSWORD HASH '$pbkdf2-sha512$i=101$MTIzNDU2Nzg5MDEy$AAAAAAAAAAAAAAAAAAAAAAAAAAA'",
            "CREATE USER IF NOT EXISTS \"old\"",
            "CREATE USER IF NOT EXISTS \"o'\"\"neil\"",
            "DENY ALL ON 'acme/secret' TO \"pump\"",
            "GRANT mosquitto_patterns TO \"pump\"",
            "GRANT mosquitto_patterns TO \"old\"",
            "GRANT mosquitto_patterns TO \"o'\"\"neil\"",
            "GRANT PUBLISH ON 'acme/pump/#' TO \"pump\"",
            "GRANT ALL ON 'a b/c' TO \"pump\"",
            "GRANT ALL ON 'it''s/mine' TO \"o'\"\"neil\"",
        ];
        assert_eq!(translation.statements, expected);
        for statement in &translation.statements {
            assert!(parse(statement).is_ok(), "{statement}: {:?}", parse(statement));
        }
    }

    #[test]
    fn what_cannot_be_translated_is_listed_with_its_line() {
        let notes = Translation::of(PASSWD, ACL).notes;
        let starts = [
            "password file, line 4: ",
            "ACL file, line 1: rights of clients without a user",
            "ACL file, line 10: ",
            "ACL file, line 12: ${ means",
            "ACL file, line 13: expected user",
            "user old has no password",
            "user o'\"neil has no password",
        ];
        assert_eq!(notes.len(), starts.len(), "{notes:#?}");
        for (note, start) in notes.iter().zip(starts) {
            assert!(note.starts_with(start) && !note.contains("{SHA}"), "{note}");
        }
    }

    #[test]
    fn nobody_gets_the_rights_of_another_and_no_denial_is_lost() {
        let long = "x".repeat(256);
        for line in ["user", "User bob", "user\tb\u{1}ob", &format!("user {long}"), "usr bob"] {
            let acl =
                format!("user alice\ntopic read a/#\n{line}\ntopic readwrite #\nuser carl\ntopic read c\n");
            let translation = Translation::of("", &acl);
            let rights: Vec<_> = translation.statements.iter().filter(|it| it.starts_with("GRANT")).collect();
            assert_eq!(
                rights,
                ["GRANT SUBSCRIBE ON 'a/#' TO \"alice\"", "GRANT SUBSCRIBE ON 'c' TO \"carl\""],
                "{line}"
            );
            assert_eq!(translation.unsafe_lines, [3], "{line}");
            assert!(
                translation
                    .notes
                    .iter()
                    .any(|note| note.starts_with("ACL file, line 4: rights of the user of line 3"))
            );
        }
        for line in ["topic deny a/${x}", "pattern deny a/#/b", "topic Deny a", "topic deny a/#/b"] {
            let translation = Translation::of("", &format!("user alice\ntopic readwrite #\n{line}\n"));
            assert_eq!(translation.unsafe_lines, [3], "{line}");
        }
        assert_eq!(Translation::of("", "topic deny a\n").unsafe_lines, [1]);
        let fewer = Translation::of("bad line\n", "user alice\ntopic read a/${x}\ntopic read a/#/b\n");
        assert_eq!(
            (fewer.unsafe_lines.len(), fewer.notes.len()),
            (0, 4),
            "without these she may do less: {:?}",
            fewer.notes
        );
    }
}
