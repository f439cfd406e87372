//! The condition for the packet datapath, tried on loopback.
//!
//! The offsets of the kernel's fields come from its types, but their meaning does not. So the probe takes a snapshot of
//! a connection whose numbers are known.

use std::{
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use snisplice_common::packet::{maps::Tuple, socket_info::SocketInfo};
use thiserror::Error;

use crate::{
    bpf::packet::{Programs, tuple::tuple},
    net::sockopt,
};

/// Bytes that one end sends and the other does not read.
const UNREAD: u32 = 4_321;

/// Limit of the time for packets on loopback.
const PATIENCE: Duration = Duration::from_secs(5);

/// The reason for which packets cannot be forwarded.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// There is no loopback to try it on.
    #[error("cannot make a connection on loopback: {0}")]
    Loopback(#[from] io::Error),
    /// The kernel's numbers differ from the expected ones.
    #[error("the layout of this kernel's sockets is unknown: {0}")]
    SocketInfo(String),
}

/// Makes a connection on loopback and takes snapshots of both ends.
pub fn look(programs: &Programs) -> Result<(), ProbeError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut one = TcpStream::connect(listener.local_addr()?)?;
    let local = one.local_addr()?;
    let other = loop {
        // Any process may connect to a port on loopback.
        let (stream, peer) = listener.accept()?;
        if peer == local {
            break stream;
        }
    };
    let tuples =
        [&one, &other].map(|stream| Ok::<_, io::Error>(tuple(stream.local_addr()?, stream.peer_addr()?)));
    let [one_tuple, other_tuple] = tuples;
    let tuples: [Tuple; 2] = [one_tuple?, other_tuple?];
    one.write_all(&[7; UNREAD as usize])?;
    let started = Instant::now();
    while sockopt::unacknowledged(&one)? != 0 {
        if started.elapsed() > PATIENCE {
            return Err(ProbeError::SocketInfo("bytes are not acknowledged".to_owned()));
        }
        thread::sleep(Duration::from_millis(1));
    }
    let [one, other] = programs.socket_info(tuples)?;
    let is = |what: &str, condition: bool| {
        let wrong = || ProbeError::SocketInfo(format!("{what} is wrong in {one:?} and {other:?}"));
        if condition { Ok(()) } else { Err(wrong()) }
    };
    let numbers_match = |from: &SocketInfo, to: &SocketInfo| from.write_seq == to.rcv_nxt;
    is("what was sent", numbers_match(&one, &other) && numbers_match(&other, &one))?;
    is("what was acknowledged", one.unacknowledged() == 0 && other.unacknowledged() == 0)?;
    is("what is unread", one.unread() == 0 && other.unread() == UNREAD)?;
    is("a window", one.snd_wnd > 0 && one.rcv_wnd > 0 && other.rcv_wnd > 0)?;
    let device = one.tx_device;
    is("a device", device != 0 && [other.rx_device, other.tx_device] == [device; 2])
}
