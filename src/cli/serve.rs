//! `sonde serve`.

use super::{ConfigArgs, Result};
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
        let server = serve::start(&config).await?;
        print_banner(&config, &server);
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            result = tokio::signal::ctrl_c() => {
                result?;
                tracing::info!("Ctrl-C: stopping");
            }
        }
        server.stop().await
    })
}

fn print_banner(config: &Config, server: &serve::Server) {
    let mib = |bytes: u64| bytes >> 20;
    println!("SondeDB {}", env!("CARGO_PKG_VERSION"));
    let addresses = server.addresses;
    for (name, address) in
        [("MQTT", addresses.mqtt), ("HTTP", addresses.http), ("gRPC, Flight SQL", addresses.grpc)]
    {
        match address {
            Some(address) => println!("  {name:<17} {address}"),
            None => println!("  {name:<17} off"),
        }
    }
    println!("  data              {}", config.data_dir.display());
    println!(
        "  memory            {} MiB: queries {} MiB, rows before a flush {} MiB",
        mib(config.memory_limit),
        mib(config.query_memory),
        mib(config.memtable)
    );
    if config.insecure {
        println!(
            "  INSECURE          no authentication on any door: everyone who reaches a port may do everything"
        );
    }
    println!("Try:");
    println!("  sonde pub sensors/temp '{{\"device\":\"d1\",\"value\":23.5}}'");
    println!("  sonde sql -c 'SELECT * FROM sensors'");
    println!("  sonde tail 'sensors/#'");
}
