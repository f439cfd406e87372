//! Real servers and clients: nginx, openssl, gnutls-cli and curl.

use std::{fmt::Write as _, fs, process::Command};

use anyhow::{Result, ensure};

use crate::{
    lab::Lab,
    pki::Leaf,
    process::{Process, Said, run},
    tcp,
};

/// A tool of `tests/tools`, from the directory of `cargo xtask test` or the search path.
#[must_use]
pub fn go_tool(name: &str) -> Command {
    // The tests are in <target>/<profile>/deps.
    let built = std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.ancestors().nth(3)?.join("tools/go").join(name)))
        .filter(|path| path.is_file());
    built.map_or_else(|| Command::new(name), Command::new)
}

/// Starts nginx in the backend's namespace, with one TLS server and certificate per address.
///
/// The response to every request contains the certificate's name and the received server name.
pub fn nginx(lab: &Lab, servers: &[(&str, &Leaf)]) -> Result<Process> {
    let mut blocks = String::new();
    for (address, leaf) in servers {
        let Leaf { name, certificate, key, .. } = leaf;
        write!(
            blocks,
            "  server {{\n    listen {address} ssl;\n    ssl_certificate {};\n    ssl_certificate_key {};\n    \
             location / {{ return 200 \"certificate {name}, sni $ssl_server_name\\n\"; }}\n  }}\n",
            certificate.display(),
            key.display(),
        )?;
    }
    let addresses: Vec<_> = servers.iter().map(|(address, _)| *address).collect();
    nginx_with(lab, &format!("  ssl_protocols TLSv1.2 TLSv1.3;\n{blocks}"), &addresses)
}

/// Starts nginx in the backend's namespace with `servers` in its `http` block, and waits until it listens on `addresses`.
pub fn nginx_with(lab: &Lab, servers: &str, addresses: &[&str]) -> Result<Process> {
    let dir = lab.dir().display();
    // nginx's workers read and write the lab's directory.
    let conf = format!(
        "user root;\ndaemon off;\npid {dir}/nginx.pid;\nworker_processes 1;\nevents {{}}\n\
         http {{\n  access_log off;\n  default_type text/plain;\n  client_body_temp_path {dir}/body;\n{servers}}}\n"
    );
    let file = lab.dir().join("nginx.conf");
    fs::write(&file, conf)?;
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(&file);
    let mut nginx = Process::start(&lab.backend, lab.dir(), "nginx", &mut command)?;
    for address in addresses {
        nginx.wait_ready(|| tcp::connect(&lab.backend, address).is_ok())?;
    }
    Ok(nginx)
}

/// The response of [`nginx`] through a balancer that does not change the server name.
#[must_use]
pub fn nginx_answer(leaf: &Leaf) -> String {
    format!("certificate {0}, sni {0}\n", leaf.name)
}

/// `curl https://name:port/` in the client's namespace, with the name resolved to `at`. curl trusts only the lab's
/// authority.
pub fn curl(lab: &Lab, name: &str, port: u16, at: &str) -> Result<Said> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*"]);
    command.arg("--cacert").arg(lab.ca.file());
    command.args(["--resolve", &format!("{name}:{port}:{at}"), &format!("https://{name}:{port}/")]);
    run(&lab.client, &mut command)
}

/// `openssl s_client` for `name` at `at`. It ends after the handshake, and its output contains the verified chain.
pub fn s_client(lab: &Lab, name: &str, at: &str, more: &[&str]) -> Result<Said> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", at, "-servername", name, "-verify_hostname", name]);
    command.args(["-verify_return_error", "-CAfile"]).arg(lab.ca.file()).args(more);
    run(&lab.client, &mut command)
}

/// Returns an error unless `said` is a handshake with a verified certificate for `name`.
pub fn ensure_verified(said: &Said, name: &str) -> Result<()> {
    ensure!(said.code == Some(0), "s_client failed: {}\n{}", said.stderr, said.stdout);
    ensure!(said.stdout.contains("Verify return code: 0 (ok)"), "not verified:\n{}", said.stdout);
    ensure!(said.stdout.contains(&format!("subject=CN = {name}")), "wrong subject:\n{}", said.stdout);
    Ok(())
}

/// `gnutls-cli` for `name` at `at`. It fails unless the certificate is verified, and ends after the handshake.
pub fn gnutls(lab: &Lab, name: &str, at: &str, port: u16) -> Result<Said> {
    let mut command = Command::new("gnutls-cli");
    command.arg("--x509cafile").arg(lab.ca.file());
    command.args(["--sni-hostname", name, "--verify-hostname", name, "--port", &port.to_string(), at]);
    run(&lab.client, &mut command)
}
