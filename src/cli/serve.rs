//! `sonde serve`.

use super::output::{say, shell_path};
use super::{ConfigArgs, Exit, Failure, Result};
use crate::config::Config;
use crate::{serve, telemetry};

/// Stack of the runtime's threads: deep plans recurse.
pub(super) const THREAD_STACK: usize = 16 << 20;

/// Runs the server until SIGTERM or Ctrl-C.
pub(super) fn run(args: &ConfigArgs, insecure: bool) -> Result<()> {
    telemetry::init("info");
    let config = Config::load(args, insecure)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(THREAD_STACK).build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
        let server = serve::start(&config).await?;
        // A server serves, whether or not somebody reads this.
        let _ = say(banner(&config, &server));
        let mqtt_ended = server.mqtt_ended();
        tokio::pin!(mqtt_ended);
        let mut outcome = Ok(());
        loop {
            tokio::select! {
                () = &mut mqtt_ended => {
                    // Half a server that nobody restarts is worse than none: whoever supervises it starts a whole one.
                    tracing::error!("the MQTT event loop has ended by itself: stopping the server; its panic or error stands above");
                    outcome = Err(Failure::new(Exit::Io, "the MQTT event loop has ended by itself".to_owned()));
                    break;
                }
                _ = hangup.recv() => {
                    tracing::info!("SIGHUP: reading certificates again");
                    server.reload();
                }
                _ = terminate.recv() => {
                    tracing::info!("SIGTERM: stopping");
                    break;
                }
                result = tokio::signal::ctrl_c() => {
                    result?;
                    tracing::info!("Ctrl-C: stopping");
                    break;
                }
            }
        }
        server.stop().await.and(outcome)
    })
}

fn banner(config: &Config, server: &serve::Server) -> String {
    let mut lines = vec![format!("SondeDB {}", env!("CARGO_PKG_VERSION"))];
    let addresses = &server.addresses;
    let mut doors = Vec::new();
    for (name, address) in &addresses.mqtt_listeners {
        let name = match name.as_str() {
            "mqtt" => "MQTT",
            "mqtts" => "MQTT, TLS",
            "mqtt_ws" => "MQTT, WebSocket",
            "mqtt_wss" => "MQTT, WebSocket, TLS",
            _ => "MQTT, further",
        };
        doors.push((name, address.to_string()));
    }
    if doors.is_empty() {
        doors.push(("MQTT", "off".to_owned()));
    }
    for (name, address) in [("HTTP", addresses.http), ("gRPC, Flight SQL", addresses.grpc)] {
        doors.push((name, address.map_or_else(|| "off".to_owned(), |address| address.to_string())));
    }
    lines.extend(doors.iter().map(|(name, address)| format!("  {name:<20} {address}")));
    lines.push(format!("  data                 {}", config.data_dir.display()));
    lines.push(format!("  memory               {}", config.memory.text()));
    if config.insecure {
        lines.push(
            "  INSECURE             no authentication on any door: everyone who reaches a port may do everything"
                .to_owned(),
        );
    }
    let place = if config.has_default_dir() {
        String::new()
    } else {
        format!(" --data-dir {}", shell_path(&config.data_dir))
    };
    lines.push("Try:".to_owned());
    lines.push(format!("  sonde pub{place} sensors/temp '{{\"device\":\"d1\",\"value\":23.5}}'"));
    lines.push(format!("  sonde sql{place} -c 'SELECT * FROM sensors'"));
    lines.push(format!("  sonde tail{place} 'sensors/#'"));
    lines.join("\n")
}
