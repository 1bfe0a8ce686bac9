//! The values of all keys, and where they come from: flag, environment, file or default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{KEYS, wrong};
use crate::cli::{ConfigArgs, Result};
use crate::listeners;

/// The origin of what nobody set.
const DEFAULT: &str = "default";

/// One key as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) key: &'static str,
    pub(crate) value: String,
    pub(crate) origin: String,
    pub(crate) help: &'static str,
}

/// Values of keys, each with its origin, and the tables of further listeners.
#[derive(Default)]
pub(crate) struct Values {
    keys: BTreeMap<&'static str, (String, String)>,
    pub(crate) listeners: Vec<Table>,
}

/// One `[[mqtt.listener]]`, and the file that has it.
pub(crate) struct Table {
    pub(crate) table: toml::Table,
    pub(crate) origin: String,
}

impl Values {
    fn insert(&mut self, key: &'static str, value: (String, String)) {
        self.keys.insert(key, value);
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &'static str) -> &str {
        self.keys.get(key).map(|(value, _)| value.as_str()).unwrap_or_default()
    }

    /// Whether nobody set the key.
    pub(crate) fn is_default(&self, key: &'static str) -> bool {
        self.keys.get(key).is_none_or(|(_, origin)| origin == DEFAULT)
    }

    /// What holds where nobody says anything.
    pub(super) fn defaults() -> Self {
        let key = |(key, default, _): &(&'static str, &str, &str)| {
            (*key, ((*default).to_owned(), DEFAULT.to_owned()))
        };
        Self { keys: KEYS.iter().map(key).collect(), listeners: Vec::new() }
    }

    /// The file that was named, else `sonde.toml` where there is one.
    pub(super) fn add_file(&mut self, named: Option<&Path>) -> Result<()> {
        let usual = || Some(PathBuf::from("sonde.toml")).filter(|file| file.exists());
        let Some(file) = named.map(Path::to_owned).or_else(usual) else { return Ok(()) };
        let origin = file.display().to_string();
        let text =
            std::fs::read_to_string(&file).map_err(|error| wrong(format!("read {origin}: {error}")))?;
        let mut table: toml::Table = toml::from_str(&text).map_err(|error| {
            wrong(format!("{origin}: {}", error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")))
        })?;
        if let Some(mqtt) = table.get_mut("mqtt").and_then(toml::Value::as_table_mut)
            && let Some(listeners) = mqtt.remove("listener")
        {
            self.listeners = listeners::tables(listeners, &origin)?;
        }
        let mut flat = Vec::new();
        flatten("", &table, &mut flat);
        for (key, value) in flat {
            self.insert(known(&key, &origin)?, (value, origin.clone()));
        }
        Ok(())
    }

    pub(super) fn add_environment(&mut self) -> Result<()> {
        for (name, value) in std::env::vars() {
            let Some(rest) = name.strip_prefix("SONDE_").filter(|rest| rest.contains("__")) else { continue };
            let key = rest.replace("__", ".").to_ascii_lowercase();
            self.insert(known(&key, &format!("environment variable {name}"))?, (value, name));
        }
        Ok(())
    }

    pub(super) fn add_flags(&mut self, args: &ConfigArgs) -> Result<()> {
        for set in &args.set {
            let (key, value) =
                set.split_once('=').ok_or_else(|| wrong(format!("--set {set}: expected key=value")))?;
            self.insert(known(key.trim(), "--set")?, (value.trim().to_owned(), "--set".into()));
        }
        if let Some(dir) = &args.data_dir {
            self.insert("storage.data_dir", (dir.display().to_string(), "--data-dir".into()));
        }
        Ok(())
    }

    /// All keys and listeners as they stand.
    pub(super) fn settings(&self) -> Vec<Setting> {
        let setting = |(key, _, help): &(&'static str, &str, &'static str)| {
            let (value, origin) = self.keys.get(key).cloned().unwrap_or_default();
            Setting { key, value, origin, help }
        };
        let listener = |listener: &Table| Setting {
            key: "mqtt.listener",
            value: {
                let mut flat = Vec::new();
                flatten("", &listener.table, &mut flat);
                flat.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join(", ")
            },
            origin: listener.origin.clone(),
            help: "a further listener",
        };
        KEYS.iter().map(setting).chain(self.listeners.iter().map(listener)).collect()
    }
}

fn known(key: &str, origin: &str) -> Result<&'static str> {
    if let Some((known, ..)) = KEYS.iter().find(|(known, ..)| *known == key) {
        return Ok(known);
    }
    let near = sonde_engine::nearest(key, KEYS.iter().map(|(key, ..)| *key));
    let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    Err(wrong(format!("unknown configuration key {key} in {origin}{hint}")))
}

fn flatten(prefix: &str, table: &toml::Table, flat: &mut Vec<(String, String)>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, flat),
            toml::Value::Array(items) => {
                flat.push((name, items.iter().map(scalar).collect::<Vec<_>>().join(",")));
            }
            other => flat.push((name, scalar(other))),
        }
    }
}

/// A value as text; what is no scalar is refused by whoever reads the key.
fn scalar(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(value) => value.to_string(),
        toml::Value::Datetime(time) => time.to_string(),
        toml::Value::Array(_) | toml::Value::Table(_) => "(nested)".to_owned(),
    }
}
