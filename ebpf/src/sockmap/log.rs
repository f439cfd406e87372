//! Rare events of directions, for the daemon's log. The level is set by the loader and is a constant for the verifier,
//! so an event that is not logged costs no instruction.

use aya_ebpf::{bindings::__sk_buff, programs::SkBuffContext};
use aya_log_ebpf::{
    error, info,
    macro_support::{Level, level_enabled},
    warn,
};

/// The kernel did not redirect: the target has left the map.
pub(crate) const NOT_REDIRECTED: u32 = 0;
/// The repeated part of a packet could not be removed: the connection is lost.
pub(crate) const TORN: u32 = 1;
/// Too many bytes of all directions wait.
pub(crate) const OVER_BUDGET: u32 = 2;
/// Too many bytes of this direction wait.
pub(crate) const OVER_HIGH_WATER: u32 = 3;

/// The target's buffers are too full.
pub(crate) const NO_ROOM: u32 = 4;

/// Logs an event of the direction that receives this packet.
#[inline(always)]
pub(crate) fn log(event: u32, ctx: &SkBuffContext) {
    let level = match event {
        TORN => Level::Error,
        OVER_HIGH_WATER | NO_ROOM => Level::Info,
        _ => Level::Warn,
    };
    if level_enabled(level) {
        sni_log(event, ctx.skb.skb);
    }
}

/// A function of its own, so that it has its own stack.
#[inline(never)]
fn sni_log(event: u32, skb: *mut __sk_buff) {
    // SAFETY: the context is the one that the program was called with.
    let (family, ports) = unsafe { ((*skb).family, ((*skb).remote_port, (*skb).local_port)) };
    let (remote_port, local_port) = (u32::from_be(ports.0), ports.1);
    let (mut remote, mut local) = ([0_u32; 4], [0_u32; 4]);
    if family == AF_INET {
        // SAFETY: as above.
        let (remote4, local4) = unsafe { ((*skb).remote_ip4, (*skb).local_ip4) };
        remote = [0, 0, MAPPED, remote4];
        local = [0, 0, MAPPED, local4];
    } else {
        // Word by word: the verifier requires constant offsets into the context.
        // SAFETY: as above.
        unsafe {
            let (theirs, ours) =
                ((&raw const (*skb).remote_ip6).cast::<u32>(), (&raw const (*skb).local_ip6).cast::<u32>());
            remote[0] = theirs.read_volatile();
            remote[1] = theirs.add(1).read_volatile();
            remote[2] = theirs.add(2).read_volatile();
            remote[3] = theirs.add(3).read_volatile();
            local[0] = ours.read_volatile();
            local[1] = ours.add(1).read_volatile();
            local[2] = ours.add(2).read_volatile();
            local[3] = ours.add(3).read_volatile();
        }
    }
    let (remote, local) = (address(&remote), address(&local));
    match event {
        NOT_REDIRECTED => warn!(
            (),
            "redirect failed, target is gone: peer [{:i}]:{} balancer [{:i}]:{}",
            remote,
            remote_port,
            local,
            local_port
        ),
        TORN => error!(
            (),
            "flow torn, no memory to leave repeated bytes out: peer [{:i}]:{} balancer [{:i}]:{}",
            remote,
            remote_port,
            local,
            local_port
        ),
        OVER_BUDGET => warn!(
            (),
            "budget of all directions exceeded: peer [{:i}]:{} balancer [{:i}]:{}",
            remote,
            remote_port,
            local,
            local_port
        ),
        OVER_HIGH_WATER => info!(
            (),
            "too much waits between the sockets: peer [{:i}]:{} balancer [{:i}]:{}",
            remote,
            remote_port,
            local,
            local_port
        ),
        _ => info!(
            (),
            "receiver has no room: peer [{:i}]:{} balancer [{:i}]:{}", remote, remote_port, local, local_port
        ),
    }
}

/// The family of IPv4 sockets.
const AF_INET: u32 = 2;
/// The third word of an IPv4 address that is mapped into IPv6.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An address in the logger's form. An IPv4 address stays mapped into IPv6.
#[inline(always)]
fn address(words: &[u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 bytes, in network order.
    unsafe { core::mem::transmute_copy(words) }
}
