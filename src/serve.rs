//! Wiring: opens the engine, starts the doors, and stops them in order: ingest, then the engine's flush, then queries.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::middleware::{self, Next};
use axum::serve::ListenerExt;
use object_store::local::LocalFileSystem;
use sonde_engine::{ColdOptions, Engine, LogBudget, Options, path};
use sonde_ingest::Bodies;
use sonde_ingest::mqtt::{ListenAddress, MemoryLimits, Mqtt, MqttOptions, Refusal};
use sonde_ingest::rule::Rules;
use sonde_query::system::{BatchBuilder, FnTable, Kind};
use sonde_query::{QueryEngine, QueryOptions};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::server::{TcpConnectInfo, TcpIncoming};

use crate::auth::{Authenticator, MqttDoor};
use crate::cli::{Exit, Failure, Result};
use crate::config::{Config, Setting};
use crate::http::{Front, routes};
use crate::listeners::{self, Listeners};
use crate::{memory, token};

/// The columns of `system.settings`.
const COLUMNS: &[(&str, Kind)] =
    &[("key", Kind::Text), ("value", Kind::Text), ("origin", Kind::Text), ("description", Kind::Text)];

/// How long open requests may go on after the stop.
const GRACE: Duration = Duration::from_secs(5);
/// Threads that run the cold tier's requests; most of their time they wait.
const COLD_THREADS: usize = 2;

/// The addresses that the server listens on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) mqtt: Option<SocketAddr>,
    /// All of MQTT: by the names that endpoints.json has for them, and those of `[[mqtt.listener]]`.
    pub(crate) mqtt_listeners: Vec<(String, ListenAddress)>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) grpc: Option<SocketAddr>,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) addresses: Addresses,
    pub(crate) engine: Engine,
    pub(crate) query: QueryEngine,
    pub(crate) admin_token: String,
    mqtt: Option<Arc<Mqtt>>,
    rules: Arc<Rules>,
    stop: watch::Sender<bool>,
    bodies: Bodies,
    doors: Vec<JoinHandle<()>>,
    endpoints: PathBuf,
    /// Last, so that it outlives the engine.
    _cold_runtime: ColdRuntime,
}

fn io(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Io, format!("{what}: {error}"))
}

fn engine_failure(error: sonde_engine::Error) -> Failure {
    let exit = match error {
        sonde_engine::Error::Corrupt { .. } | sonde_engine::Error::Layout { .. } => Exit::BadData,
        _ => Exit::Io,
    };
    Failure::new(exit, error.to_string())
}

/// Starts everything that the configuration asks for.
pub(crate) async fn start(config: &Config) -> Result<Server> {
    std::fs::create_dir_all(&config.data_dir)
        .map_err(|error| io(&format!("create {}", config.data_dir.display()), error))?;
    let cold_runtime = ColdRuntime::start()?;
    let engine = open_engine(config, cold_runtime.handle())?;
    sonde_ingest::prepare(&engine).map_err(engine_failure)?;
    let admin_token = token::admin(&config.data_dir)?;
    let mut options = QueryOptions::new(config.data_dir.join(path::SPILL_DIR));
    options.memory_bytes = config.memory.queries as usize;
    options.timeout = config.query_timeout;
    options.copy_locations.clone_from(&config.copy_locations);
    options.backup_locations.clone_from(&config.backup_locations);
    options.backup_runtime = Some(cold_runtime.handle());
    let query = QueryEngine::new(engine.clone(), options).map_err(|error| io("start queries", error))?;
    let authenticator = Authenticator::new(engine.clone(), &admin_token, config)?;
    query.register_statement(Arc::new(token::CreateToken(engine.clone())));
    query.register_table(Arc::new(FnTable::new("settings", settings_table(config.effective.clone()))));
    let mqtt = start_mqtt(config, &engine, &query, &authenticator)?;
    let rules = start_rules(&query, mqtt.as_ref())?;
    let (stop, stopped) = watch::channel(false);
    memory::watch(engine.clone(), query.clone(), config.memory.limit)
        .map_err(|error| io("start watching memory", error))?;
    let mut server = Server {
        addresses: mqtt_addresses(mqtt.as_deref()),
        endpoints: config.data_dir.join(path::ENDPOINTS),
        engine,
        query,
        admin_token,
        mqtt,
        rules,
        stop,
        bodies: Bodies::new(config.memory.bodies as usize),
        doors: Vec::new(),
        _cold_runtime: cold_runtime,
    };
    server.start_http(config, &authenticator, stopped.clone()).await?;
    server.start_grpc(config, &authenticator, stopped).await?;
    server.write_endpoints()?;
    Ok(server)
}

/// Runs the cold tier's requests. It is not the doors' runtime: scans occupy threads there while they wait for these
/// requests, and would wait for ever once they occupy all of them.
struct ColdRuntime(Option<Runtime>);

impl ColdRuntime {
    fn start() -> Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(COLD_THREADS).thread_name("sonde-cold").enable_all().build();
        runtime.map(|runtime| Self(Some(runtime))).map_err(|error| io("start the cold tier's threads", error))
    }

    fn handle(&self) -> Handle {
        match &self.0 {
            Some(runtime) => runtime.handle().clone(),
            None => unreachable!("it is taken out by drop alone"),
        }
    }
}

impl Drop for ColdRuntime {
    fn drop(&mut self) {
        // Not by its own drop, which blocks and must not run on a runtime's thread.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn open_engine(config: &Config, runtime: Handle) -> Result<Engine> {
    std::fs::create_dir_all(&config.cold_dir)
        .map_err(|error| io(&format!("create {}", config.cold_dir.display()), error))?;
    let store = LocalFileSystem::new_with_prefix(&config.cold_dir)
        .map_err(|error| io("open the cold tier", error))?;
    let mut options = Options::new(&config.data_dir);
    options.memtable_bytes = config.memory.memtable as usize;
    options.queue_bytes = config.memory.queue as usize;
    options.directory_bytes = config.memory.directories as usize;
    options.series_bytes = config.memory.series as usize;
    options.merge_bytes = config.memory.merge as usize;
    options.log = log_budget(config);
    options.cold =
        Some(ColdOptions { store: Arc::new(store), directory: Some(config.cold_dir.clone()), runtime });
    Engine::open(options).map_err(engine_failure)
}

fn log_budget(config: &Config) -> LogBudget {
    LogBudget { max_bytes: config.log_max_bytes, max_age: config.log_max_age }
}

fn start_mqtt(
    config: &Config,
    engine: &Engine,
    query: &QueryEngine,
    authenticator: &Arc<Authenticator>,
) -> Result<Option<Arc<Mqtt>>> {
    let Listeners { listeners, tls, limits } = config.mqtt.clone();
    if listeners.is_empty() {
        return Ok(None);
    }
    let authenticate = Arc::new(MqttDoor(Arc::clone(authenticator)));
    let options = MqttOptions {
        listeners,
        tls,
        limits,
        authenticate,
        offers: config.mqtt_offers.clone(),
        queue: config.mqtt_queue,
        memory: MemoryLimits {
            messages: config.memory.messages as usize,
            retained: config.memory.retained as usize,
            wills: config.memory.wills as usize,
            backlogs: config.memory.backlogs as usize,
        },
        raw_retention: config.raw_retention,
        log: log_budget(config),
        early: config.early.clone(),
    };
    let mqtt = sonde_ingest::mqtt::start(engine, options, Arc::default());
    let mqtt = Arc::new(mqtt.map_err(|error| io("listen for MQTT (mqtt.listen and its like)", error))?);
    sonde_ingest::register_mqtt(query, &mqtt);
    Ok(Some(mqtt))
}

/// Where MQTT listens, by name.
fn mqtt_addresses(mqtt: Option<&Mqtt>) -> Addresses {
    let mqtt_listeners = mqtt.map(Mqtt::addresses).unwrap_or_default().to_vec();
    let plain = mqtt_listeners.iter().find_map(|(name, address)| match address {
        ListenAddress::Tcp(address) if name == "mqtt" => Some(*address),
        _ => None,
    });
    Addresses { mqtt: plain, mqtt_listeners, ..Addresses::default() }
}

fn start_rules(query: &QueryEngine, mqtt: Option<&Arc<Mqtt>>) -> Result<Arc<Rules>> {
    let runtime = Handle::current();
    let rules = sonde_ingest::rule::start(query.clone(), mqtt.cloned(), runtime);
    let rules = Arc::new(rules.map_err(|error| io("start rules", error))?);
    sonde_ingest::register_rules(query, &rules);
    Ok(rules)
}

fn settings_table(
    settings: Vec<Setting>,
) -> impl Fn() -> sonde_query::Result<arrow::record_batch::RecordBatch> {
    move || {
        let mut rows = BatchBuilder::new(COLUMNS);
        for setting in &settings {
            rows.text(Some(setting.key));
            rows.text(Some(&setting.value));
            rows.text(Some(&setting.origin));
            rows.text(Some(setting.help));
            rows.end_row();
        }
        rows.finish()
    }
}

/// Lets a gRPC request through with its principal, or answers it.
async fn recognise_grpc(
    State(who): State<Arc<Authenticator>>,
    mut request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    let peer = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
    let header = request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match who.header(header, peer.map(|peer| peer.ip())).await {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(Refusal::Busy) => tonic::Status::unavailable("too many logins: come back in a while").into_http(),
        Err(_) => {
            let text = "no valid token: send authorization: Bearer <token>, or Basic with user and password";
            tonic::Status::unauthenticated(text).into_http()
        }
    }
}

async fn wait_stop(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means stop, too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

impl Server {
    async fn start_http(
        &mut self,
        config: &Config,
        authenticator: &Arc<Authenticator>,
        stopped: watch::Receiver<bool>,
    ) -> Result<()> {
        let Some(listen) = config.http_listen else { return Ok(()) };
        let listener = TcpListener::bind(listen).await;
        let listener =
            listener.map_err(|error| io(&format!("listen on {listen} for HTTP (http.listen)"), error))?;
        self.addresses.http = listener.local_addr().ok();
        let front = Front {
            engine: self.engine.clone(),
            query: self.query.clone(),
            mqtt: self.mqtt.clone(),
            authenticator: Arc::clone(authenticator),
            insecure: config.insecure,
            bodies: self.bodies.clone(),
        };
        let router = routes(front).into_make_service_with_connect_info::<SocketAddr>();
        let listener = listener.tap_io(|stream| {
            // Answers are written whole: waiting for more of them gains nothing.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
        });
        self.doors.push(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(wait_stop(stopped)).await
            {
                tracing::error!(%error, "the HTTP server failed");
            }
        }));
        Ok(())
    }

    async fn start_grpc(
        &mut self,
        config: &Config,
        authenticator: &Arc<Authenticator>,
        stopped: watch::Receiver<bool>,
    ) -> Result<()> {
        let Some(listen) = config.grpc_listen else { return Ok(()) };
        let listener = TcpListener::bind(listen).await;
        let listener =
            listener.map_err(|error| io(&format!("listen on {listen} for gRPC (grpc.listen)"), error))?;
        self.addresses.grpc = listener.local_addr().ok();
        let services = Routes::new(sonde_query::door::grpc::service(self.query.clone()))
            .add_service(sonde_query::door::flight::service(self.query.clone()))
            .add_service(sonde_ingest::grpc::service(self.engine.clone(), self.bodies.clone()));
        let services = match &self.mqtt {
            Some(mqtt) => services.add_service(sonde_ingest::tail::grpc::service(Arc::clone(mqtt))),
            None => services,
        };
        let who = middleware::from_fn_with_state(Arc::clone(authenticator), recognise_grpc);
        let services = Routes::from(services.into_axum_router().layer(who));
        let server = tonic::transport::Server::builder().add_routes(services).serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            wait_stop(stopped),
        );
        self.doors.push(tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the gRPC server failed");
            }
        }));
        Ok(())
    }

    /// Writes `endpoints.json`, by which clients find the server; 0.0.0.0 is written as 127.0.0.1.
    fn write_endpoints(&self) -> Result<()> {
        let text = |address: SocketAddr| {
            let ip = if address.ip().is_unspecified() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                address.ip()
            };
            SocketAddr::new(ip, address.port()).to_string()
        };
        let mut endpoints = serde_json::Map::new();
        for (name, address) in &self.addresses.mqtt_listeners {
            if let ListenAddress::Tcp(address) = address
                && listeners::is_named(name)
            {
                endpoints.insert(name.clone(), text(*address).into());
            }
        }
        for (name, address) in [("http", self.addresses.http), ("grpc", self.addresses.grpc)] {
            if let Some(address) = address {
                endpoints.insert(name.into(), text(address).into());
            }
        }
        let tmp = self.endpoints.with_extension("tmp");
        let written = std::fs::write(&tmp, serde_json::Value::Object(endpoints).to_string())
            .and_then(|()| std::fs::rename(&tmp, &self.endpoints));
        written.map_err(|error| io(&format!("write {}", self.endpoints.display()), error))
    }

    /// Resolves when the MQTT event loop has ended; never where there is none.
    pub(crate) fn mqtt_ended(&self) -> impl Future<Output = ()> + use<> {
        let ended = self.mqtt.as_ref().and_then(|mqtt| mqtt.ended());
        async move {
            match ended {
                Some(ended) => ended.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Reads the files of the certificate again.
    pub(crate) fn reload(&self) {
        if let Some(mqtt) = &self.mqtt {
            mqtt.reload_certificates();
        }
    }

    /// Stops in order: listeners, then the engine's flush.
    pub(crate) async fn stop(self) -> Result<()> {
        if let Err(error) = std::fs::remove_file(&self.endpoints) {
            tracing::debug!(%error, "cannot remove endpoints.json");
        }
        let (mqtt, rules) = (self.mqtt.clone(), Arc::clone(&self.rules));
        let ended = tokio::task::spawn_blocking(move || {
            rules.stop();
            if let Some(mqtt) = mqtt {
                mqtt.stop();
            }
        });
        let _ = self.stop.send(true);
        for mut door in self.doors {
            if tokio::time::timeout(GRACE, &mut door).await.is_err() {
                door.abort();
            }
        }
        ended.await.map_err(|error| io("stop MQTT", error))?;
        let engine = self.engine.clone();
        let closed =
            tokio::task::spawn_blocking(move || engine.close()).await.map_err(|error| io("close", error))?;
        closed.map_err(engine_failure)
    }
}
