//! The daemon as a child of the demo.

use std::{fs, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use snisplice_tests::metrics::Metrics;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep},
};

const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// A running daemon, killed on drop.
pub(crate) struct Balancer {
    child: Child,
    admin: SocketAddr,
}

impl Balancer {
    /// Starts the `snisplice` that was built beside the demo, and waits until it is ready.
    pub(crate) async fn start(dir: &Path, admin: SocketAddr, options: &[String]) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("snisplice");
        let log = dir.join("snisplice.log");
        let output = fs::File::create(&log)?;
        let child = Command::new(&program)
            .arg("run")
            .args(options)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C is for the demo, which stops the daemon at its end.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut balancer = Self { child, admin };
        let started = Instant::now();
        while !balancer.get("/ready").await.is_ok_and(|(_, state)| state == "ready\n") {
            if let Some(status) = balancer.child.try_wait()? {
                bail!("the balancer ended: {status}\n{}", fs::read_to_string(&log)?);
            }
            ensure!(started.elapsed() < PATIENCE, "the balancer is not ready\n{}", fs::read_to_string(&log)?);
            sleep(POLL).await;
        }
        Ok(balancer)
    }

    /// The current metrics.
    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        Metrics::parse(&self.get("/metrics").await?.1)
    }

    /// The metrics, once every connection is accounted for.
    pub(crate) async fn settled(&self) -> Result<Metrics> {
        let started = Instant::now();
        loop {
            let metrics = self.metrics().await?;
            if metrics.sum("snisplice_connections_active", &[]) == 0 {
                return Ok(metrics);
            }
            ensure!(started.elapsed() < PATIENCE, "a connection does not end");
            sleep(POLL).await;
        }
    }

    /// Ends the daemon.
    pub(crate) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM)?;
        }
        let status = self.child.wait().await?;
        ensure!(status.success(), "the balancer ended with {status}");
        Ok(())
    }

    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    }
}
