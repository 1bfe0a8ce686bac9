//! How the demo ends: the signals that end it, and the directory that goes with it.

use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{Exit, Failure, Result};
use crate::token::random_hex;

/// Whether Ctrl-C or SIGTERM came.
pub(super) struct Interrupt(watch::Receiver<bool>);

fn interrupted() -> Failure {
    Failure::new(Exit::Interrupted, "ended by a signal")
}

impl Interrupt {
    /// Listens from now on: a signal does not end the process any more, the demo does it in order.
    pub(super) fn listen(runtime: &Runtime) -> Result<Self> {
        let _context = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (came, seen) = watch::channel(false);
        runtime.spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            // Where nobody looks any more, the demo has ended.
            let _ = came.send(true);
        });
        Ok(Self(seen))
    }

    /// Fails where a signal came; to be called before everything that takes time.
    pub(super) fn check(&self) -> Result<()> {
        if *self.0.borrow() { Err(interrupted()) } else { Ok(()) }
    }

    /// Waits for a signal.
    pub(super) async fn wait(&mut self) -> Failure {
        let _ = self.0.wait_for(|came| *came).await;
        interrupted()
    }
}

/// Where the demo's data is.
pub(super) struct DataDir {
    path: PathBuf,
    /// Whether it was made for this demo, and goes with it.
    temporary: bool,
}

impl DataDir {
    /// The directory that was given, which must be new or empty, else one of the demo's own.
    pub(super) fn make(given: Option<&Path>) -> Result<Self> {
        match given {
            Some(path) => {
                refuse_filled(path)?;
                Ok(Self { path: path.to_owned(), temporary: false })
            }
            None => Self::temporary(),
        }
    }

    /// Nobody can guess the name, nobody else can look inside, and what exists already is not taken for it.
    fn temporary() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("sonde-demo-{}", random_hex::<8>()?));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Failure::new(Exit::Io, format!("create {}: {error}", path.display())))?;
        Ok(Self { path, temporary: true })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if !self.temporary {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The demo's checks count every row, so they would fail on rows of somebody else.
fn refuse_filled(dir: &Path) -> Result<()> {
    match std::fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Failure::new(
            Exit::Usage,
            format!("--data-dir {} is not empty: the demo needs a new or empty directory", dir.display()),
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::new(Exit::Io, format!("read {}: {error}", dir.display()))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_demos_own_directory_is_private_and_goes() {
        let dir = DataDir::make(None).unwrap();
        let path = dir.path().to_owned();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(path.join("file"), "x").unwrap();
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn a_given_directory_is_new_or_empty_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::make(Some(dir.path())).unwrap());
        let new = dir.path().join("new");
        assert!(DataDir::make(Some(new.as_path())).is_ok());
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let refused = DataDir::make(Some(dir.path())).map(|_| ()).unwrap_err();
        assert_eq!(refused.exit, Exit::Usage);
        assert!(dir.path().join("file").exists());
    }
}
