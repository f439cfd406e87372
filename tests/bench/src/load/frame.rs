//! The protocol of the generator and the backend.
//!
//! The first bytes of a connection are a real `ClientHello`, since a balancer routes by it. Its random field of 32
//! bytes contains an [`Order`], the backend's task on this connection. All other bytes are not TLS. So neither end
//! needs cryptography, and the balancer is the measured part.
//!
//! All numbers are big-endian.

use std::sync::LazyLock;

use super::fault::Fault;

/// The size of a block in a bulk stream, including its header, in bytes.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;
/// The size of a [`BlockHeader`], in bytes.
pub(crate) const BLOCK_HEADER_BYTES: usize = 24;
/// The size of a [`Message`] header, in bytes. No message is shorter.
pub(crate) const MESSAGE_HEADER_BYTES: usize = 16;
/// The greatest size of a message on a request/response connection, in bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The size of the backend's answer to the hello, in bytes.
pub(crate) const ACK_BYTES: usize = 64;

const ORDER_MAGIC: &[u8; 8] = b"snibench";
const ACK_MAGIC: &[u8; 4] = b"ACK1";
const BLOCK_MAGIC: &[u8; 4] = b"BLK1";
const MESSAGE_MAGIC: &[u8; 4] = b"MSG1";

/// Position of the nonce in an encoded order.
pub(crate) const ORDER_NONCE_AT: usize = 16;
/// Position of the checksum in an encoded order.
pub(crate) const ORDER_CHECKSUM_AT: usize = 24;

/// The task of the backend after its answer to the hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Wait until the client closes.
    Wait,
    /// Answer each message with one of the same size.
    Echo,
    /// Read blocks until the last one, then confirm the count.
    Upload,
    /// Write blocks until the client requests the last one.
    Download,
    /// Both at once.
    Both,
}

impl Task {
    fn code(self) -> u8 {
        match self {
            Self::Wait => 0,
            Self::Echo => 1,
            Self::Upload => 2,
            Self::Download => 3,
            Self::Both => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Wait, Self::Echo, Self::Upload, Self::Download, Self::Both]
            .into_iter()
            .find(|task| task.code() == code)
    }

    /// Whether the client sends blocks.
    pub(crate) fn uploads(self) -> bool {
        matches!(self, Self::Upload | Self::Both)
    }

    /// Whether the backend sends blocks.
    pub(crate) fn downloads(self) -> bool {
        matches!(self, Self::Download | Self::Both)
    }
}

/// The order of one connection, in the random field of its `ClientHello`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    /// The task.
    pub task: Task,
    /// Bytes of one message, for [`Task::Echo`].
    pub size: u32,
    /// Whether both ends compare every byte. That costs time, so only the smoke run does.
    pub verify: bool,
    /// Returned in the [`Ack`]. Distinguishes connections that a balancer might confuse.
    pub nonce: u64,
}

impl Order {
    /// The 32 bytes of a random field. `checksum` is that of the hello outside this field.
    pub(crate) fn encode(&self, checksum: u32) -> [u8; 32] {
        let mut field = [0; 32];
        field[..8].copy_from_slice(ORDER_MAGIC);
        field[8] = self.task.code();
        field[9] = u8::from(self.verify);
        field[12..16].copy_from_slice(&self.size.to_be_bytes());
        field[ORDER_NONCE_AT..24].copy_from_slice(&self.nonce.to_be_bytes());
        field[ORDER_CHECKSUM_AT..28].copy_from_slice(&checksum.to_be_bytes());
        field
    }

    /// The order in a random field, and the checksum beside it.
    pub(crate) fn decode(field: &[u8; 32]) -> Result<(Self, u32), Fault> {
        if &field[..8] != ORDER_MAGIC {
            return Err(Fault::Protocol("a hello that the generator did not send"));
        }
        let task = Task::from_code(field[8]).ok_or(Fault::Protocol("an unknown task"))?;
        let order = Self {
            task,
            size: u32_at(field, 12),
            verify: field[9] == 1,
            nonce: u64_at(field, ORDER_NONCE_AT),
        };
        let size = order.size as usize;
        if task == Task::Echo && !(MESSAGE_HEADER_BYTES..=MESSAGE_BYTES_MAX).contains(&size) {
            return Err(Fault::Protocol("a message size out of range"));
        }
        Ok((order, u32_at(field, ORDER_CHECKSUM_AT)))
    }
}

/// The backend's short answer to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    /// The nonce of the [`Order`].
    pub nonce: u64,
}

impl Ack {
    /// The form on the wire.
    pub(crate) fn encode(self) -> [u8; ACK_BYTES] {
        let mut bytes = [0; ACK_BYTES];
        bytes[..4].copy_from_slice(ACK_MAGIC);
        bytes[8..16].copy_from_slice(&self.nonce.to_be_bytes());
        bytes
    }

    /// Parses the form on the wire.
    pub(crate) fn decode(bytes: &[u8; ACK_BYTES]) -> Result<Self, Fault> {
        if &bytes[..4] != ACK_MAGIC {
            return Err(Fault::Protocol("an answer that is not the backend's"));
        }
        Ok(Self { nonce: u64_at(bytes, 8) })
    }
}

/// The start of every block of a bulk stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    /// Whether this header is the last. Only the last header has the two counts below.
    pub last: bool,
    /// Bytes sent before this header.
    pub sent: u64,
    /// Bytes of the other direction received so far, without its last header.
    pub received: u64,
}

impl BlockHeader {
    /// The start of all blocks but the last.
    pub(crate) const MORE: Self = Self { last: false, sent: 0, received: 0 };

    /// The form on the wire.
    pub(crate) fn encode(self) -> [u8; BLOCK_HEADER_BYTES] {
        let mut bytes = [0; BLOCK_HEADER_BYTES];
        bytes[..4].copy_from_slice(BLOCK_MAGIC);
        bytes[7] = u8::from(self.last);
        bytes[8..16].copy_from_slice(&self.sent.to_be_bytes());
        bytes[16..].copy_from_slice(&self.received.to_be_bytes());
        bytes
    }

    /// Parses the form on the wire.
    pub(crate) fn decode(bytes: &[u8; BLOCK_HEADER_BYTES]) -> Result<Self, Fault> {
        if &bytes[..4] != BLOCK_MAGIC {
            return Err(Fault::Protocol("a block without its header: bytes were lost or added"));
        }
        Ok(Self { last: bytes[7] == 1, sent: u64_at(bytes, 8), received: u64_at(bytes, 16) })
    }
}

/// The start of every message of a request/response connection, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    /// The size in bytes, including this header.
    pub size: u32,
    /// The number of the message within its connection.
    pub sequence: u64,
}

impl Message {
    /// The form on the wire.
    pub(crate) fn encode(self) -> [u8; MESSAGE_HEADER_BYTES] {
        let mut bytes = [0; MESSAGE_HEADER_BYTES];
        bytes[..4].copy_from_slice(MESSAGE_MAGIC);
        bytes[4..8].copy_from_slice(&self.size.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// Parses the form on the wire.
    pub(crate) fn decode(bytes: &[u8; MESSAGE_HEADER_BYTES]) -> Result<Self, Fault> {
        if &bytes[..4] != MESSAGE_MAGIC {
            return Err(Fault::Protocol("a message without its header: bytes were lost or added"));
        }
        Ok(Self { size: u32_at(bytes, 4), sequence: u64_at(bytes, 8) })
    }
}

/// One block with a [`BlockHeader::MORE`] header, and the body of messages. The bytes differ within any run of a few
/// hundred, so that a comparison of bodies detects a shift.
pub(crate) static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    #[expect(clippy::cast_possible_truncation, reason = "the low byte is what the pattern is made of")]
    let mut block: Vec<u8> =
        (0..BLOCK_BYTES).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ (i >> 16)) as u8).collect();
    block[..BLOCK_HEADER_BYTES].copy_from_slice(&BlockHeader::MORE.encode());
    block
});

/// FNV-1a over several pieces: it suffices to verify that a hello arrived unchanged.
pub(crate) fn checksum(pieces: &[&[u8]]) -> u32 {
    pieces
        .iter()
        .flat_map(|piece| piece.iter())
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_the_trip() {
        for task in [Task::Wait, Task::Echo, Task::Upload, Task::Download, Task::Both] {
            let order = Order { task, size: 16_384, verify: task == Task::Both, nonce: u64::MAX - 7 };
            assert_eq!(Order::decode(&order.encode(99)).unwrap(), (order, 99));
        }
    }

    #[test]
    fn foreign_and_impossible_orders_are_refused() {
        assert!(Order::decode(&[7; 32]).is_err());
        let order = Order { task: Task::Echo, size: 15, verify: false, nonce: 0 };
        assert!(Order::decode(&order.encode(0)).is_err(), "shorter than its own header");
        let mut field = Order { size: 64, ..order }.encode(0);
        field[8] = 9;
        assert!(Order::decode(&field).is_err(), "no such task");
    }

    #[test]
    fn headers_survive_the_trip_and_refuse_shifted_bytes() {
        let header = BlockHeader { last: true, sent: 1 << 40, received: 3 };
        assert_eq!(BlockHeader::decode(&header.encode()).unwrap(), header);
        let message = Message { size: 65_536, sequence: 1 << 33 };
        assert_eq!(Message::decode(&message.encode()).unwrap(), message);
        let ack = Ack { nonce: 5 };
        assert_eq!(Ack::decode(&ack.encode()).unwrap(), ack);

        let mut shifted = message.encode();
        shifted.rotate_left(1);
        assert!(Message::decode(&shifted).is_err());
        let mut shifted = header.encode();
        shifted.rotate_left(1);
        assert!(BlockHeader::decode(&shifted).is_err());
    }

    #[test]
    fn a_shifted_body_differs_from_the_pattern() {
        for shift in [1, 2, 255, 256, 1448, 4096, 65_536] {
            assert_ne!(BLOCK[1000..2000], BLOCK[1000 + shift..2000 + shift], "shift by {shift}");
        }
    }
}
