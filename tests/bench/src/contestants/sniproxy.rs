//! sniproxy: one event loop, so the number of processes equals the threads of other contestants.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use rustix::process::Signal;

use super::{
    Contestant, Install, Invocation, Layout, PLAIN_NAME, RAW_PORT, Role, SNI_PORT, Search, first_line,
};

/// sniproxy.
pub(crate) struct Sniproxy;

/// Follows sniproxy.conf(5): a table from patterns to addresses, and `reuseport`, which the manual describes for
/// several processes on one port. Each pattern has a single address, so only the first backend is used. Other
/// protocols than TLS go to the `fallback`. The TLS listener has none and closes.
fn config(layout: &Layout) -> String {
    let (address, first) = (layout.address, layout.backends[0]);
    let mut text = format!(
        "user nobody\n\
         error_log {{\n    filename /dev/null\n    priority error\n}}\n\
         access_log {{\n    filename /dev/null\n}}\n\
         listen {address}:{SNI_PORT} {{\n    proto tls\n    reuseport yes\n    table names\n}}\n\
         listen {address}:{RAW_PORT} {{\n    proto tls\n    reuseport yes\n    table raw\n    \
         fallback {first}:{RAW_PORT}\n}}\n\
         table raw {{\n    never.example {first}:{RAW_PORT}\n}}\n\
         table names {{\n"
    );
    for (name, port) in Layout::services() {
        // Writing to a String cannot fail.
        let _: std::fmt::Result = writeln!(text, "    ^{name}$ {first}:{port}");
    }
    let plain =
        Layout::services().into_iter().find(|(name, _)| *name == PLAIN_NAME).map_or(0, |(_, port)| port);
    for name in layout.extra_names() {
        let _: std::fmt::Result = writeln!(text, "    ^{name}$ {first}:{plain}");
    }
    text.push_str("}\n");
    text
}

impl Contestant for Sniproxy {
    fn id(&self) -> &'static str {
        "sniproxy"
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn note(&self) -> &'static str {
        "single-threaded, so one process a worker with reuseport; one backend for each name"
    }

    fn find(&self, search: &Search) -> Option<PathBuf> {
        search.program("sniproxy")
    }

    fn version(&self, program: &Path) -> anyhow::Result<String> {
        first_line(program, &["-V"])
    }

    fn install(&self) -> Install {
        Install::Packages(&["sniproxy"])
    }

    fn reload_signal(&self) -> Option<Signal> {
        Some(Signal::HUP)
    }

    fn prepare(&self, program: &Path, layout: &Layout) -> anyhow::Result<Vec<Invocation>> {
        let path = layout.write("sniproxy.conf", &config(layout))?;
        let one = Invocation::new(program, &["-f", "-c", &path.to_string_lossy()]);
        Ok(vec![one; layout.workers])
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::layout, *};

    #[test]
    fn one_process_a_worker_and_one_pattern_a_name() {
        let (_directory, layout) = layout(4);
        let invocations = Sniproxy.prepare(Path::new("/usr/sbin/sniproxy"), &layout).unwrap();
        assert_eq!(invocations.len(), 3);
        let text = config(&layout);
        assert!(text.contains("    ^r3.routes.example$ 10.202.0.2:7001\n"));
        assert!(text.contains("    ^tls.bench.example$ 10.202.0.2:7002\n"));
        assert_eq!(text.matches("reuseport yes").count(), 2);
    }
}
