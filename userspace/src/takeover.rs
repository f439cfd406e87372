//! A new process takes the place of a running one, and nobody who connects notices.
//!
//! The running process listens on a unix socket in a directory of its user alone ([`socket_file`], [`server`]). The new process
//! asks there for what the running one has ([`client`]), and each checks who the other is (`peer`). Listening sockets are
//! handed over as descriptors, so that no queue of connections is ever without an owner, and so is the lock of what is
//! pinned. Everything that may fail comes before the last word of the new process. The old one answers that word and
//! drains; until then everything is its own. The new one serves only with that answer, or when the old process has ended.
//! A closed channel alone decides nothing: the process at its other end may live.
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
