//! Each example loads without a finding, and behaves as its comments say.

#![expect(clippy::unwrap_used, reason = "a test fails by panic, in its helpers too")]

use std::{fs, path::Path};

use snisplice_config::{Options, Severity, Source, Translation, load, model::Policy, name::ServerName};

fn example(name: &str) -> Translation {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    load(
        &[Source { name: name.into(), text: fs::read_to_string(path).unwrap() }].into_iter().collect(),
        &Options::default(),
    )
}

#[test]
fn all_load_cleanly() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let translation = example(&name);
        let worst = translation.diagnostics.iter().find(|found| found.severity <= Severity::Ignored);
        assert!(worst.is_none(), "{}", worst.unwrap());
        assert!(translation.model.is_some());
        seen += 1;
    }
    assert!(seen >= 3);
}

#[test]
fn the_complete_example_has_the_defaults_it_shows() {
    let model = example("complete.yaml").model.unwrap();
    let minimal = example("minimal.yaml").model.unwrap();
    assert_eq!(
        (model.startup.timeouts, model.startup.capacity),
        (minimal.startup.timeouts, minimal.startup.capacity)
    );
    assert_eq!(
        (model.runtime.timeouts, model.runtime.limits),
        (minimal.runtime.timeouts, minimal.runtime.limits)
    );
    assert_eq!(model.startup.datapath, minimal.startup.datapath);
    let [public, internal, plain] = &*model.listeners else { panic!("three listeners") };
    assert!(plain.plain_http.is_some() && plain.routes.entries().is_empty());
    assert_eq!(public.policies.unknown_name, Policy::Alert);
    assert_eq!(internal.policies.unknown_name, Policy::Close);
    assert_eq!(internal.policies.not_tls, Policy::Reset);
    assert!(matches!(public.policies.timeout, Policy::Backend(id) if model.backends[id.0].name == "shop"));
    let found = |name: &str| public.routes.lookup(&ServerName::parse(name).unwrap()).is_some();
    assert!(found("shop.example.com") && found("a.b.shop.example.com") && !found("example.com"));
    assert!(public.routes.no_sni().is_none() && internal.routes.no_sni().is_some());
}

/// A literal endpoint that is the listener itself: its own address, or all addresses of the host through loopback.
#[test]
fn an_endpoint_that_is_a_listener_is_warned_of() {
    let text = "listeners: [{name: a, bind: ['192.0.2.1:443', '0.0.0.0:8443']}]\n\
                routes: [{sni: '*', backends: pool}]\n\
                backends: [{name: pool, endpoints: ['192.0.2.1:443', '192.0.2.2:443', '127.0.0.1:8443', '127.0.0.1:443']}]\n\
                dns: {servers: [192.0.2.53, '[2001:db8::53]:5353']}\n";
    let translation = load(
        &[Source { name: "a.yaml".into(), text: text.into() }].into_iter().collect(),
        &Options::default(),
    );
    let found: Vec<_> = translation.diagnostics.iter().map(|found| found.message.as_str()).collect();
    assert!(
        matches!(&*found, [one, all] if one.contains("192.0.2.1:443") && all.contains("127.0.0.1:8443")),
        "{found:?}"
    );
    let servers: Vec<_> =
        translation.model.unwrap().runtime.dns.servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["192.0.2.53:53", "[2001:db8::53]:5353"]);
}
