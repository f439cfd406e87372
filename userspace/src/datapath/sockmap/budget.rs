//! Returns a direction's share in the sum of all waiting bytes, when none of its bytes wait any more.
//!
//! The verdict program corrects a direction's share with each packet. Userspace returns the share that no packet
//! corrects: when it copies, at the end of the connection, and when the sum has refused others
//! (`bpf/sockmap/events.rs`).

use snisplice_common::sockmap::direction::{Control, Flow};

use super::connection::Connection;
use crate::{datapath::broken::Broken, metrics::labels::Direction};

impl Connection<'_> {
    /// After the target has taken everything, while the program leaves the direction to userspace: it learns of it
    /// with the next [`Control::forwarded`], and counts nothing before.
    pub(super) fn give_back(&self, direction: Direction, flow: &Flow) {
        let way = self.way(direction);
        let returned = way.returned.get();
        let share = flow.share(&Control { returned, ..Control::default() });
        way.returned.set(returned.wrapping_add_signed(share));
        self.entries.budget().give_back(share);
    }

    /// As above, for a direction that the kernel redirects: only if the target has taken everything by now. The program
    /// is informed at once.
    pub(super) fn give_back_if_taken(&self, direction: Direction, flow: &Flow) -> Result<(), Broken> {
        let way = self.way(direction);
        let control = Control { returned: way.returned.get(), ..Control::default() };
        if flow.share(&control) == 0 || !self.is_taken(direction, flow)? {
            return Ok(());
        }
        let share = flow.share(&control);
        way.returned.set(way.returned.get().wrapping_add_signed(share));
        // In this order the sum is a little too large for a moment, never too small.
        self.publish(direction)?;
        self.entries.budget().give_back(share);
        Ok(())
    }
}
