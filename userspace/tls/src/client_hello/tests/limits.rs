//! The limit, exact to the byte, and detected at the first byte that decides.

use super::{
    build::{Hello, message, record, records},
    invariants::check_prefixes,
    recorded::{RECORDED, message_of},
    *,
};

#[test]
fn the_limit_counts_every_byte_on_the_wire() {
    for recorded in &RECORDED {
        let (bytes, whole) = (recorded.bytes, parse(recorded.bytes, usize::MAX));
        assert_eq!(parse(bytes, bytes.len()), whole, "{}", recorded.file);
        assert_eq!(parse(bytes, bytes.len() - 1), Err(HelloError::TooLarge), "{}", recorded.file);

        let message = message_of(bytes);
        let wire = records(&message, 1..message.len());
        assert_eq!(parse(&wire, wire.len()), whole, "{}", recorded.file);
        assert_eq!(parse(&wire, wire.len() - 1), Err(HelloError::TooLarge), "{}", recorded.file);
    }
}

#[test]
fn bytes_behind_the_hello_do_not_count() {
    let hello = Hello::to("nginx.example.com").bytes();
    let with_early_data = [&hello[..], &[0x17; 1000]].concat();
    assert_eq!(parse(&with_early_data, hello.len()), Ok(Parse::Done(done(&hello))));
}

#[test]
fn too_large_falls_with_the_message_header() {
    let limit = 16 * 1024;
    for (length, fits) in [(limit - 9, true), (limit - 8, false), (1 << 20, false), ((1 << 24) - 1, false)] {
        let length = u32::try_from(length).unwrap().to_be_bytes();
        let head = [0x16, 3, 1, 0x40, 0, 1, length[1], length[2], length[3]];
        assert_eq!(parse(&head[..8], limit), Ok(Parse::Incomplete { need: 9 }));
        let expected = if fits { Ok(Parse::Incomplete { need: limit }) } else { Err(HelloError::TooLarge) };
        assert_eq!(parse(&head, limit), expected, "{length:?}");
    }
}

/// A hello that would fit in one record exceeds the limit in many small ones. The parser knows this long before the
/// end.
#[test]
fn too_large_by_record_headers_falls_early() {
    let message = message(1, &[0; 4000]);
    let wire = records(&message, 1..message.len());
    assert_eq!(check_prefixes(&wire, 16 * 1024, 1000), Err(HelloError::TooLarge));
    // 4004 bytes leave room for 2476 headers. After the 2476th record of one byte at least one more must follow.
    let last = (0..wire.len()).find(|length| parse(&wire[..*length], 16 * 1024).is_err()).unwrap();
    assert_eq!(last, 2475 * 6 + 5);
}

/// The limit never hides bytes that are not TLS.
#[test]
fn smallest_limits() {
    let hello = Hello::to("nginx.example.com").bytes();
    for limit in 0..hello.len() {
        assert_eq!(check_prefixes(&hello, limit, usize::MAX), Err(HelloError::TooLarge), "{limit}");
    }
    assert_eq!(parse(b"GET / HTTP/1.1\r\n", 512), Err(HelloError::NotTls));
}

#[test]
fn the_longest_record_is_full() {
    let full = message(1, &vec![0; (1 << 14) - 4]);
    assert_eq!(
        parse(&record(&full), LIMIT),
        Err(Fault::Fields.into()),
        "the record is fine, the message empty"
    );
    let head = [0x16, 3, 3, 0x40, 0x01];
    assert_eq!(parse(&head, LIMIT), Err(Fault::RecordOverflow.into()));
}
