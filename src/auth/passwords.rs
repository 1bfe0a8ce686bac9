//! Hashes passwords beside the doors, and remembers which pairs of name and password were right.
//!
//! # Invariants
//! - A pair is remembered by a digest whose key the process alone knows, and together with the hash it was compared with:
//!   another password, and another user of the same name, make it worthless.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;
use ring::hmac;
use sonde_access::{ScramKeys, password};
use sonde_engine::Engine;
use sonde_query::statement::change_user;

/// Threads that hash passwords: each takes 19 MiB while it does, and a core for some 20 ms.
const THREADS: usize = 2;
/// Passwords that wait for them, a few seconds' work; beyond it clients are asked to come back.
const WAITING: usize = 256;
/// Pairs that are remembered, of 32 bytes each.
const REMEMBERED: usize = 100_000;

/// Something for the pool to do.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// The pool, and what it has found right.
pub(super) struct Passwords {
    jobs: SyncSender<Job>,
    key: hmac::Key,
    right: Mutex<HashSet<[u8; 32]>>,
}

impl Passwords {
    pub(super) fn start() -> std::io::Result<Self> {
        let (jobs, waiting) = sync_channel::<Job>(WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..THREADS {
            let waiting = Arc::clone(&waiting);
            let thread = std::thread::Builder::new().name(format!("sonde-login-{number}"));
            thread.spawn(move || work(&waiting))?;
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(std::io::Error::other)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Ok(Self { jobs, key, right: Mutex::default() })
    }

    /// Hands work to the pool; `false`, and nothing done, where too much waits already.
    pub(super) fn submit(&self, job: Job) -> bool {
        self.jobs.try_send(job).is_ok()
    }

    fn digest(&self, name: &str, hash: &str, secret: &str) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [name, hash, secret] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut digest = [0; 32];
        let tag = context.sign();
        tag.as_ref().iter().zip(&mut digest).for_each(|(from, to)| *to = *from);
        digest
    }

    /// Whether this password was found right before, by this hash.
    pub(super) fn is_verified(&self, name: &str, hash: &str, secret: &str) -> bool {
        let digest = self.digest(name, hash, secret);
        self.right.lock().contains(&digest)
    }

    /// Remembers that it is right.
    pub(super) fn verified(&self, name: &str, hash: &str, secret: &str) {
        let digest = self.digest(name, hash, secret);
        let mut right = self.right.lock();
        if right.len() >= REMEMBERED {
            right.clear();
        }
        right.insert(digest);
    }
}

fn work(waiting: &Mutex<Receiver<Job>>) {
    loop {
        // Held while it waits: the other threads wait for the lock instead of for the job.
        let job = waiting.lock().recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

/// Replaces a hash that came from elsewhere by ours, now that the password is known.
pub(super) fn rehash(engine: &Engine, name: &str, old: &str, secret: &str) {
    let mut salts = [[0; 16]; 2];
    let [first, second] = &mut salts;
    if getrandom::fill(first).and_then(|()| getrandom::fill(second)).is_err() {
        return;
    }
    let Ok(hash) = password::hash(secret, first) else { return };
    let keys = ScramKeys::of(secret, second);
    let changed = change_user(engine, name, &mut |user| {
        let is_same = user.password.as_deref() == Some(old);
        if is_same {
            user.password = Some(hash.clone());
            user.scram = keys.clone();
        }
        is_same
    });
    if let Err(error) = changed {
        tracing::warn!(name, %error, "the hash of a user's password could not be renewed");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_remembered_with_its_hash() {
        let passwords = Passwords::start().unwrap();
        passwords.verified("a", "h1", "secret");
        assert!(passwords.is_verified("a", "h1", "secret"));
        for (name, hash, secret) in
            [("a", "h2", "secret"), ("b", "h1", "secret"), ("a", "h1", "Secret"), ("ah", "1", "secret")]
        {
            assert!(!passwords.is_verified(name, hash, secret));
        }
    }

    #[test]
    fn more_work_than_the_queue_holds_is_refused() {
        let passwords = Passwords::start().unwrap();
        let (go, wait) = sync_channel::<()>(0);
        let wait = Arc::new(Mutex::new(wait));
        let mut taken = 0;
        loop {
            let wait = Arc::clone(&wait);
            if !passwords.submit(Box::new(move || assert!(wait.lock().recv().is_err()))) {
                break;
            }
            taken += 1;
            assert!(taken <= WAITING + THREADS, "nothing is refused");
        }
        assert!(taken >= WAITING);
        drop(go);
    }
}
