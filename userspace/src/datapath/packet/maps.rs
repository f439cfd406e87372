//! One worker's handles on the maps.

use std::{fmt, io, os::fd::OwnedFd, sync::Arc};

use aya::maps::{Array, HashMap, Map, MapData};
use snisplice_common::packet::{
    flow::{Rules, State},
    maps::{Slot, Tuple},
};

use crate::bpf::{
    load::cause,
    packet::{Bloom, Programs},
};

/// Only if the key does not exist yet: `BPF_NOEXIST`.
const NEW: u64 = 1;
/// A lookup waits while a program changes the entry: `BPF_F_LOCK`, kernel 5.1.
const LOCKED: u64 = 4;

/// Each worker has its own handles, so that no worker waits for another.
pub(super) struct Maps {
    tuples: HashMap<MapData, Tuple, Slot>,
    bloom: Arc<Bloom>,
    rules: Array<MapData, Rules>,
    states: Array<MapData, State>,
    begun: HashMap<MapData, Tuple, u32>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Maps")
    }
}

impl Maps {
    pub(super) fn of(programs: &Programs) -> io::Result<Self> {
        let data = |fd: OwnedFd| MapData::from_fd(fd).map_err(cause);
        Ok(Self {
            tuples: HashMap::try_from(Map::HashMap(data(programs.tuples()?)?)).map_err(cause)?,
            bloom: programs.bloom().clone(),
            rules: Array::try_from(Map::Array(data(programs.rules()?)?)).map_err(cause)?,
            states: Array::try_from(Map::Array(data(programs.states()?)?)).map_err(cause)?,
            begun: HashMap::try_from(Map::LruHashMap(data(programs.begun()?)?)).map_err(cause)?,
        })
    }

    /// Whether the SYN of this connection has passed the programs. Removes the entry.
    pub(super) fn take_begun(&mut self, tuple: &Tuple) -> bool {
        self.begun.remove(tuple).is_ok()
    }

    /// Lets packets of these addresses belong to a flow. Fails if they belong to one already.
    pub(super) fn add_tuple(&mut self, tuple: &Tuple, slot: Slot) -> io::Result<()> {
        self.tuples.insert(tuple, slot, NEW).map_err(cause)
    }

    /// Counts addresses for a flow, whose packets the programs look up from now on. The flow ends with
    /// [`Maps::remove_tuple`].
    pub(super) fn count(&self, tuple: &Tuple) {
        self.bloom.add(tuple);
    }

    /// Forgets addresses that were counted for a flow. If they belong to another flow by now, they stay in the map.
    pub(super) fn remove_tuple(&mut self, tuple: &Tuple, slot: Slot) {
        if self.tuples.get(tuple, 0).is_ok_and(|found| found == slot) {
            // A failed removal has no remedy.
            let _ = self.tuples.remove(tuple);
        }
        // Also if a program has removed the tuple before: it was counted for this flow.
        self.bloom.remove(tuple);
    }

    pub(super) fn set_rules(&mut self, flow: u32, rules: Rules) -> io::Result<()> {
        self.rules.set(flow, rules, 0).map_err(cause)
    }

    pub(super) fn set_state(&mut self, flow: u32, state: State) -> io::Result<()> {
        self.states.set(flow, state, LOCKED).map_err(cause)
    }

    /// All addresses that belong to flows.
    pub(super) fn tuples(&self) -> io::Result<Vec<(Tuple, Slot)>> {
        self.tuples.iter().collect::<Result<_, _>>().map_err(cause)
    }

    pub(super) fn rules(&self, flow: u32) -> io::Result<Rules> {
        self.rules.get(&flow, 0).map_err(cause)
    }

    /// The state that the kernel has recorded so far.
    pub(super) fn state(&self, flow: u32) -> io::Result<State> {
        self.states.get(&flow, LOCKED).map_err(cause)
    }
}
