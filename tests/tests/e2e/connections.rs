//! Lists and closes open connections through the admin address.

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use snisplice_tests::{
    daemon::{ADMIN, Daemon, Options, cli},
    hello,
    lab::{Datapath, Lab},
    metrics::Metrics,
    netns::LB,
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("connections::each_is_told_with_its_addresses_and_bytes", each_is_told),
    Case::each("connections::what_it_moves_is_counted_while_it_lives", counted_while_it_lives),
    Case::each("connections::why_packets_do_not_carry_it_is_told", refusal_is_told),
    Case::each("connections::one_is_closed_and_the_others_live", one_is_closed),
    Case::each("connections::all_of_a_backend_are_closed", all_of_a_backend_are_closed),
    Case::each("connections::one_that_waits_for_its_hello_is_closed", one_without_a_hello_is_closed),
    Case::each("connections::it_ends_after_its_longest_duration", longest_duration),
    Case::once("connections::closing_wants_permission", closing_wants_permission),
    Case::once("connections::they_are_told_while_draining", told_while_draining),
    Case::once("connections::the_commands_print_and_close", the_commands_print_and_close),
];

fn start(lab: &Lab) -> Result<(Daemon<'_>, TcpListener)> {
    let listener = flow::backend(lab)?;
    let options = Options::yaml(lab, &flow::yaml(""))?.arg("--admin-close");
    Ok((Daemon::start(lab, &options)?, listener))
}

/// All matching connections.
pub(crate) fn list(daemon: &Daemon<'_>, query: &str) -> Result<Vec<Value>> {
    let (status, body) = daemon.ask("GET", &format!("/connections{query}"))?;
    ensure!(status == 200, "{status}: {body}");
    let listing: Value = serde_json::from_str(&body)?;
    ensure!(listing["more"] == Value::Bool(false), "{body}");
    Ok(listing["connections"].as_array().context("no list")?.clone())
}

/// The connection of this client.
pub(crate) fn of(daemon: &Daemon<'_>, flow: &Flow) -> Result<Value> {
    let client = flow.client.local_addr()?.to_string();
    let all = list(daemon, "")?;
    let one = all.iter().find(|one| one["client"] == client.as_str());
    one.cloned().with_context(|| format!("{client} is missing in {all:?}"))
}

/// The listed addresses of the balancer and the backend are those that the peers use.
pub(crate) fn ensure_addresses(one: &Value, flow: &Flow) -> Result<()> {
    for (key, expected) in [
        ("accepted_at", flow.client.peer_addr()?),
        ("connected_from", flow.backend.peer_addr()?),
        ("backend_address", flow.backend.local_addr()?),
    ] {
        ensure!(one[key] == expected.to_string().as_str(), "{key} is not {expected}: {one}");
    }
    Ok(())
}

pub(crate) fn delete(daemon: &Daemon<'_>, target: &str) -> Result<u64> {
    let (status, body) = daemon.ask("DELETE", target)?;
    ensure!(status == 200, "{status}: {body}");
    serde_json::from_str::<Value>(&body)?["closed"].as_u64().context("no number")
}

/// Checks that both peers get a reset, independent of unread bytes.
pub(crate) fn both_are_reset(flow: &mut Flow) -> Result<()> {
    for stream in [&mut flow.client, &mut flow.backend] {
        let (_, ending) = tcp::read_to_end(stream)?;
        ensure!(ending == Ending::Reset, "{ending:?}");
    }
    Ok(())
}

/// Moves these numbers of bytes up and down concurrently.
fn transfer(flow: &Flow, up: usize, down: usize) -> Result<()> {
    let way = |from: &TcpStream, to: &TcpStream, total: usize| -> Result<()> {
        let (mut sender, mut receiver) = (from.try_clone()?, to.try_clone()?);
        thread::scope(|scope| {
            let sending = scope.spawn(move || sender.write_all(&vec![b'x'; total]));
            tcp::read_exact(&mut receiver, total)?;
            Ok(sending.join().expect("the sender does not panic")?)
        })
    };
    thread::scope(|scope| {
        let upward = scope.spawn(|| way(&flow.client, &flow.backend, up));
        way(&flow.backend, &flow.client, down)?;
        upward.join().expect("the transfer does not panic")
    })
}

fn each_is_told(lab: &Lab) -> Result<()> {
    const MEGABYTE: usize = 1 << 20;
    let (daemon, listener) = start(lab)?;
    ensure!(list(&daemon, "")?.is_empty());
    let mut flow = Flow::open(lab, &listener)?;
    let hello = hello::naming(flow::NAME)?.len();
    for _ in 0..20 {
        flow.exchange()?;
    }
    transfer(&flow, MEGABYTE, 2 * MEGABYTE)?;
    let (up, down) = ((hello + 20 * 8 + MEGABYTE) as u64, (20 * 6 + 2 * MEGABYTE) as u64);
    // The last bytes that userspace copied are counted after their receipt.
    let one = wait::until("all bytes are told", || {
        let one = of(&daemon, &flow)?;
        let told = (one["bytes_up"].as_u64().unwrap_or(0), one["bytes_down"].as_u64().unwrap_or(0));
        ensure!(told.0 <= up && told.1 <= down, "{told:?} of {:?}: {one}", (up, down));
        Ok((told == (up, down)).then_some(one))
    })?;
    for (key, expected) in [("listener", "front"), ("route", "route www"), ("backend", "pool")] {
        ensure!(one[key] == expected, "{key} is not {expected}: {one}");
    }
    ensure_addresses(&one, &flow)?;
    ensure!(one["connected_from"].as_str().is_some_and(|ours| !ours.starts_with(LB)), "{one}");
    let carrier = match lab.datapath {
        Datapath::Relay => "relay",
        Datapath::Sockmap | Datapath::Adaptive => "sockmap",
        Datapath::Auto | Datapath::Packet => "packet",
    };
    ensure!(one["datapath"] == carrier && one["packet_refused"].is_null(), "{one}");
    ensure!(one["age_seconds"].as_f64().is_some_and(|age| (0.0..60.0).contains(&age)), "{one}");
    for (query, count) in [
        ("?listener=front&backend=pool", 1),
        (&*format!("?datapath={carrier}"), 1),
        ("?listener=back", 0),
        ("?backend=front", 0),
        (if carrier == "relay" { "?datapath=packet" } else { "?datapath=relay" }, 0),
    ] {
        ensure!(list(&daemon, query)?.len() == count, "{query} does not give {count}");
    }
    // The listed counts equal the final ones.
    drop(flow);
    let metrics = daemon
        .wait_metrics("it is over", |metrics| metrics.sum("snisplice_connections_closed_total", &[]) == 1)?;
    for (direction, told) in [("up", up), ("down", down)] {
        let counted = metrics.sum("snisplice_bytes_total", &[("direction", direction)]);
        ensure!(counted.cast_unsigned() == told, "{told} {direction} were told, {counted} are counted");
    }
    ensure!(list(&daemon, "")?.is_empty());
    Ok(())
}

/// Scrapes include the bytes of an open connection. They are never too many, and never decrease.
fn counted_while_it_lives(lab: &Lab) -> Result<()> {
    const EACH: [usize; 2] = [100_000, 300_000];
    let (daemon, listener) = start(lab)?;
    let flow = Flow::open(lab, &listener)?;
    let counted = |metrics: &Metrics| {
        ["up", "down"].map(|direction| metrics.sum("snisplice_bytes_total", &[("direction", direction)]))
    };
    let mut sent = [i64::try_from(hello::naming(flow::NAME)?.len())?, 0];
    let mut seen = [0, 0];
    for _ in 0..5 {
        transfer(&flow, EACH[0], EACH[1])?;
        for (sent, each) in sent.iter_mut().zip(EACH) {
            *sent += i64::try_from(each)?;
        }
        wait::until_true("what has moved is counted", || {
            let now = counted(&daemon.metrics()?);
            let grows = now.iter().zip(seen).all(|(now, seen)| *now >= seen);
            ensure!(grows, "{now:?} are counted after {seen:?}");
            ensure!(now.iter().zip(sent).all(|(now, sent)| *now <= sent), "{now:?} are counted of {sent:?}");
            seen = now;
            Ok(now == sent)
        })?;
    }
    ensure!(daemon.metrics()?.sum("snisplice_connections_active", &[]) == 1);
    drop(flow);
    let metrics = daemon
        .wait_metrics("it is over", |metrics| metrics.sum("snisplice_connections_closed_total", &[]) == 1)?;
    ensure!(counted(&metrics) == sent, "{:?} are counted instead of {sent:?}", counted(&metrics));
    Ok(())
}

fn refusal_is_told(lab: &Lab) -> Result<()> {
    lab.client.sysctl("net/ipv4/tcp_timestamps", "0")?;
    let (daemon, listener) = start(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..4 {
        flow.exchange()?;
    }
    match lab.datapath {
        Datapath::Auto | Datapath::Packet => wait::until_true("the reason is told", || {
            let one = of(&daemon, &flow)?;
            Ok(one["packet_refused"] == "timestamps" && one["datapath"] != "packet")
        }),
        _ => {
            let one = of(&daemon, &flow)?;
            ensure!(one["packet_refused"].is_null(), "{one}");
            Ok(())
        }
    }
}

fn one_is_closed(lab: &Lab) -> Result<()> {
    let (daemon, listener) = start(lab)?;
    let mut doomed = Flow::open(lab, &listener)?;
    let mut other = Flow::open(lab, &listener)?;
    for flow in [&mut doomed, &mut other] {
        for _ in 0..20 {
            flow.exchange()?;
        }
    }
    let target = format!("/connections/{}", of(&daemon, &doomed)?["id"]);
    ensure!(delete(&daemon, &target)? == 1);
    both_are_reset(&mut doomed)?;
    other.exchange()?;
    let metrics = closed(&daemon, 1)?;
    let up = metrics.sum("snisplice_bytes_total", &[("direction", "up")]);
    let hello = hello::naming(flow::NAME)?.len();
    // The other connection is open, and counted as well.
    ensure!(up.cast_unsigned() == 2 * hello as u64 + 41 * 8, "{up} bytes are counted");
    ensure!(daemon.ask("DELETE", &target)?.0 == 404, "its number means another one now");
    other.exchange()
}

fn all_of_a_backend_are_closed(lab: &Lab) -> Result<()> {
    let (daemon, listener) = start(lab)?;
    let mut flows = [Flow::open(lab, &listener)?, Flow::open(lab, &listener)?];
    for flow in &mut flows {
        flow.exchange()?;
    }
    ensure!(delete(&daemon, "/connections?backend=front")? == 0);
    ensure!(delete(&daemon, "/connections?backend=pool&listener=front")? == 2);
    for flow in &mut flows {
        both_are_reset(flow)?;
    }
    closed(&daemon, 2)?;
    Ok(())
}

fn one_without_a_hello_is_closed(lab: &Lab) -> Result<()> {
    let (daemon, _listener) = start(lab)?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&[22])?;
    let all = wait::until("it is told", || {
        let all = list(&daemon, "")?;
        Ok((!all.is_empty()).then_some(all))
    })?;
    ensure!(all[0]["backend"].is_null() && all[0]["datapath"].is_null(), "{all:?}");
    ensure!(delete(&daemon, &format!("/connections/{}", all[0]["id"]))? == 1);
    ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Reset));
    closed(&daemon, 1)?;
    Ok(())
}

/// Checks that the admin address closed `count` connections, and that no other one ended.
fn closed(daemon: &Daemon<'_>, count: i64) -> Result<Metrics> {
    let metrics = daemon.wait_metrics("they are over", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[]) == count
    })?;
    let by_admin = metrics.sum("snisplice_connections_closed_total", &[("reason", "closed_by_admin")]);
    ensure!(by_admin == count, "{by_admin} were closed by the administrator: {metrics:?}");
    Ok(metrics)
}

fn longest_duration(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "timeouts: {max_duration: 2s}\n")?;
    let mut flow = Flow::open(lab, &listener)?;
    // With any number of pending bytes.
    let reset = wait::until("it ends", || Ok(flow.exchange().err()))?;
    let reset = reset.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    let kinds = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
    ensure!(reset.is_some_and(|kind| kinds.contains(&kind)), "{reset:?}");
    let metrics = daemon
        .wait_metrics("it is over", |metrics| metrics.sum("snisplice_connections_closed_total", &[]) == 1)?;
    ensure!(metrics.sum("snisplice_connections_closed_total", &[("reason", "max_duration")]) == 1);
    let mut idle = Flow::open(lab, &listener)?;
    idle.exchange()?;
    both_are_reset(&mut idle)
}

fn closing_wants_permission(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    let id = &of(&daemon, &flow)?["id"];
    for target in [format!("/connections/{id}"), "/connections?backend=pool".to_owned()] {
        let (status, body) = daemon.ask("DELETE", &target)?;
        ensure!(status == 403 && body.contains("--admin-close"), "{status}: {body}");
    }
    ensure!(daemon.ask("POST", "/connections")?.0 == 405);
    flow.exchange()
}

fn told_while_draining(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let yaml = flow::yaml(&format!("admin: {{address: \"{ADMIN}\", allow_close: true}}\n"));
    let mut daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let mut flow = Flow::open(lab, &listener)?;
    let mut last = Flow::open(lab, &listener)?;
    daemon.terminate()?;
    wait::until_true("it drains", || Ok(!daemon.is_ready()?))?;
    ensure!(list(&daemon, "")?.len() == 2);
    flow.exchange()?;
    let id = &of(&daemon, &flow)?["id"];
    ensure!(delete(&daemon, &format!("/connections/{id}"))? == 1);
    both_are_reset(&mut flow)?;
    last.exchange()?;
    // A drain then has nothing left to wait for, so the response may be missing.
    let _ = delete(&daemon, "/connections?backend=pool");
    both_are_reset(&mut last)?;
    ensure!(daemon.wait()?.success());
    Ok(())
}

fn the_commands_print_and_close(lab: &Lab) -> Result<()> {
    let said = cli(lab, &["connections", "--admin", ADMIN])?;
    ensure!(said.code == Some(1) && said.stderr.contains("--admin"), "{said:?}");
    let (daemon, listener) = start(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let client = flow.client.local_addr()?.to_string();
    let said = cli(lab, &["connections", "--admin", ADMIN, "--backend", "pool"])?.ok()?;
    let id = said
        .stdout
        .lines()
        .find(|line| line.contains(&client))
        .and_then(|line| line.split_whitespace().next());
    let id = id.with_context(|| said.stdout.clone())?;
    let said = cli(lab, &["connections", "--admin", ADMIN, "--json", "--datapath", "relay"])?.ok()?;
    let listing: Value = serde_json::from_str(&said.stdout)?;
    ensure!(listing["connections"][0]["id"].as_u64() == Some(id.parse()?), "{listing}");
    ensure!(cli(lab, &["close", "--admin", ADMIN])?.code == Some(2), "nothing to close is named");
    let said = cli(lab, &["close", "--admin", ADMIN, id])?.ok()?;
    ensure!(said.stdout == "1 closed\n", "{said:?}");
    both_are_reset(&mut flow)?;
    let said = cli(lab, &["close", "--admin", ADMIN, id])?;
    ensure!(said.code == Some(1) && said.stderr.contains("no such connection"), "{said:?}");
    closed(&daemon, 1)?;
    Ok(())
}
