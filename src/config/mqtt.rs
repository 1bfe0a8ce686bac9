//! What MQTT is told: who may come in, what waits for a session, what clients are told.

use sonde_ingest::mqtt::{Offers, Overflow, QueueLimits};

use super::{Values, bytes, duration, wrong};
use crate::cli::Result;

/// Who may come in over MQTT without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anonymous {
    Loopback,
    Always,
    Never,
}

pub(super) fn anonymous(values: &Values) -> Result<Anonymous> {
    match values.get("mqtt.anonymous") {
        "loopback" => Ok(Anonymous::Loopback),
        "always" => Ok(Anonymous::Always),
        "never" => Ok(Anonymous::Never),
        other => Err(wrong(format!("mqtt.anonymous is loopback, always or never, not '{other}'"))),
    }
}

/// How much waits for an MQTT session.
pub(super) fn queue_limits(values: &Values) -> Result<QueueLimits> {
    let messages = values.get("mqtt.queued_messages");
    let messages = messages.parse().ok().filter(|count| *count > 0);
    let messages =
        messages.ok_or_else(|| wrong("mqtt.queued_messages is a number above 0, such as 10000"))?;
    let overflow = match values.get("mqtt.queue_overflow") {
        "drop_new" => Overflow::DropNew,
        "drop_oldest" => Overflow::DropOldest,
        "disconnect" => Overflow::Disconnect,
        other => {
            let known = "drop_new, drop_oldest or disconnect";
            return Err(wrong(format!("mqtt.queue_overflow is {known}, not '{other}'")));
        }
    };
    let bytes = bytes("mqtt.queued_bytes", values.get("mqtt.queued_bytes"))?;
    Ok(QueueLimits { messages, bytes: usize::try_from(bytes).unwrap_or(usize::MAX), overflow })
}

/// What 5.0 clients are told.
pub(super) fn offers(values: &Values) -> Result<Offers> {
    let (keep_alive, reference) =
        (values.get("mqtt.keep_alive_maximum"), values.get("mqtt.server_reference"));
    let mut offers = Offers::default();
    if !keep_alive.is_empty() {
        let key = "mqtt.keep_alive_maximum";
        let seconds = duration(key, keep_alive)?.as_secs();
        let fits = u16::try_from(seconds).ok().filter(|seconds| *seconds > 0);
        let most = offers.keep_alive_maximum;
        offers.keep_alive_maximum =
            fits.ok_or_else(|| wrong(format!("{key} is {keep_alive}; expected 1 second to {most} seconds")))?;
    }
    if reference.len() > usize::from(u16::MAX) || reference.contains('\0') {
        return Err(wrong("mqtt.server_reference is longer than 65,535 bytes, or has U+0000".to_owned()));
    }
    offers.server_reference = (!reference.is_empty()).then(|| reference.into());
    Ok(offers)
}
