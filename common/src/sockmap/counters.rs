//! What the verdict program counts over all flows.

/// Totals since the program was loaded; each CPU has its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Bytes redirected to the other socket.
    pub redirected_bytes: u64,
    /// Packets (after GRO) redirected.
    pub redirected_packets: u64,
    /// Bytes passed to userspace.
    pub passed_bytes: u64,
    /// Packets passed to userspace, the empty ones that carry a FIN not included.
    pub passed_packets: u64,
    /// Changes from redirecting to passing because the backlog stood above the high-water mark.
    pub over_high_water: u64,
    /// Changes from redirecting to passing because all directions together had too much waiting.
    pub over_budget: u64,
    /// Changes from redirecting to passing because the target's send buffer had no room.
    pub no_room: u64,
    /// Changes from redirecting to passing because the target was gone.
    pub no_target: u64,
    /// Changes back from passing to redirecting.
    pub returns: u64,
    /// Events that found the ring full.
    pub lost_events: u64,
    /// Packets on a socket without a flow, passed.
    pub unowned: u64,
    /// Packets that began with bytes which had arrived before.
    pub overlaps: u64,
    /// Those of them that the kernel had no memory to shorten, and with each of them a connection.
    pub torn: u64,
}

const _: () = assert!(size_of::<Counters>() == 104, "Counters has padding");

#[cfg(feature = "user")]
impl core::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.redirected_bytes += other.redirected_bytes;
        self.redirected_packets += other.redirected_packets;
        self.passed_bytes += other.passed_bytes;
        self.passed_packets += other.passed_packets;
        self.over_high_water += other.over_high_water;
        self.over_budget += other.over_budget;
        self.no_room += other.no_room;
        self.no_target += other.no_target;
        self.returns += other.returns;
        self.lost_events += other.lost_events;
        self.unowned += other.unowned;
        self.overlaps += other.overlaps;
        self.torn += other.torn;
    }
}

// SAFETY: `repr(C)`, integers only, no padding (asserted above): every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Counters {}
