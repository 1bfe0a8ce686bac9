//! The demo's recordings as messages: real sensors, time-shifted to end now.

use std::io::Read;

use super::{Exit, Failure, Result};

const PLANT: &[u8] = include_bytes!("../../demo/data/thermal-solar.csv.zst");
const MOTION: &[u8] = include_bytes!("../../demo/data/imu-fusion.csv.zst");
const MACHINE: &[u8] = include_bytes!("../../demo/data/machine-temperature.csv.zst");

/// Devices that share the plant's recording, each a stretch of its days.
const PLANTS: usize = 8;

/// What one device publishes, in order.
pub(super) struct Device {
    pub(super) name: String,
    pub(super) messages: Vec<(String, String)>,
}

/// Everything that is published, and what the answers must add up to.
#[derive(Default)]
pub(super) struct Recording {
    pub(super) devices: Vec<Device>,
    pub(super) expected: Expected,
    /// Bytes of all payloads.
    pub(super) payload_bytes: usize,
    /// Values that are not tags or times.
    pub(super) values: usize,
}

/// What the answers must add up to.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) plant: TableTotals,
    pub(super) motion: TableTotals,
    pub(super) machines: TableTotals,
    pub(super) alerts: TableTotals,
}

impl Default for Expected {
    fn default() -> Self {
        Self {
            plant: TableTotals::new("plant", &PLANT_FIELDS),
            motion: TableTotals::new("motion", &["x", "y", "z"]),
            machines: TableTotals::new("machines", &["value"]),
            alerts: TableTotals::new("alerts", &["collector"]),
        }
    }
}

impl Expected {
    /// All tables.
    pub(super) fn tables(&self) -> [&TableTotals; 4] {
        [&self.plant, &self.motion, &self.machines, &self.alerts]
    }

    /// Rows of the messages; those of the rule are not among them.
    pub(super) fn published_rows(&self) -> usize {
        self.plant.rows + self.motion.rows + self.machines.rows
    }
}

/// The rows of a table, and what each of its numeric fields adds up to.
#[derive(Clone, Debug)]
pub(super) struct TableTotals {
    pub(super) table: &'static str,
    pub(super) rows: usize,
    pub(super) fields: Vec<FieldTotal>,
}

/// What a numeric field adds up to.
#[derive(Clone, Copy, Debug)]
pub(super) struct FieldTotal {
    pub(super) name: &'static str,
    pub(super) sum: f64,
    /// What the values add up to without their signs.
    magnitude: f64,
}

impl TableTotals {
    fn new(table: &'static str, fields: &[&'static str]) -> Self {
        let field = |name: &&'static str| FieldTotal { name, sum: 0.0, magnitude: 0.0 };
        Self { table, rows: 0, fields: fields.iter().map(field).collect() }
    }

    /// Adds a row, its values in the order of the fields.
    fn add(&mut self, values: &[f64]) {
        assert_eq!(values.len(), self.fields.len(), "a row of {} has a value for each field", self.table);
        self.rows += 1;
        for (field, value) in self.fields.iter_mut().zip(values) {
            field.sum += value;
            field.magnitude += value.abs();
        }
    }
}

impl FieldTotal {
    /// Whether a sum is this one, as near as the order of additions allows: that error grows with the values, also
    /// where they cancel each other out.
    pub(super) fn agrees(&self, sum: f64) -> bool {
        (sum - self.sum).abs() <= self.magnitude * 1e-9
    }
}

impl Recording {
    /// Messages of all devices.
    pub(super) fn messages(&self) -> usize {
        self.devices.iter().map(|device| device.messages.len()).sum()
    }
}

fn unpack(name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    let read = zstd::Decoder::new(bytes).and_then(|mut decoder| decoder.read_to_end(&mut plain));
    read.map_err(|error| Failure::new(Exit::BadData, format!("the recording {name}: {error}")))?;
    Ok(plain)
}

/// Reads the recordings and shifts them so that each ends at `now`, in nanoseconds.
pub(super) fn load(now: i64) -> Result<Recording> {
    let mut recording = Recording::default();
    plants(&mut recording, now)?;
    motion(&mut recording, now)?;
    machine(&mut recording, now)?;
    let messages = recording.devices.iter().flat_map(|device| &device.messages);
    recording.payload_bytes = messages.map(|(_, payload)| payload.len()).sum();
    Ok(recording)
}

/// A row of the plant: its minute, and the fields that are kept.
struct PlantRow {
    minute: i64,
    fields: [f64; 13],
}

/// `dd.mm.yyyy HH:MM` as minutes since the epoch.
fn minute_of(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(' ')?;
    let mut date = date.split('.').map(str::parse::<i64>);
    let (day, month, year) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    // The recording has damaged lines.
    let valid = (2000..2100).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    let (hour, minute) = time.split_once(':').filter(|_| valid)?;
    let (hour, minute): (i64, i64) = (hour.parse().ok()?, minute.parse().ok()?);
    // Howard Hinnant's days-from-civil.
    let y = if month <= 2 { year - 1 } else { year };
    let of_era = y.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = y.div_euclid(400) * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 1440 + hour * 60 + minute)
}

fn plant_row(line: &str) -> Option<PlantRow> {
    /// Which columns of the recording are kept, in the order of `PLANT_FIELDS`.
    const COLUMNS: [usize; 13] = [1, 2, 3, 4, 7, 10, 12, 14, 15, 18, 19, 22, 24];
    let cells: Vec<&str> = line.split('\t').collect();
    if cells.len() < 28 {
        return None;
    }
    let minute = minute_of(cells.first()?)?;
    let mut fields = [0.0_f64; 13];
    for (field, column) in fields.iter_mut().zip(COLUMNS) {
        *field = cells.get(column)?.trim().replace(',', ".").parse().ok()?;
    }
    // States, counters and masks are whole numbers; the recording has a line in which they are not.
    let whole = fields.iter().skip(FIRST_WHOLE).all(|value| value.fract() == 0.0);
    whole.then_some(PlantRow { minute, fields })
}

/// The first field that is a whole number.
const FIRST_WHOLE: usize = 7;
const PLANT_FIELDS: [&str; 13] = [
    "collector",
    "tank_top",
    "tank_mid",
    "tank_low",
    "pressure",
    "flow",
    "pump",
    "relay_1",
    "relay_2",
    "seconds_1",
    "seconds_2",
    "errors",
    "energy",
];

fn plants(recording: &mut Recording, now: i64) -> Result<()> {
    let bytes = unpack("thermal-solar", PLANT)?;
    // The recording is ISO-8859-1; what is read of it is ASCII.
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    let rows: Vec<PlantRow> = text.lines().filter_map(plant_row).collect();
    let stretch = rows.len().div_ceil(PLANTS);
    for (number, rows) in rows.chunks(stretch).enumerate() {
        let last = rows.last().map_or(0, |row| row.minute);
        let mut messages = Vec::with_capacity(rows.len());
        let name = format!("plant-{number}");
        for row in rows {
            // A jump of years inside a stretch would reach behind what is accepted: such rows are left out.
            let seconds = now / 1_000_000_000 + (row.minute - last) * 60;
            if seconds < now / 1_000_000_000 - 400 * 86_400 {
                continue;
            }
            let mut payload = format!("{{\"ts\":{seconds}");
            for (field, value) in PLANT_FIELDS.iter().zip(row.fields) {
                payload.push_str(&format!(",\"{field}\":{value}"));
            }
            payload.push('}');
            let [collector, ..] = row.fields;
            recording.expected.plant.add(&row.fields);
            if collector > 105.0 && collector < 800.0 {
                recording.expected.alerts.add(&[collector]);
            }
            recording.values += row.fields.len();
            messages.push((format!("plant/{name}/state"), payload));
        }
        recording.devices.push(Device { name, messages });
    }
    Ok(())
}

/// Cells as numbers.
fn numbers<const N: usize>(cells: [&str; N]) -> Option<[f64; N]> {
    let mut numbers = [0.0; N];
    for (number, cell) in numbers.iter_mut().zip(cells) {
        *number = cell.parse().ok()?;
    }
    Some(numbers)
}

fn motion(recording: &mut Recording, now: i64) -> Result<()> {
    let text = String::from_utf8_lossy(&unpack("imu-fusion", MOTION)?).into_owned();
    let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split(',').collect()).collect();
    let seconds = |row: &Vec<&str>| row.first().and_then(|cell| cell.trim().parse::<f64>().ok());
    let last = rows.last().and_then(seconds).unwrap_or_default();
    for (sensor, first) in [("gyroscope", 1), ("accelerometer", 4), ("magnetometer", 7)] {
        let mut messages = Vec::with_capacity(rows.len());
        for row in &rows {
            let (Some(at), Some([x, y, z])) = (seconds(row), row.get(first..first + 3)) else { continue };
            let [x, y, z] = [x, y, z].map(|cell| cell.trim());
            let Some(values) = numbers([x, y, z]) else { continue };
            let nanos = now - ((last - at) * 1e9).round() as i64;
            let payload = format!("{{\"ts\":{nanos},\"x\":{x},\"y\":{y},\"z\":{z}}}");
            messages.push((format!("acme/lab/imu/imu-1/{sensor}"), payload));
            recording.expected.motion.add(&values);
            recording.values += values.len();
        }
        recording.devices.push(Device { name: format!("imu-1-{sensor}"), messages });
    }
    Ok(())
}

fn machine(recording: &mut Recording, now: i64) -> Result<()> {
    let text = String::from_utf8_lossy(&unpack("machine-temperature", MACHINE)?).into_owned();
    // `2013-12-02 21:15:00,73.96`; the recording steps back once, for the change of the clocks, so rows are spaced evenly.
    let values: Vec<&str> =
        text.lines().skip(1).filter_map(|line| line.split_once(',')).map(|(_, value)| value.trim()).collect();
    let mut messages = Vec::with_capacity(values.len());
    for (back, value) in values.iter().rev().enumerate() {
        let Some(number) = numbers([*value]) else { continue };
        recording.expected.machines.add(&number);
        recording.values += number.len();
        let seconds = now / 1_000_000_000 - back as i64 * 300;
        messages.push((
            "machines/press".to_owned(),
            format!("{{\"device\":\"press-1\",\"ts\":{seconds},\"value\":{value}}}"),
        ));
    }
    messages.reverse();
    recording.devices.push(Device { name: "press-1".into(), messages });
    Ok(())
}
