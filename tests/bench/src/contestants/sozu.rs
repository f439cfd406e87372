//! sozu's TCP proxy, which routes by the server name of the hello since 2.3.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{
    CONNECTIONS_MAX, Contestant, Install, Invocation, Layout, PLAIN_NAME, RAW_PORT, Role, SNI_PORT, Search,
    first_line,
};

/// sozu.
pub(crate) struct Sozu;

/// Follows the configuration manual: TCP listeners, and clusters whose frontends name a `hostname`, which a TCP
/// listener compares with the hello's server name. Raised beyond the defaults: connections, and the buffers, of which
/// each connection takes two. A name in no frontend is closed. Accesses are not logged, as for the other contestants.
fn config(layout: &Layout) -> String {
    let (address, directory) = (layout.address, layout.directory.display());
    let mut text = format!(
        "command_socket = \"{directory}/sozu.sock\"\n\
         command_buffer_size = 1000000\n\
         max_command_buffer_size = 100000000\n\
         worker_count = {workers}\n\
         worker_automatic_restart = false\n\
         max_connections = {CONNECTIONS_MAX}\n\
         max_buffers = {buffers}\n\
         log_level = \"error\"\n\
         log_target = \"stdout\"\n\
         connect_timeout = 5\n\
         front_timeout = 3600\n\
         back_timeout = 3600\n\
         activate_listeners = true\n",
        workers = layout.workers,
        buffers = 2 * CONNECTIONS_MAX,
    );
    // Writing to a String cannot fail.
    let mut line = |line: String| {
        let _: std::fmt::Result = writeln!(text, "{line}");
    };
    for port in [SNI_PORT, RAW_PORT] {
        line(format!("[[listeners]]\nprotocol = \"tcp\"\naddress = \"{address}:{port}\""));
        line("front_timeout = 3600\nback_timeout = 3600\nconnect_timeout = 5".to_owned());
    }
    for (name, port) in Layout::services() {
        line(format!("[clusters.\"{name}\"]\nprotocol = \"tcp\"\nfrontends = ["));
        let extra = layout.extra_names().filter(|_| name == PLAIN_NAME);
        for hostname in std::iter::once(name.to_owned()).chain(extra) {
            line(format!("    {{ address = \"{address}:{SNI_PORT}\", hostname = \"{hostname}\" }},"));
        }
        line("]\nbackends = [".to_owned());
        for endpoint in layout.endpoints(port) {
            line(format!("    {{ address = \"{endpoint}\" }},"));
        }
        line("]".to_owned());
    }
    line(format!(
        "[clusters.raw]\nprotocol = \"tcp\"\nfrontends = [{{ address = \"{address}:{RAW_PORT}\" }}]\n\
         backends = [{{ address = \"{}:{RAW_PORT}\" }}]",
        layout.backends[0]
    ));
    text
}

impl Contestant for Sozu {
    fn id(&self) -> &'static str {
        "sozu"
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn note(&self) -> &'static str {
        "TCP listener with a hostname for each frontend; a process for each worker and one more that leads them"
    }

    fn find(&self, search: &Search) -> Option<PathBuf> {
        let own = search.peers.join("sozu/bin/sozu");
        Some(own).filter(|path| path.is_file()).or_else(|| search.program("sozu"))
    }

    fn version(&self, program: &Path) -> anyhow::Result<String> {
        // The output ends with the commit in parentheses, which a published package does not have.
        Ok(first_line(program, &["--version"])?.trim_end_matches(" ()").to_owned())
    }

    fn install(&self) -> Install {
        Install::Newest
    }

    fn prepare(&self, program: &Path, layout: &Layout) -> anyhow::Result<Vec<Invocation>> {
        let path = layout.write("sozu.toml", &config(layout))?;
        Ok(vec![Invocation::new(program, &["--config", &path.to_string_lossy(), "start"])])
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::layout, *};

    #[test]
    fn every_name_is_a_frontend_of_the_cluster_that_it_leads_to() {
        let (_directory, layout) = layout(2);
        let text = config(&layout);
        let plain = text.split("[clusters.").find(|part| part.starts_with("\"plain.")).unwrap();
        assert!(
            plain.contains("{ address = \"10.201.0.1:443\", hostname = \"r1.routes.example\" },\n"),
            "{text}"
        );
        assert!(plain.contains("{ address = \"10.202.1.2:7001\" },\n"), "{text}");
        assert_eq!(text.matches("hostname = ").count(), 5);
        assert!(text.contains("worker_count = 3\n"));
        assert!(text.contains("[clusters.raw]"), "what is not TLS has a listener of its own");
        assert!(!text.contains(super::super::UNKNOWN_NAME));
    }
}
