//! `COPY (query) TO 'location' STORED AS PARQUET`.
//!
//! # Invariants
//! - A file is below one of the configured locations, and under its own name only once it is whole and synced.

use std::fs::File;
use std::path::{Component, Path, PathBuf};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::parser::Parser;
use super::run::blocking;
use crate::error::{Error, Result};
use crate::query_engine::QueryEngine;
use crate::request::Request;

/// The format of a file that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// Parquet with zstd.
    Parquet,
}

/// What a `COPY` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The query whose rows leave.
    pub query: String,
    /// Where they go, below one of the configured locations.
    pub location: String,
    /// How they are written.
    pub format: FileFormat,
}

pub(super) fn parse(parser: &mut Parser<'_>) -> Result<Copy> {
    parser.words(&["COPY"])?;
    let query = parser.parenthesised()?.to_owned();
    parser.words(&["TO"])?;
    let location = parser.text("a location")?;
    parser.words(&["STORED", "AS"])?;
    let format = parser.word("PARQUET")?;
    if !format.eq_ignore_ascii_case("PARQUET") {
        return Err(Error::Invalid(format!("format {format} does not exist; PARQUET does")));
    }
    Ok(Copy { query, location, format: FileFormat::Parquet })
}

/// Writes a query's rows to a file below one of the configured locations.
pub(super) async fn run(query: &QueryEngine, copy: &Copy, request: &Request) -> Result<String> {
    let path = allowed_path(&query.options().copy_locations, &copy.location)?;
    let mut answer = query.query(&copy.query, request).await?;
    let schema = answer.schema();
    let mut output = blocking(move || Output::create(path, schema)).await?;
    let mut rows = 0;
    while let Some(batch) = answer.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        output = blocking(move || output.write(&batch)).await?;
    }
    let path = blocking(move || output.finish()).await?;
    Ok(format!("{rows} rows written to {}", path.display()))
}

/// A file on its way to its name; it goes if it does not get there.
struct Partial {
    path: PathBuf,
    is_whole: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_whole
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove what COPY did not finish");
        }
    }
}

/// The file that a COPY writes.
struct Output {
    writer: ArrowWriter<File>,
    partial: Partial,
    path: PathBuf,
}

impl Output {
    fn create(path: PathBuf, schema: SchemaRef) -> Result<Self> {
        let partial = path.with_file_name(format!(".{}.tmp", uuid::Uuid::new_v4()));
        let file = File::create_new(&partial).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                let directory = path.parent().unwrap_or(&path).display();
                Error::Invalid(format!("directory {directory} does not exist"))
            }
            _ => failed(&path, &error),
        })?;
        let partial = Partial { path: partial, is_whole: false };
        let properties =
            WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let writer = ArrowWriter::try_new(file, schema, Some(properties));
        Ok(Self { writer: writer.map_err(|error| failed(&path, &error))?, partial, path })
    }

    fn write(mut self, batch: &RecordBatch) -> Result<Self> {
        self.writer.write(batch).map_err(|error| failed(&self.path, &error))?;
        Ok(self)
    }

    fn finish(self) -> Result<PathBuf> {
        let Self { writer, mut partial, path } = self;
        let file = writer.into_inner().map_err(|error| failed(&path, &error))?;
        let moved = file.sync_all().and_then(|()| std::fs::rename(&partial.path, &path));
        moved.map_err(|error| failed(&path, &error))?;
        partial.is_whole = true;
        Ok(path)
    }
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Internal(format!("write {}: {error}", path.display()))
}

/// The file that a location names, if it is below one of the directories.
fn allowed_path(locations: &[PathBuf], location: &str) -> Result<PathBuf> {
    let found = path_within(locations, location).filter(|path| !locations.contains(path));
    found.ok_or_else(|| refused("COPY", "copy.locations", locations, location))
}

/// The absolute path that a location names, if it is one of the directories or below one, as it is written.
pub(super) fn path_within(locations: &[PathBuf], location: &str) -> Option<PathBuf> {
    let path = Path::new(location.strip_prefix("file://").unwrap_or(location));
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let is_within = path.is_absolute() && locations.iter().any(|allowed| path.starts_with(allowed));
    (plain && is_within).then(|| path.to_path_buf())
}

/// Why a statement may not write there, and the key that would allow it.
pub(super) fn refused(statement: &str, key: &str, locations: &[PathBuf], location: &str) -> Error {
    let list: Vec<String> = locations.iter().map(|allowed| allowed.display().to_string()).collect();
    let list = if list.is_empty() { "none is".to_owned() } else { format!("these are: {}", list.join(", ")) };
    Error::Denied(format!("{statement} TO '{location}': no configured location ({key}; {list})"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    #[test]
    fn copies_stay_below_their_locations() {
        let allowed = [PathBuf::from("/data/out")];
        assert!(allowed_path(&allowed, "/data/out/x.parquet").is_ok());
        assert!(allowed_path(&allowed, "file:///data/out/a/x.parquet").is_ok());
        for location in ["/data/out/../x", "/etc/passwd", "x.parquet", "/data/outside/x", "/data/out"] {
            assert!(allowed_path(&allowed, location).is_err(), "{location}");
        }
    }

    #[test]
    fn only_whole_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, true)]));
        let files = || std::fs::read_dir(dir.path()).unwrap().count();
        let path = dir.path().join("x.parquet");
        drop(Output::create(path.clone(), SchemaRef::clone(&schema)).unwrap());
        assert_eq!(files(), 0);
        let (one, other) = (
            Output::create(path.clone(), SchemaRef::clone(&schema)).unwrap(),
            Output::create(path.clone(), SchemaRef::clone(&schema)).unwrap(),
        );
        let batch = RecordBatch::new_empty(SchemaRef::clone(&schema));
        assert_eq!(one.write(&batch).unwrap().finish().unwrap(), path);
        other.finish().unwrap();
        assert_eq!(files(), 1);
        let missing = Output::create(dir.path().join("no/x.parquet"), schema);
        assert!(matches!(missing, Err(Error::Invalid(_))));
    }
}
