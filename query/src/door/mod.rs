//! The doors that answers leave by: HTTP, gRPC and Flight SQL. Root mounts them behind one authentication layer, which
//! puts an `Arc<Principal>` into each request's extensions.

pub mod flight;
pub mod format;
pub mod grpc;
pub mod http;
pub mod ipc;

mod announce;
mod facts;
mod prepared;
