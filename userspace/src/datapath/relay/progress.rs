//! The progress of a direction, and whether it is enough for an offload to the kernel.

use snisplice_config::model::Offload;

/// The bytes and messages that userspace has copied in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The number of bytes.
    pub bytes: u64,
    /// The number of reads with a write.
    pub messages: u32,
}

impl Progress {
    /// The progress after a further step of `bytes`.
    #[must_use]
    pub fn after(self, bytes: usize) -> Self {
        Self { bytes: self.bytes + bytes as u64, messages: self.messages.saturating_add(1) }
    }

    /// Whether a direction with this progress will probably move enough to pay for the offload.
    #[must_use]
    pub fn pays(self, rule: Offload) -> bool {
        self.bytes >= rule.after_bytes || self.messages >= rule.after_messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_bytes_or_messages_are_enough() {
        let rule = Offload { after_bytes: 1_000, after_messages: 3, packet: true };
        let once = Progress::default().after(10);
        assert!(!once.pays(rule));
        assert!(!once.after(10).pays(rule));
        assert!(once.after(10).after(10).pays(rule));
        assert!(once.after(990).pays(rule));
        assert!(Progress::default().pays(Offload { after_bytes: 0, ..rule }));
    }
}
