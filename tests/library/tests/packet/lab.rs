//! The programs with one flow in their maps, and packets for them.

use std::sync::Arc;

use aya::maps::{Array, HashMap, Map, MapData};
use snisplice::testing::packet::{Programs, tuple};
use snisplice_common::packet::{
    flow::{CARRY, Rules, State, Translation},
    maps::{Slot, Tuple},
    segment::{IPV4_BYTES, IPV6_BYTES, TCP_BYTES, flag},
    translate::{readdress_v4, readdress_v6, translate},
};

/// The program leaves a packet to the next program (`TCX_NEXT`, which is -1).
pub(crate) const NEXT: u32 = u32::MAX;

/// The program drops the packet (`TCX_DROP`).
pub(crate) const DROP: u32 = 2;

/// The program sends the packet to another device (`TCX_REDIRECT`).
pub(crate) const REDIRECT: u32 = 7;

/// The programs with one flow in their maps.
pub(crate) struct Lab {
    pub(crate) programs: Arc<Programs>,
    pub(crate) tuples: HashMap<MapData, Tuple, Slot>,
    pub(crate) rules: Array<MapData, Rules>,
    pub(crate) states: Array<MapData, State>,
}

pub(crate) const FLOW: u32 = 3;

impl Lab {
    pub(crate) fn new(v6: bool) -> Self {
        let programs = Programs::load(16).expect("the kernel takes the programs");
        let data = |fd: std::io::Result<_>| MapData::from_fd(fd.expect("a descriptor")).expect("a map");
        let mut lab = Self {
            tuples: HashMap::try_from(Map::HashMap(data(programs.tuples()))).expect("a hash"),
            rules: Array::try_from(Map::Array(data(programs.rules()))).expect("an array"),
            states: Array::try_from(Map::Array(data(programs.states()))).expect("an array"),
            programs,
        };
        for way in [0, 1] {
            lab.add_tuple(v6, way);
        }
        lab.set(rules(v6, CARRY));
        lab.states.set(FLOW, State::new([0, 0], [60_000, 60_000]), 0).expect("a place in the array");
        lab
    }

    pub(crate) fn add_tuple(&mut self, v6: bool, way: u32) {
        let tuple = leg(v6, way);
        self.programs.bloom().add(&tuple);
        self.tuples.insert(tuple, Slot { flow: FLOW, way }, 0).expect("room for a tuple");
    }

    pub(crate) fn set(&mut self, rules: Rules) {
        self.rules.set(FLOW, rules, 0).expect("a place in the array");
    }

    pub(crate) fn run(&self, packet: &[u8]) -> (u32, Vec<u8>) {
        self.programs.try_packet(packet).expect("the program runs")
    }

    pub(crate) fn state(&self) -> State {
        self.states.get(&FLOW, 0).expect("a place in the array")
    }
}

/// The tuple of the client's leg, or of the backend's.
pub(crate) fn leg(v6: bool, way: u32) -> Tuple {
    let (local, remote) = match (v6, way) {
        (false, 0) => ("10.0.1.1:443", "10.0.1.2:40000"),
        (false, _) => ("10.0.2.1:50000", "10.0.2.2:8443"),
        (true, 0) => ("[fd00:1::1]:443", "[fd00:1::2]:40000"),
        (true, _) => ("[fd00:2::1]:50000", "[fd00:2::2]:8443"),
    };
    tuple(local.parse().expect("an address"), remote.parse().expect("an address"))
}

pub(crate) fn rules(v6: bool, mode: u32) -> Rules {
    let way = |to: Tuple, seq: u32, ack: u32| {
        let ports = [to.local_port.to_ne_bytes(), to.remote_port.to_ne_bytes()].concat();
        Translation {
            remote: to.remote,
            local: to.local,
            ports: u32::from_ne_bytes(ports.try_into().expect("four bytes")),
            // The loopback device, which exists in every namespace.
            device: 1,
            seq,
            ack,
            stamp: 77_777,
            echo: 0_u32.wrapping_sub(88_888),
            scale_from: 3,
            scale_to: 1,
            seq_start: 1_000,
            ack_start: 2_000,
            own: 0,
            expected: 1_000,
            least_echo: 0,
            flags: 0,
            granted: 0,
            from: 0,
        }
    };
    let ways =
        [way(leg(v6, 1), 0xffff_0000, 12_345), way(leg(v6, 0), 0x0001_0000, 0_u32.wrapping_sub(12_345))];
    Rules { token: 0, mode, reserved: 0, ways }
}

/// The properties in which packets differ.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Default for Segment {
    fn default() -> Self {
        Self { seq: 1_000, ack: 2_000, flags: flag::ACK, options: Vec::new(), payload: vec![9; 101] }
    }
}

/// A packet on the client's or the backend's leg, with correct checksums.
pub(crate) fn packet(v6: bool, way: u32, segment: &Segment) -> Vec<u8> {
    let tuple = leg(v6, way);
    let options = segment.options.len().div_ceil(4) * 4;
    let mut tcp = Vec::new();
    tcp.extend(tuple.remote_port.to_ne_bytes());
    tcp.extend(tuple.local_port.to_ne_bytes());
    tcp.extend(segment.seq.to_be_bytes());
    tcp.extend(segment.ack.to_be_bytes());
    tcp.extend([u8::try_from((20 + options) / 4).expect("short options") << 4, segment.flags]);
    tcp.extend([0x10, 0x01, 0, 0, 0, 5]);
    tcp.extend(&segment.options);
    tcp.resize(20 + options, 0);
    tcp.extend(&segment.payload);
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
    let length = u16::try_from(tcp.len()).expect("a short packet");
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let addresses = if v6 {
        packet.extend([0x86, 0xdd, 0x6a, 0xb1, 0x23, 0x45]);
        packet.extend(length.to_be_bytes());
        packet.extend([6, 17]);
        [words(&tuple.remote), words(&tuple.local)].concat()
    } else {
        packet.extend([0x08, 0x00, 0x45, 0xb9]);
        packet.extend((length + 20).to_be_bytes());
        packet.extend([0xab, 0xcd, 0x40, 0, 17, 6, 0, 0]);
        [words(&tuple.remote[3..]), words(&tuple.local[3..])].concat()
    };
    packet.extend(&addresses);
    if !v6 {
        let sum = checksum(&packet[14..34], 0);
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    let pseudo = [addresses, vec![0, 6], length.to_be_bytes().to_vec()].concat();
    let sum = checksum(&tcp, u32::from(!checksum(&pseudo, 0)));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    packet.extend(tcp);
    packet
}

/// The complete checksum, computed anew.
pub(crate) fn checksum(bytes: &[u8], start: u32) -> u16 {
    let sum = bytes
        .chunks(2)
        .fold(start, |sum, pair| sum + (u32::from(pair[0]) << 8) + pair.get(1).copied().map_or(0, u32::from));
    let once = (sum >> 16) + (sum & 0xffff);
    !u16::try_from((once >> 16) + (once & 0xffff)).expect("folded")
}

/// Whether all checksums of a packet are correct.
pub(crate) fn is_valid(v6: bool, packet: &[u8]) -> bool {
    let (addresses, tcp) =
        if v6 { (&packet[22..54], &packet[54..]) } else { (&packet[26..34], &packet[34..]) };
    let length = u16::try_from(tcp.len()).expect("a short packet");
    let pseudo = [addresses, &[0, 6], &length.to_be_bytes()].concat();
    let right = checksum(tcp, u32::from(!checksum(&pseudo, 0))) == 0;
    right && (v6 || checksum(&packet[14..34], 0) == 0)
}

/// The result of the functions for a packet.
pub(crate) fn expected(v6: bool, way: &Translation, packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let l4 = if v6 { 14 + IPV6_BYTES } else { 14 + IPV4_BYTES };
    let length = usize::from(packet[l4 + 12] >> 4) * 4;
    let mut tcp = [0; TCP_BYTES];
    tcp[..length].copy_from_slice(&packet[l4..l4 + length]);
    let header = translate(&mut tcp, length, way);
    let pseudo = if v6 {
        let ip: &mut [u8; IPV6_BYTES] = (&mut packet[14..l4]).try_into().expect("a header");
        readdress_v6(ip, way)
    } else {
        let ip: &mut [u8; IPV4_BYTES] = (&mut packet[14..l4]).try_into().expect("a header");
        readdress_v4(ip, way)
    };
    let old = u16::from_be_bytes([tcp[16], tcp[17]]);
    tcp[16..18].copy_from_slice(&header.apply(pseudo.apply(old)).to_be_bytes());
    packet[l4..l4 + length].copy_from_slice(&tcp[..length]);
    packet
}

pub(crate) fn timestamps() -> Vec<u8> {
    vec![1, 1, 8, 10, 0, 0, 1, 0, 0, 2, 0, 0]
}

pub(crate) fn blocks(count: u8) -> Vec<u8> {
    let edges = (0..count * 2).flat_map(|edge| [0, 0, edge, 7]);
    [1, 1, 5, 2 + 8 * count].into_iter().chain(edges).collect()
}

/// The packets of a flow of 100 bytes up and 50 down. `halfway` is called before the second FIN.
pub(crate) fn to_the_end(lab: &Lab, v6: bool, halfway: impl FnOnce()) {
    let see = |way, seq, ack, flags, payload: usize| {
        let flags = flags | flag::ACK;
        let segment = Segment { seq, ack, flags, payload: vec![1; payload], ..Segment::default() };
        assert_eq!(lab.run(&packet(v6, way, &segment)).0, REDIRECT);
    };
    see(0, 1_000, 2_000, 0, 100);
    see(1, 1_000, 2_100, 0, 50);
    see(0, 1_100, 2_050, flag::FIN, 0);
    halfway();
    see(1, 1_050, 2_101, flag::FIN, 0);
    see(0, 1_101, 2_051, 0, 0);
}
