//! The maps, with the names of `snisplice_common::packet::maps::name`, and the globals that the loader sets.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
    macros::btf_map,
};
use snisplice_common::packet::{
    flow::{Rules, State},
    maps::{BLOOM, DENIED, Event, FLOWS, RING_BYTES, Slot, Totals, Tuple},
    segment::TCP_BYTES,
};
use snisplice_ebpf::globals;

use crate::skb::Ip;

const COUNT: usize = FLOWS as usize;
/// Each flow has one entry for each leg.
const TUPLES: usize = 2 * COUNT;

/// Entries come and go with flows, so they are not allocated beforehand.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub(crate) static SNI_TUPLES: HashMap<Tuple, Slot, TUPLES, ON_DEMAND> = HashMap::new();
/// Counters with a name, as the type of an array's element must have one.
#[repr(C)]
pub(crate) struct Counters(pub(crate) [u64; BLOOM]);

/// Userspace counts in its own mapping of the memory.
#[btf_map]
pub(crate) static SNI_BLOOM: Array<Counters, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static SNI_RULES: Array<Rules, COUNT> = Array::new();
#[btf_map]
pub(crate) static SNI_STATES: Array<State, COUNT> = Array::new();
#[btf_map]
pub(crate) static SNI_BEGUN: LruHashMap<Tuple, u32, TUPLES> = LruHashMap::new();
#[btf_map]
pub(crate) static SNI_ENDINGS: RingBuf<Event, RING_BYTES> = RingBuf::new();
#[btf_map]
pub(crate) static SNI_DENIED: LpmTrie<[u32; 4], u32, DENIED> = LpmTrie::new();
/// As many devices as a host may have.
#[btf_map]
pub(crate) static SNI_STRICT: HashMap<u32, u32, 4096, ON_DEMAND> = HashMap::new();
#[btf_map]
pub(crate) static SNI_TOTALS: PerCpuArray<Totals, 1> = PerCpuArray::new();

/// How many flows have a tuple with this place in the Bloom filter.
#[inline(always)]
pub(crate) fn bloom_count(place: usize) -> Option<u64> {
    let counters = SNI_BLOOM.get_ptr(0)?;
    // SAFETY: elements of an array live as long as the map, and the place is one of the counters: the mask says so to the
    // verifier.
    Some(unsafe { (&raw const (*counters).0).cast::<u64>().add(place & (BLOOM - 1)).read_volatile() })
}

/// Changes the record of a flow: that of the way of the slot's packets, and that of the other way. Under the lock no
/// function may be called, and a closure is not always inlined. Hence this is a macro.
macro_rules! locked {
    ($state:expr, $slot:expr, |$own:ident, $other:ident| $change:expr) => {{
        let (state, slot): (*mut State, Slot) = ($state, $slot);
        // SAFETY: elements of an array live as long as the map.
        let lock = unsafe { (&raw mut (*state).lock).cast() };
        // SAFETY: it is the lock of this element, which is not held.
        unsafe { bpf_spin_lock(lock) };
        // SAFETY: while the lock is held no one else changes the element.
        let [up, down] = unsafe { &mut (*state).ways };
        // With constant positions the verifier needs a third of the time.
        let changed = if slot.way & 1 == 0 {
            let ($own, $other) = (up, down);
            $change
        } else {
            let ($own, $other) = (down, up);
            $change
        };
        // SAFETY: the lock is held.
        unsafe { bpf_spin_unlock(lock) };
        changed
    }};
}
pub(crate) use locked;

/// Room for headers, which would take too much stack. Each CPU has its own entries, one for each program. No program
/// interrupts itself, since all run with softirqs disabled.
#[repr(C)]
pub(crate) struct Headers {
    pub(crate) ip: Ip,
    pub(crate) tcp: [u8; TCP_BYTES],
    /// The key of the packet's lookup.
    pub(crate) tuple: Tuple,
    /// The packet's client, as a key of [`SNI_DENIED`].
    pub(crate) client: Key<[u32; 4]>,
}

/// The entry of the ingress program in [`SNI_HEADERS`].
pub(crate) const OF_INGRESS: u32 = 0;
/// The entry of the egress program.
pub(crate) const OF_EGRESS: u32 = 1;

#[btf_map]
pub(crate) static SNI_HEADERS: PerCpuArray<Headers, 2> = PerCpuArray::new();

/// The result of recording a packet.
#[btf_map]
pub(crate) static SNI_NOTED: PerCpuArray<u32, 1> = PerCpuArray::new();

globals!(
    OFF_COPIED_SEQ,
    OFF_RCV_NXT,
    OFF_SND_UNA,
    OFF_WRITE_SEQ,
    OFF_SND_WND,
    OFF_RCV_WND,
    OFF_TS_RECENT,
    OFF_RX_IFINDEX,
    OFF_DST,
    OFF_DST_DEV,
    OFF_IFINDEX,
    NOTE_BEGUN,
);
