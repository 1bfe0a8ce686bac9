//! Texts with placeholders: topics, filters and payloads that differ from client to client and message to message.
//!
//! A `{` that no lower-case name follows is itself, so JSON needs no quoting.

use std::io::Write;

use super::stamp::{self, Stamp};

/// Digits of a client's number, so that names of clients sort and are of one length.
const CLIENT_DIGITS: usize = 6;

/// What a placeholder stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    /// The client's number.
    Client,
    /// The number of the message among its client's, or of a subscription among all.
    Number,
    /// When the message was due, in nanoseconds since 1970.
    Time,
    /// The same in milliseconds.
    TimeMs,
    /// What a subscriber recognises the message by.
    Stamp,
    /// A number from `low` up to `high`, which is not reached, with so many decimals.
    Random { low: f64, high: f64, decimals: usize },
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(Vec<u8>),
    Value(Value),
}

/// A parsed text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template(Vec<Part>);

/// What placeholders are filled with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    pub(super) client: u32,
    pub(super) number: u64,
    /// Nanoseconds since 1970.
    pub(super) time: u64,
}

/// Numbers that look random: xorshift64*, the same ones for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// From 0 up to 1, which is not reached.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Template {
    /// Parses a text; what is wrong with it, where it cannot be one.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            let (before, behind) = rest.split_at(at);
            plain.extend_from_slice(before.as_bytes());
            let inside = behind.get(1..).unwrap_or_default();
            if !inside.starts_with(|c: char| c.is_ascii_lowercase()) {
                plain.push(b'{');
                rest = inside;
                continue;
            }
            let (name, after) =
                inside.split_once('}').ok_or_else(|| format!("`{{{inside}` has no closing brace"))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Value(value(name)?));
            rest = after;
        }
        plain.extend_from_slice(rest.as_bytes());
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    /// A payload of `size` bytes that says nothing; it begins with a stamp where there is room for one.
    pub(super) fn of_size(size: usize) -> Self {
        match size.checked_sub(stamp::LEN) {
            Some(rest) => Self(vec![Part::Value(Value::Stamp), Part::Text(vec![b'x'; rest])]),
            None => Self(vec![Part::Text(vec![b'x'; size])]),
        }
    }

    /// Whether subscribers can recognise what it makes.
    pub(super) fn has_stamp(&self) -> bool {
        self.0.contains(&Part::Value(Value::Stamp))
    }

    /// Whether it is the same for every message of a client.
    pub(super) fn is_constant(&self) -> bool {
        self.0.iter().all(|part| matches!(part, Part::Text(_) | Part::Value(Value::Client)))
    }

    /// Appends the text.
    pub(super) fn write(&self, fill: &Fill, random: &mut Random, out: &mut Vec<u8>) {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Value(value) => write_value(*value, fill, random, out),
            }
        }
    }

    /// The text for one client or subscription.
    pub(super) fn text(&self, client: u32, number: u64) -> String {
        let mut out = Vec::new();
        self.write(&Fill { client, number, time: 0 }, &mut Random::new(number), &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

fn value(name: &str) -> Result<Value, String> {
    let mut words = name.split(':');
    let value = match words.next().unwrap_or_default() {
        "client" => Value::Client,
        "seq" | "n" => Value::Number,
        "time" => Value::Time,
        "time_ms" => Value::TimeMs,
        "stamp" => Value::Stamp,
        "random" => {
            let mut bound = || {
                let word = words.next()?;
                let decimals = word.split_once('.').map_or(0, |(_, decimals)| decimals.len());
                word.parse::<f64>().ok().filter(|bound| bound.is_finite()).map(|bound| (bound, decimals))
            };
            match (bound(), bound()) {
                (Some((low, a)), Some((high, b))) if low < high && a.max(b) <= 15 => {
                    Value::Random { low, high, decimals: a.max(b) }
                }
                _ => {
                    return Err(format!(
                        "`{{{name}}}`: expected {{random:LOW:HIGH}} with numbers of at most 15 decimals and LOW < HIGH"
                    ));
                }
            }
        }
        _ => {
            return Err(format!(
                "`{{{name}}}` is no placeholder: expected client, seq, n, time, time_ms, stamp or random:LOW:HIGH"
            ));
        }
    };
    match words.next() {
        Some(more) => Err(format!("`{{{name}}}`: `{more}` has no meaning there")),
        None => Ok(value),
    }
}

fn write_value(value: Value, fill: &Fill, random: &mut Random, out: &mut Vec<u8>) {
    match value {
        Value::Client => write_integer(fill.client.into(), CLIENT_DIGITS, out),
        Value::Number => write_integer(fill.number, 1, out),
        Value::Time => write_integer(fill.time, 1, out),
        Value::TimeMs => write_integer(fill.time / 1_000_000, 1, out),
        Value::Stamp => Stamp { client: fill.client, number: fill.number, time: fill.time }.write(out),
        Value::Random { low, high, decimals } => {
            let number = low + (high - low) * random.next();
            if decimals == 0 {
                // As an integer it would else be rounded up to `high` now and then.
                let _ = write!(out, "{}", number.floor());
            } else {
                // Writing to a vector does not fail.
                let _ = write!(out, "{number:.decimals$}");
            }
        }
    }
}

fn write_integer(mut number: u64, digits: usize, out: &mut Vec<u8>) {
    let mut reversed = [b'0'; 20];
    let mut len = 0;
    for slot in &mut reversed {
        if number == 0 && len >= digits {
            break;
        }
        *slot = b'0' + (number % 10) as u8;
        number /= 10;
        len += 1;
    }
    out.extend(reversed.iter().take(len).rev());
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    fn filled(text: &str) -> String {
        let fill = Fill { client: 7, number: 0, time: 1_708_700_000_123_456_789 };
        let mut out = Vec::new();
        Template::parse(text).unwrap().write(&fill, &mut Random::new(1), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn placeholders_are_filled_and_other_braces_stay() {
        assert_eq!(filled(r#"{"a":{"b":"d{client}","n":{seq}}}"#), r#"{"a":{"b":"d000007","n":0}}"#);
        assert_eq!(filled("{time}/{time_ms}"), "1708700000123456789/1708700000123");
        assert_eq!(filled("plain"), "plain");
        assert_eq!(filled(""), "");
    }

    #[test]
    fn random_numbers_stay_within_their_bounds() {
        let template = Template::parse("{random:-2.50:3}").unwrap();
        let whole = Template::parse("{random:0:3}").unwrap();
        let mut random = Random::new(3);
        let mut seen = [false; 3];
        for number in 0..1000 {
            let fill = Fill { client: 0, number, time: 0 };
            let mut out = Vec::new();
            template.write(&fill, &mut random, &mut out);
            let text = String::from_utf8(std::mem::take(&mut out)).unwrap();
            assert_eq!(text.split_once('.').unwrap().1.len(), 2, "{text}");
            assert!((-2.5..=3.0).contains(&text.parse::<f64>().unwrap()), "{text}");
            whole.write(&fill, &mut random, &mut out);
            seen[usize::from(out[0] - b'0')] = true;
        }
        assert_eq!(seen, [true; 3]);
    }

    #[test]
    fn what_cannot_be_is_said() {
        for (text, why) in [
            ("{clinet}", "no placeholder"),
            ("{seq", "no closing brace"),
            ("{seq:2}", "no meaning"),
            ("{random:3:2}", "LOW < HIGH"),
            ("{random:1}", "LOW < HIGH"),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_payload_of_a_size_has_it_and_its_stamp_where_there_is_room() {
        for (size, stamped) in [(0, false), (10, false), (stamp::LEN, true), (100, true)] {
            let template = Template::of_size(size);
            assert_eq!((template.text(1, 2).len(), template.has_stamp()), (size, stamped));
        }
        assert!(Template::parse("a/{client}").unwrap().is_constant());
        assert!(!Template::parse("a/{seq}").unwrap().is_constant());
    }
}
