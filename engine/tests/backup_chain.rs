//! Chains of backups: what each copies, which positions and instants they reach, where they break and branch off.

use sonde_engine::backup::{To, prune, verify};
use sonde_engine::{CatalogRequest, Engine, Error, Options, SeqNo, Timestamp};

use crate::backup::{History, Past, try_restore};
use crate::data::{SECOND, table};
use crate::model::Model;
use crate::store::{files_below, wait_until};

#[test]
fn a_chain_of_backups_copies_what_is_new_and_each_restores() {
    let mut history = History::start();
    let mut reports = Vec::new();
    for round in 0..5 {
        history.write(10);
        match round {
            1 | 3 => history.engine.flush().unwrap(),
            2 => history.compact(),
            _ => {}
        }
        reports.push(history.back_up());
    }
    // Nothing has happened since but the record of the last backup.
    reports.push(history.back_up());
    let last = reports.last().unwrap();
    assert!(last.copied.1 < last.objects.1 / 2, "{last:?}");
    for pair in reports.windows(2) {
        assert_eq!(pair[1].since.as_ref(), Some(&pair[0].id));
    }
    // No chunk was copied twice.
    let mut chunks: Vec<_> = files_below(&history.store.beside("backups"))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "chunk"))
        .map(|path| path.file_name().unwrap().to_owned())
        .collect();
    let count = chunks.len();
    chunks.sort();
    chunks.dedup();
    assert!(count > 2 && chunks.len() == count, "{count} chunks, {} names", chunks.len());
    let listing = history.list();
    assert_eq!(listing.backups.len(), 6);
    assert_eq!(listing.ranges().len(), 1);
    let verified = verify(&history.to, None).unwrap();
    assert_eq!((verified.backups, verified.damage), (6, Vec::<String>::new()));
    for report in &reports {
        let dir = history.store.beside("one");
        let restored = try_restore(&history.to, &dir, To::Latest, Some(&report.id)).unwrap();
        assert_eq!((restored.seq, &restored.backup), (report.seq, &report.id));
        let engine =
            Engine::open(Options { data_dir: dir.clone(), ..history.store.options.clone() }).unwrap();
        history.past.at(report.seq).check(&engine);
        drop(engine);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn every_position_and_every_instant_between_backups_can_be_restored() {
    let mut history = History::start();
    history.write(3);
    let first = history.back_up();
    history.write(6);
    // The rows go into chunks and are merged: an instant before needs the chunks of the backup before.
    history.compact();
    history.write(6);
    history.engine.flush().unwrap();
    history.write(2);
    let second = history.back_up();
    history.write(4);
    history.compact();
    let third = history.back_up();
    for seq in first.seq.0..=third.seq.0 {
        assert_eq!(history.check(To::Seq(SeqNo(seq))).seq, SeqNo(seq));
    }
    for seq in [first.seq.0 - 1, third.seq.0 + 1] {
        let error =
            try_restore(&history.to, &history.store.beside("x"), To::Seq(SeqNo(seq)), None).unwrap_err();
        assert!(matches!(&error, Error::Backup(text) if text.contains("cannot be restored")), "{error}");
    }
    // By time: each batch came two seconds behind the one before.
    let listing = history.list();
    let time = |id: &str| listing.backups.iter().find(|backup| backup.id == id).unwrap().time.as_nanos();
    let (begin, end) = (time(&first.id), time(&third.id));
    let mut seen = Vec::new();
    for at in (begin..=end).step_by(SECOND as usize) {
        let restored = history.check(To::Time(Timestamp::from_nanos(at)));
        assert!(restored.time.as_nanos() <= at, "{} is behind {at}", restored.time.as_nanos());
        assert!(at - restored.time.as_nanos() < 3 * SECOND);
        seen.push(restored.seq);
    }
    assert!(seen.is_sorted() && *seen.last().unwrap() == third.seq);
    seen.dedup();
    assert!(seen.len() >= 18, "{seen:?}");
    assert!(seen.contains(&second.seq));
    for at in [begin - 1, end + 1] {
        let to = To::Time(Timestamp::from_nanos(at));
        assert!(try_restore(&history.to, &history.store.beside("x"), to, None).is_err());
    }
}

/// A table that is dropped takes its files with it at once: they must not be missing where an instant before is restored.
#[test]
fn an_instant_before_a_table_was_dropped_has_its_rows() {
    let mut history = History::start();
    history.write(5);
    history.engine.flush().unwrap();
    let first = history.back_up();
    history.write(5);
    let before = history.engine.published();
    let id = table(&history.engine, "t").id();
    history.engine.change_catalog(CatalogRequest::DropTable(id)).unwrap();
    history.model = Model::default();
    history.past.note(history.engine.published(), &history.model);
    wait_until("the removal of the chunks", || history.engine.chunks().is_empty());
    history.back_up();
    history.check(To::Latest);
    assert_eq!(history.check(To::Seq(before)).backup, first.id);
}

/// Beyond its budget the log goes, and with it the instants between two backups; the backups themselves do not suffer.
#[test]
fn where_the_log_is_gone_the_chain_begins_anew() {
    let mut history = History::start();
    history.write(5);
    let first = history.back_up();
    // The log waits for the next backup while its budget lasts.
    history.write(100);
    history.engine.flush().unwrap();
    assert!(history.engine.log_status().first <= first.seq.plus(1));
    assert_eq!(history.back_up().since, Some(first.id));
    let History { mut store, clock, engine, to, model, past, steps } = history;
    engine.close().unwrap();
    drop(engine);
    store.options.log.max_bytes = 0;
    let engine = store.open_by(&clock);
    let mut history = History { store, clock, engine, to, model, past, steps };
    history.write(100);
    history.engine.flush().unwrap();
    let last = history.back_up();
    assert_eq!(last.since, None);
    assert!(last.copied.0 < last.objects.0, "{last:?}");
    let listing = history.list();
    assert_eq!(listing.ranges().len(), 2);
    history.check(To::Latest);
    history.check(To::Time(listing.backups[1].time));
    let between = Timestamp::from_nanos(listing.backups[1].time.as_nanos() + 50 * SECOND);
    let error = try_restore(&history.to, &history.store.beside("x"), To::Time(between), None).unwrap_err();
    assert!(error.to_string().contains("cannot be restored"), "{error}");
}

/// What was restored goes on and is backed up to the same place: a branch, which shares what it has with the old one.
#[test]
fn a_restored_directory_goes_on_as_a_branch() {
    let mut history = History::start();
    history.write(5);
    history.engine.flush().unwrap();
    let first = history.back_up();
    history.write(5);
    let fork = history.engine.published();
    history.write(5);
    history.engine.flush().unwrap();
    let lost = history.back_up();
    let old = history.past.clone();
    // Back to where it was ten commits ago, with other rows from there on.
    let dir = history.store.beside("again");
    try_restore(&history.to, &dir, To::Seq(fork), None).unwrap();
    history.engine.close().unwrap();
    history.store.options.data_dir = dir;
    history.engine = history.store.open_by(&history.clock);
    history.model = old.at(fork).clone();
    history.past = Past::default();
    history.past.note(fork, &history.model);
    history.steps = 1000;
    history.write(3);
    history.engine.flush().unwrap();
    history.clock.go_on(60 * SECOND);
    let branch = history.back_up();
    // The newest backup that both have is the parent, not the one of the other branch.
    assert_eq!(branch.since, Some(first.id));
    history.check(To::Latest);
    history.check(To::Seq(fork));
    let verified = verify(&history.to, None).unwrap();
    assert_eq!(verified.damage, Vec::<String>::new());
    let dir = history.store.beside("lost");
    let restored = try_restore(&history.to, &dir, To::Latest, Some(&lost.id)).unwrap();
    assert_eq!(restored.seq, lost.seq);
    let engine = Engine::open(Options { data_dir: dir, ..history.store.options.clone() }).unwrap();
    old.at(lost.seq).check(&engine);
}

/// The numbers of its log began anew, where the backup before has other segments of the same numbers.
#[test]
fn a_directory_restored_from_chunks_alone_goes_on_with_its_log() {
    let mut history = History::start();
    history.write(3);
    let first = history.back_up();
    history.write(2);
    history.engine.flush().unwrap();
    let second = history.back_up();
    let History { mut store, clock, engine, to, model, mut past, steps } = history;
    engine.close().unwrap();
    drop(engine);
    store.options.data_dir = store.beside("again");
    try_restore(&to, &store.options.data_dir, To::Latest, None).unwrap();
    past.forget_behind(second.seq);
    let engine = store.open_by(&clock);
    let mut history = History { store, clock, engine, to, model, past, steps };
    for _ in 0..3 {
        history.write(3);
        history.clock.go_on(60 * SECOND);
        let report = history.back_up();
        for seq in first.seq.0..=report.seq.0 {
            history.check(To::Seq(SeqNo(seq)));
        }
    }
    let listing = history.list();
    assert_eq!(listing.backups[2].since, Some(first.id));
    assert_eq!(verify(&history.to, None).unwrap().damage, Vec::<String>::new());
}

/// Many backups of an engine that writes little: its one segment must not become ever more objects.
#[test]
fn a_segment_of_many_pieces_is_copied_as_one() {
    let mut history = History::with_segments(1 << 20);
    let mut most = 0;
    for _ in 0..=sonde_engine::limits::BACKUP_LOG_PIECES {
        history.write(1);
        let report = history.back_up();
        let file = history.store.beside("backups").join(&report.id).join("backup.json");
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        for segment in manifest["log"].as_array().unwrap() {
            most = most.max(segment["pieces"].as_array().unwrap().len());
        }
    }
    assert!(most <= sonde_engine::limits::BACKUP_LOG_PIECES, "{most} pieces");
    assert!(most > 10, "{most} pieces: the segments are too small for this test");
    history.check(To::Latest);
    assert_eq!(verify(&history.to, None).unwrap().damage, Vec::<String>::new());
}

#[test]
fn old_backups_go_with_what_the_others_do_not_need() {
    let mut history = History::start();
    let mut reports = Vec::new();
    for _ in 0..4 {
        history.write(5);
        history.engine.flush().unwrap();
        reports.push(history.back_up());
    }
    let root = history.store.beside("backups");
    let bytes = || -> u64 { files_below(&root).iter().map(|path| path.metadata().unwrap().len()).sum() };
    let before = bytes();
    assert!(prune(&history.to, 0).is_err());
    assert_eq!(prune(&history.to, 4).unwrap().backups, Vec::<String>::new());
    let pruned = prune(&history.to, 2).unwrap();
    assert_eq!(pruned.backups, [reports[0].id.clone(), reports[1].id.clone()]);
    assert!(pruned.bytes > 0 && bytes() == before - pruned.bytes, "{pruned:?} of {before}");
    assert_eq!(verify(&history.to, None).unwrap().damage, Vec::<String>::new());
    assert_eq!(history.list().backups[0].since, None);
    for seq in reports[2].seq.0..=reports[3].seq.0 {
        history.check(To::Seq(SeqNo(seq)));
    }
    assert!(try_restore(&history.to, &history.store.beside("x"), To::Seq(reports[1].seq), None).is_err());
    // The chain goes on.
    history.write(5);
    assert_eq!(history.back_up().since.as_ref(), Some(&reports[3].id));
    // Nothing goes where it is not known what is needed.
    let manifest = root.join(&reports[2].id).join("backup.json");
    std::fs::write(manifest, "{}").unwrap();
    let before = bytes();
    assert!(prune(&history.to, 1).is_err());
    history.back_up();
    assert!(bytes() > before);
}
