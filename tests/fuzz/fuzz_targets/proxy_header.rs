//! Any bytes as a header of the PROXY protocol.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snisplice_config::model::proxy_protocol::{ProxyTlv, ProxyVersion, SendProxy};
use snisplice_fuzz::{
    proxy_header::{Fields, Header, LONGEST, Parse, header, parse},
    seeds,
};

const SEEDS: [&[u8]; 4] = [
    b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n\x16\x03\x01",
    b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n",
    b"PROXY UNKNOWN\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1c\xc0\0\x02\x01\xc6\x33\x64\x01\x12\x67\x01\xbb\x05\0\x02id\x02\0\x01a\x04\0\x01\0",
];

/// The number of prefixes of one input, so that the cost of a long input is not quadratic.
const PREFIXES: usize = 256;

fuzz_target!(
    init: seeds::write("proxy_header", &SEEDS),
    |bytes: &[u8]| {
        let verdict = parse(bytes);
        let step = bytes.len() / PREFIXES + 1;
        for length in (0..bytes.len()).step_by(step) {
            match parse(&bytes[..length]) {
                Ok(Parse::Incomplete { need }) => assert!(need > length && need <= LONGEST),
                early => assert_eq!(early, verdict, "later bytes change a verdict"),
            }
        }
        // A reader waits for each needed length.
        let mut length = 0;
        loop {
            match parse(&bytes[..length]) {
                Ok(Parse::Incomplete { need }) if need <= bytes.len() => length = need,
                Ok(Parse::Incomplete { .. }) => {
                    assert!(!matches!(verdict, Ok(Parse::Done(_))), "complete, yet more is needed");
                    break;
                }
                followed => {
                    assert_eq!(followed, verdict);
                    break;
                }
            }
        }
        if let Ok(Parse::Done(Header { length, origin: Some(origin), .. })) = verdict {
            assert!(length <= bytes.len());
            let rules = SendProxy { version: ProxyVersion::V2, tlvs: vec![ProxyTlv::UniqueId, ProxyTlv::Crc32c] };
            let fields = Fields { unique_id: origin.unique_id.as_deref(), ..Fields::default() };
            let written = header(&rules, &origin, &fields);
            let Ok(Parse::Done(read)) = parse(&written) else { panic!("a written header is not read") };
            assert_eq!(read.origin, Some(origin));
        }
    }
);
