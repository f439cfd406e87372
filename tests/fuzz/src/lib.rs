//! What the fuzz targets share.

pub mod config;
pub mod requests;
pub mod secrets;
pub mod seeds;

/// The pure part of the daemon's HTTP room, as its files are. The rest of the daemon would take minutes to build.
#[path = "../../../userspace/src/http"]
pub mod http {
    pub mod frames;
    pub mod framing;
    pub mod headers;
    pub mod path;
    pub mod refused;
    pub mod route;
}

/// The same of the room of secrets.
#[path = "../../../userspace/src/secrets"]
pub mod sections {
    pub mod error;
    pub mod pem;

    /// What the messages of `error` name.
    pub mod files {
        /// In the daemon the longest file that is read.
        pub const LONGEST: u64 = 1 << 20;
    }
}
