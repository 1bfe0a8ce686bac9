//! What is published, for readers that are no MQTT clients: server-sent events and gRPC.

pub mod grpc;
pub mod http;
