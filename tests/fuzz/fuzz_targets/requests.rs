//! Any bytes of an HTTP client, parsed as both versions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snisplice_fuzz::{http::frames::PREFACE, requests, seeds};

const SEEDS: [&[u8]; 4] = [
    b"GET /API/x?q=1&any=2 HTTP/1.1\r\nHost: shop.example.com\r\nX-Version: v1\r\nCookie: a=b\r\nConnection: x-own\r\nX-Own: 1\r\n\r\n",
    b"POST /v1/../old/%2e HTTP/1.1\r\nHost: a:8080\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nchecksum: 1\r\n\r\n",
    b"PUT http://shop.example.com/robots.txt HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc\r\nOPTIONS * HTTP/1.1\r\nHost: b\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x03\x01\x05\0\0\0\x01\x82\x87\x84\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08",
];

fuzz_target!(
    init: seeds::write("requests", &SEEDS),
    |bytes: &[u8]| {
        requests::http1(bytes);
        requests::http2(bytes);
        requests::http2(&[PREFACE, bytes].concat());
    }
);
