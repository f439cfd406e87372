//! The programs that carry flows by rewriting the headers of packets.
//!
//! An object of its own, so that the other datapath neither waits for these programs nor depends on them. The ones
//! on devices leave everything that belongs to no flow to whoever comes next: other programs, then the stack.
#![no_std]
#![no_main]

mod icmp;
mod ingress;
mod look;
mod maps;
mod own;
mod wire;

use aya_ebpf::{macros::classifier, programs::TcContext};

/// Runs for each packet that a device receives.
#[classifier]
fn sni_ingress(ctx: TcContext) -> i32 {
    match ingress::ingress(ctx.skb.skb) {
        ingress::OTHER => icmp::ingress(ctx.skb.skb),
        action => action,
    }
}

/// Runs for each packet that a device sends.
#[classifier]
fn sni_egress(ctx: TcContext) -> i32 {
    own::egress(&ctx)
}

/// Attached nowhere: userspace runs it on a made-up packet.
#[classifier]
fn sni_look(ctx: TcContext) -> i32 {
    look::look(&ctx)
}

/// The kernel's GPL-only helpers ask for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
