//! Replays what fuzzing has found so far, and the golden files, through every target.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use sonde_fuzz::TARGETS;
use sonde_fuzz::shape::{CHECKPOINT, CHUNK, MANIFEST, PAGE, Shape, WAL};

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn goldens() -> Vec<PathBuf> {
    files(&root().join("../storage-format/testdata/v1"))
}

#[test]
fn every_target_holds_for_what_was_found() {
    let goldens = goldens();
    for (name, target) in TARGETS {
        let found = files(&root().join("corpus").join(name));
        for path in found.iter().chain(&goldens) {
            let bytes = fs::read(path).unwrap();
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&bytes))) {
                eprintln!("target {name} failed on {}", path.display());
                resume_unwind(panic);
            }
        }
        println!("{name}: {} files", found.len());
    }
}

#[test]
fn every_folder_of_the_corpus_has_a_target() {
    for entry in fs::read_dir(root().join("corpus")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(TARGETS.iter().any(|(target, _)| name == *target), "no target {}", name.display());
    }
}

/// Else a change of a format would leave the fuzzer blind: it would mutate files without getting past their checksums.
#[test]
fn golden_files_have_the_shape_that_mutations_keep() {
    let shapes: [(&str, &Shape); 5] = [
        ("page_", &PAGE),
        ("chunk", &CHUNK),
        ("wal_segment", &WAL),
        ("manifest", &MANIFEST),
        ("checkpoint", &CHECKPOINT),
    ];
    for (name, shape) in shapes {
        let is_one = |path: &&PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(name);
        let goldens = goldens();
        let mut seen = 0;
        for path in goldens.iter().filter(is_one) {
            let bytes = fs::read(path).unwrap();
            let parts = (shape.split)(&bytes).unwrap_or_else(|| panic!("{}: no parts", path.display()));
            assert_eq!((shape.join)(&parts), bytes, "{}", path.display());
            seen += 1;
        }
        assert!(seen > 0, "no golden file {name}");
    }
}
