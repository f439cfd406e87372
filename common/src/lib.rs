//! What the kernel programs and userspace agree on: map names, keys and values, and the pure decisions on them.
//!
//! Everything here is `repr(C)`, made of integers, without implicit padding, and means the same on both sides.
//! Sockets are named by their cookie (`SO_COOKIE`): unique for the life of the machine, never used again.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod packet;
pub mod sockmap;

/// A socket's cookie: the key of every map here.
pub type Cookie = u64;
