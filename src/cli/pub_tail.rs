//! `sonde pub` and `sonde tail`.

use std::io::Write;

use sonde_proto::mqtt::{QoS, validate_topic};

use super::client::Client;
use super::mqtt_client::{Event, MqttClient};
use super::output::unwritten;
use super::{Exit, Failure, PubArgs, Result, ServerArgs, TailArgs};

fn connect(args: &ServerArgs) -> Result<MqttClient> {
    let client = Client::find(args)?;
    let Some(mqtt) = &client.mqtt else {
        return Err(Failure::new(
            Exit::Unreachable,
            "the MQTT address is not known: the endpoints.json of the server's --data-dir has it, on the server's machine",
        ));
    };
    let id = format!("sonde-cli-{}", std::process::id());
    MqttClient::connect(mqtt, &id, client.token.as_deref())
}

pub(super) fn publish(args: &PubArgs) -> Result<()> {
    validate_topic(&args.topic)
        .map_err(|error| Failure::new(Exit::Failed, format!("topic '{}': {error}", args.topic)))?;
    let qos = QoS::from_bits(args.qos).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let mut client = connect(&args.server)?;
    client.queue(&args.topic, args.payload.as_bytes(), qos, args.retain, 1);
    client.flush()?;
    if qos == QoS::AtMostOnce {
        return Ok(());
    }
    loop {
        let Some(event) = client.next()? else { continue };
        event.check()?;
        if matches!(event, Event::PubAck(_) | Event::PubComp(_)) {
            return Ok(());
        }
        client.acknowledge(&event);
        client.flush()?;
    }
}

pub(super) fn tail(args: &TailArgs) -> Result<()> {
    let mut client = connect(&args.server)?;
    client.subscribe(&args.filter, QoS::AtMostOnce)?;
    let mut out = std::io::stdout().lock();
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        if let Some(Event::Message { topic, payload, .. }) = client.next()? {
            let written = writeln!(out, "{topic} {}", String::from_utf8_lossy(&payload));
            written.and_then(|()| out.flush()).map_err(unwritten)?;
            left -= 1;
        }
    }
    Ok(())
}
