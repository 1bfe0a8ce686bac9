//! What commands write to standard output: lines, and commands to be copied from there.

use std::fmt::Display;
use std::io::{Error, ErrorKind, Write};
use std::path::Path;

use super::{Exit, Failure, Result};

/// Writes a line to standard output.
pub(super) fn say(line: impl Display) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").map_err(unwritten)
}

/// Why standard output takes nothing. That its reader is gone is no failure: `| head` has what it wanted.
pub(super) fn unwritten(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::new(Exit::Unread, "nobody reads standard output"),
        _ => Failure::new(Exit::Io, format!("write to standard output: {error}")),
    }
}

/// Text as one word of a shell's command line.
pub(super) fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A path as one word of a shell's command line, wherever the shell is.
pub(super) fn shell_path(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    shell_word(&absolute.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_read_them_otherwise() {
        for (text, word) in [
            ("/var/lib/sonde-1", "/var/lib/sonde-1"),
            ("/tmp/my data", "'/tmp/my data'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }

    #[test]
    fn a_reader_that_is_gone_is_no_failure() {
        assert_eq!(unwritten(ErrorKind::BrokenPipe.into()).exit, Exit::Unread);
        assert_eq!(unwritten(ErrorKind::StorageFull.into()).exit, Exit::Io);
    }
}
