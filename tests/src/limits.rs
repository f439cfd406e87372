//! Limits of this process.

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises this process's limit of open files to the administrator's limit: a connection takes two descriptors here.
pub fn raise_open_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(())
}
