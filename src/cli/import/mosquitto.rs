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
}

/// A rule of the ACL file.
struct Rule {
    /// GRANT or DENY, and the action.
    right: &'static str,
    filter: String,
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
        let mut current: Option<String> = None;
        for (number, line) in lines(acl) {
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let rest = rest.trim();
            let mut note = |why: &str| this.notes.push(format!("ACL file, line {number}: {why}: {line}"));
            match (word, &current) {
                ("user", _) => match check_name(rest) {
                    Ok(()) => {
                        if named.insert(rest.to_owned()) {
                            users.push((rest.to_owned(), None));
                        }
                        current = Some(rest.to_owned());
                    }
                    Err(why) => note(&why),
                },
                ("topic", None) => note(
                    "rights of clients without a user; here mqtt.anonymous says whether these come in, with all rights to \
                     topics",
                ),
                ("topic", Some(user)) => match topic(rest, false) {
                    Ok(rule) => rules.push((user.clone(), rule)),
                    Err(why) => note(&why),
                },
                ("pattern", _) => match topic(rest, true) {
                    Ok(rule) => patterns.push(rule),
                    Err(why) => note(&why),
                },
                _ => note("expected user, topic or pattern"),
            }
        }
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
            if !patterns.is_empty() {
                this.statements.push(format!("GRANT {PATTERNS} TO {}", identifier(name)));
            }
        }
        rules.iter().for_each(|(user, rule)| this.push(rule, &identifier(user)));
        this
    }

    fn push(&mut self, rule: &Rule, to: &str) {
        self.statements.push(format!("{} ON {} TO {to}", rule.right, quoted(&rule.filter)));
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

fn topic(rest: &str, is_pattern: bool) -> Result<Rule, String> {
    let (word, behind) = rest.split_once(char::is_whitespace).unwrap_or(("", rest));
    let (right, filter) = match word {
        "read" => ("GRANT SUBSCRIBE", behind),
        "write" => ("GRANT PUBLISH", behind),
        "readwrite" => ("GRANT ALL", behind),
        "deny" => ("DENY ALL", behind),
        // A filter may have blanks in it; without a word before it, it is for both.
        _ => ("GRANT ALL", rest),
    };
    let filter = filter.trim();
    if filter.contains("${") {
        return Err("${ means something else here".into());
    }
    let filter = match is_pattern {
        true => filter.replace("%c", "${clientid}").replace("%u", "${username}"),
        false => filter.to_owned(),
    };
    check_filter(&filter)?;
    Ok(Rule { right, filter })
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
    const ACL: &str = "topic read open/#\n\nuser pump\ntopic write acme/pump/#\ntopic deny acme/secret\ntopic a b/c\n\
        user o'\"neil\ntopic readwrite it's/mine\npattern read cmd/%u/%c/#\npattern write x/%u%c\nuser pump\n\
        topic read more/${x}\nallow all\n";

    #[test]
    fn files_become_statements_that_parse() {
        let translation = Translation::of(PASSWD, ACL);
        let expected = [
            "CREATE ROLE IF NOT EXISTS mosquitto_patterns",
            "GRANT SUBSCRIBE ON 'cmd/${username}/${clientid}/#' TO mosquitto_patterns",
            "CREATE USER IF NOT EXISTS \"pump\" PASSWORD HASH '$pbkdf2-sha512$i=101$MTIzNDU2Nzg5MDEy$AAAAAAAAAAAAAAAAAAAAAAAAAAA'",
            "GRANT mosquitto_patterns TO \"pump\"",
            "CREATE USER IF NOT EXISTS \"old\"",
            "GRANT mosquitto_patterns TO \"old\"",
            "CREATE USER IF NOT EXISTS \"o'\"\"neil\"",
            "GRANT mosquitto_patterns TO \"o'\"\"neil\"",
            "GRANT PUBLISH ON 'acme/pump/#' TO \"pump\"",
            "DENY ALL ON 'acme/secret' TO \"pump\"",
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
}
