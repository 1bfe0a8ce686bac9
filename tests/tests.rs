//! What must stay true of the repository itself: its shape, and what its documents say.
//!
//! `tidy` is about files and crates, `docs` about statements and keys in the documents. What the program does over real
//! sockets is tested by `tests/clients`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

mod docs;
mod tidy;

use std::path::PathBuf;
use std::process::Command;

/// The checkout.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file of the checkout.
fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What a program says on standard output, run in the checkout.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(root()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The files of the checkout that are tracked, or will be: those that git does not ignore and that exist.
fn files() -> Vec<String> {
    let list = output("git", &["ls-files", "--cached", "--others", "--exclude-standard"]);
    let mut files: Vec<String> = list.lines().map(str::to_owned).collect();
    files.retain(|path| root().join(path).is_file());
    files.sort();
    files.dedup();
    assert!(!files.is_empty(), "git lists no file");
    files
}

/// Fails with all findings at once, so that one run shows everything that is to be done.
#[track_caller]
fn none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}
