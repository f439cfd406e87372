//! Limits of this process.

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets this process open as many files as the administrator allows: a connection takes two here.
pub fn raise_open_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(())
}
