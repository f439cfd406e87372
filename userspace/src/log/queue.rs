//! Lines that wait to be written, within bounds.

use std::collections::VecDeque;

/// Bytes of all lines that wait, at most. Thousands of lines, or one reload's report.
const ROOM: usize = 1 << 20;

/// The overhead of a line.
const OVERHEAD: usize = 64;

/// Lines in their order. A full queue drops new lines, so that the begin of a story remains.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Queue {
    /// Adds a line. False if it was dropped, since there is no room.
    pub(super) fn push(&mut self, line: &[u8]) -> bool {
        let bytes = line.len() + OVERHEAD;
        // A line that is too large for the limit is still written.
        if !self.lines.is_empty() && self.bytes + bytes > ROOM {
            return false;
        }
        self.bytes += bytes;
        self.lines.push_back(line.into());
        true
    }

    /// The oldest line.
    pub(super) fn pop(&mut self) -> Option<Box<[u8]>> {
        let line = self.lines.pop_front()?;
        self.bytes -= line.len() + OVERHEAD;
        if self.lines.is_empty() {
            // The memory of a burst is released.
            self.lines.shrink_to(64);
        }
        Some(line)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_comes_out_in_its_order_and_the_rest_is_dropped() {
        let mut queue = Queue::default();
        let taken = (0..100_000_u32).take_while(|number| queue.push(&number.to_ne_bytes())).count();
        assert_eq!(taken, ROOM / (4 + OVERHEAD));
        for number in 0..u32::try_from(taken).unwrap() {
            assert_eq!(queue.pop().as_deref(), Some(&number.to_ne_bytes()[..]));
        }
        assert!(queue.pop().is_none() && queue.is_empty() && queue.bytes == 0);
        assert!(queue.push(b"again"));
    }

    #[test]
    fn a_line_of_any_size_is_taken_when_nothing_waits() {
        let mut queue = Queue::default();
        assert!(queue.push(&vec![b'x'; 2 * ROOM]));
        assert!(!queue.push(b"no room"));
        queue.pop();
        assert!(queue.push(b"room"));
    }
}
