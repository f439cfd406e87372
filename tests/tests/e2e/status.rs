//! The status port, probed in the same way as that of Istio's gateways.

use std::{
    fs,
    io::{Read as _, Write as _},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    lab::Lab,
    netns::LB,
    suite::Case,
    tcp, wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::once("status::it_follows_the_life_of_the_process", life),
    Case::once("status::an_istio_operator_names_its_port", istio_operator),
    Case::once("status::a_port_in_use_stops_what_has_asked_for_it", port_in_use),
];

/// The port of Istio's gateways.
const ISTIO: u16 = 15_021;

/// Sends a request from the client's namespace. Returns status and body.
fn ask(lab: &Lab, port: u16, request: &str) -> Result<(u16, String)> {
    let mut stream = tcp::connect(&lab.client, &format!("{LB}:{port}"))?;
    write!(stream, "{request} HTTP/1.1\r\nHost: gateway.example\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
}

fn life(lab: &Lab) -> Result<()> {
    const PORT: u16 = 9_902;
    let listener = flow::backend(lab)?;
    let more = "timeouts: {drain: 60s}\n";
    let options = Options::yaml(lab, &flow::yaml(more))?.arg("--status").arg(format!("{LB}:{PORT}"));
    let mut daemon = Daemon::start(lab, &options)?;
    let mut flow = Flow::open(lab, &listener)?;
    for (request, status) in [
        ("GET /healthz/ready", 200),
        ("GET /livez", 200),
        ("GET /ready", 200),
        ("GET /", 404),
        ("GET /metrics", 404),
        ("GET /connections", 404),
        ("DELETE /connections/1", 404),
        ("POST /healthz/ready", 405),
    ] {
        let (found, body) = ask(lab, PORT, request)?;
        ensure!(found == status, "{request}: {found}");
        ensure!(status != 200 || request == "GET /ready" || body.is_empty(), "{request}: {body}");
    }
    // Neither a good nor a bad configuration changes the result.
    for (yaml, counter) in [
        (flow::yaml("surprise: 1\n"), "snisplice_config_rejected_total"),
        (flow::yaml(&format!("{more}deny: [\"192.0.2.0/24\"]\n")), "snisplice_config_generation"),
    ] {
        let before = daemon.metrics()?.sum(counter, &[]);
        Options::yaml(lab, &yaml)?;
        daemon.process().signal(Signal::SIGHUP)?;
        daemon.wait_metrics("it has read it", |metrics| metrics.sum(counter, &[]) > before)?;
        ensure!(ask(lab, PORT, "GET /healthz/ready")? == (200, String::new()));
    }
    flow.exchange()?;
    // During a drain the process is alive, and not ready for new clients.
    daemon.terminate()?;
    wait::until_true("it says that it stops", || {
        Ok(ask(lab, PORT, "GET /healthz/ready")? == (503, String::new()))
    })?;
    ensure!(ask(lab, PORT, "GET /livez")? == (200, String::new()));
    flow.exchange()?;
    drop(flow);
    ensure!(daemon.wait()?.success());
    ensure!(tcp::connect(&lab.client, &format!("{LB}:{PORT}")).is_err());
    Ok(())
}

/// An operator's document with a status port.
fn operator(lab: &Lab) -> Result<std::path::PathBuf> {
    let path = lab.dir().join("operator.yaml");
    let text = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  components:\n    ingressGateways:\n    \
                - k8s: {service: {ports: [{name: status-port, port: 15021, targetPort: 15021}]}}\n";
    fs::write(&path, text)?;
    Ok(path)
}

fn istio_operator(lab: &Lab) -> Result<()> {
    let options = Options::yaml(lab, &flow::yaml(""))?.and_file(operator(lab)?);
    let daemon = Daemon::start(lab, &options)?;
    ensure!(ask(lab, ISTIO, "GET /healthz/ready")? == (200, String::new()));
    drop(daemon);
    // The command line overrides the document.
    let daemon = Daemon::start(lab, &options.clone().arg("--status").arg(format!("{LB}:9902")))?;
    ensure!(ask(lab, 9_902, "GET /healthz/ready")? == (200, String::new()));
    ensure!(tcp::connect(&lab.client, &format!("{LB}:{ISTIO}")).is_err());
    drop(daemon);
    Ok(())
}

fn port_in_use(lab: &Lab) -> Result<()> {
    let taken = tcp::listen(&lab.lb, &format!("0.0.0.0:{ISTIO}"))?;
    let listener = flow::backend(lab)?;
    let options = Options::yaml(lab, &flow::yaml(""))?.and_file(operator(lab)?);
    let daemon = Daemon::start(lab, &options)?;
    daemon.wait_log("the status-port of the Istio documents is not served")?;
    Flow::open(lab, &listener)?.exchange()?;
    drop(daemon);
    // An explicit request for the port fails with an error.
    let asked = options.arg("--status").arg(format!("0.0.0.0:{ISTIO}"));
    let mut daemon = Daemon::spawn(lab, &asked, "refused")?;
    ensure!(!daemon.wait()?.success());
    let log = daemon.process().log()?;
    ensure!(log.contains("--status") && log.contains("15021"), "{log}");
    drop(taken);
    Ok(())
}
