//! snisplice: a TLS passthrough load balancer whose bytes move inside the kernel.
//!
//! `proxy::session` shows one connection from accept to the end. `app` is the process. `datapath::seam` is the interface
//! between a connection and the implementation that moves its bytes.
//!
//! The crate exports [`main`] alone. With the feature `testing` it also exports what the tests and benchmarks of
//! `tests/library` call.

// `eprintln!` blocks while the reader of standard error hangs, and panics when it is closed: see `log`.
#![deny(clippy::print_stderr)]
// This file decides what leaves the crate. In a room, `pub` means for the other rooms.
#![allow(unreachable_pub, reason = "rooms are private, so `pub` cannot mean more than the crate")]

mod account;
mod admin;
mod app;
mod bpf;
mod cli;
mod datapath;
mod http;
mod limits;
mod log;
mod metrics;
mod net;
mod privileges;
mod probe;
mod provider;
mod proxy;
mod secrets;
mod snapshot;
mod takeover;
mod terminate;
mod upstream;

pub use app::command::main;

/// The items that `tests/library` calls.
#[cfg(feature = "testing")]
pub mod testing {
    pub use crate::{
        account::{
            Account, ListenerAccount,
            access_log::{AccessLog, Line},
            registry::Registry,
        },
        datapath::{
            relay::Relay,
            seam::{Datapath, End, Pair},
        },
        metrics::{
            Metrics,
            labels::{Carrier, CloseReason},
        },
        upstream::balance::round_robin::Wheel,
    };

    /// Socket options that the tests of the datapaths set and read.
    pub mod sockopt {
        pub use crate::net::sockopt::{
            reset_on_close, set_upper_protocol, start_ktls_sending, unacknowledged,
        };
    }

    /// The sockmap datapath and its programs.
    pub mod sockmap {
        pub use crate::{
            bpf::sockmap::{Programs, Settings as ProgramSettings, same_host::cgroup, stats::Ineligible},
            datapath::sockmap::{SEND_BUFFER, Settings, Sockmap},
        };
    }

    /// The programs of the packet datapath.
    pub mod packet {
        pub use crate::bpf::packet::{Programs, tuple::tuple};
    }

    /// The log of the eBPF programs.
    pub mod ebpf_log {
        pub use crate::bpf::log::{EbpfLog, set_level};
    }

    /// Probes that show the capabilities of this kernel.
    pub mod probe {
        pub use crate::probe::{
            packet::Experiments, same_host::run as same_host, socket_info::look as socket_info,
            sockmap::run_all as sockmap,
        };
    }
}
