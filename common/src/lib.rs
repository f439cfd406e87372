//! What the kernel programs and userspace agree on: map names, keys and values, and the pure decisions on them.
#![no_std]
