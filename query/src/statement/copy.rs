//! `COPY (query) TO 'location' STORED AS PARQUET`.

use super::parser::Parser;
use crate::error::{Error, Result};

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
