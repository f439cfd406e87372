//! What the fuzz targets share.

pub mod config;
pub mod seeds;
