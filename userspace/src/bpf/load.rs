//! Code that loading any object needs.

use std::{
    io,
    ops::AddAssign,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfError, Pod,
    maps::{Map, MapData, MapError, PerCpuArray},
    programs::{ProgramError, ProgramType},
    sys::is_program_supported,
};
use thiserror::Error;

use super::layout::LayoutError;

/// The reason for which nothing was loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The running kernel's structures lack a field that the program reads.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The object's own types, or the kernel's, cannot be read.
    #[error("cannot read the kernel's BTF: {0}")]
    Btf(#[from] aya::BtfError),
    /// A map was refused.
    #[error("cannot create the maps: {0}")]
    Object(#[from] EbpfError),
    /// The embedded object lacks an item that this build expects. The object is of other sources.
    #[error("the embedded eBPF object has no {0}; rebuild it with `cargo xtask ebpf`")]
    Missing(&'static str),
    /// The kernel refused a program.
    #[error("the kernel refuses the program: {0}")]
    Program(String),
    /// A map has another type than expected.
    #[error("cannot use a map: {0}")]
    Map(#[from] MapError),
    /// The memory of a map cannot be mapped into this process.
    #[error("cannot map the memory of {0}: {1}")]
    Memory(&'static str, #[source] io::Error),
    /// The thread for the events cannot be started.
    #[error("cannot listen to the kernel's events: {0}")]
    Listen(#[source] io::Error),
}

impl From<ProgramError> for LoadError {
    /// Of the verifier's log, only the end matters to an operator.
    fn from(error: ProgramError) -> Self {
        const LINES: usize = 3;
        /// The first words of the verifier's lines about its own effort.
        const TOLL: [&str; 5] =
            ["processed ", "verification time", "stack depth", "insns processed", "max_states"];
        Self::Program(match &error {
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                let says = |line: &&str| !line.is_empty() && !TOLL.iter().any(|toll| line.starts_with(toll));
                let mut end: Vec<_> = log.lines().rev().filter(says).take(LINES).collect();
                end.reverse();
                format!("{io_error}; the verifier says: {}", end.join("; "))
            }
            other => other.to_string(),
        })
    }
}

/// Makes the kernel verify a program: `load` is its `load` method. The verifier gives up (`EAGAIN`) if a freezer or a
/// debugger interrupts its thread. That is no fault of the program, so the call is repeated for ten seconds.
pub(crate) fn verified(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let started = Instant::now();
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock && started.elapsed() < PATIENCE => {}
            loaded => return loaded,
        }
    }
}

/// Detects the features of the kernel's BPF, which the loader does once per process. Returns whether a signal interrupted
/// that. The loader takes an interrupted attempt (`EAGAIN`, see [`verified`]) as "not supported" for the life of the
/// process: maps of global data are not created then, or programs get no names.
pub(crate) fn detection_was_interrupted() -> bool {
    let features = aya::features();
    if features.bpf_name() && features.bpf_global_data() {
        return false;
    }
    // Every supported kernel has both. Without privileges, this program is refused as well.
    match is_program_supported(ProgramType::SocketFilter) {
        Ok(supported) => supported,
        Err(ProgramError::SyscallError(error)) => error.io_error.kind() == io::ErrorKind::WouldBlock,
        Err(_) => false,
    }
}

/// Removes a map from an object.
pub(crate) fn taken(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Missing(name))
}

/// A further descriptor of a map.
pub(crate) fn descriptor(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, LoadError> {
    let data = match ebpf.map(name).ok_or(LoadError::Missing(name))? {
        Map::SockHash(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data) => data,
        _ => return Err(LoadError::Missing(name)),
    };
    data.fd().as_fd().try_clone_to_owned().map_err(LoadError::Listen)
}

/// The sum of all processors' counters.
pub(crate) fn total<C: Pod + Default + AddAssign>(counters: &PerCpuArray<MapData, C>) -> Result<C, MapError> {
    let mut total = C::default();
    for processor in counters.get(&0, 0)?.iter() {
        total += *processor;
    }
    Ok(total)
}

/// The kernel's error for an operation on a map.
pub(crate) fn cause(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
