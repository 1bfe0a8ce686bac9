//! What the documents say is what the program takes: every statement parses, every key is described.

use sonde_query::statement::{parse, split};

use crate::{files, none, read};

/// The fenced blocks of a language, with the line on which each starts.
fn blocks(markdown: &str, language: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String, bool)> = None;
    for (number, line) in markdown.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (fence, &mut open) {
            (Some(_), Some(_)) => {
                if let Some((start, text, true)) = open.take() {
                    found.push((start, text));
                }
            }
            (Some(name), None) => open = Some((number + 1, String::new(), name.trim() == language)),
            (None, Some((_, text, _))) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fenced block does not end");
    found
}

#[test]
fn every_documented_statement_parses() {
    let mut findings = Vec::new();
    let mut statements = 0;
    let is_document =
        |path: &String| path.ends_with(".md") && (path.starts_with("docs/") || !path.contains('/'));
    for path in files().into_iter().filter(is_document) {
        for (line, block) in blocks(&read(&path), "sql") {
            let found = split(&block).unwrap_or_else(|error| panic!("{path}:{line}: {error}"));
            assert!(!found.is_empty(), "{path}:{line}: a block without a statement");
            for statement in found {
                statements += 1;
                if let Err(error) = parse(&statement) {
                    findings.push(format!("{path}:{line}: {error}, in: {statement}"));
                }
            }
        }
    }
    assert!(statements > 20, "the documents show {statements} statements: are their blocks marked sql?");
    none(&findings);
}

#[test]
fn the_demo_schema_parses() {
    let statements = split(&read("demo/schema.sql")).unwrap();
    let findings: Vec<String> = statements
        .iter()
        .filter_map(|statement| parse(statement).err().map(|error| format!("{error}, in: {statement}")))
        .collect();
    none(&findings);
}

/// The keys that `src/config.rs` knows, with their defaults: the first two of three strings of each entry.
fn keys() -> Vec<(String, String)> {
    let text = read("src/config.rs");
    let (_, behind) = text.split_once("const KEYS").unwrap();
    let (table, _) = behind.split_once("];").unwrap();
    let strings: Vec<&str> = table.split('"').skip(1).step_by(2).collect();
    let keys: Vec<(String, String)> =
        strings.chunks(3).map(|entry| (entry[0].to_owned(), entry[1].to_owned())).collect();
    let is_key = |(key, _): &(String, String)| key.contains('.') && !key.contains(' ');
    assert!(keys.iter().all(is_key), "the table of keys in src/config.rs did change its shape: {keys:?}");
    keys
}

#[test]
fn every_key_of_the_configuration_is_described() {
    let keys = keys();
    assert!(keys.len() > 10, "src/config.rs has {} keys", keys.len());
    let text = read("docs/configuration.md");
    let mut findings = Vec::new();
    for (key, default) in &keys {
        let row = text.lines().find(|line| line.starts_with(&format!("| `{key}` |")));
        match row {
            None => findings.push(format!("docs/configuration.md has no row for {key}")),
            Some(row) if !default.is_empty() && !row.contains(&format!("`{default}`")) => {
                findings.push(format!("docs/configuration.md: the default of {key} is {default}"));
            }
            Some(_) => {}
        }
    }
    let described =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |")).map(|(key, _)| key);
    let unknown = described.filter(|key| key.contains('.') && !keys.iter().any(|(known, _)| known == key));
    findings.extend(unknown.map(|key| format!("docs/configuration.md describes {key}, which is no key")));
    none(&findings);
}
