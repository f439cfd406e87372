//! The maps, with the names of `snisplice_common::sockmap::maps`, and the globals that the loader sets.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SockHash},
    macros::btf_map,
};
use snisplice_common::{
    Cookie,
    sockmap::{
        budget,
        counters::Counters,
        direction::{Control, Flow},
        event::Event,
        maps::{self, RING_BYTES},
        shortcut::{BackendEnd, Shortcut, ShortcutCounters},
    },
};
use snisplice_ebpf::globals;

const DIRECTIONS: usize = maps::DIRECTIONS as usize;

/// Entries come and go with connections, so they are not allocated beforehand.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub(crate) static SNI_TARGETS: SockHash<Cookie, DIRECTIONS> = SockHash::new();
#[btf_map]
pub(crate) static SNI_VERDICT: SockHash<Cookie, DIRECTIONS> = SockHash::new();
#[btf_map]
pub(crate) static SNI_FLOWS: HashMap<Cookie, Flow, DIRECTIONS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub(crate) static SNI_CONTROL: HashMap<Cookie, Control, DIRECTIONS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub(crate) static SNI_EVENTS: RingBuf<Event, RING_BYTES> = RingBuf::new();
#[btf_map]
pub(crate) static SNI_COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static SNI_IN_FLIGHT: Array<u64, { budget::HALVES as usize }> = Array::new();

// Connections that fail or end elsewhere leave entries in the next three maps. The kernel evicts these entries. A
// connection whose entry is evicted takes no short cut.
#[btf_map]
pub(crate) static SNI_UPSTREAM: LruHashMap<Cookie, Cookie, DIRECTIONS> = LruHashMap::new();
#[btf_map]
pub(crate) static SNI_EXPECTED: LruHashMap<u64, Cookie, DIRECTIONS> = LruHashMap::new();
#[btf_map]
pub(crate) static SNI_BACKEND: LruHashMap<Cookie, BackendEnd, DIRECTIONS> = LruHashMap::new();
#[btf_map]
pub(crate) static SNI_LOCAL: SockHash<Cookie, DIRECTIONS> = SockHash::new();
#[btf_map]
pub(crate) static SNI_SHORTCUTS: HashMap<Cookie, Shortcut, DIRECTIONS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub(crate) static SNI_SHORT_STAT: PerCpuArray<ShortcutCounters, 1> = PerCpuArray::new();

globals!(OFF_WRITE_SEQ, OFF_WMEM_QUEUED, OFF_SNDBUF, OFF_RMEM_ALLOC, OFF_RCVBUF, OFF_COPIED_SEQ);
globals!(HIGH_WATER, MARGIN);
globals!(SAME_HOST, OFF_COOKIE, OFF_ULP, OFF_PROT, OFF_PRESSURE);

#[unsafe(no_mangle)]
pub(crate) static TOTAL: Global<u64> = Global::new(0);
