//! Which backups there are, which instants they reach, and which one an instant is restored from.
//!
//! # Invariants
//! - A backup is right for its own position and for what follows it, not for what is before: by then files may have
//!   gone that an earlier position needs. So an instant is restored from the newest backup before it, with the log that
//!   the next one in the chain has.

use std::collections::BTreeMap;

use sonde_storage_format::{SeqNo, Timestamp};

use super::manifest::{self, Manifest, id_of, manifest_id};
use super::store::BackupStore;
use crate::error::{Error, Result};

/// Up to where to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Everything that the backup has.
    Latest,
    /// Commits up to this sequence number.
    Seq(SeqNo),
    /// What was committed up to this instant.
    Time(Timestamp),
}

/// A backup of a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupInfo {
    /// Its name.
    pub id: String,
    /// When it was taken.
    pub time: Timestamp,
    /// Every commit up to here is in it.
    pub seq: SeqNo,
    /// The data directory that it was taken of.
    pub data_dir: String,
    /// The version of the program that wrote it.
    pub sonde: String,
    /// Bytes of its objects.
    pub bytes: u64,
    /// Bytes of those that it does not share with earlier ones.
    pub own_bytes: u64,
    /// The earlier backup since which every instant can be restored, if it is still there.
    pub since: Option<String>,
    /// Cold files in a store of their own, which it does not have.
    pub cold_elsewhere: usize,
}

/// What a destination has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Oldest first.
    pub backups: Vec<BackupInfo>,
    /// Backups whose manifest cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
}

/// Lists the backups of a destination.
pub fn list(store: &BackupStore) -> Result<Listing> {
    list_in(store, &store.list()?)
}

pub(super) fn list_in(store: &BackupStore, objects: &BTreeMap<String, u64>) -> Result<Listing> {
    let mut listing = Listing::default();
    for (id, bytes) in objects.iter().filter_map(|(name, bytes)| Some((manifest_id(name)?, *bytes))) {
        match manifest::load(store, id, bytes) {
            Ok(manifest) => listing.backups.push(info(&manifest)),
            Err(Error::BadBackup { what, .. }) => listing.unreadable.push((id.to_owned(), what)),
            Err(error) => return Err(error),
        }
    }
    listing.backups.sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
    let ids: Vec<String> = listing.backups.iter().map(|backup| backup.id.clone()).collect();
    for backup in &mut listing.backups {
        backup.since = backup.since.take().filter(|since| ids.contains(since));
    }
    Ok(listing)
}

fn info(manifest: &Manifest) -> BackupInfo {
    let own = manifest.objects().filter(|(object, _)| id_of(object) == Some(manifest.id.as_str()));
    BackupInfo {
        id: manifest.id.clone(),
        time: manifest.time(),
        seq: manifest.seq(),
        data_dir: manifest.data_dir.clone(),
        sonde: manifest.sonde.clone(),
        own_bytes: own.map(|(_, content)| content.bytes).sum(),
        bytes: manifest.objects().map(|(_, content)| content.bytes).sum(),
        since: manifest.parent.as_ref().map(|parent| parent.id.clone()),
        cold_elsewhere: manifest.cold_elsewhere.len(),
    }
}

/// What a restore reads: a backup, and the next one of its chain where the log of that is needed too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) base: String,
    pub(super) next: Option<String>,
}

impl Listing {
    fn get(&self, id: &str) -> Option<&BackupInfo> {
        self.backups.iter().find(|backup| backup.id == id)
    }

    /// The backups to restore from; `within` names the one whose chain is meant, else it is any, the newest first.
    pub(super) fn choose(&self, to: To, within: Option<&str>) -> Result<Choice> {
        let unreadable = |id: &str, why: &str| {
            let what = format!("it cannot be used ({why}); --backup names another one");
            Error::BadBackup { object: manifest::manifest_of(id), what }
        };
        let tip = match within {
            Some(id) => self.get(id).ok_or_else(|| {
                let known = self.unreadable.iter().find(|(named, _)| named == id);
                known.map_or_else(
                    || Error::Backup(format!("there is no backup {id}")),
                    |(id, why)| unreadable(id, why),
                )
            })?,
            None => {
                let newest = self.backups.last();
                // An older one instead, and nobody told, would be a loss. Names begin with the time.
                let newer = |(id, _): &&(String, String)| newest.is_none_or(|newest| *id > newest.id);
                if let Some((id, why)) = self.unreadable.iter().find(newer).filter(|_| to == To::Latest) {
                    return Err(unreadable(id, why));
                }
                newest.ok_or_else(|| Error::Backup("there is no backup to restore".into()))?
            }
        };
        if to == To::Latest {
            return Ok(Choice { base: tip.id.clone(), next: None });
        }
        let tips: Vec<&BackupInfo> = match within {
            Some(_) => vec![tip],
            None => self.backups.iter().rev().collect(),
        };
        let found = tips.into_iter().find_map(|tip| self.search(tip, to));
        found.ok_or_else(|| Error::Backup(self.out_of_reach(to)))
    }

    /// Walks back from a backup to the newest of its chain that is not behind what is wanted.
    fn search(&self, tip: &BackupInfo, to: To) -> Option<Choice> {
        let order = |backup: &BackupInfo| match to {
            To::Latest => std::cmp::Ordering::Equal,
            To::Seq(seq) => backup.seq.cmp(&seq),
            To::Time(time) => backup.time.cmp(&time),
        };
        if order(tip).is_eq() {
            return Some(Choice { base: tip.id.clone(), next: None });
        }
        let mut next = tip;
        // No longer than the list, should manifests name each other in a circle.
        for _ in 0..self.backups.len() {
            if order(next).is_lt() {
                return None;
            }
            let base = self.get(next.since.as_deref()?)?;
            if order(base).is_le() {
                return Some(Choice { base: base.id.clone(), next: Some(next.id.clone()) });
            }
            next = base;
        }
        None
    }

    fn out_of_reach(&self, to: To) -> String {
        let wanted = match to {
            To::Latest => "the latest".to_owned(),
            To::Seq(seq) => format!("sequence number {}", seq.0),
            To::Time(time) => manifest::rfc3339(time),
        };
        let ranges: Vec<String> = self.ranges().iter().map(Range::to_string).collect();
        format!("{wanted} cannot be restored; what can is {}", ranges.join(", "))
    }

    /// What can be restored, oldest first: instants, or ranges without a gap.
    #[must_use]
    pub fn ranges(&self) -> Vec<Range> {
        let is_within = |id: &str| self.backups.iter().any(|other| other.since.as_deref() == Some(id));
        let mut ranges = Vec::new();
        for tip in self.backups.iter().filter(|backup| !is_within(&backup.id)) {
            let mut first = tip;
            for _ in 0..self.backups.len() {
                match first.since.as_deref().and_then(|since| self.get(since)) {
                    Some(before) => first = before,
                    None => break,
                }
            }
            let (first, last) = ((first.time, first.seq), (tip.time, tip.seq));
            ranges.push(Range { first, last });
        }
        ranges.sort();
        ranges
    }
}

/// From the first to the last, every commit and every instant can be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// Time and position of its first backup.
    pub first: (Timestamp, SeqNo),
    /// Time and position of its last backup.
    pub last: (Timestamp, SeqNo),
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |(time, seq): (Timestamp, SeqNo)| format!("{} (seq {})", manifest::rfc3339(time), seq.0);
        if self.first == self.last {
            write!(f, "{}", show(self.last))
        } else {
            write!(f, "{} to {}", show(self.first), show(self.last))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Backups named by letters: (name, time, seq, since).
    fn listing(backups: &[(&str, i64, u64, Option<&str>)]) -> Listing {
        let info = |(id, time, seq, since): &(&str, i64, u64, Option<&str>)| BackupInfo {
            id: (*id).to_owned(),
            time: Timestamp::from_secs(*time),
            seq: SeqNo(*seq),
            data_dir: String::new(),
            sonde: String::new(),
            bytes: 0,
            own_bytes: 0,
            since: since.map(str::to_owned),
            cold_elsewhere: 0,
        };
        Listing { backups: backups.iter().map(info).collect(), unreadable: Vec::new() }
    }

    fn choice(listing: &Listing, to: To, within: Option<&str>) -> Option<(String, Option<String>)> {
        listing.choose(to, within).ok().map(|choice| (choice.base, choice.next))
    }

    fn pair(base: &str, next: Option<&str>) -> Option<(String, Option<String>)> {
        Some((base.to_owned(), next.map(str::to_owned)))
    }

    #[test]
    fn the_newest_backup_before_an_instant_with_the_log_of_the_next() {
        let all = listing(&[("a", 10, 100, None), ("b", 20, 200, Some("a")), ("c", 30, 300, Some("b"))]);
        let seq = |seq| choice(&all, To::Seq(SeqNo(seq)), None);
        assert_eq!(choice(&all, To::Latest, None), pair("c", None));
        assert_eq!(choice(&all, To::Latest, Some("a")), pair("a", None));
        assert_eq!((seq(99), seq(301)), (None, None));
        assert_eq!((seq(100), seq(150)), (pair("a", Some("b")), pair("a", Some("b"))));
        assert_eq!(
            (seq(200), seq(299), seq(300)),
            (pair("b", Some("c")), pair("b", Some("c")), pair("c", None))
        );
        let time = |secs| choice(&all, To::Time(Timestamp::from_secs(secs)), None);
        assert_eq!((time(9), time(15), time(30)), (None, pair("a", Some("b")), pair("c", None)));
        assert_eq!(choice(&all, To::Seq(SeqNo(250)), Some("b")), None);
        assert!(all.choose(To::Latest, Some("x")).unwrap_err().to_string().contains("no backup x"));
        assert_eq!(all.ranges().len(), 1);
        let error = all.choose(To::Seq(SeqNo(99)), None).unwrap_err().to_string();
        assert!(error.contains("1970-01-01T00:00:10") && error.contains("(seq 300)"), "{error}");
    }

    #[test]
    fn an_older_backup_is_not_restored_in_silence() {
        let mut all = listing(&[("2026a", 10, 100, None), ("2026b", 20, 200, Some("2026a"))]);
        all.unreadable.push(("2026c".into(), "decayed".into()));
        let error = all.choose(To::Latest, None).unwrap_err();
        assert!(
            matches!(&error, Error::BadBackup { object, .. } if object == "2026c/backup.json"),
            "{error}"
        );
        assert!(error.to_string().contains("decayed"), "{error}");
        assert_eq!(choice(&all, To::Latest, Some("2026b")), pair("2026b", None));
        assert!(matches!(all.choose(To::Latest, Some("2026c")), Err(Error::BadBackup { .. })));
        assert_eq!(choice(&all, To::Seq(SeqNo(150)), None), pair("2026a", Some("2026b")));
        all.unreadable = vec![("2026aa".into(), "decayed".into())];
        assert_eq!(choice(&all, To::Latest, None), pair("2026b", None));
    }

    /// Behind a gap in the log, and behind a restore to an earlier instant, a chain begins or branches off.
    #[test]
    fn gaps_and_branches() {
        let gap = listing(&[("a", 10, 100, None), ("b", 20, 200, None), ("c", 30, 300, Some("b"))]);
        let seq = |seq| choice(&gap, To::Seq(SeqNo(seq)), None);
        assert_eq!((seq(100), seq(150), seq(250)), (pair("a", None), None, pair("b", Some("c"))));
        assert_eq!(gap.ranges().len(), 2);
        // "d" goes on from "a": another 150 than that of "b".
        let branch = listing(&[("a", 10, 100, None), ("b", 20, 200, Some("a")), ("d", 40, 180, Some("a"))]);
        assert_eq!(choice(&branch, To::Seq(SeqNo(150)), None), pair("a", Some("d")));
        assert_eq!(choice(&branch, To::Seq(SeqNo(190)), None), pair("a", Some("b")));
        assert_eq!(choice(&branch, To::Seq(SeqNo(150)), Some("b")), pair("a", Some("b")));
        assert_eq!(branch.ranges().len(), 2);
        let circle = listing(&[("a", 10, 100, Some("b")), ("b", 20, 200, Some("a"))]);
        assert_eq!(choice(&circle, To::Seq(SeqNo(50)), None), None);
        assert!(circle.ranges().is_empty());
        assert!(Listing::default().choose(To::Latest, None).is_err());
    }
}
