//! The programs that move bytes in the kernel.
#![no_std]
#![no_main]
