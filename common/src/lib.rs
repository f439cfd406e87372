//! The interface between the kernel programs and userspace: names, keys and values of maps, and the pure decisions on
//! them.
//!
//! Every type here is `repr(C)`, consists of integers without implicit padding, and has the same meaning on both sides.
//! A socket is identified by its cookie (`SO_COOKIE`), which is unique for the life of the machine and never used
//! again.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod packet;
pub mod sockmap;

/// A socket's cookie: the key of every map here.
pub type Cookie = u64;
