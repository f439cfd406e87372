//! A packet that passed the programs before a flow began, and reaches the balancer's socket only afterwards: it was
//! in a queue.

use std::{io::Write as _, net::UdpSocket, process::Command, thread};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    hello,
    kernel::{self, Held},
    lab::Lab,
    netns::{LB, Netns},
    process::run,
    suite::{Case, Lacking},
    tcp, wait,
};

use crate::{
    flow::{self, Flow},
    packet::{both_ways_after, nft},
};

pub(crate) const CASES: &[Case] =
    &[Case::packet("queue::what_came_before_the_flow", what_came_before_the_flow)];

/// `TCP_SYN_SENT`.
const SYN_SENT: u8 = 2;

/// Holds the client's packets, after the programs.
struct Queue<'lab> {
    lb: &'lab Netns,
    /// A socket of the client, for packets without a receiver.
    filler: UdpSocket,
}

impl<'lab> Queue<'lab> {
    const DEVICE: &'static str = "ifb0";

    fn new(lab: &'lab Lab) -> Result<Self> {
        // The queue lets one packet pass, and the next one in an hour.
        const SLOW: &str = "rate 8bit burst 4000 overhead 2000 limit 1000000";
        let filler = lab.client.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        let queue = Self { lb: &lab.lb, filler };
        let device = format!("link add {} type ifb", Self::DEVICE);
        if let Err(error) = queue.call("ip", &device) {
            return Err(Lacking(format!("`ip {device}`: {error:#}")).into());
        }
        queue.call("ip", &format!("link set {} up", Self::DEVICE))?;
        queue.call("tc", &format!("qdisc add dev {} root tbf {SLOW}", Self::DEVICE))?;
        queue.call("tc", "qdisc add dev to-client handle ffff: ingress")?;
        queue.call(
            "tc",
            &format!(
                "filter add dev to-client parent ffff: protocol ip u32 match u32 0 0 \
                 action mirred egress redirect dev {}",
                Self::DEVICE
            ),
        )?;
        queue.fill()?;
        queue.fill()?;
        wait::until_true("it holds", || Ok(queue.held()? > 0))?;
        Ok(queue)
    }

    /// The number of waiting packets.
    fn held(&self) -> Result<u32> {
        let shown = self.call("tc", &format!("-s qdisc show dev {} root", Self::DEVICE))?;
        let (_, backlog) = shown.split_once("backlog ").with_context(|| shown.clone())?;
        let packets = backlog.split(' ').nth(1).and_then(|packets| packets.strip_suffix('p'));
        Ok(packets.with_context(|| shown.clone())?.parse()?)
    }

    /// Lets all waiting and later packets pass.
    fn release(&self) -> Result<()> {
        let fast = "rate 1gbit burst 1mb limit 1000000";
        self.call("tc", &format!("qdisc change dev {} root tbf {fast}", Self::DEVICE))?;
        // The queue applies the new rate when the next packet arrives.
        self.fill()
    }

    fn fill(&self) -> Result<()> {
        self.filler.send_to(&[0; 1_000], (LB, 9))?;
        Ok(())
    }

    fn call(&self, command: &str, line: &str) -> Result<String> {
        Ok(run(self.lb, Command::new(command).args(line.split_whitespace()))?.ok()?.stdout)
    }
}

fn what_came_before_the_flow(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    // The client retransmits nothing meanwhile, unless all this takes very long. The test could not detect that
    // otherwise.
    let route = "route change 10.0.1.0/24 dev to-lb rto_min 3s";
    run(&lab.client, Command::new("ip").args(route.split(' ')))?.ok()?;
    lab.client.sysctl("net/ipv4/tcp_early_retrans", "0")?;
    nft(
        &lab.backend,
        "table inet closed {\n chain in {\n type filter hook input priority 0;\n tcp flags syn drop\n }\n }",
    )?;
    let first = hello::naming(flow::NAME)?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&first)?;
    wait::until_true("the backend is asked", || Ok(kernel::sockets(&lab.lb, SYN_SENT)? == 1))?;
    let queue = Queue::new(lab)?;
    let before = queue.held()?;
    client.write_all(b"question")?;
    wait::until_true("it is held", || Ok(queue.held()? > before))?;
    nft(&lab.backend, "delete table inet closed")?;
    daemon.wait_metrics("it is carried", |metrics| metrics.sum("snisplice_packet_flows_total", &[]) == 1)?;
    queue.release()?;
    let mut backend = tcp::accept(&listener)?;
    let first = [&first[..], b"question"].concat();
    ensure!(tcp::read_exact(&mut backend, first.len())? == first, "the hello was changed on its way");
    // The daemon checks several times whether the client's packets pass the programs, before there is one.
    thread::sleep(flow::QUIET);
    let mut flow = Flow { client, backend };
    flow.exchange()?;
    wait::until_true("nothing is left to be sent", || Ok(Held::inside(&lab.lb)?.stream == 0))?;
    flow.exchange()?;
    both_ways_after(flow, &daemon)?;
    let metrics = daemon.metrics()?;
    ensure!(metrics.sum("snisplice_packet_refused_total", &[]) == 0, "{metrics:?}");
    ensure!(metrics.sum("snisplice_connections_closed_total", &[("datapath", "packet")]) == 1, "{metrics:?}");
    Ok(())
}
