//! Records the hello of each TLS client that connects, for `testdata/hellos`.
//!
//! ```text
//! cargo run -p snisplice-tls --example record_hello -- 127.0.0.1:4433 OUT.bin [SERVER:PORT] [COUNT]
//! ```
//!
//! Listens on the address and writes the bytes of each connection's hello, unchanged, to `OUT.bin`. Each hello
//! overwrites the last one. Exits after `COUNT` connections (default 1). With a server, the example then forwards the
//! connection, so that the handshake completes: a client that resumes a session sends its second hello on a second
//! connection. `testdata/hellos/record.sh` runs the example for every client of the collection.

use std::{
    env, fs,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use snisplice_tls::client_hello::{Parse, parse};

/// The greatest limit that the configuration allows.
const LIMIT: usize = 64 * 1024;

fn main() -> anyhow::Result<()> {
    let mut args = env::args().skip(1);
    let (Some(address), Some(out)) = (args.next(), args.next()) else {
        bail!("usage: record_hello LISTEN OUT.bin [SERVER:PORT|-] [COUNT]");
    };
    let server = args.next().filter(|server| server != "-");
    let count = args.next().map_or(Ok(1), |count| count.parse()).context("COUNT is not a number")?;

    let listener = TcpListener::bind(&address).with_context(|| format!("cannot listen on {address}"))?;
    for connection in listener.incoming().take(count) {
        let mut client = connection?;
        client.set_read_timeout(Some(Duration::from_secs(10)))?;
        let hello = read_hello(&mut client).context("no hello came")?;
        fs::write(&out, &hello).with_context(|| format!("cannot write {out}"))?;
        if let Some(server) = &server {
            pass_on(&client, &hello, server).with_context(|| format!("passing on to {server}"))?;
        }
    }
    Ok(())
}

/// Reads until the hello is complete or refused, and no byte more, so that the file contains no early data.
fn read_hello(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut hello = Vec::new();
    loop {
        let verdict = parse(&hello, LIMIT);
        let Ok(Parse::Incomplete { need }) = verdict else {
            eprintln!("{} bytes: {verdict:?}", hello.len());
            return Ok(hello);
        };
        let have = hello.len();
        hello.resize(need, 0);
        client.read_exact(&mut hello[have..])?;
    }
}

/// Copies in both directions until both have ended.
fn pass_on(client: &TcpStream, hello: &[u8], server: &str) -> io::Result<()> {
    let mut backend = TcpStream::connect(server)?;
    backend.write_all(hello)?;
    client.set_read_timeout(None)?;
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &backend));
        copy(&backend, client);
    });
    Ok(())
}

/// Copies in one direction and forwards the end. A reset counts as an end.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _: io::Result<u64> = io::copy(&mut from, &mut to);
    let _: io::Result<()> = to.shutdown(Shutdown::Write);
}
