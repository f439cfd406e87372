//! The devices that the programs are attached to.

use std::{collections::BTreeSet, io, sync::PoisonError};

use aya::{
    Ebpf,
    maps::MapError,
    pin::PinError,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, NlOptions, TcAttachOptions},
    },
    util::KernelVersion,
};
use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name_inlined, socket};
use snisplice_common::packet::maps::name;
use thiserror::Error;

use super::{
    Attached, Programs,
    pins::{Hook, Pins},
    program,
};
use crate::net::{low_descriptors, sockopt::hardware_type};

/// The reason for which the programs are not on a device.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The device's packets have no Ethernet headers. The loopback device is one of these.
    #[error("not an Ethernet device")]
    NotEthernet,
    /// The device no longer exists.
    #[error("the device does not exist: {0}")]
    NoDevice(#[source] io::Error),
    /// The kernel refuses to attach a program.
    #[error("cannot attach the programs to the device: {0}")]
    Program(#[from] ProgramError),
    /// The link cannot be pinned.
    #[error("cannot pin the programs on the device: {0}")]
    Pin(#[from] PinError),
    /// The kernel does not return the link.
    #[error("cannot pin the programs on the device: {0}")]
    Link(#[from] LinkError),
}

impl Programs {
    /// Whether the programs are on the device; `None` if no flow has needed it yet.
    #[must_use]
    pub fn is_attached(&self, device: u32) -> Option<bool> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner).get(&device).copied()
    }

    /// Attaches the programs to the device with this index, behind those of others. A failed device is not tried again.
    pub fn attach(&self, device: u32) -> Result<(), AttachError> {
        let mut ebpf = self.ebpf.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been faster.
        if self.is_attached(device) == Some(true) {
            return Ok(());
        }
        self.heed(device);
        let result = attach(&mut ebpf, device).and_then(|attached| {
            if let Some(pins) = &self.pins {
                return self.pin(pins, &mut ebpf, device, attached);
            }
            self.attached.lock().unwrap_or_else(PoisonError::into_inner).insert(device, attached);
            Ok(())
        });
        self.devices.write().unwrap_or_else(PoisonError::into_inner).insert(device, result.is_ok());
        result
    }

    fn pin(&self, pins: &Pins, ebpf: &mut Ebpf, device: u32, attached: Attached) -> Result<(), AttachError> {
        // A stale pin of the device would prevent the new one.
        pins.forget(device);
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let links = links.entry(device).or_default();
        for (hook, (name, id)) in [Hook::Egress, Hook::Ingress].into_iter().zip(attached) {
            let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
            let program: &mut SchedClassifier = program.try_into()?;
            let link = FdLink::try_from(program.take_link(id)?)?;
            links.push(link.pin(pins.link(device, hook))?.into());
        }
        Ok(())
    }

    fn heed(&self, device: u32) {
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = filters.heed_reverse_path(device) {
            tracing::warn!(device, %error, "cannot read the reverse-path filter of this device: the filter is not applied to flows");
        }
    }

    /// Reads again which devices have a strict reverse-path filter. Called when that may have changed. A device's
    /// filter is also read when the programs are attached to it.
    pub fn heed_reverse_paths(&self) -> Result<(), MapError> {
        let devices: Vec<_> = {
            let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
            devices.iter().filter_map(|(device, attached)| attached.then_some(*device)).collect()
        };
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        devices.into_iter().try_for_each(|device| filters.heed_reverse_path(device))
    }

    /// Replaces the programs of an earlier process on every device that still has them. No packet passes without a
    /// program.
    pub fn take_devices(&self) {
        let Some(pins) = &self.pins else { return };
        for device in pins.devices() {
            match self.take_device(pins, device) {
                Ok(()) => {
                    self.devices.write().unwrap_or_else(PoisonError::into_inner).insert(device, true);
                    self.heed(device);
                }
                Err(error) => {
                    // The device no longer exists. Its network namespace may be gone, and its number may belong to this
                    // one now.
                    tracing::info!(device, %error, "no programs of a former process were taken over");
                    pins.forget(device);
                }
            }
        }
    }

    fn take_device(&self, pins: &Pins, device: u32) -> Result<(), AttachError> {
        let mut ebpf = self.ebpf.write().unwrap_or_else(PoisonError::into_inner);
        let mut links = Vec::new();
        for (name, hook) in [(name::EGRESS, Hook::Egress), (name::INGRESS, Hook::Ingress)] {
            let link = PinnedLink::from_pin(pins.link(device, hook))?;
            let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
            let program: &mut SchedClassifier = program.try_into()?;
            let id = program.attach_to_link(FdLink::from(link).try_into()?)?;
            links.push(FdLink::try_from(program.take_link(id)?)?);
        }
        self.links.lock().unwrap_or_else(PoisonError::into_inner).insert(device, links);
        Ok(())
    }

    /// Forgets all devices that no longer exist: the kernel may give their index to another device.
    pub(super) fn forget_devices(&self, present: &BTreeSet<u32>) {
        // The same order of locks as where the programs are attached.
        let mut ebpf = self.ebpf.write().unwrap_or_else(PoisonError::into_inner);
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<u32> = devices.keys().copied().filter(|device| !present.contains(device)).collect();
        for device in gone {
            devices.remove(&device);
            let kept = self.attached.lock().unwrap_or_else(PoisonError::into_inner).remove(&device);
            for (name, link) in kept.unwrap_or_default() {
                if let Ok(program) = program(&mut ebpf, name) {
                    // The kernel has dropped the link with the device.
                    let _ = program.detach(link);
                }
            }
            let pinned = self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(&device);
            if let (Some(_), Some(pins)) = (pinned, &self.pins) {
                pins.forget(device);
            }
            tracing::debug!(device, "a device was removed");
        }
    }

    /// Attaches another program before these on a device, which writes the packets' mark. For the probe.
    pub fn precede(&self, device: u32) -> Result<(), AttachError> {
        let mut ebpf = self.ebpf.write().unwrap_or_else(PoisonError::into_inner);
        let program = ebpf.program_mut(name::MARK).ok_or(ProgramError::NotLoaded)?;
        let program: &mut SchedClassifier = program.try_into()?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(error.into()),
        }
        let interface = ethernet(device)?;
        let order = if has_links() {
            TcAttachOptions::TcxOrder(LinkOrder::first())
        } else {
            // The qdisc may exist already. It stays, since others may use it.
            let _ = tc::qdisc_add_clsact(&interface);
            TcAttachOptions::Netlink(NlOptions { priority: 1, ..NlOptions::default() })
        };
        program.attach_with_options(&interface, TcAttachType::Ingress, order)?;
        Ok(())
    }
}

/// Attaches the programs to a device: first for outgoing packets, then for incoming ones.
fn attach(ebpf: &mut Ebpf, device: u32) -> Result<Attached, AttachError> {
    let interface = &*ethernet(device)?;
    if !has_links() {
        // The qdisc may exist already. It stays, since others may use it.
        let _ = tc::qdisc_add_clsact(interface);
    }
    // When a process dies, the kernel closes the latest descriptors first. The sockets' resets must still find the
    // programs. So the links take the low descriptors that are freed here.
    low_descriptors::free_for_device();
    // The egress program comes first: the balancer's sockets must be quiet before the ingress program forwards packets.
    let mut attached = Vec::new();
    for (name, side) in [(name::EGRESS, TcAttachType::Egress), (name::INGRESS, TcAttachType::Ingress)] {
        let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
        let program: &mut SchedClassifier = program.try_into()?;
        attached.push((name, program.attach(interface, side)?));
    }
    tracing::debug!(interface, "packets are carried on this device");
    Ok(attached)
}

/// The name of a device with Ethernet headers. Packets with other headers, or none, are not understood.
fn ethernet(device: u32) -> Result<String, AttachError> {
    // Any socket can be used for requests about devices.
    let asker = socket(AddressFamily::INET, SocketType::DGRAM, None);
    let asker = asker.map_err(|error| AttachError::NoDevice(error.into()))?;
    let interface = index_to_name_inlined(&asker, device);
    let interface = interface.map_err(|error| AttachError::NoDevice(error.into()))?;
    let interface = interface.as_str();
    if hardware_type(&asker, interface).map_err(AttachError::NoDevice)? != libc::ARPHRD_ETHER {
        return Err(AttachError::NotEthernet);
    }
    Ok(interface.to_owned())
}

/// Whether the kernel has links for devices (tcx, Linux 6.6).
fn has_links() -> bool {
    !KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0))
}
