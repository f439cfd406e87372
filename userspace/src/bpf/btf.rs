//! Reads the kernel's type information (BTF): names of structures, their fields, and the fields' offsets.
//!
//! The kernel's `Documentation/bpf/btf.rst` and `include/uapi/linux/btf.h` define the format: a header, a table of
//! types with indices from 1, and a table of strings. This reader understands structures, and skips every other type.
//! It copies nothing out of the bytes, since a kernel has some 100,000 types.

use std::{fs, io, path::Path};

use thiserror::Error;

/// `BTF_MAGIC`.
const MAGIC: u16 = 0xeb9f;
/// `struct btf_header`.
const HEADER: usize = 24;
/// `struct btf_type`.
const TYPE: usize = 12;
/// `struct btf_member`.
const MEMBER: usize = 12;

/// The reason for which the bytes are not understood.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// The bytes contradict the header, or have none.
    #[error("the BTF has another byte order than this machine")]
    NotBtf,
    /// A type has a kind that this program does not know, so its length is unknown.
    #[error("the BTF has types of the unknown kind {0}")]
    Kind(u32),
}

/// The kinds (`BTF_KIND_*`) that the reader understands.
mod kind {
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const TYPE_TAG: u32 = 18;
}

/// All types of a kernel.
#[derive(Debug)]
pub(super) struct Btf {
    bytes: Vec<u8>,
    /// The position of each type. Index 0, which is `void`, has none.
    types: Vec<usize>,
    /// The position of the strings.
    strings: (usize, usize),
}

/// One type by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(u32);

/// A field of a structure or union.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'b> {
    /// The name; empty for an unnamed structure or union inside.
    pub(super) name: &'b str,
    /// Bytes from the beginning of the structure.
    pub(super) offset: u32,
    /// Its type, without qualifiers and type aliases.
    pub(super) of: Id,
}

impl Btf {
    /// Reads a file such as `/sys/kernel/btf/vmlinux`.
    pub(super) fn read(path: impl AsRef<Path>) -> Result<Self, BtfError> {
        // Before Linux 6.16 the file cannot be mapped. Read in pieces, it would cost a system call for each of its
        // types.
        Self::new(fs::read(path)?)
    }

    fn new(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let word = |at| word(&bytes, at).ok_or(BtfError::NotBtf);
        if bytes.get(..2) != Some(&MAGIC.to_ne_bytes()) || bytes.len() < HEADER {
            return Err(BtfError::NotBtf);
        }
        let header = word(4)? as usize;
        let part = |at: u32, length: u32| {
            let start = header.checked_add(at as usize)?;
            let end = start.checked_add(length as usize)?;
            (end <= bytes.len()).then_some((start, end))
        };
        let (mut at, end) = part(word(8)?, word(12)?).ok_or(BtfError::NotBtf)?;
        let strings = part(word(16)?, word(20)?).ok_or(BtfError::NotBtf)?;
        let mut types = vec![0];
        while at < end {
            types.push(at);
            at += TYPE + behind(word(at + 4)?)?;
        }
        Ok(Self { bytes, types, strings })
    }

    /// The structure of this name.
    pub(super) fn structure(&self, name: &str) -> Option<Id> {
        let count = u32::try_from(self.types.len()).ok()?;
        (1..count).map(Id).find(|id| self.kind(*id) == Some(kind::STRUCT) && self.name(*id) == Some(name))
    }

    /// Whether the type is a structure, not a union or another type.
    pub(super) fn is_structure(&self, id: Id) -> bool {
        self.kind(id) == Some(kind::STRUCT)
    }

    /// The name of a type; empty if it has none.
    pub(super) fn name(&self, id: Id) -> Option<&str> {
        self.string(self.word_of(id, 0)?)
    }

    /// The fields of a structure or union. Any other type has none.
    pub(super) fn members(&self, of: Id) -> impl Iterator<Item = Member<'_>> {
        let info = self.word_of(of, 4).unwrap_or_default();
        let has = matches!(kind_of(info), kind::STRUCT | kind::UNION);
        let count = if has { count(info) } else { 0 };
        // With bit fields, the upper byte of an offset is a size.
        let mask = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        (0..count).filter_map(move |index| {
            let at = TYPE + index * MEMBER;
            let name = self.string(self.word_of(of, at)?)?;
            let offset = (self.word_of(of, at + 8)? & mask) / 8;
            Some(Member { name, offset, of: self.plain(Id(self.word_of(of, at + 4)?))? })
        })
    }

    /// A type without qualifiers and aliases.
    fn plain(&self, mut id: Id) -> Option<Id> {
        // A kernel has no cycles of aliases. The bound ends the loop for any other bytes.
        for _ in 0..64 {
            match self.kind(id) {
                Some(kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG) => {
                    id = Id(self.word_of(id, 8)?);
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn kind(&self, id: Id) -> Option<u32> {
        self.word_of(id, 4).map(kind_of)
    }

    fn word_of(&self, id: Id, at: usize) -> Option<u32> {
        let start = self.types.get(id.0 as usize).filter(|_| id.0 > 0)?;
        word(&self.bytes, start + at)
    }

    fn string(&self, at: u32) -> Option<&str> {
        let (start, end) = self.strings;
        let text = self.bytes.get(start + at as usize..end)?;
        let length = text.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&text[..length]).ok()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

fn count(info: u32) -> usize {
    (info & 0xffff) as usize
}

/// The number of bytes that follow a type.
fn behind(info: u32) -> Result<usize, BtfError> {
    Ok(match kind_of(info) {
        // Pointers, forward declarations, other names, qualifiers, functions, floating point, tags of types.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Enumerations, and the arguments of functions.
        6 | 13 => 8 * count(info),
        // Structures, unions, sections, enumerations of 64 bits.
        4 | 5 | 15 | 19 => 12 * count(info),
        other => return Err(BtfError::Kind(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `int`, `const int`, an unnamed union of `x` (a bit field at bit 32), and `struct s` with `a` and that union at 8.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0x\0s\0a\0";
        let (int, x, s, a) = (1, 5, 7, 9);
        let types: [u32; 28] = [
            // 1: INT of 4 bytes.
            int,
            1 << 24,
            4,
            32, //
            // 2: CONST of 1.
            0,
            10 << 24,
            1, //
            // 3: UNION with one member, with bit fields.
            0,
            1 << 31 | 5 << 24 | 1,
            8,
            x,
            1,
            4 << 24 | 32, //
            // 4: STRUCT with two members.
            s,
            4 << 24 | 2,
            16,
            a,
            2,
            32,
            0,
            3,
            64, //
            // 5: STRUCT of the same name without members, 6: TYPEDEF of itself.
            s,
            4 << 24,
            0,
            s,
            8 << 24,
            6,
        ];
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for length in [HEADER, 0, types.len(), types.len(), strings.len()] {
            bytes.extend(u32::try_from(length).unwrap().to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn fields_are_found() {
        let btf = Btf::new(sample()).unwrap();
        let found = btf.structure("s").unwrap();
        assert_eq!(found, Id(4), "the first of the name");
        let fields: Vec<_> = btf.members(found).map(|field| (field.name, field.offset, field.of)).collect();
        assert_eq!(fields, [("a", 4, Id(1)), ("", 8, Id(3))]);
        let inner: Vec<_> = btf.members(Id(3)).map(|field| (field.name, field.offset)).collect();
        assert_eq!(inner, [("x", 4)]);
        assert!(btf.is_structure(found) && !btf.is_structure(Id(3)));
        assert_eq!(btf.structure("int"), None);
        assert_eq!(btf.members(Id(1)).count(), 0);
    }

    #[test]
    fn nonsense_ends() {
        let bytes = sample();
        let btf = Btf::new(bytes.clone()).unwrap();
        assert_eq!(btf.plain(Id(6)), None, "a name for itself");
        assert_eq!(btf.kind(Id(0)), None);
        assert_eq!(btf.kind(Id(7)), None);
        for length in 0..bytes.len() {
            assert!(Btf::new(bytes[..length].to_vec()).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x1f, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let Ok(btf) = Btf::new(changed) else { continue };
                let _ = btf.structure("s").map(|id| btf.members(id).count());
            }
        }
    }
}
