//! Tests of the hello parser: recorded hellos, hand-made hellos, and properties of any bytes.

mod build;
mod limits;
mod malformed;
mod properties;
mod recorded;
mod splits;

use super::*;

/// The greatest limit that the configuration allows.
const LIMIT: usize = 64 * 1024;

/// The result for a complete hello.
fn done(bytes: &[u8]) -> ClientHello {
    match parse(bytes, usize::MAX) {
        Ok(Parse::Done(hello)) => hello,
        other => panic!("{other:?}"),
    }
}
