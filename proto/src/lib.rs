//! Every byte on the wire: the MQTT codec and the gRPC interface. No sockets, no state.

pub mod mqtt;

/// The gRPC package `sonde.v1`, generated from `proto/sonde/v1/sonde.proto`.
#[expect(missing_docs, reason = "generated; the documentation is in the .proto file")]
#[expect(clippy::clone_on_ref_ptr, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("sonde.v1");
}
