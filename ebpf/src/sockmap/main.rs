//! The programs that redirect bytes from socket to socket.
#![no_std]
#![no_main]
// The target has an instruction for adding to a shared counter, but not all operations of `core::sync::atomic`.
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "see above; the objects are built with unstable features anyway")]

mod log;
mod maps;
mod shortcut;
mod verdict;

use core::ffi::c_void;

use aya_ebpf::{
    macros::{sk_msg, sock_ops},
    programs::{SkBuffContext, SkMsgContext, SockOpsContext},
};

/// Runs for each packet that a socket in `SNI_VERDICT` receives, with that socket's lock held.
///
/// It is not declared by aya's macro, because its argument has no type on purpose. The description of the structure
/// refers to two more, and the compiler puts those in an order that differs from build to build.
#[unsafe(link_section = "sk_skb/stream_verdict")]
#[unsafe(no_mangle)]
extern "C" fn snisplice(ctx: *mut c_void) -> u32 {
    verdict::verdict(&SkBuffContext::new(ctx.cast()))
}

/// Runs for each message that a socket in `SNI_LOCAL` sends, with that socket's lock held.
#[sk_msg]
fn snisplice_msg(ctx: SkMsgContext) -> u32 {
    shortcut::message(&ctx)
}

/// Runs for each connection of the host that is established, and for many other events that do not concern the
/// balancer.
#[sock_ops]
fn snisplice_ops(ctx: SockOpsContext) -> u32 {
    shortcut::established(&ctx);
    // The only value that the kernel accepts.
    1
}

/// The kernel's GPL-only helpers require it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
