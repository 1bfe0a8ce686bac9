//! What the text of a key says, or the error that names the key and what was expected.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use sonde_proto::mqtt::{is_shared, validate_filter};
use sonde_query::statement::parse_duration;

use crate::cli::{Exit, Failure, Result};

pub(crate) fn wrong(text: impl Into<String>) -> Failure {
    Failure::new(Exit::Config, text)
}

pub(crate) fn flag(key: &str, text: &str) -> Result<bool> {
    text.parse().map_err(|_| wrong(format!("{key} is true or false, not '{text}'")))
}

/// A number that is not negative.
pub(crate) fn count<T: std::str::FromStr>(key: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| wrong(format!("{key} is a number from 0 on, not '{text}'")))
}

pub(crate) fn listen(key: &str, text: &str) -> Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.replace("localhost:", "127.0.0.1:").parse();
    parsed
        .map(Some)
        .map_err(|_| wrong(format!("{key} is an address and a port such as 127.0.0.1:1883, not '{text}'")))
}

/// A list of topic filters, separated by commas.
pub(super) fn filters(key: &str, text: &str) -> Result<Vec<String>> {
    let filters: Vec<&str> = text.split(',').map(str::trim).filter(|filter| !filter.is_empty()).collect();
    if let Some(filter) = filters.iter().find(|filter| is_shared(filter) || validate_filter(filter).is_err())
    {
        return Err(wrong(format!("{key} has topic filters such as site/+/alarm, not '{filter}'")));
    }
    Ok(filters.into_iter().map(str::to_owned).collect())
}

/// A list of paths, separated by commas.
pub(crate) fn paths(text: &str) -> Vec<PathBuf> {
    text.split(',').map(str::trim).filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

pub(crate) fn duration(key: &str, text: &str) -> Result<Duration> {
    let nanos = parse_duration(text).map_err(|error| wrong(format!("{key}: {error}")))?;
    Ok(Duration::from_nanos(nanos.unsigned_abs()))
}

pub(crate) fn bytes(key: &str, text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(wrong(format!("{key} is a number of bytes such as 512MiB, not '{text}'"))),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| wrong(format!("{key} is a number of bytes such as 512MiB, not '{text}'")))?;
    number
        .checked_shl(shift)
        .filter(|bytes| bytes >> shift == number)
        .ok_or_else(|| wrong(format!("{key} = {text} is too large")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("k", "512MiB").ok(), Some(512 << 20));
        assert_eq!(bytes("k", "1g").ok(), Some(1 << 30));
        assert!(bytes("k", "lots").is_err() && bytes("k", "99999999999g").is_err());
    }
}
