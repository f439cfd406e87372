//! Each kind of refusal, and unusual hellos that are accepted.

use snisplice_config::name::NameError;

use super::{
    build::{Hello, alpn_list, extension, message, record, records, server_name_list, version_list},
    invariants::check_prefixes,
    *,
};

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;

/// The single verdict on these bytes.
fn verdict(bytes: &[u8]) -> Result<Parse, HelloError> {
    check_prefixes(bytes, LIMIT, usize::MAX)
}

/// The fault of a hello with these extensions. All prefixes are incomplete.
fn fault(extensions: &[(u16, &[u8])]) -> Fault {
    let bytes = Hello::with(extensions).bytes();
    assert!(matches!(parse(&bytes[..bytes.len() - 1], LIMIT), Ok(Parse::Incomplete { .. })));
    match verdict(&bytes) {
        Err(HelloError::Malformed(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_protocols_are_told_by_their_first_byte() {
    let others: [&[u8]; 12] = [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n",
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"EHLO x\r\n",
        b"\0",
        // SSL 2.0 hellos, with two and three bytes of length.
        b"\x80\x2e\x01\x03\x01\x00\x15",
        b"\x00\x2e\x00\x01\x03\x01",
        // TLS records that are not allowed first.
        b"\x14\x03\x03\x00\x01\x01",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x17\x03\x03\x00\x20",
    ];
    for bytes in others {
        assert_eq!(verdict(bytes), Err(HelloError::NotTls), "{}", bytes.escape_ascii());
        assert_eq!(parse(&bytes[..1], LIMIT), Err(HelloError::NotTls), "{}", bytes.escape_ascii());
    }
}

#[test]
fn the_major_version_of_the_record_counts_and_the_minor_does_not() {
    for major in [0, 1, 2, 4, 0xfe, 0xff] {
        assert_eq!(verdict(&[0x16, major]), Err(HelloError::NotTls), "{major}");
    }
    let expected = verdict(&Hello::to("a.example").bytes());
    for minor in [0, 1, 3, 4, 0xff] {
        let mut bytes = Hello::to("a.example").bytes();
        bytes[2] = minor;
        assert_eq!(verdict(&bytes), expected, "{minor}");
    }
}

#[test]
fn wanted_lengths_of_the_first_bytes() {
    let hello = Hello::to("a.example").bytes();
    for (length, need) in
        [(0, 1), (1, 2), (2, 6), (5, 6), (6, 9), (8, 9), (9, hello.len()), (20, hello.len())]
    {
        assert_eq!(parse(&hello[..length], LIMIT), Ok(Parse::Incomplete { need }), "at {length}");
    }
}

#[test]
fn records_that_no_handshake_has() {
    for (bytes, fault) in [
        (&b"\x16\x03\x01\x00\x00"[..], Fault::EmptyRecord),
        (b"\x16\x03\x01\x40\x01", Fault::RecordOverflow),
        (b"\x16\x03\x01\xff\xff", Fault::RecordOverflow),
        // ServerHello, HelloRequest and an unknown type.
        (b"\x16\x03\x01\x01\x00\x02", Fault::NotClientHello),
        (b"\x16\x03\x01\x01\x00\x00", Fault::NotClientHello),
        (b"\x16\x03\x01\x00\x01\xff", Fault::NotClientHello),
        // The second record.
        (b"\x16\x03\x01\x00\x01\x01\x16\x03\x01\x00\x00", Fault::EmptyRecord),
        (b"\x16\x03\x01\x00\x01\x01\x16\x03\x01\x40\x01", Fault::RecordOverflow),
        (b"\x16\x03\x01\x00\x01\x01\x16\x02", Fault::ForeignRecord),
        (b"\x16\x03\x01\x00\x01\x01GET", Fault::ForeignRecord),
    ] {
        assert_eq!(verdict(bytes), Err(fault.into()), "{}", bytes.escape_ascii());
    }
}

#[test]
fn messages_whose_fields_do_not_fit() {
    let good = Hello::to("a.example");
    let whole = good.message();
    // Shortened or extended, with a matching header.
    for length in 0..whole.len() - 4 {
        let cut = record(&message(1, &whole[4..4 + length]));
        // Without the extension block it is a complete hello of an old client.
        let without_extensions = length == whole.len() - 4 - 2 - good.extensions.as_ref().unwrap().len();
        match verdict(&cut) {
            Ok(Parse::Done(hello)) => assert!(without_extensions && hello.server_name.is_none(), "{length}"),
            other => assert_eq!(other, Err(Fault::Fields.into()), "{length}"),
        }
    }
    let longer = record(&message(1, &[&whole[4..], &[0]].concat()));
    assert_eq!(verdict(&longer), Err(Fault::Fields.into()));

    for bad in [
        Hello { session_id: vec![1; 33], ..good.clone() },
        Hello { cipher_suites: vec![], ..good.clone() },
        Hello { cipher_suites: vec![0x13, 0x01, 0x13], ..good.clone() },
        Hello { compression: vec![], ..good },
    ] {
        assert_eq!(verdict(&bad.bytes()), Err(Fault::Fields.into()), "{bad:?}");
    }
}

#[test]
fn hellos_without_extensions() {
    for extensions in [None, Some(vec![])] {
        let hello = Hello { legacy_version: 0x0301, session_id: vec![], extensions, ..Hello::default() };
        let hello = done(&hello.bytes());
        assert_eq!(hello.server_name, None);
        assert!(hello.alpn.is_empty());
        assert!(!hello.ech_offered);
        assert_eq!(hello.versions.newest(), Some(Version::Tls10));
    }
}

#[test]
fn extensions_that_do_not_fit_their_list() {
    let name = extension(SERVER_NAME, &server_name_list(&[(0, b"a.example")]));
    for length in 1..name.len() {
        let hello = Hello { extensions: Some(name[..length].to_vec()), ..Hello::default() };
        assert_eq!(verdict(&hello.bytes()), Err(Fault::Extensions.into()), "{length}");
    }
    let hello = Hello { extensions: Some([&name[..], &[0xff]].concat()), ..Hello::default() };
    assert_eq!(verdict(&hello.bytes()), Err(Fault::Extensions.into()), "one byte too many");
}

#[test]
fn extensions_that_occur_twice() {
    let first = server_name_list(&[(0, b"a.example")]);
    let second = server_name_list(&[(0, b"b.example")]);
    assert_eq!(fault(&[(SERVER_NAME, &first), (SERVER_NAME, &second)]), Fault::DuplicateExtension(0));
    assert_eq!(
        fault(&[(SERVER_NAME, &first), (0x1234, b""), (SERVER_NAME, &first)]),
        Fault::DuplicateExtension(0)
    );
    assert_eq!(fault(&[(0x1234, b"x"), (35, b""), (0x1234, b"y")]), Fault::DuplicateExtension(0x1234));
    // RFC 8701 section 3.1: a client picks different values for its GREASE extensions.
    assert_eq!(fault(&[(0x2a2a, b""), (0x2a2a, b"\0")]), Fault::DuplicateExtension(0x2a2a));
    // The greatest possible number: detected by a sort, not by comparison in pairs.
    let mut many: Vec<u8> = (1..=16_000_u16).flat_map(|kind| extension(kind + 100, b"")).collect();
    assert!(done(&large(many.clone())).server_name.is_none());
    many.extend(extension(101, b""));
    assert_eq!(parse(&large(many), usize::MAX), Err(Fault::DuplicateExtension(101).into()));
}

/// A hello longer than a record.
fn large(extensions: Vec<u8>) -> Vec<u8> {
    let message = Hello { extensions: Some(extensions), ..Hello::default() }.message();
    records(&message, (1 << 14..message.len()).step_by(1 << 14))
}

#[test]
fn server_names_that_are_none() {
    let long_label = [&[b'a'; 64][..], b".example"].concat();
    let overlong = b"abcdefg.".repeat(32);
    for (list, expected) in [
        (b"".to_vec(), Fault::ServerNameList),
        (server_name_list(&[]), Fault::ServerNameList),
        (server_name_list(&[(0, b"")]), Fault::ServerNameList),
        (server_name_list(&[(1, b"a.example")]), Fault::ServerNameType(1)),
        (server_name_list(&[(0, b"a.example"), (9, b"x")]), Fault::ServerNameType(9)),
        (server_name_list(&[(0, b"a.example"), (0, b"b.example")]), Fault::ServerNameCount),
        (server_name_list(&[(0, b"a.example"), (0, b"a.example")]), Fault::ServerNameCount),
        (server_name_list(&[(0, b"a\0.example")]), Fault::ServerName(NameError::Character)),
        (server_name_list(&[(0, b"a.example\0")]), Fault::ServerName(NameError::Character)),
        (server_name_list(&[(0, b"b\xc3\xbccher.example")]), Fault::ServerName(NameError::Character)),
        (server_name_list(&[(0, b"\xff\xfe")]), Fault::ServerName(NameError::Character)),
        (server_name_list(&[(0, b"*.example")]), Fault::ServerName(NameError::Character)),
        (server_name_list(&[(0, b"a.example:443")]), Fault::ServerName(NameError::Character)),
        (server_name_list(&[(0, b"192.0.2.1:443")]), Fault::ServerName(NameError::Character)),
        (server_name_list(&[(0, b"[192.0.2.1]")]), Fault::ServerName(NameError::Character)),
        (server_name_list(&[(0, b"192.0.2.1\0")]), Fault::ServerName(NameError::Character)),
        (server_name_list(&[(0, b"2001:db8::1"), (0, b"a.example")]), Fault::ServerNameCount),
        (server_name_list(&[(0, b"a..example")]), Fault::ServerName(NameError::EmptyLabel)),
        (server_name_list(&[(0, b".")]), Fault::ServerName(NameError::Empty)),
        (server_name_list(&[(0, &long_label)]), Fault::ServerName(NameError::LabelTooLong)),
        (server_name_list(&[(0, &overlong)]), Fault::ServerName(NameError::TooLong)),
    ] {
        assert_eq!(fault(&[(SERVER_NAME, &list)]), expected, "{}", list.escape_ascii());
    }
}

/// Small devices that connect by address put the address there (RFC 6066 section 3 forbids it).
#[test]
fn an_address_as_name_is_no_name() {
    for address in ["192.0.2.1", "192.0.2.1.", "2001:db8::1", "[2001:db8::1]", "fe80::1%eth0"] {
        let list = server_name_list(&[(0, address.as_bytes())]);
        let hello = Hello::with(&[(SERVER_NAME, &list)]);
        assert_eq!(done(&hello.bytes()).server_name, None, "{address}");
    }
}

/// No byte of the extension is skipped: `tls-parser` alone would take most of these for the name or for no name.
#[test]
fn server_name_lists_of_the_wrong_length() {
    let good = server_name_list(&[(0, b"a.example")]);
    assert_eq!(
        fault(&[(SERVER_NAME, &[&good[..], b"\0"].concat())]),
        Fault::ServerNameList,
        "behind the list"
    );
    for length in 1..good.len() {
        assert_eq!(fault(&[(SERVER_NAME, &good[..length])]), Fault::ServerNameList, "cut to {length}");
    }
    for (at, by) in [(1, 1), (1, 0xff), (4, 1), (4, 0xff)] {
        let mut list = good.clone();
        list[at] = list[at].wrapping_add(by);
        assert_eq!(fault(&[(SERVER_NAME, &list)]), Fault::ServerNameList, "byte {at} changed by {by}");
    }
}

#[test]
fn server_names_that_clients_send_all_the_same() {
    for (sent, read) in [
        ("nginx.example.com", "nginx.example.com"),
        ("NGINX.Example.COM", "nginx.example.com"),
        ("nginx.example.com.", "nginx.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("under_score.example", "under_score.example"),
        ("localhost", "localhost"),
    ] {
        let hello = done(&Hello::to(sent).bytes());
        assert_eq!(hello.server_name.unwrap().as_str(), read);
    }
}

#[test]
fn alpn_lists() {
    for bad in [
        b"".to_vec(),
        b"\0".to_vec(),
        alpn_list(&[]),
        alpn_list(&[b""]),
        alpn_list(&[b"h2", b""]),
        [&alpn_list(&[b"h2"])[..], b"\0"].concat(),
        b"\x00\x04\x02h2\x05".to_vec(),
        b"\x00\x02\x02h2".to_vec(),
    ] {
        assert_eq!(fault(&[(ALPN, &bad)]), Fault::Alpn, "{}", bad.escape_ascii());
    }
    let list = alpn_list(&[b"\x1a\x1a", b"h2", b"\xfa\xfa", &[0xff; 255], b"\x1a\x2a", b"\x0a"]);
    let hello = done(&Hello::with(&[(ALPN, &list)]).bytes());
    assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), [&b"h2"[..], &[0xff; 255], b"\x1a\x2a", b"\x0a"]);
    assert_eq!(
        done(&Hello::with(&[(ALPN, &alpn_list(&[b"h2"]))]).bytes()).alpn.iter().next(),
        Some(&b"h2"[..])
    );
    assert!(done(&Hello::with(&[(ALPN, &alpn_list(&[b"\xaa\xaa"]))]).bytes()).alpn.is_empty());
    let shown = format!("{:?}", Alpn::from_extension(&alpn_list(&[b"h2", b"\0"])).unwrap());
    assert_eq!(shown, r#"["h2", "\\x00"]"#);
}

#[test]
fn version_lists() {
    for bad in
        [&b""[..], b"\0", b"\x01\x03", b"\x03\x03\x04\x03", b"\x02\x03\x04\x00", b"\x04\x03\x04", b"\x03\x04"]
    {
        assert_eq!(fault(&[(SUPPORTED_VERSIONS, bad)]), Fault::Versions, "{}", bad.escape_ascii());
    }
    let list = version_list(&[0x5a5a, 0x0304, 0x7f1c, 0x0303, 0x0305]);
    let versions = done(&Hello::with(&[(SUPPORTED_VERSIONS, &list)]).bytes()).versions;
    assert_eq!(versions.iter().collect::<Vec<_>>(), [Version::Tls12, Version::Tls13]);
    assert!(versions.contains(Version::Tls13) && !versions.contains(Version::Tls11));
    assert_eq!(versions.newest().map(Version::name), Some("TLSv1.3"));
    assert_eq!(format!("{versions:?}"), "{Tls12, Tls13}");

    let only_grease = done(&Hello::with(&[(SUPPORTED_VERSIONS, &version_list(&[0xdada]))]).bytes());
    assert_eq!(only_grease.versions.newest(), None);
}

#[test]
fn versions_of_old_hellos() {
    for (legacy_version, newest) in [
        (0x0300, Some(Version::Ssl30)),
        (0x0301, Some(Version::Tls10)),
        (0x0302, Some(Version::Tls11)),
        (0x0303, Some(Version::Tls12)),
        // RFC 8446 section 4.2.1: without the extension, TLS 1.2 at most.
        (0x0304, Some(Version::Tls12)),
        (0x7f7f, Some(Version::Tls12)),
        (0x0002, None),
    ] {
        let hello = done(&Hello { legacy_version, ..Hello::default() }.bytes());
        assert_eq!(hello.versions.newest(), newest, "{legacy_version:#06x}");
        assert_eq!(hello.versions.iter().count(), usize::from(newest.is_some()));
    }
}

#[test]
fn early_data() {
    assert!(done(&Hello::with(&[(42, b"")]).bytes()).early_data);
    assert!(!done(&Hello::to("www.example").bytes()).early_data);
}

#[test]
fn encrypted_client_hello() {
    let outer = server_name_list(&[(0, b"public.example")]);
    let hello = done(&Hello::with(&[(SERVER_NAME, &outer), (0xfe0d, b"\0\0\x01")]).bytes());
    assert!(hello.ech_offered);
    assert_eq!(hello.server_name.unwrap().as_str(), "public.example", "the outer name");
    assert!(!done(&Hello::to("public.example").bytes()).ech_offered);
}

#[test]
fn extensions_that_do_not_matter_are_not_judged() {
    // Each extension would stop the typed parser of tls-parser, and so hide the following ones.
    let name = server_name_list(&[(0, b"a.example")]);
    let odd: [(u16, &[u8]); 6] =
        [(1, b""), (10, b"\x00\x05x"), (15, b""), (22, b"x"), (13172, b"x"), (0xffce, b"")];
    let mut extensions = odd.to_vec();
    extensions.push((SERVER_NAME, &name));
    assert_eq!(done(&Hello::with(&extensions).bytes()).server_name.unwrap().as_str(), "a.example");
}

#[test]
fn grease_is_told_from_its_neighbours() {
    for nibble in 0..16 {
        let byte = nibble << 4 | 0x0a;
        assert!(is_grease([byte, byte]));
        assert!(!is_grease([byte, byte ^ 0x10]));
        assert!(!is_grease([byte ^ 1, byte ^ 1]));
    }
}

#[test]
fn labels_are_those_of_the_metrics() {
    assert_eq!(HelloError::NotTls.reason(), "not_tls");
    assert_eq!(HelloError::TooLarge.reason(), "too_large");
    let rejection = HelloError::from(Fault::ServerName(NameError::EmptyLabel));
    assert_eq!(rejection.reason(), "malformed");
    assert_eq!(rejection.to_string(), "malformed hello: server_name: the name has an empty label");
}
