//! The access log: a line for each connection with any outcome, and a daemon that waits for no reader.

use std::{
    fs,
    io::{Write as _, pipe},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    netns::{BACKEND, CLIENT, LB},
    process::run,
    suite::Case,
    tcp, wait,
};

use crate::flow::{self, Flow, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::each("access_log::every_end_has_its_line", every_end),
    Case::once("access_log::the_text_has_the_same_fields", text),
    Case::once("access_log::a_renamed_file_is_left_on_sighup", rotation),
    Case::once("access_log::a_reader_that_goes_away_costs_lines_alone", reader_goes_away),
    Case::once("access_log::a_full_disk_costs_lines_alone", full_disk),
    Case::once("access_log::a_reload_switches_it", reload),
    Case::once("access_log::an_istio_operator_switches_it_on", istio_operator),
];

const LOG: &str = "access.log";

fn path(lab: &Lab) -> PathBuf {
    lab.dir().join(LOG)
}

fn setting(lab: &Lab, format: &str) -> String {
    format!("access_log: {{path: \"{}\", format: {format}}}\n", path(lab).display())
}

/// The lines of a file, once there are `count`.
fn lines(path: &Path, count: usize) -> Result<Vec<String>> {
    wait::until(&format!("{count} lines are written"), || {
        let text = fs::read_to_string(path).unwrap_or_default();
        ensure!(text.is_empty() || text.ends_with('\n') || text.lines().count() <= count, "a line is torn");
        let whole: Vec<_> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        Ok((whole.len() >= count).then(|| whole.iter().map(|line| line.trim_end().to_owned()).collect()))
    })
}

/// Waits for the line that matches `is`.
fn line(lab: &Lab, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    wait::until(what, || {
        let text = fs::read_to_string(path(lab)).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let parsed = whole.map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        Ok(parsed.into_iter().find(|line| is(line)))
    })
}

fn of_reason(lab: &Lab, reason: &str) -> Result<Value> {
    line(lab, reason, |line| line["connection_termination_details"] == reason)
}

fn ip(value: &Value) -> &str {
    value.as_str().and_then(|text| text.rsplit_once(':')).map_or("", |(ip, _)| ip)
}

fn every_end(lab: &Lab) -> Result<()> {
    let more = format!("{}timeouts: {{hello: 300ms}}\ndeny: [\"192.0.2.0/24\"]\n", setting(lab, "json"));
    let (daemon, listener) = flow::start(lab, &more)?;
    // A connection that both peers finish.
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let (client, backend) = (flow.client.local_addr()?, flow.backend.local_addr()?);
    let own = flow.backend.peer_addr()?;
    let sent = hello::naming(NAME)?.len() + b"question".len();
    flow.client.shutdown(std::net::Shutdown::Write)?;
    tcp::read_to_end(&mut flow.backend)?;
    drop(flow.backend);
    tcp::read_to_end(&mut flow.client)?;
    let passed = line(lab, "a finished one", |line| line["connection_termination_details"].is_null())?;
    for (field, value) in [
        ("requested_server_name", NAME.to_owned()),
        ("upstream_cluster", "pool".to_owned()),
        ("route_name", "route www".to_owned()),
        ("response_flags", "-".to_owned()),
        ("downstream_remote_address", client.to_string()),
        ("downstream_local_address", flow::front()),
        ("upstream_host", backend.to_string()),
        ("upstream_local_address", own.to_string()),
    ] {
        ensure!(passed[field] == *value, "{field} is not {value}: {passed}");
    }
    ensure!(passed["bytes_received"] == sent && passed["bytes_sent"] == b"answer".len(), "{passed}");
    ensure!(
        passed["response_code"] == 0 && passed["duration"].is_u64() && passed["method"].is_null(),
        "{passed}"
    );
    ensure!(passed.as_object().is_some_and(|fields| fields.len() == 24), "{passed}");

    // A connection for a name without a rule.
    let mut refused = tcp::connect(&lab.client, &flow::front())?;
    refused.write_all(&hello::naming("other.example.com")?)?;
    tcp::read_to_end(&mut refused)?;
    let refused = of_reason(lab, "unknown_name")?;
    ensure!(refused["requested_server_name"] == "other.example.com", "{refused}");
    ensure!(
        refused["response_flags"] == "NR" && refused["response_code_details"] == "filter_chain_not_found",
        "{refused}"
    );
    ensure!(
        refused["upstream_host"].is_null() && ip(&refused["downstream_remote_address"]) == CLIENT,
        "{refused}"
    );

    // A connection with half a hello.
    let mut silent = tcp::connect(&lab.client, &flow::front())?;
    silent.write_all(&hello::naming(NAME)?[..20])?;
    tcp::read_to_end(&mut silent)?;
    let silent = of_reason(lab, "hello_timeout")?;
    ensure!(
        silent["requested_server_name"].is_null() && silent["duration"].as_u64() >= Some(250),
        "{silent}"
    );

    // A connection whose backend does not listen.
    drop(listener);
    let mut unserved = tcp::connect(&lab.client, &flow::front())?;
    unserved.write_all(&hello::naming(NAME)?)?;
    // The connection ends with FIN or RST.
    let _ = tcp::read_to_end(&mut unserved);
    let unserved = of_reason(lab, "connect_refused")?;
    ensure!(unserved["response_flags"] == "UF,URX" && unserved["upstream_cluster"] == "pool", "{unserved}");
    ensure!(unserved["upstream_transport_failure_reason"] == "connect_refused", "{unserved}");

    let metrics = daemon.metrics()?;
    ensure!(metrics.sum("snisplice_access_log_dropped_total", &[]) == 0);
    ensure!(ip(&passed["upstream_host"]) == BACKEND && ip(&passed["downstream_local_address"]) == LB);
    Ok(())
}

fn text(lab: &Lab) -> Result<()> {
    let (_daemon, _listener) = flow::start(lab, &setting(lab, "text"))?;
    let mut refused = tcp::connect(&lab.client, &flow::front())?;
    refused.write_all(&hello::naming("other.example.com")?)?;
    tcp::read_to_end(&mut refused)?;
    let [line] = &*lines(&path(lab), 1)? else { anyhow::bail!("one line is expected") };
    ensure!(
        line.starts_with("[20")
            && line.contains("Z] \"- - -\" 0 NR filter_chain_not_found unknown_name \"-\" 0 0 ")
    );
    let ends = format!(" {} {}:", flow::front(), CLIENT);
    ensure!(line.contains(&ends) && line.ends_with(" other.example.com -"), "{line}");
    Ok(())
}

/// The rotation of logrotate, while connections arrive, and again during a drain.
fn rotation(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) =
        flow::start(lab, &format!("{}timeouts: {{drain: 60s}}\n", setting(lab, "json")))?;
    let one = || -> Result<()> {
        let mut flow = Flow::open(lab, &listener)?;
        flow.exchange()
    };
    let mut kept = Vec::new();
    for number in 0..3 {
        one()?;
        lines(&path(lab), 1)?;
        let old = lab.dir().join(format!("{LOG}.{number}"));
        fs::rename(path(lab), &old)?;
        // A rejected configuration is no reason to write to the old file.
        if number == 1 {
            Options::yaml(lab, &flow::yaml("surprise: 1\n"))?;
        }
        daemon.process().signal(Signal::SIGHUP)?;
        wait::until_true("there is a new file", || Ok(path(lab).exists()))?;
        one()?;
        lines(&path(lab), 1)?;
        kept.push(old);
    }
    for old in &kept {
        for line in fs::read_to_string(old)?.lines() {
            serde_json::from_str::<Value>(line).with_context(|| line.to_owned())?;
        }
    }
    let mut last = Flow::open(lab, &listener)?;
    last.exchange()?;
    daemon.terminate()?;
    wait::until_true("it drains", || Ok(tcp::connect(&lab.client, &flow::front()).is_err()))?;
    fs::rename(path(lab), lab.dir().join(format!("{LOG}.last")))?;
    daemon.process().signal(Signal::SIGHUP)?;
    wait::until_true("there is a new file", || Ok(path(lab).exists()))?;
    drop(last);
    ensure!(daemon.wait()?.success());
    // The last lines are written before the process ends.
    ensure!(fs::read_to_string(path(lab))?.lines().count() == 1);
    Ok(())
}

/// Connections are served and counted. Only their log lines are lost.
fn goes_on(lab: &Lab, mut daemon: Daemon<'_>, listener: &std::net::TcpListener) -> Result<()> {
    wait::until_true("lines are dropped, and counted", || {
        Flow::open(lab, listener)?.exchange()?;
        Ok(daemon.metrics()?.sum("snisplice_access_log_dropped_total", &[]) > 1)
    })?;
    ensure!(daemon.is_ready()?);
    daemon.terminate()?;
    ensure!(daemon.wait()?.success());
    Ok(())
}

fn reader_goes_away(lab: &Lab) -> Result<()> {
    let fifo = lab.dir().join("fifo");
    run(&lab.lb, Command::new("mkfifo").arg(&fifo))?.ok()?;
    let reader = fs::File::options().read(true).write(true).open(&fifo)?;
    let setting = format!("access_log: {{path: \"{}\"}}\n", fifo.display());
    let (daemon, listener) = flow::start(lab, &setting)?;
    Flow::open(lab, &listener)?.exchange()?;
    ensure!(daemon.metrics()?.sum("snisplice_access_log_dropped_total", &[]) == 0);
    drop(reader);
    goes_on(lab, daemon, &listener)
}

fn full_disk(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "access_log: {path: /dev/full}\n")?;
    goes_on(lab, daemon, &listener)
}

fn reload(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut generation = 1;
    let mut reload = |more: &str| -> Result<()> {
        Options::yaml(lab, &flow::yaml(more))?;
        daemon.process().signal(Signal::SIGHUP)?;
        generation += 1;
        daemon.wait_metrics("it has reloaded", |metrics| {
            metrics.sum("snisplice_config_generation", &[]) == generation
        })?;
        Ok(())
    };
    Flow::open(lab, &listener)?.exchange()?;
    ensure!(!daemon.process().has_thread("access-log")?, "nothing is paid for what is off");
    reload(&setting(lab, "json"))?;
    Flow::open(lab, &listener)?.exchange()?;
    lines(&path(lab), 1)?;
    reload("")?;
    wait::until_true("the thread ends", || Ok(!daemon.process().has_thread("access-log")?))?;
    Flow::open(lab, &listener)?.exchange()?;
    // A directory cannot be opened: the last good configuration stays in service.
    let directory = format!("access_log: {{path: \"{}\"}}\n", lab.dir().display());
    Options::yaml(lab, &flow::yaml(&directory))?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_log("cannot open the access log")?;
    Flow::open(lab, &listener)?.exchange()?;
    ensure!(fs::read_to_string(path(lab))?.lines().count() == 1);
    Ok(())
}

/// To standard output, which is a pipe here.
fn istio_operator(lab: &Lab) -> Result<()> {
    let operator = lab.dir().join("operator.yaml");
    let text = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  meshConfig: {accessLogFile: LOG, \
                accessLogEncoding: JSON}\n";
    fs::write(&operator, text.replace("LOG", &path(lab).display().to_string()))?;
    let listener = flow::backend(lab)?;
    let options = Options::yaml(lab, &flow::yaml(""))?.and_file(&operator);
    let daemon = Daemon::start(lab, &options)?;
    Flow::open(lab, &listener)?.exchange()?;
    line(lab, "a line", |line| line["requested_server_name"] == NAME)?;
    drop(daemon);
    // By its standard path, to the descriptor that the process inherited.
    fs::write(&operator, text.replace("LOG", "/dev/stderr"))?;
    let (reader, log) = pipe()?;
    let mut daemon = Daemon::start_logging_to(lab, &options, log)?;
    Flow::open(lab, &listener)?.exchange()?;
    daemon.terminate()?;
    ensure!(daemon.wait()?.success());
    drop(daemon);
    let said = std::io::read_to_string(reader)?;
    let line = said.lines().find(|line| line.starts_with('{')).context("there is no line")?;
    let line: Value = serde_json::from_str(line)?;
    ensure!(line["upstream_cluster"] == "pool", "{line}");
    Ok(())
}
