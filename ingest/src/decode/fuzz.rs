//! Fuzz targets of the payload decoders: whatever the bytes, an answer, and within bounds.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

#[path = "../../../proto/tests/random.rs"]
pub(crate) mod random;

use super::{Rows, json, line};
use crate::limits::{ITEM_NAME, ROW_ITEMS};

fn exemplars(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn fuzz_json_payload() {
    let texts = [
        r#"{"device":"d1","value":23.5,"ts":1708700000}"#,
        r#"[{"a":{"b":[1,{"c":2}],"d":null},"e":"x\"y\u00e9"},{}]"#,
        r#"{"n":-9007199254740993,"u":18446744073709551615,"f":1e-308,"t":true}"#,
        "23.5",
    ];
    random::fuzz(
        &exemplars(&texts),
        |_, _| {},
        |bytes| {
            let mut rows = Rows::default();
            if json::decode(bytes, &mut rows).is_ok() {
                assert!(rows.iter().all(|row| row.len() <= ROW_ITEMS));
                assert!(rows.iter().flatten().all(|(name, _)| name.len() <= ITEM_NAME));
            }
        },
    );
}

#[test]
fn fuzz_line_protocol() {
    let texts = [
        "cpu\\ x,host=a\\,b,dc=c usage=1.5,n=3i,u=4u,ok=t,s=\"x, \\\"y\\\" z\" 1708700000000000000",
        "a s=\"x\ny v=9\" 1\n# comment\nb,t=\"q c=1",
    ];
    random::fuzz(
        &exemplars(&texts),
        |_, _| {},
        |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let mut rows = Rows::default();
            let mut last = 0;
            for (number, text) in line::lines(text) {
                assert!(number > last, "lines are numbered upwards");
                last = number;
                if let Ok(line) = line::decode(text, &mut rows) {
                    assert!(rows.count() == 1 && rows.iter().flatten().count() > line.tags);
                }
            }
        },
    );
}
