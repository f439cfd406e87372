//! Any bytes as the start of a connection.
#![no_main]

use std::ffi::OsStr;

use libfuzzer_sys::fuzz_target;
use snisplice_fuzz::seeds;
use snisplice_tls::client_hello::{
    Parse,
    invariants::{check_prefixes, follow},
};

/// The number of prefixes of one input, so that the cost of a long input is not quadratic.
const PREFIXES: usize = 256;

fuzz_target!(
    init: seeds::plant("client_hello", &["userspace/tls/testdata/hellos"], |file, _| {
        file.extension() == Some(OsStr::new("bin"))
    }),
    |bytes: &[u8]| {
        // The last byte of the recordings is arbitrary, so they are parsed with limits on both sides of their length.
        let last = bytes.last().copied().map_or(0, usize::from);
        let limit = if last < 128 { 64 * 1024 } else { last * 16 };

        let verdict = check_prefixes(bytes, limit, PREFIXES);
        match follow(bytes, limit).0 {
            Some(followed) => assert_eq!(followed, verdict, "waiting for the wanted lengths leads elsewhere"),
            // Missing bytes are wanted. A verdict may still fall at an earlier byte.
            None => assert!(!matches!(verdict, Ok(Parse::Done(_))), "complete, yet more is wanted: {verdict:?}"),
        }
    }
);
