//! The command line: one file per command.

mod apply;
mod backup;
mod bench;
mod client;
mod config_show;
mod demo;
mod demo_checks;
mod demo_data;
mod demo_end;
mod demo_summary;
mod doctor;
mod export;
mod import;
mod inspect;
mod mqtt_client;
mod output;
mod pub_tail;
mod restore;
mod serve;
mod sql;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// What the process ends with, by `docs/cli.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Nobody reads standard output any more, which is no failure.
    Unread = 0,
    /// Failed.
    Failed = 1,
    /// The arguments are wrong.
    Usage = 2,
    /// Done in part: something is lost.
    Partial = 3,
    /// The data is damaged or wrong.
    BadData = 65,
    /// The server cannot be reached.
    Unreachable = 69,
    /// A file operation failed.
    Io = 74,
    /// The caller may not do this.
    Auth = 77,
    /// The configuration is wrong.
    Config = 78,
    /// Ctrl-C or SIGTERM came.
    Interrupted = 130,
}

/// An error with the exit code that says so.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Io, error.to_string())
    }
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// SondeDB: MQTT in, durable columnar time series, SQL out.
#[derive(Debug, Parser)]
#[command(name = "sonde", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(ServeArgs),
    /// Run the main job on real recordings, and check every answer.
    Demo(DemoArgs),
    /// Run SQL: `-c` one statement, else interactively.
    Sql(SqlArgs),
    /// Write a query's rows to a Parquet file.
    Export(ExportArgs),
    /// Take over users and rights from another broker.
    Import {
        #[command(subcommand)]
        command: import::ImportCommand,
    },
    /// Apply a file of CREATE statements; what exists already as they define it is passed over.
    Apply(ApplyArgs),
    /// Show messages as they are published.
    Tail(TailArgs),
    /// Publish a message.
    Pub(PubArgs),
    /// Manage tokens.
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Back up a running server, or the directory of a stopped one; list and verify backups.
    Backup(backup::BackupArgs),
    /// Make a data directory from a backup, as of its last commit or of an instant before it.
    Restore(restore::RestoreArgs),
    /// Check a data directory, the machine and the configuration; with `--repair`, mend what is damaged.
    Doctor(doctor::DoctorArgs),
    /// Show what a file of the data directory holds, and whether it is undamaged.
    Inspect(inspect::InspectArgs),
    /// Measure.
    Bench {
        #[command(subcommand)]
        command: bench::BenchCommand,
    },
    /// Look at the configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// Where settings come from; shared by every command that has a server or finds one.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ConfigArgs {
    /// The data directory.
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// The configuration file.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Set one key, for example `--set mqtt.listen=127.0.0.1:1884`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// No authentication on any door, any bind address.
    #[arg(long)]
    insecure: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// End after the summary: exit 0 if every check holds, else 1.
    #[arg(long)]
    pub(crate) once: bool,
    /// Print the summary as one line of JSON; everything else goes to standard error.
    #[arg(long)]
    pub(crate) json: bool,
    /// Add this to every port, for when ports are taken.
    #[arg(long, default_value_t = 0)]
    pub(crate) port_offset: u16,
    /// Keep the data here, in a new or empty directory, instead of in one that goes with the demo.
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
}

/// How a command finds its server.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ServerArgs {
    /// The server's HTTP address, for example `http://127.0.0.1:7480`.
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// The token to present.
    #[arg(long)]
    pub(crate) token: Option<String>,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The statement.
    #[arg(short = 'c', long)]
    pub(crate) command: Option<String>,
    /// The format of the answer.
    #[arg(long, value_enum, default_value_t = sql::OutputFormat::Table)]
    pub(crate) format: sql::OutputFormat,
    /// Where the answer goes, instead of to standard output.
    #[arg(long)]
    pub(crate) output: Option<PathBuf>,
    /// The database of names without one.
    #[arg(long)]
    pub(crate) database: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The query.
    #[arg(long)]
    pub(crate) query: String,
    /// The Parquet file to write.
    #[arg(long)]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The file of statements.
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The topic filter.
    #[arg(default_value = "#")]
    pub(crate) filter: String,
    /// End after this many messages.
    #[arg(short = 'n', long)]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct PubArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The topic.
    pub(crate) topic: String,
    /// The payload.
    pub(crate) payload: String,
    /// 0, 1 or 2.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub(crate) qos: u8,
    /// Keep it for later subscribers.
    #[arg(long)]
    pub(crate) retain: bool,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it once.
    Create(TokenArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Its name, for logs; `device-` and a random number where it is not given.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Replace the token of this name, which is not accepted any more from then on.
    #[arg(long, requires = "name")]
    pub(crate) replace: bool,
    /// A topic filter that it may publish to.
    #[arg(long)]
    pub(crate) publish: Vec<String>,
    /// A topic filter that it may subscribe to.
    #[arg(long)]
    pub(crate) subscribe: Vec<String>,
    /// It may query.
    #[arg(long)]
    pub(crate) query: bool,
    /// It may write rows over HTTP and gRPC.
    #[arg(long)]
    pub(crate) write: bool,
    /// It may do everything.
    #[arg(long)]
    pub(crate) admin: bool,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Show the settings.
    Show {
        #[command(flatten)]
        config: ConfigArgs,
        /// All keys, with where each value comes from.
        #[arg(long)]
        effective: bool,
    },
}

/// Parses the arguments and runs the command.
pub(crate) fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(&args.config, args.insecure),
        Command::Demo(args) => demo::run(&args),
        Command::Sql(args) => sql::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import { command } => import::run(&command),
        Command::Apply(args) => apply::run(&args),
        Command::Tail(args) => pub_tail::tail(&args),
        Command::Pub(args) => pub_tail::publish(&args),
        Command::Token { command: TokenCommand::Create(args) } => token::create(&args),
        Command::Backup(args) => backup::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench { command } => bench::run(&command),
        Command::Config { command: ConfigCommand::Show { config, effective } } => {
            config_show::run(&config, effective)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { exit: Exit::Unread, .. }) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("sonde: {}", failure.text);
            ExitCode::from(failure.exit as u8)
        }
    }
}
