//! The subcommands that ask a running balancer, over its admin address.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use comfy_table::{CellAlignment, Table, presets};
use snisplice_config::admin::AdminAddress;

use crate::{
    account::view::{Closed, Connection, Filter, Listing},
    cli,
};

/// How long the balancer may take for each part of its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// `snisplice connections`: a table, or what the balancer answers.
pub fn connections(options: &cli::Connections) -> anyhow::Result<String> {
    let cli::Connections { ask, listener, backend, carrier, client, sni, limit, json } = options;
    let filter = Filter {
        id: None,
        listener: listener.clone(),
        backend: backend.clone(),
        carrier: *carrier,
        client: client.map(|network| [network].into_iter().collect()),
        sni: sni.clone(),
    };
    let query = filter.to_query();
    let sign = if query.is_empty() { '?' } else { '&' };
    let mut listing = Listing { connections: Vec::new(), more: true };
    while listing.more && listing.connections.len() < *limit {
        let left = limit - listing.connections.len();
        let after = listing.connections.last().map(|last| format!("&after={}", last.id)).unwrap_or_default();
        let body = request(&ask.admin, "GET", &format!("/connections{query}{sign}limit={left}{after}"))?;
        let mut page: Listing =
            serde_json::from_str(&body).context("the answer is not that of a snisplice of this version")?;
        let told = !page.connections.is_empty();
        listing.connections.append(&mut page.connections);
        listing.more = page.more && told;
        // The usual case: as it came.
        if *json && !page.more && after.is_empty() {
            return Ok(body);
        }
    }
    if *json { Ok(serde_json::to_string(&listing)? + "\n") } else { Ok(render(&listing)) }
}

/// `snisplice close`: says how many were closed. Fails at the first that cannot be.
pub fn close(options: &cli::Close) -> anyhow::Result<String> {
    let cli::Close { ask, ids, backend, client, sni } = options;
    let mut closed = 0;
    let mut close = |target: &str| -> anyhow::Result<()> {
        let body = request(&ask.admin, "DELETE", target)?;
        let answer: Closed =
            serde_json::from_str(&body).context("the answer is not that of a snisplice of this version")?;
        closed += answer.closed;
        Ok(())
    };
    for id in ids {
        close(&format!("/connections/{id}")).with_context(|| format!("connection {id}"))?;
    }
    let filter = Filter {
        backend: backend.clone(),
        client: client.map(|network| [network].into_iter().collect()),
        sni: sni.clone(),
        ..Filter::default()
    };
    if !filter.is_empty() {
        close(&format!("/connections{}", filter.to_query()))?;
    }
    Ok(format!("{closed} closed\n"))
}

fn render(Listing { connections, more }: &Listing) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "id", "listener", "route", "backend", "client", "to", "age", "carrier", "refused", "up", "down",
    ]);
    for one in connections {
        table.add_row(row(one));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        let last = index == COLUMNS - 1;
        column.set_padding((0, if last { 0 } else { 2 }));
        if RIGHT.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text: String = table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".into()]).collect();
    if *more {
        text.push_str("and more: see --limit\n");
    }
    text
}

const COLUMNS: usize = 11;
/// The columns of numbers.
const RIGHT: [usize; 4] = [0, 6, 9, 10];

fn row(one: &Connection) -> [String; COLUMNS] {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
    let address = |value: Option<SocketAddr>| value.map_or_else(|| "-".into(), |address| address.to_string());
    [
        one.id.to_string(),
        one.listener.clone(),
        text(&one.route),
        text(&one.backend),
        address(one.client),
        address(one.backend_address),
        format!("{:.1} s", one.age_seconds),
        text(&one.carrier),
        text(&one.packet_refused),
        one.bytes_up.to_string(),
        one.bytes_down.to_string(),
    ]
}

/// The body of a good answer; whatever else comes is an error that says what to do.
fn request(admin: &AdminAddress, method: &str, target: &str) -> anyhow::Result<String> {
    let answer = exchange(admin, method, target).with_context(|| {
        format!(
            "nothing answers at {admin}: give the balancer this address with 'run --admin {admin}' or 'admin:' in its \
             configuration, and ask from the same host and network namespace"
        )
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| anyhow!("{admin} does not speak HTTP"))?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("{admin} answers {status}: {}", body.trim_end());
    }
    Ok(body.to_owned())
}

fn exchange(admin: &AdminAddress, method: &str, target: &str) -> io::Result<String> {
    match admin {
        AdminAddress::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            converse(stream, &address.to_string(), method, target)
        }
        AdminAddress::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            converse(stream, "localhost", method, target)
        }
    }
}

/// In HTTP/1.0, whose answers come in one piece.
fn converse(mut stream: impl Read + Write, host: &str, method: &str, target: &str) -> io::Result<String> {
    write!(stream, "{method} {target} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: u64) -> Connection {
        Connection {
            id,
            listener: "https".into(),
            route: Some("www".into()),
            backend: None,
            client: Some(([10, 0, 0, 1], 5000).into()),
            accepted_at: None,
            connected_from: None,
            backend_address: None,
            age_seconds: 7.25,
            carrier: Some("relay".into()),
            packet_refused: Some("timestamps".into()),
            bytes_up: 1,
            bytes_down: 1_000,
        }
    }

    #[test]
    fn columns_are_aligned() {
        let text = render(&Listing { connections: vec![connection(7), connection(1_234)], more: true });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        for word in ["https", "10.0.0.1:5000", "relay", "timestamps"] {
            assert_eq!(lines[1].find(word), lines[2].find(word), "{text}");
        }
        assert!(lines[1].starts_with("   7  https") && lines[2].starts_with("1234  https"), "{text}");
        assert!(lines[3].contains("--limit"), "{text}");
    }

    #[test]
    fn what_does_not_answer_is_told_with_a_remedy() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = format!("{:#}", request(&free.into(), "GET", "/connections").unwrap_err());
        assert!(error.contains("--admin") && error.contains(&free.to_string()), "{error}");
    }
}
