//! `sonde import`: what another broker knew, as statements for this one.

mod mosquitto;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::client::Client;
use super::output::say;
use super::{Exit, Failure, Result, ServerArgs};
use mosquitto::Translation;

#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// Users and rights of a Mosquitto broker: prints the statements, or runs them.
    Mosquitto(MosquittoArgs),
}

#[derive(Debug, Args)]
pub(crate) struct MosquittoArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The file of its `acl_file`.
    #[arg(long, required_unless_present = "passwd")]
    pub(crate) acl: Option<PathBuf>,
    /// The file of its `password_file`.
    #[arg(long)]
    pub(crate) passwd: Option<PathBuf>,
    /// Run the statements instead of printing them.
    #[arg(long)]
    pub(crate) apply: bool,
}

pub(super) fn run(command: &ImportCommand) -> Result<()> {
    let ImportCommand::Mosquitto(args) = command;
    let text = |path: &Option<PathBuf>| path.as_deref().map(read).transpose().map(Option::unwrap_or_default);
    let translation = Translation::of(&text(&args.passwd)?, &text(&args.acl)?);
    if args.apply {
        refuse_unsafe(&translation)?;
        let client = Client::find(&args.server)?;
        for statement in &translation.statements {
            client.sql_text(statement)?;
        }
        say(format_args!("{} statements were run", translation.statements.len()))?;
    } else {
        for statement in &translation.statements {
            say(format_args!("{statement};"))?;
        }
    }
    for note in &translation.notes {
        if args.apply {
            eprintln!("not translated: {note}");
        } else {
            say(format_args!("-- not translated: {note}"))?;
        }
    }
    if translation.notes.is_empty() {
        return Ok(());
    }
    let count = translation.notes.len();
    Err(Failure::new(Exit::Partial, format!("{count} lines could not be translated; they are listed above")))
}

/// Runs nothing where somebody would get more than he had.
fn refuse_unsafe(translation: &Translation) -> Result<()> {
    if translation.unsafe_lines.is_empty() {
        return Ok(());
    }
    for note in &translation.notes {
        eprintln!("not translated: {note}");
    }
    let lines: Vec<String> = translation.unsafe_lines.iter().map(ToString::to_string).collect();
    Err(Failure::new(
        Exit::Partial,
        format!(
            "nothing was run: without what stands in line {} of the ACL file, which cannot be translated, the other lines \
             would give more than they did; change these lines, or print the statements without --apply and complete them",
            lines.join(", ")
        ),
    ))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::Io, format!("read {}: {error}", path.display())))
}
