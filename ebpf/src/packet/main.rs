//! The programs that forward flows by rewriting packet headers.
//!
//! They are an object of their own, so that the sockmap datapath neither waits for these programs nor depends on them.
//! The programs on devices leave every packet without a flow to the next one: other programs, then the stack.
#![no_std]
#![no_main]

mod bloom;
mod checksum;
mod egress;
mod icmp;
mod ingress;
mod log;
mod maps;
mod mtu;
mod skb;
mod socket_info;

use core::ffi::c_void;

use aya_ebpf::{bindings::tcx_action_base::TCX_NEXT, programs::TcContext};

// The programs are not declared by aya's macros, because their argument has no type on purpose. The description of the
// structure refers to two more, and the compiler puts those in an order that differs from build to build.

/// Runs for each packet that a device receives.
#[unsafe(link_section = "classifier")]
#[unsafe(no_mangle)]
extern "C" fn sni_ingress(skb: *mut c_void) -> i32 {
    match ingress::ingress(skb) {
        ingress::OTHER => icmp::ingress(skb),
        action => action,
    }
}

/// Runs for each packet that a device sends.
#[unsafe(link_section = "classifier")]
#[unsafe(no_mangle)]
extern "C" fn sni_egress(skb: *mut c_void) -> i32 {
    egress::egress(&TcContext::new(skb.cast()))
}

/// Attached to no device: userspace runs it on an artificial packet.
#[unsafe(link_section = "classifier")]
#[unsafe(no_mangle)]
extern "C" fn sni_socket_info(skb: *mut c_void) -> i32 {
    socket_info::answer(&TcContext::new(skb.cast()))
}

/// Attached in probes only, before the other programs.
#[unsafe(link_section = "classifier")]
#[unsafe(no_mangle)]
extern "C" fn sni_mark(skb: *mut c_void) -> i32 {
    let ctx = TcContext::new(skb.cast());
    // SAFETY: the context is the one that the program was called with.
    unsafe { (*ctx.skb.skb).mark = 0x1234 };
    TCX_NEXT
}

/// The kernel's GPL-only helpers require it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
