//! Runs of the programs on artificial packets (`BPF_PROG_TEST_RUN`).

use std::{io, sync::PoisonError};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use snisplice_common::packet::{
    maps::{Tuple, name},
    socket_info::{LEGS, OFFSET, SocketInfo},
};

use super::Programs;

impl Programs {
    /// Takes a snapshot of the sockets of both legs. Fails with `NotFound` if one of them does not exist.
    pub fn socket_info(&self, tuples: [Tuple; LEGS]) -> io::Result<[SocketInfo; LEGS]> {
        let mut packet = [0; OFFSET + LEGS * size_of::<SocketInfo>()];
        for (at, tuple) in tuples.into_iter().enumerate() {
            write(&mut packet, at, &SocketInfo::at(tuple));
        }
        let mut answered = packet;
        let ebpf = self.ebpf.read().unwrap_or_else(PoisonError::into_inner);
        let program = ebpf.program(name::SOCKET_INFO).ok_or(io::ErrorKind::NotFound)?;
        let program: &SchedClassifier = program.try_into().map_err(io::Error::other)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet);
        options.data_out = Some(&mut answered);
        let result = program.test_run(options).map_err(io::Error::other)?;
        if result.return_value != 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok([read(&answered, 0), read(&answered, 1)])
    }

    /// Runs the ingress program on `packet`. Returns its verdict and the packet afterwards.
    #[cfg(feature = "testing")]
    pub fn try_packet(&self, packet: &[u8]) -> io::Result<(u32, Vec<u8>)> {
        let mut out = vec![0; packet.len() + 64];
        let ebpf = self.ebpf.read().unwrap_or_else(PoisonError::into_inner);
        let program = ebpf.program(name::INGRESS).ok_or(io::ErrorKind::NotFound)?;
        let program: &SchedClassifier = program.try_into().map_err(io::Error::other)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        let result = program.test_run(options).map_err(io::Error::other)?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }
}

/// The range of a request or answer in the artificial packet.
fn slot(at: usize) -> std::ops::Range<usize> {
    let start = OFFSET + at * size_of::<SocketInfo>();
    start..start + size_of::<SocketInfo>()
}

fn write(packet: &mut [u8], at: usize, info: &SocketInfo) {
    // SAFETY: a `SocketInfo` consists of integers without padding, so each of its bytes is initialised.
    let bytes =
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(info).cast::<u8>(), size_of::<SocketInfo>()) };
    packet[slot(at)].copy_from_slice(bytes);
}

fn read(packet: &[u8], at: usize) -> SocketInfo {
    // SAFETY: the slice is as long as a `SocketInfo`, which consists of integers: every bit pattern is valid.
    unsafe { packet[slot(at)].as_ptr().cast::<SocketInfo>().read_unaligned() }
}
