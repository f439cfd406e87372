//! The subcommands that query a running balancer through its admin address.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use comfy_table::{CellAlignment, Table, presets};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use snisplice_config::admin::AdminAddress;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    runtime, time,
};

use crate::{
    account::view::{Changed, Closed, ConnectionView, Explained, Filter, Listing, Reloaded},
    cli,
    http::question::Parts,
};

/// The time limit for each part of the balancer's response.
const PATIENCE: Duration = Duration::from_secs(10);

/// `snisplice connections`: a table, or the balancer's response as it is.
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
        let body =
            request(&ask.admin, Method::GET, &format!("/connections{query}{sign}limit={left}{after}"))?;
        let mut page: Listing =
            serde_json::from_str(&body).context("the answer is not that of a snisplice of this version")?;
        let told = !page.connections.is_empty();
        listing.connections.append(&mut page.connections);
        listing.more = page.more && told;
        // The usual case: the response as it is.
        if *json && !page.more && after.is_empty() {
            return Ok(body);
        }
    }
    if *json { Ok(serde_json::to_string(&listing)? + "\n") } else { Ok(render(&listing)) }
}

/// `snisplice explain --admin`: the balancer's text for one name.
pub fn explain(admin: &AdminAddress, options: &cli::Explain, name: Option<&str>) -> anyhow::Result<String> {
    let port = options.port.map(|port| port.to_string());
    let mut pairs = vec![("sni", name), ("port", port.as_deref())];
    if let Some(Parts { path, method, scheme, headers }) = options.request.parts() {
        pairs.extend([("path", Some(path)), ("method", Some(method)), ("scheme", Some(scheme))]);
        pairs.extend(headers.iter().map(|header| ("header", Some(&**header))));
    }
    let pairs: Vec<_> = pairs.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    let body = request(admin, Method::GET, &format!("/explain?{}", serde_urlencoded::to_string(pairs)?))?;
    let Explained { text, .. } =
        serde_json::from_str(&body).context("the answer is not that of a snisplice of this version")?;
    Ok(text)
}

/// The part of `/backends` that a table has.
#[derive(Deserialize)]
struct BackendList {
    backends: Vec<BackendRow>,
}

#[derive(Deserialize)]
struct BackendRow {
    name: String,
    panic: bool,
    dynamic: Option<DynamicRow>,
    endpoints: Vec<EndpointRow>,
}

#[derive(Deserialize)]
struct DynamicRow {
    port: u16,
}

#[derive(Deserialize)]
struct EndpointRow {
    address: SocketAddr,
    active: u32,
    broken: u32,
    state: String,
}

/// `snisplice backends`: a table, or the balancer's response as it is.
pub fn backends(options: &cli::Backends) -> anyhow::Result<String> {
    let cli::Backends { ask, backend, json } = options;
    let pairs: Vec<_> = backend.iter().map(|name| ("backend", name)).collect();
    let body =
        request(&ask.admin, Method::GET, &format!("/backends?{}", serde_urlencoded::to_string(pairs)?))?;
    if *json {
        return Ok(body);
    }
    let BackendList { backends } =
        serde_json::from_str(&body).context("the answer is not that of a snisplice of this version")?;
    if let (Some(name), true) = (backend, backends.is_empty()) {
        bail!("there is no backend '{name}'");
    }
    let rows = backends.iter().flat_map(|BackendRow { name, panic, dynamic, endpoints }| {
        let state = |one: &EndpointRow| {
            if *panic { format!("{}; panic: all are used", one.state) } else { one.state.clone() }
        };
        let row = move |one: &EndpointRow| {
            vec![
                name.clone(),
                one.address.to_string(),
                one.active.to_string(),
                one.broken.to_string(),
                state(one),
            ]
        };
        let mut rows: Vec<_> = endpoints.iter().map(row).collect();
        if let Some(DynamicRow { port }) = dynamic {
            let to = format!("the requested name, port {port}");
            rows.push([name, "-", "-", "-", &to].map(str::to_owned).to_vec());
        } else if rows.is_empty() {
            rows.push([name, "-", "-", "-", "no endpoint"].map(str::to_owned).to_vec());
        }
        rows
    });
    Ok(aligned(&["backend", "endpoint", "active", "broken", "state"], rows, &[2, 3]))
}

/// A table whose columns are as wide as their longest cell. The columns `right` are aligned to the right.
fn aligned(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>, right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        let last = index == header.len() - 1;
        column.set_padding((0, if last { 0 } else { 2 }));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".into()]).collect()
}

/// `snisplice reload`: returns the number of the new configuration.
pub fn reload(options: &cli::Reload) -> anyhow::Result<String> {
    let body = request(&options.ask.admin, Method::POST, "/reload")?;
    let Reloaded { generation } =
        serde_json::from_str(&body).context("the answer is not that of a snisplice of this version")?;
    Ok(format!("generation {generation} serves\n"))
}

/// `snisplice drain`, `undrain` and `weight`: returns the state of the endpoint.
pub fn change(options: &cli::Drain, how: &str, weight: Option<&str>) -> anyhow::Result<String> {
    let endpoint = options.endpoint.to_string();
    let pairs = [("backend", Some(&*options.backend)), ("endpoint", Some(&*endpoint)), ("weight", weight)];
    let pairs: Vec<_> = pairs.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    let target = format!("/{how}?{}", serde_urlencoded::to_string(pairs)?);
    let body = request(&options.ask.admin, Method::POST, &target)?;
    let Changed { backend, endpoint, drained, weight } =
        serde_json::from_str(&body).context("the answer is not that of a snisplice of this version")?;
    let state = if drained { "drained" } else { "in use" };
    let weight =
        weight.map_or_else(|| "the configured weight".to_owned(), |weight| format!("weight {weight}"));
    Ok(format!("{endpoint} of {backend}: {state}, {weight}\n"))
}

/// `snisplice close`: returns the number of closed connections. Fails at the first one that cannot be closed.
pub fn close(options: &cli::Close) -> anyhow::Result<String> {
    let cli::Close { ask, ids, backend, client, sni } = options;
    let mut closed = 0;
    let mut close = |target: &str| -> anyhow::Result<()> {
        let body = request(&ask.admin, Method::DELETE, target)?;
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
    let header =
        ["id", "listener", "route", "backend", "client", "to", "age", "datapath", "refused", "up", "down"];
    let mut text = aligned(&header, connections.iter().map(|one| row(one).to_vec()), &RIGHT);
    if *more {
        text.push_str("and more: see --limit\n");
    }
    text
}

/// The columns of numbers, aligned to the right.
const RIGHT: [usize; 4] = [0, 6, 9, 10];

fn row(one: &ConnectionView) -> [String; 11] {
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

/// The body of a successful response. Any other result is an error with a remedy.
fn request(admin: &AdminAddress, method: Method, target: &str) -> anyhow::Result<String> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (status, body) = runtime.block_on(exchange(admin, method, target)).map_err(|error| {
        if error.downcast_ref().is_some_and(hyper::Error::is_parse) {
            return error.context(format!("{admin} does not speak HTTP"));
        }
        error.context(format!(
            "nothing answers at {admin}: give the balancer this address with 'run --admin {admin}' or 'admin:' in its \
             configuration, and ask from the same host and network namespace"
        ))
    })?;
    if status != StatusCode::OK {
        bail!("{admin} answers {}: {}", status.as_str(), body.trim_end());
    }
    Ok(body)
}

async fn exchange(
    admin: &AdminAddress,
    method: Method,
    target: &str,
) -> anyhow::Result<(StatusCode, String)> {
    match admin {
        AdminAddress::Tcp(address) => {
            let stream = patiently(TcpStream::connect(address)).await?;
            converse(stream, &address.to_string(), method, target).await
        }
        AdminAddress::Unix(path) => {
            converse(patiently(UnixStream::connect(path)).await?, "localhost", method, target).await
        }
    }
}

/// Sends one request, and reads the whole response.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    method: Method,
    target: &str,
) -> anyhow::Result<(StatusCode, String)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The request receives an error of the connection as well.
    tokio::spawn(connection);
    let request =
        Request::builder().method(method).uri(target).header(HOST, host).body(Empty::<Bytes>::new())?;
    let mut response = patiently(sender.send_request(request)).await?;
    let mut body = Vec::new();
    while let Some(frame) = patiently(async { response.frame().await.transpose() }).await? {
        body.extend(frame.into_data().unwrap_or_default());
    }
    Ok((response.status(), String::from_utf8(body)?))
}

/// One step of an exchange, which fails after [`PATIENCE`].
async fn patiently<T, E>(step: impl Future<Output = Result<T, E>>) -> anyhow::Result<T>
where
    anyhow::Error: From<E>,
{
    let done = time::timeout(PATIENCE, step).await;
    Ok(done.with_context(|| format!("no answer within {} s", PATIENCE.as_secs()))??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: u64) -> ConnectionView {
        ConnectionView {
            id,
            listener: "https".into(),
            route: Some("www".into()),
            backend: None,
            client: Some(([10, 0, 0, 1], 5000).into()),
            proxy: None,
            accepted_at: None,
            connected_from: None,
            backend_address: None,
            age_seconds: 7.25,
            carrier: Some("relay".into()),
            former_carrier: Some("relay".into()),
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

    /// A server that sends `answer`. The thread returns the request.
    fn server(answer: &'static str) -> (AdminAddress, std::thread::JoinHandle<String>) {
        use std::io::{BufRead as _, BufReader, Write as _};
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = socket.accept().unwrap();
            let head = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let head: Vec<_> = head.take_while(|line| !line.is_empty()).collect();
            stream.write_all(answer.as_bytes()).unwrap();
            head.join("\n")
        });
        (address.into(), server)
    }

    #[test]
    fn an_answer_in_chunks_is_joined() {
        let answer =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{\"co\r\n6\r\nnn\":1}\r\n0\r\n\r\n";
        let (address, server) = server(answer);
        assert_eq!(request(&address, Method::GET, "/connections?limit=1").unwrap(), r#"{"conn":1}"#);
        let head = server.join().unwrap().to_lowercase();
        assert!(head.starts_with("get /connections?limit=1 http/1.1"), "{head}");
        assert!(head.contains(&format!("host: {address}")), "{head}");
    }

    #[test]
    fn an_answer_that_is_cut_short_or_not_http_is_an_error() {
        for (answer, word) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "nothing answers"),
            ("220 mail.example.com ESMTP\r\n", "does not speak HTTP"),
            ("HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno\n", "answers 403: no"),
        ] {
            let (address, server) = server(answer);
            let error = format!("{:#}", request(&address, Method::GET, "/connections").unwrap_err());
            assert!(error.contains(word), "{answer}: {error}");
            server.join().unwrap();
        }
    }

    #[test]
    fn what_does_not_answer_is_told_with_a_remedy() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = format!("{:#}", request(&free.into(), Method::GET, "/connections").unwrap_err());
        assert!(error.contains("--admin") && error.contains(&free.to_string()), "{error}");
    }
}
