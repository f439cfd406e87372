//! Session tickets (RFC 5077, RFC 8446 section 4.6.1). All workers share their keys, the keys rotate, and a process
//! that takes over receives them.
//!
//! A ticket proves the same as its handshake, such as a client's certificate. So each server has keys of its own.
//! They are derived (RFC 5869) from the process's seed and from the server's client verification.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest, hkdf,
    rand::{SecureRandom as _, SystemRandom},
};
use rustls::server::ProducesTickets;
use snisplice_config::model::termination::{ClientAuth, Termination};
use zeroize::Zeroizing;

use super::clients;
use crate::secrets::Authorities;

/// Seconds after which a new seed encrypts. The previous seed decrypts for the same time. A ticket is valid for one
/// to two times this time. RFC 8446 permits seven days.
pub const ROTATION: i64 = 6 * 60 * 60;

/// Number of seeds: the one that encrypts, and the previous one.
const SEEDS: usize = 2;

/// Seconds for which a seed is kept.
const LIFETIME: i64 = 2 * ROTATION;

const NAME: usize = 16;
const KEY: usize = 32;

/// The secret from which keys are derived.
#[derive(Clone)]
pub struct Seed {
    /// Creation time, in seconds since 1970.
    pub made: i64,
    /// Random bytes.
    pub bytes: Zeroizing<[u8; KEY]>,
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seed").field("made", &self.made).finish_non_exhaustive()
    }
}

/// The seeds of a process, the newest first. Empty until the first rotation: then no ticket is issued.
#[derive(Debug, Default)]
struct Seeds {
    /// Changes when the seeds change.
    generation: u64,
    all: Vec<Seed>,
}

/// The source of the keys of all servers of a process.
#[derive(Debug, Default)]
pub struct TicketKeys {
    seeds: ArcSwap<Seeds>,
    changing: Mutex<()>,
}

/// Distinguishes the keys of one server from those of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context([u8; digest::SHA256_OUTPUT_LEN]);

impl Context {
    /// The context of a server that verifies clients with these authorities.
    #[must_use]
    pub fn of(termination: &Termination, authorities: Option<&Authorities>) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut add = |part: &[u8]| {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        };
        add(termination.name.as_bytes());
        add(match termination.client {
            ClientAuth::None => b"none",
            ClientAuth::Optional(_) => b"optional",
            ClientAuth::Required(_) => b"required",
        });
        for authority in authorities.iter().flat_map(|authorities| &authorities.certificates) {
            add(authority);
        }
        // A certificate may have been revoked since its ticket was issued.
        for list in authorities.iter().flat_map(|authorities| &authorities.revocation_lists) {
            add(list);
        }
        for name in clients(&termination.client).iter().flat_map(|clients| &clients.subject_alt_names) {
            add(name.as_bytes());
        }
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(hash.finish().as_ref());
        Self(bytes)
    }
}

impl TicketKeys {
    /// Makes a new seed if one is due, at `now` in seconds since 1970, and removes expired ones.
    pub fn rotate(&self, now: i64) {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let seeds = self.seeds.load();
        // A clock that is set back does not extend a seed's life.
        if seeds.all.first().is_some_and(|seed| (0..ROTATION).contains(&(now - seed.made))) {
            return;
        }
        let mut bytes = Zeroizing::new([0; KEY]);
        if SystemRandom::new().fill(&mut *bytes).is_err() {
            return;
        }
        let lives = |seed: &&Seed| (0..LIFETIME).contains(&(now - seed.made));
        let former = seeds.all.iter().filter(lives).take(SEEDS - 1).cloned();
        let all = std::iter::once(Seed { made: now, bytes }).chain(former).collect();
        self.seeds.store(Arc::new(Seeds { generation: seeds.generation + 1, all }));
    }

    /// The seeds, for a process that takes over.
    #[must_use]
    pub fn export(&self) -> Vec<Seed> {
        self.seeds.load().all.clone()
    }

    /// Adopts the seeds of an old process.
    pub fn adopt(&self, mut all: Vec<Seed>) {
        if all.is_empty() {
            return;
        }
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        all.truncate(SEEDS);
        self.seeds.store(Arc::new(Seeds { generation: self.seeds.load().generation + 1, all }));
    }

    /// The issuer of one server's tickets.
    #[must_use]
    pub fn ticketer(self: &Arc<Self>, context: Context) -> Arc<dyn ProducesTickets> {
        Arc::new(Ticketer { keys: self.clone(), context, derived: ArcSwap::default() })
    }
}

/// Issues the tickets of one server, for all workers.
struct Ticketer {
    keys: Arc<TicketKeys>,
    context: Context,
    derived: ArcSwap<Derived>,
}

/// The keys derived from the seeds of one generation, in the same order.
#[derive(Default)]
struct Derived {
    generation: u64,
    keys: Vec<Key>,
}

/// A ticket consists of the key's name, a nonce, and the ciphertext with its tag.
struct Key {
    name: [u8; NAME],
    aead: LessSafeKey,
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketer").finish_non_exhaustive()
    }
}

impl Ticketer {
    fn derived(&self) -> Arc<Derived> {
        let seeds = self.keys.seeds.load();
        let derived = self.derived.load_full();
        if derived.generation == seeds.generation {
            return derived;
        }
        let keys = seeds.all.iter().filter_map(|seed| Key::derive(seed, &self.context)).collect();
        let derived = Arc::new(Derived { generation: seeds.generation, keys });
        self.derived.store(derived.clone());
        derived
    }
}

/// The length that the derivation outputs.
struct Length;

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        NAME + KEY
    }
}

impl Key {
    fn derive(seed: &Seed, context: &Context) -> Option<Self> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"snisplice session tickets").extract(&*seed.bytes);
        let mut bytes = Zeroizing::new([0; NAME + KEY]);
        secret.expand(&[&context.0], Length).ok()?.fill(&mut *bytes).ok()?;
        let (name, key) = bytes.split_at(NAME);
        Some(Self {
            name: name.try_into().ok()?,
            aead: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?),
        })
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(NAME + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        ticket.extend(self.name);
        ticket.extend(nonce);
        ticket.extend(plain);
        let sealed = self.aead.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(self.name),
            &mut ticket[NAME + NONCE_LEN..],
        );
        ticket.extend(sealed.ok()?.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.strip_prefix(&self.name)?.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = sealed.to_vec();
        let length = self.aead.open_in_place(nonce, Aad::from(self.name), &mut bytes).ok()?.len();
        bytes.truncate(length);
        Some(bytes)
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        !self.keys.seeds.load().all.is_empty()
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(LIFETIME).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.derived().keys.first()?.encrypt(plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.derived().keys.iter().find_map(|key| key.decrypt(ticket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(byte: u8) -> Context {
        Context([byte; digest::SHA256_OUTPUT_LEN])
    }

    #[test]
    fn a_ticket_lives_for_one_rotation_and_not_for_two() {
        let keys = Arc::new(TicketKeys::default());
        let ticketer = keys.ticketer(context(1));
        assert!(!ticketer.enabled() && ticketer.encrypt(b"session").is_none());
        keys.rotate(1_000);
        let ticket = ticketer.encrypt(b"session").unwrap();
        assert!(!ticket.windows(7).any(|window| window == b"session"));
        keys.rotate(1_000 + ROTATION - 1);
        assert_eq!(keys.export().len(), 1);
        keys.rotate(1_000 + ROTATION);
        assert_eq!(ticketer.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        keys.rotate(1_000 + 2 * ROTATION);
        assert_eq!(ticketer.decrypt(&ticket), None);
        assert_eq!(keys.export().len(), SEEDS);
    }

    #[test]
    fn servers_do_not_understand_each_other_and_processes_do() {
        let (keys, next) = (Arc::new(TicketKeys::default()), Arc::new(TicketKeys::default()));
        keys.rotate(0);
        let ticket = keys.ticketer(context(1)).encrypt(b"session").unwrap();
        assert_eq!(keys.ticketer(context(2)).decrypt(&ticket), None);
        next.rotate(5);
        assert_eq!(next.ticketer(context(1)).decrypt(&ticket), None);
        next.adopt(keys.export());
        assert_eq!(next.ticketer(context(1)).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
    }

    #[test]
    fn nonsense_is_no_ticket() {
        let keys = Arc::new(TicketKeys::default());
        keys.rotate(0);
        let ticketer = keys.ticketer(context(1));
        let good = ticketer.encrypt(b"session").unwrap();
        for length in 0..good.len() {
            assert_eq!(ticketer.decrypt(&good[..length]), None);
        }
        let mut bad = good;
        *bad.last_mut().unwrap() ^= 1;
        assert_eq!(ticketer.decrypt(&bad), None);
    }
}
