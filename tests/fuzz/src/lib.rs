//! The common part of the fuzz targets.

pub mod config;
/// The header of the PROXY protocol, from its file.
#[path = "../../../userspace/src/net/proxy_header.rs"]
pub mod proxy_header;
pub mod requests;
pub mod secrets;
pub mod seeds;

/// The pure part of the daemon's HTTP room, from its files. The rest of the daemon would take minutes to build.
#[path = "../../../userspace/src/http"]
pub mod http {
    pub mod frames;
    pub mod framing;
    pub mod headers;
    pub mod path;
    pub mod refused;
    pub mod route;
}

/// The pure part of the room of secrets, from its files.
#[path = "../../../userspace/src/secrets"]
pub mod sections {
    pub mod error;
    pub mod pem;

    /// The items that the messages of `error` name.
    pub mod files {
        /// In the daemon, the greatest size of a file, in bytes.
        pub const LONGEST: u64 = 1 << 20;
    }
}
