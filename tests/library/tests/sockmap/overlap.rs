//! Packets that repeat earlier bytes before new ones.
//!
//! A retransmission may segment the bytes differently, so that the first part of a packet is old. The kernel passes
//! such a packet unchanged to the program, including the old part.
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and sums folded to their size")]

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    time::Duration,
};

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libtest_mimic::Trial;
use snisplice::testing::sockopt::unacknowledged;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{
    data::read,
    rig::{Link, Options, PATIENCE, Rig, wait_until},
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_repeated_part_is_left_out", || {
            let rig = Rig::new();
            for (old, new) in [(1, 1), (10, 30), (999, 1), (1_000, 20_000)] {
                repeated(&rig.link(), old, new);
            }
        }),
        trial("a_long_repeated_part_is_left_out", || {
            let rig = Rig::new();
            for (old, new) in [(4_095, 10), (4_096, 10), (30_000, 20_000)] {
                repeated(&rig.link(), old, new);
            }
        }),
        trial("forced::a_repeated_part_is_left_out", || {
            let hold = Some(Duration::from_millis(1));
            let rig = Rig::with(&Options { hold, ..Options::default() });
            for round in 1..100 {
                repeated(&rig.link(), round * 7, round * 11);
            }
        }),
    ]
}

/// Makes the last `old` bytes of each end arrive once more, in one packet with the following `new` ones.
fn repeated(link: &Link, old: usize, new: usize) {
    for (from, to) in [(&link.client, &link.backend), (&link.backend, &link.client)] {
        let bytes: Vec<u8> = (0..old + new + 5_000).map(|at| (at * 7 + at / 251) as u8).collect();
        // A later retransmission would be mistaken for the first packet.
        wait_until("all is acknowledged", || unacknowledged(from).expect("SIOCOUTQ") == 0);
        let wire = Wire::of(from);
        let (mut from, mut to) = (from, to);
        from.write_all(&bytes[..old]).expect("sent");
        let last = wire.last_of(old);
        let mut heard = vec![0; bytes.len()];
        to.read_exact(&mut heard[..old]).expect("the first part");
        wire.send(&last.repeating(old, &bytes[..old + new]));
        to.read_exact(&mut heard[old..old + new]).expect("what was new in the packet");
        // The sender itself does not know that packet. It sends the same bytes again, and further ones.
        from.write_all(&bytes[old..]).expect("sent");
        to.read_exact(&mut heard[old + new..]).expect("what follows");
        let wrong = bytes.iter().zip(&heard).position(|(sent, heard)| sent != heard);
        assert_eq!(wrong, None, "{old} old and {new} new bytes");
    }
}

/// The packets that one socket sends.
struct Wire {
    raw: Socket,
    ports: [u8; 4],
    to: SocketAddrV4,
}

impl Wire {
    fn of(stream: &TcpStream) -> Self {
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).expect("a raw socket");
        raw.set_header_included_v4(true).expect("IP_HDRINCL");
        raw.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
        let port = |address: io::Result<SocketAddr>| address.expect("connected").port();
        let (source, destination) = (port(stream.local_addr()), port(stream.peer_addr()));
        let mut ports = [0; 4];
        ports[..2].copy_from_slice(&source.to_be_bytes());
        ports[2..].copy_from_slice(&destination.to_be_bytes());
        // Packets of other tests would fill its buffer, and these would be lost.
        let word_at = |offset| SockFilter::new((BPF_LD | BPF_W | BPF_ABS) as u16, 0, 0, offset);
        let unless = |value, skip| SockFilter::new((BPF_JMP | BPF_JEQ | BPF_K) as u16, 0, skip, value);
        let take = |bytes| SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, bytes);
        let filter =
            [word_at(IP_HEADER as u32), unless(u32::from_be_bytes(ports), 1), take(u32::MAX), take(0)];
        raw.attach_filter(&filter).expect("SO_ATTACH_FILTER");
        // Earlier packets must not fill the buffer either.
        raw.set_nonblocking(true).expect("O_NONBLOCK");
        let mut buffer = vec![0; 70_000];
        while (&raw).read(&mut buffer).is_ok() {}
        raw.set_nonblocking(false).expect("O_NONBLOCK");
        Self { raw, ports, to: SocketAddrV4::new(Ipv4Addr::LOCALHOST, destination) }
    }

    /// The packet that completes the first `bytes` bytes of the socket.
    fn last_of(&self, bytes: usize) -> Packet {
        let mut buffer = vec![0; 70_000];
        let mut first = None;
        loop {
            let size = read(&self.raw, &mut buffer).expect("a packet");
            let packet = Packet(buffer[..size].to_vec());
            if packet.0[IP_HEADER..IP_HEADER + 4] != self.ports || packet.data_bytes() == 0 {
                continue;
            }
            // By number and not by sum: a sender that had to wait retransmits some of them.
            let first = *first.get_or_insert(packet.sequence());
            let end = packet.sequence().wrapping_add(packet.data_bytes() as u32);
            if end.wrapping_sub(first) == bytes as u32 {
                return packet;
            }
        }
    }

    fn send(&self, packet: &Packet) {
        let sent = self.raw.send_to(&packet.0, &self.to.into()).expect("sent");
        assert_eq!(sent, packet.0.len());
    }
}

/// Without options.
const IP_HEADER: usize = 20;
const SEQUENCE: usize = IP_HEADER + 4;
const CHECKSUM: usize = IP_HEADER + 16;

/// An IPv4 packet with TCP.
struct Packet(Vec<u8>);

impl Packet {
    fn headers(&self) -> usize {
        IP_HEADER + usize::from(self.0[IP_HEADER + 12] >> 4) * 4
    }

    fn sequence(&self) -> u32 {
        u32::from_be_bytes(self.0[SEQUENCE..SEQUENCE + 4].try_into().expect("four bytes"))
    }

    fn data_bytes(&self) -> usize {
        self.0.len() - self.headers()
    }

    /// The same packet with other data, which begins `before` bytes before the end of the packet's own.
    fn repeating(&self, before: usize, data: &[u8]) -> Self {
        let first = self.sequence().wrapping_add(self.data_bytes() as u32).wrapping_sub(before as u32);
        // The kernel writes length and checksum of the IPv4 header itself.
        let mut bytes = [&self.0[..self.headers()], data].concat();
        bytes[SEQUENCE..SEQUENCE + 4].copy_from_slice(&first.to_be_bytes());
        bytes[CHECKSUM..CHECKSUM + 2].fill(0);
        let length = (bytes.len() - IP_HEADER) as u32;
        let words =
            bytes[12..].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
        let mut sum = words.fold(length + 6, |sum, word| ((sum + word) & 0xffff) + ((sum + word) >> 16));
        sum = (sum & 0xffff) + (sum >> 16);
        bytes[CHECKSUM..CHECKSUM + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        Self(bytes)
    }
}
