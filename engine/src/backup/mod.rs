//! Backups of a data directory, and their restore, to the last commit or to an instant before it.
//!
//! `source` is what a backup is taken of, `create` makes it, `manifest` says what it is, `choose` finds the one that an
//! instant is restored from, `restore` writes a data directory, `verify` reads everything, `earlier` is what a destination has
//! already and removes what is old, `store` is the destination.
//!
//! # Invariants
//! - A backup is of one published position. It is there once its manifest is, the last object that is written.
//! - Nothing of a restore has the data directory's name before all of it is written, read again and synced.

mod choose;
mod create;
mod earlier;
mod hold;
mod log;
mod manifest;
mod restore;
mod source;
mod store;
mod verify;

pub use choose::{BackupInfo, Listing, Range, To, list};
pub(crate) use create::back_up;
pub use create::{Report, back_up_stopped};
pub use earlier::{Pruned, prune};
pub(crate) use hold::Backups;
pub use manifest::rfc3339;
pub use restore::{RestoreRequest, Restored, restore};
pub use store::BackupStore;
pub use verify::{Verified, verify};
