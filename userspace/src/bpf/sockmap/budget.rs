//! The sum of the bytes in flight between the two sockets of every direction (`snisplice_common::sockmap::budget`).

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use aya::maps::{Array, MapData, MapError};
use snisplice_common::sockmap::budget;

/// The map of the sum. Userspace writes one half of it.
pub struct Budget(Mutex<Halves>);

struct Halves {
    map: Array<MapData, u64>,
    returned: u64,
}

impl Budget {
    pub(super) fn new(map: Array<MapData, u64>) -> Self {
        Self(Mutex::new(Halves { map, returned: 0 }))
    }

    /// Bytes in flight, as of the program's last update.
    pub fn in_flight(&self) -> Result<u64, MapError> {
        let halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = budget::sum(halves.map.get(&budget::COUNTED, 0)?, halves.returned);
        Ok(u64::try_from(sum).unwrap_or(0))
    }

    /// Removes the share of a direction from the sum. Workers hardly ever contend here: a direction that keeps up has
    /// no share.
    pub fn give_back(&self, share: i64) {
        if share == 0 {
            return;
        }
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        halves.returned = halves.returned.wrapping_add_signed(share);
        let returned = halves.returned;
        // Fails only for a wrong index.
        let _ = halves.map.set(budget::RETURNED, returned, 0);
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Budget")
    }
}
