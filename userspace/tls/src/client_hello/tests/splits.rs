//! Hellos split anew into records, and records into segments.

use super::{
    build::{Hello, records},
    invariants::{check_prefixes, follow},
    recorded::{RECORDED, message_of},
    *,
};

#[test]
fn one_byte_in_each_record() {
    for recorded in &RECORDED {
        let message = message_of(recorded.bytes);
        let wire = records(&message, 1..message.len());
        assert_eq!(wire.len(), message.len() * 6);
        let whole = parse(recorded.bytes, usize::MAX);
        assert_eq!(check_prefixes(&wire, usize::MAX, 2_000), whole, "{}", recorded.file);

        let (verdict, calls) = follow(&wire, usize::MAX);
        assert_eq!(verdict, Some(whole), "{}", recorded.file);
        // The missing part shrinks by a sixth with each call.
        assert!(calls < 80, "{}: {calls} calls", recorded.file);
    }
}

#[test]
fn two_records_cut_anywhere() {
    for recorded in &RECORDED {
        let message = message_of(recorded.bytes);
        let whole = parse(recorded.bytes, LIMIT);
        // No part may be longer than the greatest record.
        let from = message.len().saturating_sub(1 << 14).max(1);
        // In larger steps for two very long recordings.
        for cut in (from..message.len().min(1 << 14)).step_by(message.len() / 4000 + 1) {
            let wire = records(&message, [cut]);
            assert_eq!(parse(&wire, LIMIT), whole, "{} cut at {cut}", recorded.file);
            let Ok(Parse::Incomplete { need }) = parse(&wire[..wire.len() - 1], LIMIT) else {
                panic!("{} cut at {cut} is complete too early", recorded.file)
            };
            assert_eq!(need, wire.len(), "{} cut at {cut}", recorded.file);
        }
    }
}

#[test]
fn every_prefix_of_every_cut() {
    let message = Hello::to("nginx.example.com").message();
    let whole = Ok(Parse::Done(done(&records(&message, []))));
    for first in 1..message.len() {
        for second in [first, first + 1, first + 5, message.len() - 1] {
            let wire = records(&message, [first, second.min(message.len())]);
            assert_eq!(check_prefixes(&wire, LIMIT, usize::MAX), whole, "cut at {first} and {second}");
        }
    }
}

/// Records of another type are an error inside the hello, and ignored after it.
#[test]
fn other_records_between_the_fragments() {
    let message = Hello::to("nginx.example.com").message();
    let whole = Ok(Parse::Done(done(&records(&message, []))));
    for foreign in
        [&b"\x14\x03\x03\x00\x01\x01"[..], b"\x15\x03\x03\x00\x02\x01\x00", b"\x17\x03\x03\x00\x01x"]
    {
        for cut in 1..message.len() {
            let wire = records(&message, [cut]);
            let (head, tail) = wire.split_at(5 + cut);
            let result = check_prefixes(&[head, foreign, tail].concat(), LIMIT, usize::MAX);
            assert_eq!(result, Err(Fault::ForeignRecord.into()), "cut at {cut}");
            // The first byte of the header decides.
            let early = parse(&[head, &foreign[..1]].concat(), LIMIT);
            assert_eq!(early, Err(Fault::ForeignRecord.into()), "cut at {cut}");
            assert_eq!(parse(&[&wire[..], foreign].concat(), LIMIT), whole, "behind");
        }
    }
}

#[test]
fn further_messages_in_the_record_are_not_looked_at() {
    let hello = Hello::to("nginx.example.com").message();
    let expected = Ok(Parse::Done(done(&records(&hello, []))));
    let two = [&hello[..], &Hello::to("other.example.com").message()].concat();
    assert_eq!(check_prefixes(&records(&two, []), LIMIT, usize::MAX), expected);
    assert_eq!(check_prefixes(&records(&two, [10]), LIMIT, usize::MAX), expected);
    assert_eq!(check_prefixes(&records(&two, 1..two.len()), LIMIT, usize::MAX), expected);
}
