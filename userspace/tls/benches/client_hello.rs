//! The cost of one parse of a hello: `cargo bench -p snisplice-tls --bench client_hello`.

use divan::{Bencher, black_box, counter::BytesCount};
use snisplice_tls::client_hello::{Parse, parse};

const CURL: &[u8] = include_bytes!("../testdata/hellos/curl.bin");
const CHROMIUM: &[u8] = include_bytes!("../testdata/hellos/chromium.bin");
const BIG: &[u8] = include_bytes!("../testdata/hellos/openssl-big.bin");
const LIMIT: usize = 64 * 1024;

fn main() {
    divan::main();
}

/// The whole hello at once, which is the usual case.
#[divan::bench(args = [("curl", CURL), ("chromium", CHROMIUM), ("openssl-big", BIG)].map(Hello::from))]
fn complete(bencher: Bencher, hello: &Hello) {
    bencher.counter(BytesCount::new(hello.bytes.len())).bench(|| parse(black_box(&hello.bytes), LIMIT));
}

/// All but the last byte: the cost of a parse that comes too early.
#[divan::bench(args = [("curl", CURL), ("chromium", CHROMIUM)].map(Hello::from))]
fn incomplete(bencher: Bencher, hello: &Hello) {
    let bytes = &hello.bytes[..hello.bytes.len() - 1];
    bencher.bench(|| parse(black_box(bytes), LIMIT));
}

/// Records of one byte, read by the wanted lengths: the greatest cost that a client can cause with this number of
/// bytes.
#[divan::bench(args = [("curl", CURL), ("chromium", CHROMIUM)].map(Hello::in_tiny_records))]
fn tiny_records(bencher: Bencher, hello: &Hello) {
    bencher.counter(BytesCount::new(hello.bytes.len())).bench(|| {
        let mut length = 0;
        loop {
            match parse(black_box(&hello.bytes[..length]), LIMIT) {
                Ok(Parse::Incomplete { need }) => length = need,
                verdict => return verdict,
            }
        }
    });
}

/// A recorded hello.
struct Hello {
    name: &'static str,
    bytes: Vec<u8>,
}

impl From<(&'static str, &[u8])> for Hello {
    fn from((name, bytes): (&'static str, &[u8])) -> Self {
        Self { name, bytes: bytes.to_vec() }
    }
}

impl Hello {
    /// A copy of a hello in records of one byte.
    fn in_tiny_records((name, bytes): (&'static str, &[u8])) -> Self {
        let bytes = bytes[5..].iter().flat_map(|byte| [0x16, 3, 1, 0, 1, *byte]).collect();
        Self { name, bytes }
    }
}

impl std::fmt::Display for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
