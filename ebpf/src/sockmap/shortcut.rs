//! The short cut of backends on this host: its sockets and their messages.
//!
//! `snisplice_common::sockmap::shortcut` decides. This file gathers the values for its decisions. A backend's accepted
//! socket is found by the initial sequence numbers of its connection: the balancer's end is established first, and has
//! both.

use core::{
    ffi::c_void,
    ptr::{self, addr_of},
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_EXIST, BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        sk_action::SK_PASS,
    },
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_skc_to_tcp_sock,
        bpf_sock_hash_update,
    },
    programs::{SkMsgContext, SockOpsContext},
};
use snisplice_common::{
    Cookie,
    sockmap::shortcut::{BackendEnd, Path, Receiver, Sender, Shortcut, ShortcutCounters, connection},
};
use snisplice_ebpf::{field, probe_field};

use crate::maps::{
    MARGIN, OFF_COOKIE, OFF_PRESSURE, OFF_PROT, OFF_SNDBUF, OFF_ULP, OFF_WMEM_QUEUED, OFF_WRITE_SEQ,
    SAME_HOST, SNI_BACKEND, SNI_EXPECTED, SNI_LOCAL, SNI_SHORT_STAT, SNI_SHORTCUTS, SNI_TARGETS,
    SNI_UPSTREAM,
};

/// A connection of the host is established. Records it if it is the balancer's, and enrols the other end of one that
/// is.
#[inline(always)]
pub(crate) fn established(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => announce(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => enrol(ctx),
        _ => {}
    }
}

#[inline(always)]
fn announce(ctx: &SockOpsContext) {
    // SAFETY: the context is the one this program was called with.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: only the existence of the entry matters.
    if unsafe { SNI_UPSTREAM.get(cookie) }.is_none() {
        return;
    }
    let (sent, received) = sequence(ctx);
    // If the map is full, the connection takes no short cut.
    let _ = SNI_EXPECTED.insert(connection(sent, received), cookie, 0);
}

#[inline(always)]
fn enrol(ctx: &SockOpsContext) {
    let (sent, received) = sequence(ctx);
    let key = connection(received, sent);
    // SAFETY: the entry is written once, before any program knows its key.
    let Some(upstream) = (unsafe { SNI_EXPECTED.get(key) }).copied() else { return };
    let _ = SNI_EXPECTED.remove(key);
    let Some(counters) = SNI_SHORT_STAT.get_ptr_mut(0) else { return };
    // SAFETY: the entry is this CPU's own.
    let count = unsafe { &mut *counters };
    // SAFETY: the context is the one this program was called with.
    let mut cookie: Cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let map = ptr::from_ref(&SNI_LOCAL).cast_mut().cast::<c_void>();
    let end = BackendEnd { upstream, base: sent, reserved: 0 };
    // The entry exists before the first message, and userspace later finds the sockets to remove by it.
    let known = SNI_BACKEND.insert(cookie, end, 0).is_ok()
        && SNI_UPSTREAM.insert(upstream, cookie, BPF_EXIST.into()).is_ok();
    // SAFETY: context, map and key are what the helper requires.
    let enrolled = known
        && unsafe {
            bpf_sock_hash_update(ctx.ops, map, ptr::from_mut(&mut cookie).cast(), BPF_NOEXIST.into())
        } == 0;
    if enrolled {
        count.enrolled += 1;
    } else {
        count.refused += 1;
    }
}

/// The numbers of the next byte to be sent, and of the next to be received.
#[inline(always)]
fn sequence(ctx: &SockOpsContext) -> (u32, u32) {
    // SAFETY: the context is the one this program was called with; its fields may be read at any time.
    unsafe { ((*ctx.ops).snd_nxt, (*ctx.ops).rcv_nxt) }
}

/// A backend sends a message. The program never refuses a message: the ordinary way is always open.
#[inline(always)]
pub(crate) fn message(ctx: &SkMsgContext) -> u32 {
    let Some(counters) = SNI_SHORT_STAT.get_ptr_mut(0) else { return SK_PASS };
    // SAFETY: the entry is this CPU's own. Another program may interrupt this one during an addition, and an increment
    // may be lost. These totals are statistics.
    let count = unsafe { &mut *counters };
    if !take_short_cut(ctx, count) {
        count.passed_bytes += u64::from(ctx.size());
    }
    SK_PASS
}

#[inline(always)]
fn take_short_cut(ctx: &SkMsgContext, count: &mut ShortcutCounters) -> bool {
    // SAFETY: the context is the one this program was called with.
    let socket = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if socket.is_null() {
        return false;
    }
    // SAFETY: `socket` is the sender's, which exists while it sends.
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket.cast()) }.cast::<u8>();
    if tcp.is_null() {
        return false;
    }
    // SAFETY: `tcp` is a `struct tcp_sock`, and the offsets are those of the running kernel; the verifier checks each
    // against its BTF.
    let cookie: Cookie = unsafe { field(tcp, &OFF_COOKIE) };
    // SAFETY: the entry is written once, before the socket is enrolled.
    let Some(BackendEnd { upstream, base, .. }) = (unsafe { SNI_BACKEND.get(cookie) }).copied() else {
        count.not_ready += 1;
        return false;
    };
    let Some(shortcut) = SNI_SHORTCUTS.get_ptr_mut(upstream) else {
        count.not_ready += 1;
        return false;
    };
    // SAFETY: the sender's socket is locked, so no other program is here. Fields of other writers are written once.
    let shortcut = unsafe { &mut *shortcut };
    if !shortcut.is_ready() {
        count.not_ready += 1;
        return false;
    }
    // Bytes that an upper protocol has not yet encrypted must not leave.
    // SAFETY: as above.
    if unsafe { field::<u64>(tcp, &OFF_ULP) } != 0 {
        count.protocol += 1;
        return false;
    }
    // SAFETY: as above.
    if unsafe { under_pressure(tcp) } {
        count.pressure += 1;
        return false;
    }
    // SAFETY: as above.
    let sender =
        Sender { write_seq: unsafe { field(tcp, &OFF_WRITE_SEQ) }, thread: bpf_get_current_pid_tgid() };
    let Some(receiver) = receiver(shortcut.socket) else {
        count.gone += 1;
        return false;
    };
    match shortcut.decide(base, ctx.size(), &sender, &receiver, MARGIN.load()) {
        Path::Short => {
            // The helper returns SK_DROP when the client's socket has left the map.
            if SNI_TARGETS.redirect_msg(ctx, shortcut.client, 0) != i64::from(SK_PASS) {
                count.gone += 1;
                return false;
            }
            shortcut.take(ctx.size(), &sender);
            count.moved_bytes += u64::from(ctx.size());
            count.moved_messages += 1;
            return true;
        }
        Path::Gone => count.gone += 1,
        Path::Outstanding => count.outstanding += 1,
        Path::NoRoom => count.no_room += 1,
    }
    false
}

/// Reads the client's socket. A program on messages cannot hold a reference to another socket, so this uses the address
/// that the verdict program recorded. Values of a closed socket have no effect, since a closed socket is in no map for
/// redirection.
#[inline(always)]
fn receiver(socket: u64) -> Option<Receiver> {
    Some(Receiver {
        cookie: probe_field(socket, &OFF_COOKIE)?,
        write_seq: probe_field(socket, &OFF_WRITE_SEQ)?,
        wmem_queued: probe_field(socket, &OFF_WMEM_QUEUED)?,
        sndbuf: probe_field(socket, &OFF_SNDBUF)?,
    })
}

/// Whether the kernel may soon refuse memory to sockets. The client's socket might then not take all of a message for
/// which it has room.
///
/// # Safety
///
/// `tcp` points to a live `struct tcp_sock`.
#[inline(always)]
unsafe fn under_pressure(tcp: *const u8) -> bool {
    // SAFETY: as the caller promises.
    let protocol = unsafe { field(tcp, &OFF_PROT) };
    let Some(flag) = probe_field::<u64>(protocol, &OFF_PRESSURE) else { return true };
    // SAFETY: the helper reads from any address without a fault; the flag is an `unsigned long`.
    let pressure = unsafe { bpf_probe_read_kernel(flag as *const u64) };
    pressure != Ok(0)
}

/// The short cut whose ordinary way ends at the balancer's socket `upstream`.
#[inline(always)]
pub(crate) fn of(upstream: Cookie) -> Option<*mut Shortcut> {
    if SAME_HOST.load() == 0 {
        return None;
    }
    SNI_SHORTCUTS.get_ptr_mut(upstream)
}

/// Bytes that took the short cut.
#[inline(always)]
pub(crate) fn moved(shortcut: Option<*mut Shortcut>) -> u64 {
    // SAFETY: userspace removes the entry only after the balancer's socket is closed, and the caller has that socket
    // locked. The sender may add to the number at the same time, but not while bytes are on the ordinary way.
    shortcut.map_or(0, |shortcut| unsafe { addr_of!((*shortcut).moved).read_volatile() })
}

/// Records the address of the client's socket.
#[inline(always)]
pub(crate) fn show(shortcut: Option<*mut Shortcut>, client: u64, base: u32) {
    let Some(shortcut) = shortcut else { return };
    // SAFETY: as in `moved`. Only this code writes the two fields.
    let shortcut = unsafe { &mut *shortcut };
    if !shortcut.is_ready() {
        shortcut.seen(client, base);
    }
}
