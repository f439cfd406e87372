//! A new process takes the place of a running one, and nobody who connects notices.
//!
//! The one that runs listens on an abstract unix socket, whose name belongs to the network namespace ([`door`]). The new
//! one asks it there for what it has ([`heir`]): listening sockets as descriptors, so that no queue of connections is ever
//! without an owner, and the lock of what is pinned. Everything that may fail comes before the last word of the new one,
//! which is that it serves; until then the old one goes on as if nothing were, and it does so again if that word never
//! comes.
//!
//! ```text
//! new  hello VERSION                     old  listener.. admin.. pins.. door end   (each with its descriptor)
//! new  prepare                           old  used.. end     begins no flow in maps that both have
//! new  serving                           old  flow..         (each with its sockets), until it is done
//! ```

mod channel;
pub mod door;
pub mod heir;
pub mod message;

pub use channel::Channel;

/// What everybody's name begins with.
const NAME: &str = "snisplice";

/// The abstract name of a daemon's socket.
fn name(own: Option<&str>) -> String {
    own.map_or_else(|| NAME.to_owned(), |own| format!("{NAME}-{own}"))
}
