//! What queries run in: memory, spill directory, partitions, and no file that a statement could reach.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use datafusion::error::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreRegistry;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionConfig;

use crate::catalog::{CATALOG, DEFAULT_DATABASE};
use crate::error::{Error, Result};
use crate::limits::QUERY_TIMEOUT;

/// How queries are run.
#[derive(Clone, Debug)]
pub struct QueryOptions {
    /// Bytes that all queries together may hold in memory.
    pub memory_bytes: usize,
    /// Where queries spill.
    pub spill_dir: PathBuf,
    /// Bytes that all queries together may spill.
    pub spill_bytes: u64,
    /// How long a query may run.
    pub timeout: Duration,
    /// How many partitions a plan aims at.
    pub partitions: usize,
    /// Directories below which `COPY` may write.
    pub copy_locations: Vec<PathBuf>,
    /// Directories that `BACKUP` may write to, and below.
    pub backup_locations: Vec<PathBuf>,
    /// What runs the requests of backups: not the doors' runtime, whose threads may all wait for scans.
    pub backup_runtime: Option<tokio::runtime::Handle>,
}

impl QueryOptions {
    /// 512 MiB of memory, 8 GiB of spill, five minutes, two partitions, no `COPY` and no `BACKUP`.
    #[must_use]
    pub fn new(spill_dir: impl Into<PathBuf>) -> Self {
        Self {
            memory_bytes: 512 << 20,
            spill_dir: spill_dir.into(),
            spill_bytes: 8 << 30,
            timeout: QUERY_TIMEOUT,
            partitions: 2,
            copy_locations: Vec::new(),
            backup_locations: Vec::new(),
            backup_runtime: None,
        }
    }
}

/// No object store at all: no statement reaches a file.
#[derive(Debug)]
struct NoStores;

impl ObjectStoreRegistry for NoStores {
    fn register_store(
        &self,
        _url: &url::Url,
        _store: Arc<dyn object_store::ObjectStore>,
    ) -> Option<Arc<dyn object_store::ObjectStore>> {
        None
    }

    fn get_store(&self, url: &url::Url) -> datafusion::common::Result<Arc<dyn object_store::ObjectStore>> {
        Err(DataFusionError::Plan(format!("{url} cannot be read: SQL reaches tables only")))
    }
}

/// Makes a directory that is empty: what queries spilled before the process ended is of no use to anyone.
fn empty(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Memory, spill and the files that queries reach, which are none. What is in the spill directory goes.
pub(crate) fn runtime(options: &QueryOptions) -> Result<Arc<RuntimeEnv>> {
    empty(&options.spill_dir)
        .map_err(|error| Error::Internal(format!("empty {}: {error}", options.spill_dir.display())))?;
    let pool = FairSpillPool::new(options.memory_bytes);
    let pool = TrackConsumersPool::new(pool, NonZeroUsize::MIN.saturating_add(2));
    let disk = DiskManagerBuilder::default()
        .with_mode(DiskManagerMode::Directories(vec![options.spill_dir.clone()]))
        .with_max_temp_directory_size(options.spill_bytes);
    Ok(RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(disk)
        .with_object_store_registry(Arc::new(NoStores))
        .build_arc()?)
}

/// What every session starts with.
pub(crate) fn config(options: &QueryOptions) -> SessionConfig {
    // What each partition of a sort sets aside for merging what it spilled; its default is more than a small pool has.
    let merge_bytes = (options.memory_bytes / 8 / options.partitions.max(1)).min(10 << 20);
    let mut config = SessionConfig::new()
        .with_target_partitions(options.partitions)
        .with_default_catalog_and_schema(CATALOG, DEFAULT_DATABASE)
        .with_create_default_catalog_and_schema(false)
        .with_sort_spill_reservation_bytes(merge_bytes)
        .with_information_schema(true);
    config.options_mut().execution.time_zone = Some("UTC".into());
    config.options_mut().sql_parser.map_string_types_to_utf8view = false;
    // Names are stored as written; `names.rs` finds the ones that differ in case only.
    config.options_mut().sql_parser.enable_ident_normalization = false;
    config
}
