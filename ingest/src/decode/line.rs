//! Line protocol, as InfluxDB and Telegraf write it: `measurement[,tag=value]* field=value[,field=value]* [time]`.

use std::borrow::Cow;
use std::num::ParseIntError;

use memchr::{memchr, memchr2};
use sonde_engine::FieldValue;

use super::{DecodeError, Rows};

/// What a line says beside its items.
#[derive(Debug, PartialEq)]
pub struct Line<'a> {
    /// The measurement.
    pub table: Cow<'a, str>,
    /// How many of the items are tags; they come first.
    pub tags: usize,
    /// The time, in whatever unit was agreed.
    pub time: Option<i64>,
}

/// The lines of a body that hold something, with the number of their first line from 1. A string of a field may hold
/// line breaks.
pub fn lines(body: &str) -> impl Iterator<Item = (usize, &str)> {
    let (mut rest, mut next) = (body, 1);
    let split = std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (end, breaks) = end_of_line(rest);
        let (line, behind) = rest.split_at(end);
        let number = next;
        next += 1 + breaks;
        rest = behind.strip_prefix('\n').unwrap_or(behind);
        Some((number, line.trim()))
    });
    split.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// Where the first line ends, and how many line breaks it holds: at a line break outside of a field's string. As Influx
/// does it: quotes mean something behind the first space that is not escaped.
fn end_of_line(text: &str) -> (usize, usize) {
    let plain = memchr(b'\n', text.as_bytes()).unwrap_or(text.len());
    let line = text.get(..plain).unwrap_or(text);
    if memchr(b'"', line.as_bytes()).is_none() || line.trim_start().starts_with('#') {
        return (plain, 0);
    }
    let start = text.len() - text.trim_start().len();
    let (mut fields, mut quoted, mut escaped) = (false, false, false);
    let breaks = |end: usize| text.bytes().take(end).filter(|byte| *byte == b'\n').count();
    for (at, byte) in text.bytes().enumerate().skip(start) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b' ' => fields = true,
            b'"' if fields => quoted = !quoted,
            b'\n' if !quoted => return (at, breaks(at)),
            _ => {}
        }
    }
    // A string that never ends costs its own line only.
    if quoted { (plain, 0) } else { (text.len(), breaks(text.len())) }
}

/// Splits a line where its fields begin: measurement and tags, and the rest. `None` where something before is escaped.
pub(crate) fn head(line: &str) -> Option<(&str, &str)> {
    let at = memchr2(b' ', b'\\', line.as_bytes())?;
    let (head, rest) = line.split_at(at);
    rest.starts_with(' ').then_some((head, rest))
}

/// Whether the fields of a line can be recognised by this name's own bytes, with the equals sign behind them.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', ' ', '\\'])
}

/// Gives `each` the value of every field of `rest`, the part of a line behind its head, where those are exactly the
/// fields of `names`, which are plain and have their equals sign behind them. Returns the line's time. `None` where
/// `decode` has to look at the line: there is anything else, an escape, a string or a fault.
pub(crate) fn values<'a, 'n>(
    rest: &'a str,
    names: impl Iterator<Item = &'n str>,
    mut each: impl FnMut(FieldValue<'a>),
) -> Option<Option<i64>> {
    let mut rest = rest.trim_start_matches(' ');
    for (place, name) in names.enumerate() {
        if place > 0 {
            rest = rest.strip_prefix(',')?;
        }
        let behind = rest.strip_prefix(name)?;
        let end = behind.bytes().position(ends_value).unwrap_or(behind.len());
        let value;
        (value, rest) = behind.split_at(end);
        if rest.starts_with(['\\', '"']) {
            return None;
        }
        each(field(value)?);
    }
    // A comma: there is one more field.
    if rest.starts_with(',') { None } else { time(rest).ok() }
}

/// Whether a byte ends the value of a field, or is of those that hide such an end.
fn ends_value(byte: u8) -> bool {
    matches!(byte, b',' | b' ' | b'\\' | b'"')
}

/// Decodes one line into the one row of `rows`, which is emptied first: tags, then fields.
pub fn decode<'a>(line: &'a str, rows: &mut Rows<'a>) -> Result<Line<'a>, DecodeError> {
    rows.clear();
    let wrong =
        |what: &str| DecodeError(format!("{what} in '{}'", line.chars().take(80).collect::<String>()));
    let (table, mut rest) = take(line, [',', ' '], false);
    if table.is_empty() {
        return Err(wrong("no measurement"));
    }
    let mut tags = 0;
    while let Some(behind) = rest.strip_prefix(',') {
        let (key, behind) = take(behind, ['=', ' '], false);
        let behind = behind.strip_prefix('=').ok_or_else(|| wrong("a tag without a value"))?;
        let (value, behind) = take(behind, [',', ' '], false);
        if key.is_empty() || value.is_empty() {
            return Err(wrong("an empty tag"));
        }
        rows.push((unescape(key), FieldValue::Text(unescape(value))));
        tags += 1;
        rest = behind;
    }
    rest = rest.trim_start_matches(' ');
    loop {
        let (key, behind) = take(rest, ['=', ' '], false);
        let behind = behind.strip_prefix('=').filter(|_| !key.is_empty()).ok_or_else(|| wrong("no field"))?;
        let (value, behind) = take(behind, [',', ' '], true);
        rows.push((unescape(key), field(value).ok_or_else(|| wrong("a field value that is none"))?));
        rest = behind;
        match rest.strip_prefix(',') {
            Some(behind) => rest = behind,
            None => break,
        }
    }
    let time = time(rest).map_err(|_| wrong("a time that is no integer"))?;
    rows.end_row();
    Ok(Line { table: unescape(table), tags, time })
}

/// The time behind the fields.
fn time(rest: &str) -> Result<Option<i64>, ParseIntError> {
    match rest.trim() {
        "" => Ok(None),
        digits => digits.parse().map(Some),
    }
}

/// Splits at the first of `ends` that is neither escaped nor, with `quotes`, inside a string.
fn take(text: &str, ends: [char; 2], quotes: bool) -> (&str, &str) {
    let bytes = text.as_bytes();
    let (mut escaped, mut quoted) = (false, false);
    for (at, byte) in bytes.iter().enumerate() {
        let c = char::from(*byte);
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if quotes && c == '"' {
            quoted = !quoted;
        } else if !quoted && ends.contains(&c) {
            return text.split_at(at);
        }
    }
    (text, "")
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(',' | ' ' | '=' | '"' | '\\')) => out.extend(chars.next()),
            _ => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn field(value: &str) -> Option<FieldValue<'_>> {
    if let Some(inner) = value.strip_prefix('"') {
        return Some(FieldValue::Text(unescape(inner.strip_suffix('"')?)));
    }
    if let Some(digits) = value.strip_suffix('i') {
        return digits.parse().ok().map(FieldValue::Int);
    }
    if let Some(digits) = value.strip_suffix('u') {
        return digits.parse().ok().map(FieldValue::UInt);
    }
    match value {
        "t" | "T" | "true" | "True" | "TRUE" => Some(FieldValue::Bool(true)),
        "f" | "F" | "false" | "False" | "FALSE" => Some(FieldValue::Bool(false)),
        _ => value.parse().ok().filter(|number: &f64| number.is_finite()).map(FieldValue::Float),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read() {
        let mut rows = Rows::default();
        let text = r#"cpu\ x,host=a\,b,dc=c usage=1.5,n=3i,u=4u,ok=t,s="x, \"y\" z" 1708700000000000000"#;
        let line = decode(text, &mut rows);
        assert_eq!(line, Ok(Line { table: "cpu x".into(), tags: 2, time: Some(1_708_700_000_000_000_000) }));
        let expected = [
            ("host", FieldValue::Text("a,b".into())),
            ("dc", FieldValue::Text("c".into())),
            ("usage", FieldValue::Float(1.5)),
            ("n", FieldValue::Int(3)),
            ("u", FieldValue::UInt(4)),
            ("ok", FieldValue::Bool(true)),
            ("s", FieldValue::Text("x, \"y\" z".into())),
        ];
        let found: Vec<_> =
            rows.iter().flatten().map(|(name, value)| (name.as_ref(), value.clone())).collect();
        assert_eq!((rows.count(), found), (1, expected.to_vec()));
    }

    #[test]
    fn damaged_lines_are_refused() {
        for line in [
            "cpu",
            "cpu ",
            ",a=b c=1",
            "cpu,a b=1",
            "cpu a=",
            "cpu a=x",
            "cpu a=1 later",
            "cpu a=\"x",
            "cpu =1",
        ] {
            assert!(decode(line, &mut Rows::default()).is_err(), "{line}");
        }
    }

    #[test]
    fn comments_and_blank_lines_are_passed_over() {
        assert_eq!(lines("# x\n\n a b=1 \n").collect::<Vec<_>>(), [(3, "a b=1")]);
    }

    #[test]
    fn a_string_may_hold_line_breaks() {
        let body = "a s=\"x\ny v=9 \\\" \nz\" 1\nb,t=\"q c=1\nd s=\"open\ne f=1";
        let found: Vec<_> = lines(body).collect();
        let expected =
            [(1, "a s=\"x\ny v=9 \\\" \nz\" 1"), (4, "b,t=\"q c=1"), (5, "d s=\"open"), (6, "e f=1")];
        assert_eq!(found, expected);
    }
}
