//! What is to be done, from the arguments: checked once, and the same for every thread.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sonde_proto::mqtt::{QoS, Version, filter_matches, is_shared, validate_filter, validate_topic};

use super::super::super::{Exit, Failure, Result};
use super::MqttArgs;
use super::template::Template;

/// A payload as devices send them.
const PAYLOAD: &str = r#"{"device":"d{client}","time":{time},"value":{random:0.00:100.00}}"#;
/// The same for runs with subscribers, which recognise it.
const STAMPED_PAYLOAD: &str =
    r#"{"device":"d{client}","time":{time},"value":{random:0.00:100.00},"stamp":"{stamp}"}"#;

/// The time, monotonic, as nanoseconds since 1970, so that two processes of one machine agree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    began: Instant,
    began_at: u64,
}

impl Clock {
    pub(super) fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), began_at: since.as_nanos() as u64 }
    }

    pub(super) fn now(&self) -> u64 {
        self.began_at + self.began.elapsed().as_nanos() as u64
    }
}

/// How long messages are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// So long, behind the warm-up.
    Time(Duration),
    /// Until so many are published, by all clients.
    Messages(u64),
}

/// The whole plan.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) address: SocketAddr,
    pub(super) target: String,
    pub(super) version: Version,
    pub(super) qos: QoS,
    pub(super) subscriber_qos: QoS,
    pub(super) publishers: usize,
    pub(super) subscribers: usize,
    pub(super) quiet: usize,
    pub(super) subscriptions: usize,
    pub(super) in_flight: u16,
    pub(super) rate: Option<f64>,
    pub(super) connect_rate: Option<f64>,
    pub(super) topic: Template,
    pub(super) filters: Vec<Template>,
    pub(super) payload: Template,
    pub(super) until: Until,
    pub(super) warm_up: Duration,
    pub(super) patience: Duration,
    pub(super) threads: usize,
    pub(super) prefix: String,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) keep_session: bool,
    pub(super) clock: Clock,
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, text)
}

/// `HOST:PORT` of `mqtt://HOST[:PORT]`.
fn authority(url: &str) -> Result<String> {
    let rest = url
        .strip_prefix("mqtt://")
        .ok_or_else(|| usage(format!("--url {url}: expected mqtt://HOST[:PORT]")))?;
    let rest = rest.trim_end_matches('/');
    let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port { rest.to_owned() } else { format!("{rest}:1883") })
}

fn template(flag: &str, text: &str) -> Result<Template> {
    Template::parse(text).map_err(|why| usage(format!("--{flag}: {why}")))
}

impl Plan {
    pub(super) fn new(args: &MqttArgs) -> Result<Self> {
        let target = match &args.url {
            Some(url) => authority(url)?,
            None => format!("{}:{}", args.host, args.port),
        };
        let address =
            target.to_socket_addrs().ok().and_then(|mut found| found.next()).ok_or_else(|| {
                Failure::new(Exit::Unreachable, format!("{target} is not known: no such host"))
            })?;
        let payload = match (&args.payload, args.size) {
            (Some(text), _) => template("payload", text)?,
            (None, Some(size)) => Template::of_size(size),
            (None, None) if args.subscribers > 0 => template("payload", STAMPED_PAYLOAD)?,
            (None, None) => template("payload", PAYLOAD)?,
        };
        if args.connections + args.subscribers + args.quiet == 0 {
            return Err(usage("there is nothing to do: give --connections, --subscribers or --quiet"));
        }
        if args.rate.is_some_and(|rate| rate <= 0.0) || args.connect_rate.is_some_and(|rate| rate <= 0.0) {
            return Err(usage("a rate must be more than 0"));
        }
        let until = match args.messages {
            Some(messages) => Until::Messages(messages),
            None => Until::Time(Duration::from_secs_f64(args.duration)),
        };
        // What counts messages measures all of them.
        let default_warm_up = if args.messages.is_some() || args.connections == 0 { 0.0 } else { 1.0 };
        let plan = Self {
            address,
            target,
            version: if args.protocol_version == "5" { Version::V5 } else { Version::V311 },
            qos: qos(args.qos)?,
            subscriber_qos: qos(args.subscriber_qos.unwrap_or(args.qos))?,
            publishers: args.connections,
            subscribers: args.subscribers,
            quiet: args.quiet,
            subscriptions: args.subscriptions.unwrap_or(args.subscribers * args.filter.len()),
            in_flight: args.in_flight,
            rate: args.rate,
            connect_rate: args.connect_rate,
            topic: template("topic", &args.topic)?,
            filters: args.filter.iter().map(|text| template("filter", text)).collect::<Result<_>>()?,
            payload,
            until,
            warm_up: Duration::from_secs_f64(args.warm_up.unwrap_or(default_warm_up)),
            patience: Duration::from_secs_f64(args.patience),
            threads: usize::from(args.threads).clamp(1, 64),
            prefix: args.client_prefix.clone(),
            username: args.username.clone(),
            password: args.password.clone().or_else(|| std::env::var("SONDE_BENCH_PASSWORD").ok()),
            keep_session: args.keep_session,
            clock: Clock::new(),
        };
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<()> {
        let topic = self.topic.text(0, 0);
        validate_topic(&topic).map_err(|error| usage(format!("--topic makes {topic:?}: {error}")))?;
        for filter in &self.filters {
            let filter = filter.text(0, 0);
            validate_filter(&filter).map_err(|error| usage(format!("--filter makes {filter:?}: {error}")))?;
        }
        Ok(())
    }

    /// The filters of a subscriber: every `subscribers`-th of all subscriptions, which take the templates in turn.
    pub(super) fn filters_of(&self, subscriber: usize) -> impl Iterator<Item = String> {
        (subscriber..self.subscriptions.max(self.subscribers)).step_by(self.subscribers.max(1)).filter_map(
            move |number| {
                let template =
                    self.filters.get((number / self.subscribers.max(1)) % self.filters.len().max(1))?;
                Some(template.text(subscriber as u32, number as u64))
            },
        )
    }

    /// How many subscribers get each message of these topics; `None` where that cannot be told. No topic stands for one
    /// that differs from message to message.
    pub(super) fn audiences(&self, topics: &[Option<String>]) -> Vec<Option<u64>> {
        let mut audiences = vec![Some(0_u64); topics.len()];
        for subscriber in 0..self.subscribers {
            let filters: Vec<String> = self.filters_of(subscriber).collect();
            let shares = filters.iter().any(|filter| is_shared(filter));
            for (topic, audience) in topics.iter().zip(&mut audiences) {
                let gets_it = match topic {
                    _ if shares => None,
                    Some(topic) => Some(filters.iter().any(|filter| filter_matches(filter, topic))),
                    None => filters.iter().any(|filter| filter == "#").then_some(true),
                };
                *audience = audience.zip(gets_it).map(|(audience, gets_it)| audience + u64::from(gets_it));
            }
        }
        audiences
    }

    /// The numbers of those among `all` that a thread has.
    pub(super) fn share(&self, all: usize, thread: usize) -> impl Iterator<Item = usize> + use<> {
        (thread..all).step_by(self.threads)
    }
}

fn qos(number: u8) -> Result<QoS> {
    QoS::from_bits(number).map_err(|_| usage(format!("QoS {number}: expected 0, 1 or 2")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: MqttArgs,
    }

    fn plan(line: &str) -> Result<Plan> {
        Plan::new(&Line::try_parse_from(line.split_whitespace()).unwrap().args)
    }

    #[test]
    fn subscriptions_are_dealt_out_and_the_audience_is_counted() {
        let plan =
            plan("x --subscribers 3 --subscriptions 12 --filter a/{n} --filter a/+/{n} --topic a/4").unwrap();
        let of = |subscriber| plan.filters_of(subscriber).collect::<Vec<_>>();
        assert_eq!(of(0), ["a/0", "a/+/3", "a/6", "a/+/9"]);
        assert_eq!(of(1), ["a/1", "a/+/4", "a/7", "a/+/10"]);
        let topics = [Some("a/7".to_owned()), Some("a/4".to_owned()), None];
        // 4 is the number of one with a wildcard, which has three levels.
        assert_eq!(plan.audiences(&topics), [Some(1), Some(0), None]);
        assert!((0..3).map(|subscriber| of(subscriber).len()).eq([4, 4, 4]));
    }

    #[test]
    fn everybody_gets_what_everybody_asked_for() {
        let plan = plan("x --subscribers 2 --topic t/{seq}").unwrap();
        assert_eq!(plan.filters_of(1).collect::<Vec<_>>(), ["#"]);
        assert_eq!(plan.audiences(&[None]), [Some(2)]);
    }

    #[test]
    fn addresses_are_read() {
        assert_eq!(authority("mqtt://localhost:1884/").ok(), Some("localhost:1884".into()));
        assert_eq!(authority("mqtt://broker").ok(), Some("broker:1883".into()));
        assert!(authority("http://broker").is_err());
        for line in [
            "x --connections 0",
            "x --rate 0",
            "x --topic a/#",
            "x --filter #/a --subscribers 1",
            "x --topic {x}",
        ] {
            assert_eq!(plan(line).unwrap_err().exit, Exit::Usage, "{line}");
        }
    }
}
