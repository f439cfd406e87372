//! snisplice.
fn main() {}
