//! The product at work, with nothing but the results of the build: `cargo xtask demo`.
//!
//! The daemon serves two published, unedited Istio configurations at once. Two TLS servers with their own
//! certificates stand for the services. A client that trusts only the demo's authority visits both, and a third name
//! without a rule.

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
};

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
    /// The datapath to use
    #[arg(long, value_parser = ["auto", "sockmap", "relay"], default_value = "auto")]
    datapath: String,
}

/// One service of the published configurations.
struct Service {
    name: &'static str,
    /// The configuration of the service.
    setting: &'static str,
    gateway: &'static str,
    rules: &'static str,
    /// `destination.host` of the rule.
    destination: &'static str,
    says: &'static str,
}

const SERVICES: [Service; 2] = [
    Service {
        name: "sample.aliyun.com",
        setting: "asm-passthrough",
        gateway: include_str!("../../../config/testdata/asm-passthrough/2-gateway.yaml"),
        rules: include_str!("../../../config/testdata/asm-passthrough/3-virtual-service.yaml"),
        destination: "mynginxapp.default.svc.cluster.local",
        says: "Welcome to aliyun.com without TLS termination!",
    },
    Service {
        name: "nginx.example.com",
        setting: "istio-sni-passthrough",
        gateway: include_str!("../../../config/testdata/istio-sni-passthrough/2-gateway.yaml"),
        rules: include_str!("../../../config/testdata/istio-sni-passthrough/3-virtual-service.yaml"),
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
    // Every end drops the values: the balancer, the servers and the directory.
    let result = tokio::select! {
        result = tell(Args::parse()) => result,
        signal = interrupted() => signal.map(|()| println!("\ninterrupted; everything is removed")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has closed the pipe.
        Err(error)
            if error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
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
    let out = &mut io::stdout();
    let mut datapath = datapath;
    if datapath == "auto" && !nix::unistd::geteuid().is_root() {
        writeln!(
            out,
            "note          not root: bytes are copied in userspace; as root they move in the kernel"
        )?;
        "relay".clone_into(&mut datapath);
    }
    let dir = tempfile::Builder::new().prefix("snisplice-demo-").tempdir()?;
    let ca = Ca::new(dir.path())?;
    writeln!(out, "certificates  a throw-away authority, and one certificate for each backend")?;

    let mut options = Vec::new();
    for Service { name, setting, gateway, rules, destination, says } in &SERVICES {
        let config = dir.path().join(setting);
        fs::create_dir(&config)?;
        fs::write(config.join("gateway.yaml"), gateway)?;
        fs::write(config.join("virtual-service.yaml"), rules)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(server::serve(listener, ca.issue(name)?.server(rustls::ALL_VERSIONS)?, says));
        options.extend(["-c".to_owned(), config.display().to_string()]);
        options.extend(["--resolve".to_owned(), format!("{destination}:{GATEWAY_PORT}:{address}")]);
        writeln!(out, "backend       {name} ends TLS itself at {address}")?;
    }

    let front = free_address().await?;
    let admin = free_address().await?;
    options.extend(["--listen".to_owned(), format!("{GATEWAY_PORT}={front}")]);
    options.extend(["--admin".to_owned(), admin.to_string(), "--datapath".to_owned(), datapath]);
    let balancer = Balancer::start(dir.path(), admin, &options).await?;
    let settings = SERVICES.map(|service| service.setting).join(" and ");
    writeln!(out, "balancer      {settings}, unedited; their port {GATEWAY_PORT} is at {front}")?;

    for Service { name, says, .. } in &SERVICES {
        let before = balancer.metrics().await?;
        let Visit { subject, issuer, version, body, bytes } = client::visit(&ca, front, name).await?;
        ensure!(body == *says, "{name} said {body:?}");
        let after = balancer.settled().await?;
        writeln!(out, "\n{name}")?;
        writeln!(out, "  certificate {subject}, verified: issued by {issuer} ({version})")?;
        writeln!(out, "  body        {body}")?;
        writeln!(out, "  and then    {bytes} bytes in pages")?;
        report(out, &before, &after)?;
    }

    writeln!(out, "\n{STRANGER}")?;
    match client::visit(&ca, front, STRANGER).await {
        Ok(_) => bail!("{STRANGER} was served"),
        // The innermost error describes the event on the wire.
        Err(error) => writeln!(out, "  refused     no rule serves it ({})", error.root_cause())?,
    }

    let (name, port, ca) = (SERVICES[1].name, front.port(), ca.file());
    let curl = format!(
        "curl --cacert {} --resolve {name}:{port}:{} https://{name}:{port}/",
        ca.display(),
        front.ip()
    );
    if keep {
        writeln!(
            out,
            "\nStill running, until Ctrl-C. The same with curl, and everything that is counted:\n"
        )?;
        writeln!(out, "  {curl}\n  curl http://{admin}/metrics")?;
        std::future::pending().await
    } else {
        writeln!(out, "\nThe same with curl, while the demo runs with --keep:\n\n  {curl}")?;
        balancer.stop().await
    }
}

/// The difference of the counters between two scrapes.
fn report(out: &mut impl Write, before: &Metrics, after: &Metrics) -> io::Result<()> {
    let grown = |name: &str, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    for datapath in ["sockmap", "relay"] {
        if grown("snisplice_connections_closed_total", &[("datapath", datapath)]) == 0 {
            continue;
        }
        let bytes =
            |direction| grown("snisplice_bytes_total", &[("datapath", datapath), ("direction", direction)]);
        let (up, down) = (bytes("up"), bytes("down"));
        writeln!(out, "  carried by  {datapath}: {up} bytes up, {down} bytes down")?;
        if datapath == "sockmap" {
            let bytes = grown("snisplice_sockmap_redirected_bytes_total", &[]);
            writeln!(out, "  the kernel  moved {bytes} bytes from socket to socket, by its own count")?;
        }
    }
    Ok(())
}

/// A free port above 1024 on loopback.
async fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}
