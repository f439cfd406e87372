//! Connections without a route: each verdict under each policy ends as configured, and has the right counter.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Write as _},
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    netns::{BACKEND, LB},
    suite::Case,
    tcp::{self, Ending},
};

use crate::flow::{self, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::each("rejection::every_verdict_under_every_policy", every_verdict_under_every_policy),
    Case::each("rejection::closing_is_the_default", closing_is_the_default),
    Case::each("rejection::who_goes_on_talking_sees_no_reset", who_goes_on_talking_sees_no_reset),
    Case::each("rejection::client_that_leaves_during_the_hello", client_that_leaves_during_the_hello),
];

/// `key` in the configuration, `label` in the metrics, the bytes of such a client, and RFC 8446's alert.
struct Verdict {
    key: &'static str,
    label: &'static str,
    first: Vec<u8>,
    alert: u8,
}

fn verdicts() -> Result<[Verdict; 6]> {
    // A handshake record with a client_hello whose length leaves no room for the required fields.
    let malformed = [&[22, 3, 1, 0, 8, 1, 0, 0, 4][..], &[0xff; 4]].concat();
    let partial = hello::naming(NAME)?[..20].to_vec();
    Ok([
        Verdict { key: "no_sni", label: "no_sni", first: hello::without_name()?, alert: 109 },
        Verdict {
            key: "unknown_name",
            label: "unknown_name",
            first: hello::naming("other.example.com")?,
            alert: 112,
        },
        Verdict { key: "not_tls", label: "not_tls", first: b"GET / HTTP/1.1\r\n\r\n".to_vec(), alert: 10 },
        Verdict { key: "malformed", label: "malformed", first: malformed, alert: 50 },
        Verdict { key: "too_large", label: "too_large", first: hello::of_size(NAME, 20_000)?, alert: 47 },
        Verdict { key: "timeout", label: "hello_timeout", first: partial, alert: 40 },
    ])
}

/// Policies by label, each on a port of its own.
const POLICIES: [(&str, u16); 4] = [("close", 8441), ("reset", 8442), ("alert", 8444), ("backend", 8445)];

fn yaml(verdicts: &[Verdict]) -> Result<String> {
    let mut listeners = String::from("listeners:\n");
    for (policy, port) in POLICIES {
        writeln!(listeners, "  - name: {policy}\n    bind: [\"0.0.0.0:{port}\"]\n    policies:")?;
        for Verdict { key, .. } in verdicts {
            let action = if policy == "backend" { "{backend: pool}" } else { policy };
            writeln!(listeners, "      {key}: {action}")?;
        }
    }
    Ok(format!(
        "{listeners}routes:\n  - name: www\n    sni: [\"{NAME}\"]\n    backends: [{{name: pool}}]\n\
         backends:\n  - name: pool\n    endpoints: [\"{BACKEND}:9000\"]\ntimeouts: {{hello: 500ms}}\n"
    ))
}

fn every_verdict_under_every_policy(lab: &Lab) -> Result<()> {
    let verdicts = verdicts()?;
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml(&verdicts)?)?)?;
    for (policy, port) in POLICIES {
        for Verdict { label, first, alert, .. } in &verdicts {
            let mut client = tcp::connect(&lab.client, &format!("{LB}:{port}"))?;
            client.write_all(first)?;
            if policy == "backend" {
                let mut backend = tcp::accept(&listener)?;
                ensure!(tcp::read_exact(&mut backend, first.len())? == *first, "{label}: bytes were changed");
                flow::Flow { client, backend }.exchange().with_context(|| format!("{label} to a backend"))?;
                continue;
            }
            let end = tcp::read_to_end(&mut client).with_context(|| format!("{label} under {policy}"))?;
            let expected = match policy {
                "close" => (Vec::new(), Ending::Eof),
                "reset" => (Vec::new(), Ending::Reset),
                _ => (end.0.clone(), Ending::Eof),
            };
            ensure!(end == expected, "{label} under {policy}: {end:?}");
            if policy == "alert" {
                // alert(21), legacy version, two bytes: fatal(2) and the description.
                ensure!(
                    matches!(end.0[..], [21, 3, _, 0, 2, 2, description] if description == *alert),
                    "{label}: {end:?}"
                );
            }
        }
    }
    let metrics = daemon.metrics()?;
    for (policy, _) in POLICIES {
        for Verdict { label, .. } in &verdicts {
            let counted = metrics.sum(
                "snisplice_unrouted_total",
                &[("listener", policy), ("verdict", label), ("policy", policy)],
            );
            ensure!(counted == 1, "{label} under {policy} was counted {counted} times");
        }
    }
    no_connection(&listener)
}

fn closing_is_the_default(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "timeouts: {hello: 500ms}\n")?;
    for Verdict { label, first, .. } in verdicts()? {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        client.write_all(&first)?;
        let end = tcp::read_to_end(&mut client)?;
        ensure!(end == (Vec::new(), Ending::Eof), "{label}: {end:?}");
        let counted =
            daemon.metrics()?.sum("snisplice_unrouted_total", &[("verdict", label), ("policy", "close")]);
        ensure!(counted == 1, "{label} was counted {counted} times");
    }
    no_connection(&listener)
}

/// A close while bytes arrive would send RST after FIN, so the daemon waits if the hello announces further bytes. A
/// reader gets the FIN in any case. A writer would fail with the RST.
fn who_goes_on_talking_sees_no_reset(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&hello::with_early_data("other.example.com")?)?;
    daemon.wait_metrics("it is turned away", |metrics| {
        metrics.sum("snisplice_unrouted_total", &[("policy", "close")]) == 1
    })?;
    client.write_all(&vec![23; 300_000]).context("the rest is refused")?;
    ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Eof));
    ensure!(client.take_error()?.is_none());
    no_connection(&listener)
}

/// Not a verdict about a hello: no client is left for a reply.
fn client_that_leaves_during_the_hello(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    for bytes in [0, 1, 20] {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        client.write_all(&hello::naming(NAME)?[..bytes])?;
        drop(client);
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        client.write_all(&hello::naming(NAME)?[..bytes])?;
        tcp::reset(client)?;
    }
    // Six, without the one that reset before its first byte: the kernel had not returned it from accept(2) yet.
    let metrics = daemon.wait_metrics("every connection is over", |metrics| {
        // A scrape is not a consistent snapshot: values that are read first may be older.
        metrics.sum("snisplice_connections_closed_total", &[("reason", "client_gone")]) == 5
            && metrics.sum("snisplice_connections_active", &[]) == 0
    })?;
    ensure!(metrics.sum("snisplice_connections_opened_total", &[]) == 5);
    ensure!(metrics.sum("snisplice_unrouted_total", &[]) == 0);
    no_connection(&listener)
}

/// Checks that no unintended connection has reached the backend.
fn no_connection(listener: &std::net::TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let refused = listener.accept().map_err(|error| error.kind());
    ensure!(matches!(refused, Err(ErrorKind::WouldBlock)), "a rejected connection reached the backend");
    Ok(())
}
