//! The offsets of the kernel's fields that the verdict program reads.
//!
//! Offsets differ between kernels and their configurations, so none is compiled in. They are read from the kernel's
//! type information (BTF) and set in the program before it is verified.

use std::path::Path;

use snisplice_common::sockmap::maps::global;
use thiserror::Error;

pub use super::btf::BtfError;
use super::btf::{Btf, Id};

/// The file with the kernel's types, since Linux 5.4 with `CONFIG_DEBUG_INFO_BTF`.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The reason for which the fields were not found.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// The kernel has no type information.
    #[error("cannot read {VMLINUX}: {0}; the kernel must be built with CONFIG_DEBUG_INFO_BTF=y")]
    Unreadable(BtfError),
    /// The kernel's structure lacks the field.
    #[error("this kernel's `struct {structure}` has no field `{field}`")]
    NoField {
        /// The outermost structure.
        structure: &'static str,
        /// The path to the field.
        field: String,
    },
}

/// Offsets in bytes from the start of `struct tcp_sock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    write_seq: u32,
    wmem_queued: u32,
    sndbuf: u32,
    rmem_alloc: u32,
    rcvbuf: u32,
    copied_seq: u32,
}

impl Layout {
    /// Reads the offsets from [`VMLINUX`].
    pub fn of_running_kernel() -> Result<Self, LayoutError> {
        Types::of_running_kernel()?.layout()
    }

    /// Name and value of each global of the program that takes an offset.
    #[must_use]
    pub fn globals(&self) -> [(&'static str, &u32); 6] {
        [
            (global::OFF_WRITE_SEQ, &self.write_seq),
            (global::OFF_WMEM_QUEUED, &self.wmem_queued),
            (global::OFF_SNDBUF, &self.sndbuf),
            (global::OFF_RMEM_ALLOC, &self.rmem_alloc),
            (global::OFF_RCVBUF, &self.rcvbuf),
            (global::OFF_COPIED_SEQ, &self.copied_seq),
        ]
    }
}

/// The further fields that the short cut's programs read ([`snisplice_common::sockmap::shortcut`]). Offsets are in
/// bytes from the start of `struct tcp_sock`, the last one from the start of `struct proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortcutLayout {
    cookie: u32,
    ulp: u32,
    prot: u32,
    pressure: u32,
}

impl ShortcutLayout {
    /// Reads the offsets from [`VMLINUX`].
    pub fn of_running_kernel() -> Result<Self, LayoutError> {
        Types::of_running_kernel()?.shortcut_layout()
    }

    /// Name and value of each global of the programs that takes an offset.
    #[must_use]
    pub fn globals(&self) -> [(&'static str, &u32); 4] {
        [
            (global::OFF_COOKIE, &self.cookie),
            (global::OFF_ULP, &self.ulp),
            (global::OFF_PROT, &self.prot),
            (global::OFF_PRESSURE, &self.pressure),
        ]
    }
}

/// The types of a kernel.
pub struct Types(Btf);

impl Types {
    /// Reads the types of the running kernel.
    pub fn of_running_kernel() -> Result<Self, LayoutError> {
        Self::read(VMLINUX)
    }

    fn read(path: impl AsRef<Path>) -> Result<Self, LayoutError> {
        Btf::read(path).map(Self).map_err(LayoutError::Unreadable)
    }

    /// The offsets that the program needs.
    pub fn layout(&self) -> Result<Layout, LayoutError> {
        // A `tcp_sock` begins with a chain of more and more general sockets.
        const SOCK: [&str; 3] = ["inet_conn", "icsk_inet", "sk"];
        let of_sock = |field: &[&str]| self.offset("tcp_sock", &[&SOCK, field].concat());
        Ok(Layout {
            write_seq: self.offset("tcp_sock", &["write_seq"])?,
            wmem_queued: of_sock(&["sk_wmem_queued"])?,
            sndbuf: of_sock(&["sk_sndbuf"])?,
            rmem_alloc: of_sock(&["sk_backlog", "rmem_alloc"])?,
            rcvbuf: of_sock(&["sk_rcvbuf"])?,
            copied_seq: self.offset("tcp_sock", &["copied_seq"])?,
        })
    }

    /// The offsets that the short cut's programs need.
    pub fn shortcut_layout(&self) -> Result<ShortcutLayout, LayoutError> {
        const COMMON: [&str; 4] = ["inet_conn", "icsk_inet", "sk", "__sk_common"];
        let of_common = |field: &str| self.offset("tcp_sock", &[&COMMON[..], &[field]].concat());
        Ok(ShortcutLayout {
            cookie: of_common("skc_cookie")?,
            ulp: self.offset("tcp_sock", &["inet_conn", "icsk_ulp_ops"])?,
            prot: of_common("skc_prot")?,
            pressure: self.offset("proto", &["memory_pressure"])?,
        })
    }

    /// The type of a field, if it is a named structure. `None` if there is no such field or structure.
    #[must_use]
    pub fn structure_of_field(&self, structure: &str, field: &str) -> Option<String> {
        let (_, found) = self.field(structure, &[field])?;
        self.0.is_structure(found).then(|| self.0.name(found).map(ToOwned::to_owned))?
    }

    /// Whether the structure exists and has such a field.
    #[must_use]
    pub fn has_field(&self, structure: &str, field: &str) -> bool {
        self.field(structure, &[field]).is_some()
    }

    /// The offset of the field at `path`, in bytes.
    pub(super) fn offset(&self, structure: &'static str, path: &[&str]) -> Result<u32, LayoutError> {
        let found = self.field(structure, path);
        found
            .map(|(offset, _)| offset)
            .ok_or_else(|| LayoutError::NoField { structure, field: path.join(".") })
    }

    /// Offset and type of the field at `path`.
    fn field(&self, structure: &str, path: &[&str]) -> Option<(u32, Id)> {
        let mut at = (0, self.0.structure(structure)?);
        for name in path {
            let (offset, of) = self.member(at.1, name)?;
            at = (at.0 + offset, of);
        }
        Some(at)
    }

    /// The member with this name. As in C, members of unnamed structures and unions inside belong to the outer one.
    fn member(&self, of: Id, name: &str) -> Option<(u32, Id)> {
        self.0.members(of).find_map(|member| match member.name {
            found if found == name => Some((member.offset, member.of)),
            "" => self.member(member.of, name).map(|(offset, of)| (member.offset + offset, of)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel that can run the program publishes its types. On another kernel there is nothing to test.
    fn types() -> Option<Types> {
        Types::of_running_kernel().ok()
    }

    #[test]
    fn fields_of_unnamed_and_nested_structures_are_found() {
        let Some(types) = types() else { return };
        // `sk_family` is a macro for a member of the structure that every socket begins with.
        assert!(types.has_field("sock", "__sk_common"));
        // In an unnamed union of an unnamed structure.
        assert!(types.has_field("sk_buff", "next"));
        let layout = types.layout().expect("a running kernel has TCP");
        assert!(layout.rcvbuf != layout.sndbuf && layout.write_seq > layout.sndbuf, "{layout:?}");
        let shortcut = types.shortcut_layout().expect("a running kernel has TCP");
        assert!(shortcut.cookie < layout.sndbuf && shortcut.ulp > layout.sndbuf, "{shortcut:?}");
    }

    #[test]
    fn a_missing_field_is_named() {
        let Some(types) = types() else { return };
        let error = types.offset("tcp_sock", &["inet_conn", "nonesuch"]).expect_err("there is none");
        assert_eq!(error.to_string(), "this kernel's `struct tcp_sock` has no field `inet_conn.nonesuch`");
    }
}
