//! The kernel objects of this process: programs, maps, pins, and the events that they report.

mod btf;
pub mod cgroup;
mod events;
pub mod layout;
pub mod load;
pub mod log;
pub mod packet;
pub mod sockmap;

pub use snisplice_wakeup as wakeup;
