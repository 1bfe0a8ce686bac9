//! The hex dumps in docs/format are bytes that the code writes.

