//! nginx's stream module, and the nginx that serves HTTPS for the cross-check.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use rustix::process::Signal;

use super::{
    BACKLOG, CONNECTIONS_MAX, Contestant, From, HTTPS_NAME, HTTPS_PORT, Install, Invocation, Layout,
    PLAIN_NAME, RAW_PORT, Role, SNI_PORT, Search, first_line, output_of, terminate,
};

/// nginx with `ssl_preread`.
pub(crate) struct Nginx {
    /// The version to use.
    pub from: From,
}

/// Follows the documentation of `ngx_stream_ssl_preread_module`: a map from `$ssl_preread_server_name` to upstream
/// groups, with hash sizes as `ngx_stream_map_module` advises for many names. `reuseport` follows the documentation
/// of `listen`. A name outside the map has an empty address and the connection is closed.
fn config(layout: &Layout, load_module: &str) -> String {
    let names = layout.extra_routes + 3;
    let mut text = format!(
        "{load_module}\
         daemon off;\n\
         pid {directory}/nginx.pid;\n\
         error_log stderr crit;\n\
         worker_processes {workers};\n\
         events {{ worker_connections {connections}; }}\n\
         stream {{\n    \
             proxy_connect_timeout 5s;\n    \
             proxy_timeout 1h;\n    \
             map_hash_max_size {hash};\n    \
             map_hash_bucket_size 128;\n",
        directory = layout.directory.display(),
        workers = layout.workers,
        // One connection for each side.
        connections = 2 * CONNECTIONS_MAX,
        hash = (2 * names).max(2048),
    );
    // Writing to a String cannot fail.
    let mut line = |line: String| {
        let _: std::fmt::Result = writeln!(text, "    {line}");
    };
    for (name, port) in Layout::services() {
        line(format!("upstream {name} {{"));
        for endpoint in layout.endpoints(port) {
            line(format!("    server {endpoint};"));
        }
        line("}".to_owned());
    }
    line("map $ssl_preread_server_name $route {".to_owned());
    for (name, _) in Layout::services() {
        line(format!("    {name} {name};"));
    }
    for name in layout.extra_names() {
        line(format!("    {name} {PLAIN_NAME};"));
    }
    line("}".to_owned());
    let address = layout.address;
    line("server {".to_owned());
    line(format!("    listen {address}:{SNI_PORT} reuseport backlog={BACKLOG};"));
    line("    ssl_preread on;".to_owned());
    line("    proxy_pass $route;".to_owned());
    line("}".to_owned());
    line("server {".to_owned());
    line(format!("    listen {address}:{RAW_PORT} reuseport backlog={BACKLOG};"));
    line(format!("    proxy_pass {}:{RAW_PORT};", layout.backends[0]));
    line("}".to_owned());
    text.push_str("}\n");
    text
}

/// An HTTPS server with a page of 1 KB, for wrk.
pub(crate) fn https_backend_config(address: Ipv4Addr, workers: usize, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "daemon off;\n\
         pid {directory}/https.pid;\n\
         error_log stderr crit;\n\
         worker_processes {workers};\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n    \
             access_log off;\n    \
             keepalive_requests 1000000;\n    \
             client_body_temp_path {directory}/body;\n    \
             proxy_temp_path {directory}/proxy;\n    \
             fastcgi_temp_path {directory}/fastcgi;\n    \
             uwsgi_temp_path {directory}/uwsgi;\n    \
             scgi_temp_path {directory}/scgi;\n    \
             server {{\n        \
                 listen {address}:{HTTPS_PORT} ssl reuseport backlog={BACKLOG};\n        \
                 server_name {HTTPS_NAME};\n        \
                 ssl_certificate {directory}/certificate.pem;\n        \
                 ssl_certificate_key {directory}/key.pem;\n        \
                 location / {{ return 200 \"{page}\"; }}\n    \
             }}\n\
         }}\n",
        page = "x".repeat(1024),
    )
}

/// The directive that loads the stream module, if it is a dynamic one according to nginx's build options. `root` is
/// the root of the system that nginx was built for.
fn load_module(build_options: &str, root: &Path) -> String {
    if !build_options.contains("--with-stream=dynamic") {
        return String::new();
    }
    let directory = build_options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("--modules-path="))
        .unwrap_or("/usr/lib/nginx/modules");
    let directory = root.join(directory.trim_start_matches('/'));
    format!("load_module {}/ngx_stream_module.so;\n", directory.display())
}

impl Nginx {
    /// The root of the system that contains `program`.
    fn root(&self, program: &Path) -> PathBuf {
        match self.from {
            From::System => PathBuf::from("/"),
            // sid/bin/nginx starts sid/root/usr/sbin/nginx.
            From::Newest => program.ancestors().nth(2).unwrap_or(Path::new("/")).join("root"),
        }
    }
}

impl Contestant for Nginx {
    fn id(&self) -> &'static str {
        match self.from {
            From::System => "nginx",
            From::Newest => "nginx-sid",
        }
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn note(&self) -> &'static str {
        "stream with ssl_preread, listen with reuseport"
    }

    fn find(&self, search: &Search) -> Option<PathBuf> {
        let program = match self.from {
            From::System => search.program("nginx"),
            From::Newest => search.newest("nginx"),
        }?;
        if !search.passes_through {
            return Some(program);
        }
        let options = output_of(&program, &["-V"]).ok()?;
        let module = load_module(&options, &self.root(&program));
        let loadable = module
            .strip_prefix("load_module ")
            .is_none_or(|rest| Path::new(rest.trim_end_matches(";\n")).is_file());
        (loadable && options.contains("--with-stream_ssl_preread_module")).then_some(program)
    }

    fn version(&self, program: &Path) -> anyhow::Result<String> {
        first_line(program, &["-v"])
    }

    fn install(&self) -> Install {
        match self.from {
            From::System => Install::Packages(&["nginx", "libnginx-mod-stream"]),
            From::Newest => Install::Newest,
        }
    }

    fn reload_signal(&self) -> Option<Signal> {
        Some(Signal::HUP)
    }

    fn terminates(&self) -> bool {
        true
    }

    fn prepare(&self, program: &Path, layout: &Layout) -> anyhow::Result<Vec<Invocation>> {
        let text = if layout.terminates {
            terminate::nginx::config(layout)
        } else {
            config(layout, &load_module(&output_of(program, &["-V"])?, &self.root(program)))
        };
        let path = layout.write("nginx.conf", &text)?;
        let directory = layout.directory.to_string_lossy();
        let arguments = ["-e", "stderr", "-p", &directory, "-c", &path.to_string_lossy()];
        Ok(vec![Invocation::new(program, &arguments)])
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::layout, *};

    #[test]
    fn many_names_get_a_hash_that_holds_them() {
        let (_directory, layout) = layout(100_000);
        let text = config(&layout, "");
        assert!(text.contains("map_hash_max_size 200006;\n"), "{}", &text[..400]);
        assert!(text.contains("        r99999.routes.example plain.bench.example;\n"));
        assert!(text.contains("worker_processes 3;\n"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }

    #[test]
    fn the_module_is_loaded_only_if_it_is_one() {
        let built_in = "--with-stream --with-stream_ssl_preread_module";
        assert_eq!(load_module(built_in, Path::new("/")), "");
        let module = "--modules-path=/opt/modules --with-stream=dynamic";
        assert_eq!(load_module(module, Path::new("/")), "load_module /opt/modules/ngx_stream_module.so;\n");
    }

    #[test]
    fn the_module_of_another_system_is_in_that_one() {
        let nginx = Nginx { from: From::Newest };
        let root = nginx.root(Path::new("/t/peers/sid/bin/nginx"));
        let module = "--modules-path=/usr/lib/nginx/modules --with-stream=dynamic";
        let expected = "load_module /t/peers/sid/root/usr/lib/nginx/modules/ngx_stream_module.so;\n";
        assert_eq!(load_module(module, &root), expected);
    }
}
