#![doc = include_str!("../../../docs/format/page.md")]
//!
//! # Invariants
//! - The vector grid lies on present values: vector `i` holds present values `1024 i ..` up to the next 1,024.
//! - A page decodes without any other page; it carries its own dictionary.

mod encode;
mod filter;
mod read;
mod stats;

pub use encode::{encode_page, encode_page_as};
pub use filter::{Between, Selection};
pub use read::{Page, decode_page};
pub use stats::{Ends, PageStats, Sum};
pub(crate) use stats::{Facts, Summary};

/// Every row has a value; no map follows.
const CELLS_VALUES: u8 = 0;
/// Rows without a value are NULL.
const CELLS_NULL: u8 = 1;
/// Rows without a value are absent.
const CELLS_ABSENT: u8 = 2;
/// Rows without a value are either.
const CELLS_BOTH: u8 = 3;
/// Vectors of 1,024 present values each follow.
const GRID_VECTORS: u8 = 0;
/// All present values follow as one unit.
const GRID_UNIT: u8 = 1;
