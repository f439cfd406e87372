//! Hellos recorded from real clients. `testdata/hellos/README.md` describes the recording.

use std::{collections::BTreeSet, fs, io::Cursor, path::Path};

use tls_parser::{NamedGroup, parse_tls_client_hello_extensions};

use super::{
    Version::{Tls10, Tls11, Tls12, Tls13},
    invariants::{check_prefixes, follow},
    *,
};

/// A recording and its expected result.
pub(super) struct Recorded {
    pub file: &'static str,
    pub bytes: &'static [u8],
    server_name: Result<Option<&'static str>, Fault>,
    alpn: Offers,
    ech_offered: bool,
    versions: &'static [Version],
}

/// The protocols in the ALPN extension.
enum Offers {
    These(&'static [&'static str]),
    /// The first protocol and the number of protocols.
    Many(&'static str, usize),
}

const NAME: Result<Option<&str>, Fault> = Ok(Some("nginx.example.com"));
const NO_ALPN: Offers = Offers::These(&[]);
const HTTP: Offers = Offers::These(&["h2", "http/1.1"]);
const FROM_10: &[Version] = &[Tls10, Tls11, Tls12, Tls13];
const FROM_12: &[Version] = &[Tls12, Tls13];

macro_rules! recorded {
    ($($file:literal: $server_name:expr, $alpn:expr, $ech:expr, $versions:expr;)*) => {
        [$(Recorded {
            file: $file,
            bytes: include_bytes!(concat!("../../../testdata/hellos/", $file, ".bin")),
            server_name: $server_name,
            alpn: $alpn,
            ech_offered: $ech,
            versions: $versions,
        }),*]
    };
}

pub(super) const RECORDED: [Recorded; 24] = recorded! {
    "chromium": NAME, HTTP, true, FROM_12;
    "curl": NAME, HTTP, false, FROM_10;
    "envoy-upstream": NAME, HTTP, false, &[Tls12];
    "gnutls": NAME, Offers::These(&["h2"]), false, FROM_10;
    "go": NAME, HTTP, false, FROM_12;
    "haproxy-upstream": NAME, HTTP, false, FROM_10;
    "java": NAME, HTTP, false, FROM_12;
    "nginx-upstream": NAME, NO_ALPN, false, &[Tls12];
    "nodejs": NAME, HTTP, false, FROM_12;
    "openssl-address": Ok(None), NO_ALPN, false, FROM_10;
    "openssl-alpn": NAME, Offers::These(&["h2", "http/1.1", "acme-tls/1"]), false, FROM_10;
    "openssl-big": NAME, Offers::Many("example-protocol-001", 200), false, FROM_10;
    "openssl-fragments": NAME, Offers::Many("example-protocol-001", 60), false, FROM_10;
    "openssl-noservername": Ok(None), NO_ALPN, false, FROM_10;
    "openssl-tls10": NAME, NO_ALPN, false, &[Tls10];
    "openssl-tls12": NAME, NO_ALPN, false, &[Tls12];
    "openssl-tls12-ticket": NAME, NO_ALPN, false, &[Tls12];
    "openssl-tls13": NAME, NO_ALPN, false, &[Tls13];
    "openssl-tls13-resumed": NAME, NO_ALPN, false, &[Tls13];
    "openssl-two-records": NAME, Offers::Many("example-protocol-0001", 800), false, FROM_10;
    "openssl-uppercase": NAME, NO_ALPN, false, FROM_10;
    "python-ssl": NAME, NO_ALPN, false, FROM_12;
    "rustls-aws-lc-rs": NAME, HTTP, false, FROM_12;
    "rustls-ring": NAME, HTTP, false, FROM_12;
};

/// The recording with this name.
pub(super) fn hello(file: &str) -> &'static [u8] {
    RECORDED.iter().find(|recorded| recorded.file == file).unwrap().bytes
}

/// The handshake message in the records of `bytes`.
pub(super) fn message_of(mut bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while !bytes.is_empty() {
        let (rest, record) = tls_parser::parse_tls_raw_record(bytes).unwrap();
        message.extend_from_slice(record.data);
        bytes = rest;
    }
    message
}

impl Recorded {
    fn check(&self, result: &Result<Parse, HelloError>) {
        let file = self.file;
        let (hello, name) = match (result, self.server_name) {
            (Ok(Parse::Done(hello)), Ok(name)) => (hello, name),
            (Err(HelloError::Malformed(fault)), Err(expected)) => {
                return assert_eq!(*fault, expected, "{file}");
            }
            _ => panic!("{file}: {result:?}"),
        };
        assert_eq!(hello.server_name.as_ref().map(ServerName::as_str), name, "{file}");
        let alpn: Vec<_> = hello.alpn.iter().map(|name| str::from_utf8(name).unwrap()).collect();
        match self.alpn {
            Offers::These(names) => assert_eq!(alpn, names, "{file}"),
            Offers::Many(first, count) => assert_eq!((alpn[0], alpn.len()), (first, count), "{file}"),
        }
        assert_eq!(hello.alpn.is_empty(), alpn.is_empty(), "{file}");
        assert_eq!(hello.ech_offered, self.ech_offered, "{file}");
        assert!(!hello.early_data, "{file}");
        assert_eq!(hello.versions.iter().collect::<Vec<_>>(), self.versions, "{file}");
        assert_eq!(hello.versions.newest(), self.versions.last().copied(), "{file}");
    }
}

#[test]
fn every_recording_reads_as_expected() {
    for recorded in &RECORDED {
        recorded.check(&parse(recorded.bytes, LIMIT));
    }
}

#[test]
fn every_recording_is_listed_here_and_in_the_readme() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/hellos");
    let readme = fs::read_to_string(directory.join("README.md")).unwrap();
    let files: BTreeSet<_> = fs::read_dir(&directory)
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().into_string().unwrap().strip_suffix(".bin").map(String::from)
        })
        .collect();
    assert_eq!(files, RECORDED.iter().map(|recorded| recorded.file.to_owned()).collect());
    for recorded in &RECORDED {
        let row = format!("| `{}` | {} |", recorded.file, recorded.bytes.len());
        assert!(readme.contains(&row), "README.md has no row that begins {row}");
    }
}

#[test]
fn every_prefix_is_incomplete_and_the_whole_is_not() {
    for recorded in &RECORDED {
        let bytes = recorded.bytes;
        recorded.check(&check_prefixes(bytes, LIMIT, usize::MAX));
        for length in 0..bytes.len() {
            match parse(&bytes[..length], LIMIT) {
                Ok(Parse::Incomplete { need }) => {
                    assert!(need <= bytes.len(), "{} at {length}", recorded.file);
                }
                other => panic!("{} at {length}: {other:?}", recorded.file),
            }
        }
    }
}

#[test]
fn bytes_after_the_hello_change_nothing() {
    for recorded in &RECORDED {
        for tail in [&b"\x17\x03\x03\x00\x01x"[..], b"\x14\x03\x03\x00\x01\x01", b"GET / HTTP/1.1\r\n", b"\0"]
        {
            recorded.check(&check_prefixes(&[recorded.bytes, tail].concat(), LIMIT, 100));
        }
    }
}

#[test]
fn waiting_for_what_is_wanted_takes_few_calls() {
    for recorded in &RECORDED {
        let (verdict, calls) = follow(recorded.bytes, LIMIT);
        recorded.check(&verdict.unwrap());
        // Empty, first byte, record header and message type, message header, the rest of each record.
        assert!(calls <= 9, "{}: {calls} calls", recorded.file);
    }
}

/// The recordings have the features that they were made for.
#[test]
fn the_recordings_have_the_features_that_matter() {
    let message = message_of(hello("chromium"));
    let (_, fields) = parse_tls_handshake_client_hello(&message[4..]).unwrap();
    assert!(fields.ciphers.iter().any(|suite| is_grease(suite.0.to_be_bytes())));
    let (_, extensions) = parse_tls_client_hello_extensions(fields.ext.unwrap()).unwrap();
    assert!(extensions.iter().any(|extension| matches!(extension, TlsExtension::Grease(..))));
    assert!(extensions.iter().any(|extension| matches!(
        extension,
        // X25519MLKEM768
        TlsExtension::EllipticCurves(groups) if groups.contains(&NamedGroup(0x11ec))
    )));
    assert!(hello("chromium").len() > 1500, "longer than one segment");

    let records = |file| {
        let mut rest = hello(file);
        std::iter::from_fn(move || {
            let (after, _) = tls_parser::parse_tls_raw_record(rest).ok()?;
            rest = after;
            Some(())
        })
        .count()
    };
    assert_eq!(records("openssl-two-records"), 2);
    assert!(records("openssl-fragments") > 2);
    assert!(hello("openssl-two-records").len() > 16 * 1024, "longer than the default limit");
    assert_eq!(parse(hello("openssl-two-records"), 16 * 1024), Err(HelloError::TooLarge));
}

/// rustls, a likely TLS library of a backend, reads the same name and protocols. It does not support TLS 1.0.
#[test]
fn another_implementation_reads_the_same() {
    for recorded in &RECORDED {
        let mut acceptor = rustls::server::Acceptor::default();
        let mut bytes = Cursor::new(recorded.bytes);
        while bytes.position() < recorded.bytes.len() as u64 {
            acceptor.read_tls(&mut bytes).unwrap();
        }
        let accepted = match acceptor.accept() {
            Ok(accepted) => accepted.expect("the whole hello was read"),
            Err((rustls::Error::PeerIncompatible(_), _)) if recorded.file == "openssl-tls10" => continue,
            Err((error, _)) => panic!("{}: {error}", recorded.file),
        };
        let theirs = accepted.client_hello();
        match parse(recorded.bytes, LIMIT) {
            Ok(Parse::Done(ours)) => {
                assert_eq!(ours.server_name.as_ref().map(ServerName::as_str), theirs.server_name());
                assert!(ours.alpn.iter().eq(theirs.alpn().into_iter().flatten()), "{}", recorded.file);
            }
            _ => assert_eq!(theirs.server_name(), None, "{}", recorded.file),
        }
    }
}
