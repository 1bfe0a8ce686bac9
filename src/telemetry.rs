//! Logs to standard error, by `tracing`; the level is `RUST_LOG`, or info.

use tracing_subscriber::EnvFilter;

/// Starts logging.
pub(crate) fn init(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A second start in one process (tests) keeps the first subscriber.
    let _ = subscriber.try_init();
}
