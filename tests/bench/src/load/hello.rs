//! A `ClientHello` of a current client (RFC 8446 section 4.1.2). It is hand-made, so that the generator needs no TLS
//! library and the backend finds its order at a fixed position.

use super::{
    fault::Fault,
    frame::{Order, checksum},
};

/// The start of the random field: record header 5, handshake header 4, `legacy_version` 2.
const RANDOM_AT: usize = 11;
const RANDOM_BYTES: usize = 32;
const RECORD_HEADER_BYTES: usize = 5;
/// Browsers pad their hello to this size, including the record header (RFC 7685 explains the problem of the range
/// below it).
const PADDED_BYTES: usize = 517;
/// The longest hello that the backend accepts.
pub(crate) const HELLO_BYTES_MAX: usize = 4096;

/// A hello for one server name and one order. Only the nonce differs between connections.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    bytes: Vec<u8>,
    order: Order,
    checksum: u32,
}

impl Hello {
    /// A hello for `server_name`, with `order` in its random field.
    pub(crate) fn new(server_name: &str, order: Order) -> Self {
        let mut bytes = hello_bytes(server_name);
        let checksum = checksum_around_random(&bytes);
        bytes[RANDOM_AT..RANDOM_AT + RANDOM_BYTES].copy_from_slice(&order.encode(checksum));
        Self { bytes, order, checksum }
    }

    /// The hello with another nonce.
    pub(crate) fn with_nonce(&self, nonce: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let order = Order { nonce, ..self.order };
        bytes[RANDOM_AT..RANDOM_AT + RANDOM_BYTES].copy_from_slice(&order.encode(self.checksum));
        bytes
    }
}

/// The order in a hello and the hello's length. `None` if it is incomplete.
pub(crate) fn read_order(bytes: &[u8]) -> Result<Option<(Order, usize)>, Fault> {
    let Some(header) = bytes.first_chunk::<RECORD_HEADER_BYTES>() else { return Ok(None) };
    if header[0] != 22 {
        return Err(Fault::Protocol("a connection that starts without a handshake record"));
    }
    let length = RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]]));
    if !(RANDOM_AT + RANDOM_BYTES..=HELLO_BYTES_MAX).contains(&length) {
        return Err(Fault::Protocol("a hello of impossible length"));
    }
    let Some(hello) = bytes.get(..length) else { return Ok(None) };
    let random = hello[RANDOM_AT..].first_chunk().ok_or(Fault::Protocol("a hello without a random field"))?;
    let (order, checksum) = Order::decode(random)?;
    if order.verify && checksum != checksum_around_random(hello) {
        return Err(Fault::Protocol("a hello that changed on its way"));
    }
    Ok(Some((order, length)))
}

fn checksum_around_random(hello: &[u8]) -> u32 {
    checksum(&[&hello[..RANDOM_AT], &hello[RANDOM_AT + RANDOM_BYTES..]])
}

fn hello_bytes(server_name: &str) -> Vec<u8> {
    let mut extensions = Vec::new();
    extension(&mut extensions, 0, |body| {
        with_length(body, 2, |list| {
            list.push(0); // host_name
            with_length(list, 2, |name| name.extend_from_slice(server_name.as_bytes()));
        });
    });
    extension(&mut extensions, 23, |_| {}); // extended_master_secret
    extension(&mut extensions, 10, |body| {
        // supported_groups: x25519, secp256r1, secp384r1
        with_length(body, 2, |list| list.extend_from_slice(&[0, 29, 0, 23, 0, 24]));
    });
    extension(&mut extensions, 11, |body| body.extend_from_slice(&[1, 0])); // ec_point_formats: uncompressed
    extension(&mut extensions, 16, |body| {
        with_length(body, 2, |list| {
            for protocol in ["h2", "http/1.1"] {
                with_length(list, 1, |name| name.extend_from_slice(protocol.as_bytes()));
            }
        });
    });
    extension(&mut extensions, 13, |body| {
        // signature_algorithms: ECDSA, RSA-PSS and PKCS#1 with SHA-256 and SHA-384
        with_length(body, 2, |list| list.extend_from_slice(&[4, 3, 8, 4, 4, 1, 5, 3, 8, 5, 5, 1]));
    });
    extension(&mut extensions, 43, |body| body.extend_from_slice(&[4, 3, 4, 3, 3])); // TLS 1.3 and 1.2
    extension(&mut extensions, 45, |body| body.extend_from_slice(&[1, 1])); // psk_dhe_ke
    extension(&mut extensions, 51, |body| {
        with_length(body, 2, |list| {
            list.extend_from_slice(&[0, 29]);
            with_length(list, 2, |key| key.extend((0..32).map(|i: u8| i.wrapping_mul(37) ^ 0x5a)));
        });
    });

    let suites = [0x13, 0x01, 0x13, 0x02, 0x13, 0x03, 0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x2c, 0xc0, 0x30];
    // Record and handshake headers, version, random, session id, suites, compression, the two extension lengths.
    let unpadded = 5 + 4 + 2 + 32 + 33 + 2 + suites.len() + 2 + 2 + extensions.len();
    if let Some(padding) = PADDED_BYTES.checked_sub(unpadded + 4) {
        extension(&mut extensions, 21, |body| body.extend(std::iter::repeat_n(0, padding)));
    }

    let mut bytes = vec![22, 3, 1];
    with_length(&mut bytes, 2, |record| {
        record.push(1); // client_hello
        with_length(record, 3, |hello| {
            hello.extend_from_slice(&[3, 3]);
            hello.extend_from_slice(&[0; RANDOM_BYTES]);
            with_length(hello, 1, |session| session.extend(100..132_u8));
            with_length(hello, 2, |list| list.extend_from_slice(&suites));
            hello.extend_from_slice(&[1, 0]); // no compression
            with_length(hello, 2, |list| list.extend_from_slice(&extensions));
        });
    });
    bytes
}

fn extension(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&kind.to_be_bytes());
    with_length(out, 2, body);
}

/// Writes the output of `body`, with a length prefix of `width` bytes.
fn with_length(out: &mut Vec<u8>, width: usize, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.resize(at + width, 0);
    body(out);
    let length = out.len() - at - width;
    let digits = length.to_be_bytes();
    out[at..at + width].copy_from_slice(&digits[digits.len() - width..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::frame::Task;

    fn order() -> Order {
        Order { task: Task::Echo, size: 1024, verify: true, nonce: 0 }
    }

    #[test]
    fn the_order_is_found_once_all_bytes_are_there() {
        let mut bytes = Hello::new("plain.bench.example", order()).with_nonce(77);
        assert_eq!(bytes.len(), PADDED_BYTES);
        for length in 0..bytes.len() {
            assert_eq!(read_order(&bytes[..length]), Ok(None), "{length} bytes");
        }
        bytes.push(1);
        assert_eq!(read_order(&bytes), Ok(Some((Order { nonce: 77, ..order() }, PADDED_BYTES))));
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let bytes = Hello::new("plain.bench.example", order()).with_nonce(1);
        let mut changed = bytes.clone();
        changed[200] ^= 1;
        assert!(matches!(read_order(&changed), Err(Fault::Protocol("a hello that changed on its way"))));
    }

    #[test]
    fn what_is_not_a_hello_is_refused() {
        assert!(read_order(b"GET / HTTP/1.1\r\n").is_err());
        assert!(read_order(&[22, 3, 1, 0, 4, 1, 0, 0, 0]).is_err(), "too short to hold a random field");
    }

    #[test]
    fn a_tls_server_finds_the_name() {
        let bytes = Hello::new("r77.routes.example", order()).with_nonce(1);
        let mut acceptor = rustls::server::Acceptor::default();
        acceptor.read_tls(&mut bytes.as_slice()).unwrap();
        let accepted = acceptor.accept().unwrap().expect("the hello is complete");
        assert_eq!(accepted.client_hello().server_name(), Some("r77.routes.example"));
    }
}
