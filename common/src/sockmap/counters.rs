//! The totals of the verdict program over all flows.

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
    /// Packets passed to userspace, without the empty ones that carry a FIN.
    pub passed_packets: u64,
    /// Changes from redirecting to passing because the backlog exceeded the high-water mark.
    pub over_high_water: u64,
    /// Changes from redirecting to passing because the waiting bytes of all directions exceeded the limit.
    pub over_budget: u64,
    /// Changes from redirecting to passing because the target's send buffer was full.
    pub no_room: u64,
    /// Changes from redirecting to passing because the target was closed.
    pub no_target: u64,
    /// Changes back from passing to redirecting.
    pub returns: u64,
    /// Events that were lost because the ring was full.
    pub lost_events: u64,
    /// Packets of sockets without a flow, passed.
    pub unowned: u64,
    /// Packets that began with bytes received before.
    pub overlaps: u64,
    /// Packets among them that the kernel had no memory to shorten. Each of them ends a connection.
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
