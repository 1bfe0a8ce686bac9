//! The shape of the repository: headers, layers, and the paths that the architecture names.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{files, none, output, read, root};

/// Which crate of ours may name which. Arrows run one way; a new crate or arrow is a decision that belongs in
/// docs/ARCHITECTURE.md first.
const LAYERS: [(&str, &[&str]); 7] = [
    ("sonde-storage-format", &[]),
    ("sonde-proto", &[]),
    ("sonde-access", &[]),
    ("sonde-engine", &["sonde-storage-format"]),
    ("sonde-query", &["sonde-access", "sonde-engine", "sonde-proto"]),
    ("sonde-ingest", &["sonde-access", "sonde-engine", "sonde-proto", "sonde-query"]),
    (
        "sonde",
        &[
            "sonde-access",
            "sonde-engine",
            "sonde-ingest",
            "sonde-proto",
            "sonde-query",
            "sonde-storage-format",
        ],
    ),
];

/// Files with these endings are text that people read or a program runs.
const TEXT: [&str; 8] = ["md", "proto", "py", "rs", "sh", "sql", "toml", "txt"];

fn extension(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

#[test]
fn every_source_file_opens_with_what_it_is_for() {
    let opens = |text: &str| {
        // A module that reads and writes a structure on disk opens with the structure's drawing instead.
        let drawing =
            text.strip_prefix("#![doc = include_str!(\"").map(|path| path.trim_start_matches("../"));
        text.starts_with("//! ") || drawing.is_some_and(|path| path.starts_with("docs/format/"))
    };
    let sources = files().into_iter().filter(|path| extension(path) == "rs");
    let findings: Vec<String> = sources.filter(|path| !opens(&read(path))).collect();
    none(&findings.iter().map(|path| format!("{path}: no `//!` header")).collect::<Vec<_>>());
}

/// The text between backticks, outside of fenced blocks.
fn code_spans(markdown: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut spans = Vec::new();
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            spans.extend(line.split('`').skip(1).step_by(2));
        }
    }
    spans
}

/// A path of the repository as the architecture writes it, `path`, `path/` or `path::item`, and the item.
fn named_path(span: &str) -> Option<(&str, Option<&str>)> {
    const KNOWN: [&str; 8] = ["json", "md", "proto", "py", "rs", "sh", "sql", "toml"];
    let (path, item) = match span.split_once("::") {
        Some((path, item)) => (path, Some(item)),
        None => (span, None),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let is_path = !path.starts_with('/') && path.chars().all(plain) && path.contains('/');
    let ends = path.ends_with('/') || KNOWN.contains(&extension(path));
    (is_path && ends).then_some((path, item))
}

/// Whether a file defines an item of this name.
fn defines(text: &str, item: &str) -> bool {
    let name = item.rsplit("::").next().unwrap_or_default();
    let kinds = ["fn", "struct", "enum", "trait", "const", "static", "mod", "type"];
    kinds.iter().any(|kind| {
        text.match_indices(&format!("{kind} {name}")).any(|(at, found)| {
            let behind = text.get(at + found.len()..).and_then(|rest| rest.chars().next());
            behind.is_none_or(|c| !c.is_alphanumeric() && c != '_')
        })
    })
}

#[test]
fn what_the_architecture_names_exists() {
    let text = read("docs/ARCHITECTURE.md");
    let named: Vec<_> = code_spans(&text).into_iter().filter_map(named_path).collect();
    assert!(named.len() > 30, "the architecture names {} paths: are they in backticks?", named.len());
    let mut findings = Vec::new();
    for (path, item) in named {
        if !root().join(path).exists() {
            findings.push(format!("docs/ARCHITECTURE.md names {path}, which does not exist"));
        } else if let Some(item) = item.filter(|item| !defines(&read(path), item)) {
            findings.push(format!("docs/ARCHITECTURE.md names {path}::{item}, which {path} does not define"));
        }
    }
    none(&findings);
}

#[test]
fn the_architecture_can_be_read_in_one_sitting() {
    let lines = read("docs/ARCHITECTURE.md").lines().count();
    assert!(lines <= 300, "docs/ARCHITECTURE.md has {lines} lines");
}

/// The crates of ours that a crate names, by kind of dependency.
fn edges(package: &Value, kind: Option<&str>) -> BTreeSet<String> {
    let dependencies = package["dependencies"].as_array().unwrap();
    let ours = dependencies.iter().filter(|dependency| dependency["path"].is_string());
    ours.filter(|dependency| dependency["kind"].as_str() == kind)
        .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn arrows_between_crates_run_one_way() {
    let metadata = output(env!("CARGO"), &["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let mut layers: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, below) in LAYERS {
        layers.insert(name, below.iter().map(|name| (*name).to_owned()).collect());
    }
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let Some(allowed) = layers.remove(name) else {
            findings.push(format!("crate {name} has no place in LAYERS"));
            continue;
        };
        let found = edges(package, None);
        if found != allowed {
            findings.push(format!("{name} depends on {found:?}, the layers say {allowed:?}"));
        }
        // Tests and build scripts look no further than their crate does.
        for kind in ["dev", "build"] {
            let beyond: Vec<_> = edges(package, Some(kind)).difference(&allowed).cloned().collect();
            if !beyond.is_empty() {
                findings.push(format!("{name} has {kind}-dependencies on {beyond:?}"));
            }
        }
    }
    findings
        .extend(layers.keys().map(|name| format!("LAYERS names {name}, which is no crate of the workspace")));
    none(&findings);
}

#[test]
fn nothing_in_production_is_left_to_do() {
    // Put together here, so that this file is no finding.
    let marks = ["todo", "unimplemented"].map(|name| format!("{name}!("));
    let mut findings = Vec::new();
    let production = |path: &String| extension(path) == "rs" && !path.split('/').any(|part| part == "tests");
    for path in files().into_iter().filter(production) {
        for (number, line) in read(&path).lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                findings.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none(&findings);
}

#[test]
fn nothing_names_a_machine() {
    // Put together here, so that this file is no finding.
    let homes = ["home", "Users", "root", "work"].map(|name| format!("/{name}/"));
    let mut findings = Vec::new();
    for path in files().into_iter().filter(|path| TEXT.contains(&extension(path))) {
        // Recordings and licences are other people's.
        if path.contains("/data/") {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            let absolute = |home: &String| {
                line.match_indices(home.as_str()).any(|(at, _)| {
                    let before = line.get(..at).and_then(|before| before.chars().next_back());
                    // `a/home/b` and `$DIR/work/` are parts of longer paths.
                    before.is_none_or(|c| {
                        !c.is_alphanumeric() && !matches!(c, '_' | '-' | '.' | '}' | '*' | '~' | '/')
                    })
                })
            };
            if homes.iter().any(absolute) {
                findings.push(format!("{path}:{}: a path of one machine: {}", number + 1, line.trim()));
            }
        }
    }
    none(&findings);
}
