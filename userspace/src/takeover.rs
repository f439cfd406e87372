//! Takeover: a new process replaces a running one without an effect on clients.
//!
//! The running process listens on a unix socket in a directory of its user alone ([`socket_file`], [`server`]). The
//! new process requests the state of the running one there ([`client`]), and each verifies the other's identity
//! (`peer`). Listening sockets are handed over as descriptors, so that every queue of connections always has an
//! owner. The lock of the pins is handed over in the same way. All steps that may fail come before the last message
//! of the new process. The old process replies to that message and drains. Until then it owns everything. The new
//! process serves only after that reply, or when the old process has ended. A closed channel alone decides nothing,
//! since the process at its other end may still run.
//!
//! ```text
//! new  hello VERSION                     old  listener.. admin.. pins.. listening_socket end   (each with its descriptor)
//! new  prepare                           old  used.. end     begins no flow in maps that both have
//! new  serving                           old  draining       the new one accepts from here on
//!                                             flow..         (each with its sockets), until it is done
//! ```

mod channel;
pub mod client;
pub mod message;
mod peer;
pub mod server;
pub mod socket_file;

pub use channel::Channel;
pub use socket_file::SocketFile;
