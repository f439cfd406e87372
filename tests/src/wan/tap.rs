//! A network device whose other end is this process.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    fcntl::OFlag,
    libc::{self, c_char, c_short},
};

nix::ioctl_write_ptr_bad!(attach, libc::TUNSETIFF, libc::ifreq);

/// One end of a link: reads return frames that the kernel sends, and the kernel receives written frames. A drop
/// removes the device.
///
/// The device has Ethernet headers, but no header for checksum or segmentation offload. So every frame is as on a
/// wire.
#[derive(Debug)]
pub(super) struct Tap(File);

impl Tap {
    /// Creates `name` in the namespace of this thread.
    pub(super) fn new(name: &str) -> Result<Self> {
        Self::open(name, libc::IFF_TAP)
    }

    /// Creates a device without Ethernet headers, which reads and writes packets.
    pub(super) fn tunnel(name: &str) -> Result<Self> {
        Self::open(name, libc::IFF_TUN)
    }

    fn open(name: &str, kind: libc::c_int) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open("/dev/net/tun")
            .context("/dev/net/tun")?;
        let mut ifr_name = [0; libc::IFNAMSIZ];
        ensure!(name.len() < ifr_name.len(), "{name} is too long for a device");
        for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
            *to = c_char::from_ne_bytes([from]);
        }
        let ifru_flags = c_short::try_from(kind | libc::IFF_NO_PI)?;
        let request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } };
        // SAFETY: the call reads a request, which lives until it returns, and of the union the flags, which are set.
        unsafe { attach(file.as_raw_fd(), &raw const request) }
            .with_context(|| format!("cannot make the device {name}"))?;
        Ok(Self(file))
    }

    /// The next sent frame, if any.
    pub(super) fn read<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        match (&self.0).read(buffer) {
            Ok(length) => Ok(Some(&buffer[..length])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("cannot read from a device"),
        }
    }

    /// Makes the kernel receive `frame`.
    pub(super) fn write(&self, frame: &[u8]) -> Result<()> {
        (&self.0).write_all(frame).context("cannot write to a device")
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
