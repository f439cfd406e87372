//! The product at work, with nothing that the build does not bring: `cargo xtask demo`.
//!
//! Two published Istio settings, unedited, are served at once. Two TLS servers with their own certificates stand
//! for the services behind them, and a client that trusts only the demo's own authority visits both, and a third
//! name that nobody serves.

use std::{fs, net::SocketAddr, process::ExitCode};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use snisplice_tests::{metrics::Metrics, pki::Ca};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

mod balancer;
mod client;
mod server;

use self::{balancer::Balancer, client::Visit};

/// Shows real TLS connections routed by name, each backend's own certificate verified by the client.
#[derive(Debug, Parser)]
struct Args {
    /// Leave everything running afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Which datapath to ask for
    #[arg(long, value_parser = ["auto", "sockmap", "relay"], default_value = "auto")]
    datapath: String,
}

/// One service of the published settings.
struct Service {
    name: &'static str,
    /// Gateway and `VirtualService` as published.
    yaml: (&'static str, &'static str),
    /// `destination.host` in them.
    destination: &'static str,
    says: &'static str,
}

const SERVICES: [Service; 2] = [
    Service {
        name: "sample.aliyun.com",
        yaml: ("asm-tls-passthrough.yaml", include_str!("../../fixtures/istio/asm-tls-passthrough.yaml")),
        destination: "mynginxapp.default.svc.cluster.local",
        says: "Welcome to aliyun.com without TLS termination!",
    },
    Service {
        name: "nginx.example.com",
        yaml: ("istio-sni-passthrough.yaml", include_str!("../../fixtures/istio/istio-sni-passthrough.yaml")),
        destination: "my-nginx.default.svc.cluster.local",
        says: "Welcome to nginx.example.com!",
    },
];
/// A name that no rule serves.
const STRANGER: &str = "other.example.com";
/// The port of both Gateways.
const GATEWAY_PORT: u16 = 443;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Whatever ends the story, its values are dropped on the way out: balancer, servers and directory with them.
    let result = tokio::select! {
        result = tell(Args::parse()) => result,
        signal = interrupted() => signal.map(|()| println!("\ninterrupted; everything is removed")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => Ok(interrupt?),
        _ = terminate.recv() => Ok(()),
    }
}

async fn tell(Args { keep, datapath }: Args) -> Result<()> {
    let datapath = allowed(datapath);
    let dir = tempfile::Builder::new().prefix("snisplice-demo-").tempdir()?;
    let ca = Ca::new(dir.path())?;
    println!("certificates  a throw-away authority, and one certificate for each backend");

    let mut options = Vec::new();
    for Service { name, yaml: (file, text), destination, says } in &SERVICES {
        let path = dir.path().join(file);
        fs::write(&path, text)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(server::serve(listener, ca.issue(name)?.server(rustls::ALL_VERSIONS)?, says));
        options.extend(["-c".to_owned(), path.display().to_string()]);
        options.extend(["--resolve".to_owned(), format!("{destination}:{GATEWAY_PORT}:{address}")]);
        println!("backend       {name:<18} ends TLS itself at {address}");
    }

    let front = free_address().await?;
    let admin = free_address().await?;
    options.extend(["--listen".to_owned(), format!("{GATEWAY_PORT}={front}")]);
    options.extend(["--admin".to_owned(), admin.to_string(), "--datapath".to_owned(), datapath]);
    let balancer = Balancer::start(dir.path(), admin, &options).await?;
    println!("balancer      serves port {GATEWAY_PORT} of both Gateways, unedited, at {front}");
    for Service { yaml: (file, _), .. } in &SERVICES {
        println!("              {file}");
    }

    for Service { name, says, .. } in &SERVICES {
        let before = balancer.metrics().await?;
        let Visit { subject, issuer, version, body, bulk } = client::visit(&ca, front, name).await?;
        ensure!(body == *says, "{name} said {body:?}");
        let after = balancer.settled().await?;
        println!("\n{name}");
        println!("  certificate {subject}, issued by {issuer}: verified ({version})");
        println!("  body        {body}");
        println!("  download    {bulk} bytes");
        report(&before, &after);
    }

    println!("\n{STRANGER}");
    match client::visit(&ca, front, STRANGER).await {
        Ok(_) => bail!("{STRANGER} was served"),
        Err(error) => println!("  refused     no rule serves it: {}", root_cause(&error)),
    }

    let nginx = SERVICES[1].name;
    let curl = format!(
        "curl --cacert {} --resolve {nginx}:{}:{} https://{nginx}:{}/",
        ca.file().display(),
        front.port(),
        front.ip(),
        front.port()
    );
    if keep {
        println!(
            "\nStill running, until Ctrl-C. The same with curl, and what is counted:\n\n  {curl}\n  curl http://{admin}/metrics"
        );
        std::future::pending().await
    } else {
        println!("\nThe same with curl, while the demo runs with --keep:\n\n  {curl}");
        balancer.stop().await
    }
}

/// What can be had: without root, `auto` is the relay.
fn allowed(datapath: String) -> String {
    if datapath == "auto" && !nix::unistd::geteuid().is_root() {
        println!(
            "note          not root: bytes are copied in userspace (relay); as root they move in the kernel"
        );
        return "relay".to_owned();
    }
    datapath
}

/// What the balancer and the kernel counted between two scrapes.
fn report(before: &Metrics, after: &Metrics) {
    let grown = |name: &str, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    for datapath in ["sockmap", "relay"] {
        if grown("snisplice_connections_closed_total", &[("datapath", datapath)]) == 0 {
            continue;
        }
        let bytes =
            |direction| grown("snisplice_bytes_total", &[("datapath", datapath), ("direction", direction)]);
        println!("  carried by  {datapath}: {} bytes up, {} bytes down", bytes("up"), bytes("down"));
        if datapath == "sockmap" {
            let bytes = grown("snisplice_sockmap_redirected_bytes_total", &[]);
            println!("  in kernel   {bytes} bytes redirected from socket to socket");
        }
    }
}

/// The innermost error, which is the one that says what happened on the wire.
fn root_cause(error: &anyhow::Error) -> String {
    error.root_cause().to_string()
}

/// A free port above 1024 on loopback.
async fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}
