//! Any bytes as the start of a connection.
#![no_main]

use std::ffi::OsStr;

use libfuzzer_sys::fuzz_target;
use snisplice_fuzz::seeds;
use snisplice_tls::client_hello::{
    Parse,
    invariants::{check_prefixes, follow},
};

/// How many prefixes of one input are looked at, so that a long input does not take its length squared.
const PREFIXES: usize = 256;

fuzz_target!(
    init: seeds::plant("client_hello", &["userspace/tls/testdata/hellos"], |file, _| {
        file.extension() == Some(OsStr::new("bin"))
    }),
    |bytes: &[u8]| {
        // The recordings, whose last byte is as good as any, are parsed with limits on both sides of their length.
        let last = bytes.last().copied().map_or(0, usize::from);
        let limit = if last < 128 { 64 * 1024 } else { last * 16 };

        let verdict = check_prefixes(bytes, limit, PREFIXES);
        match follow(bytes, limit).0 {
            Some(followed) => assert_eq!(followed, verdict, "waiting for the wanted lengths leads elsewhere"),
            // Bytes that are wanted and not there; a verdict can still fall at one of those before.
            None => assert!(!matches!(verdict, Ok(Parse::Done(_))), "complete, yet more is wanted: {verdict:?}"),
        }
    }
);
