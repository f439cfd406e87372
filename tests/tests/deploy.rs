//! The deployment files request only the necessary privileges: the Kubernetes manifest, the container, the units.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panic, in its helpers too")]

use std::{fs, path::Path};

use libyaml_safer::{EventData, Parser};
use serde_json::{Map, Value};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy").join(name);
    fs::read_to_string(path).unwrap()
}

/// The documents of a YAML text. Every scalar is a string.
fn documents(text: &str) -> Vec<Value> {
    let mut text = text.as_bytes();
    let mut parser = Parser::new();
    parser.set_input_string(&mut text);
    let mut events = parser.map(|event| event.unwrap().data);
    let mut documents = Vec::new();
    while let Some(event) = events.next() {
        if matches!(event, EventData::DocumentStart { .. }) {
            let first = events.next().unwrap();
            documents.push(value(first, &mut events));
        }
    }
    documents
}

fn value(event: EventData, rest: &mut impl Iterator<Item = EventData>) -> Value {
    match event {
        EventData::Scalar { value, .. } => Value::String(value),
        EventData::SequenceStart { .. } => {
            let mut items = Vec::new();
            loop {
                match rest.next().unwrap() {
                    EventData::SequenceEnd => return Value::Array(items),
                    item => items.push(value(item, rest)),
                }
            }
        }
        EventData::MappingStart { .. } => {
            let mut fields = Map::new();
            loop {
                match rest.next().unwrap() {
                    EventData::MappingEnd => return Value::Object(fields),
                    EventData::Scalar { value: key, .. } => {
                        let next = rest.next().unwrap();
                        fields.insert(key, value(next, rest));
                    }
                    other => panic!("not a key: {other:?}"),
                }
            }
        }
        other => panic!("not a value: {other:?}"),
    }
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
}

#[test]
fn the_daemon_set_has_least_privileges() {
    let text = read("kubernetes/snisplice.yaml");
    let documents = documents(&text);
    let set = documents.iter().find(|one| one["kind"] == "DaemonSet").unwrap();
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], "false");
    assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
    let container = &pod["containers"][0];

    let security = &container["securityContext"];
    assert_eq!(security["privileged"], Value::Null);
    assert_eq!(security["runAsNonRoot"], "true");
    assert_eq!(security["readOnlyRootFilesystem"], "true");
    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(strings(&security["capabilities"]["drop"]), ["ALL"]);
    let mut added = strings(&security["capabilities"]["add"]);
    added.sort_unstable();
    assert_eq!(added, ["BPF", "NET_ADMIN", "NET_BIND_SERVICE", "PERFMON"]);

    let (_, tag) = container["image"].as_str().unwrap().rsplit_once([':', '@']).unwrap();
    assert_eq!(tag, env!("CARGO_PKG_VERSION"), "the image is this version's");
    assert!(container["resources"]["limits"]["memory"].is_string());
    assert!(container["resources"]["requests"]["memory"].is_string());

    // Without `flows.persist`, no map is pinned. Nothing else of the node is mounted.
    assert!(!text.contains("persist:"));
    for volume in pod["volumes"].as_array().unwrap() {
        assert_eq!(volume["hostPath"], Value::Null, "{volume}");
    }
}

#[test]
fn only_the_node_reaches_the_admin_endpoint_and_the_kubelet_asks_for_ready() {
    let documents = documents(&read("kubernetes/snisplice.yaml"));
    let set = documents.iter().find(|one| one["kind"] == "DaemonSet").unwrap();
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let args = strings(&container["args"]);
    let behind = |option: &str| args[args.iter().position(|arg| *arg == option).unwrap() + 1];
    assert!(behind("--admin").starts_with("127.0.0.1:") || behind("--admin").starts_with("unix:"));
    let (_, port) = behind("--ready").rsplit_once(':').unwrap();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let asked = &container[probe]["httpGet"];
        assert_eq!(asked["path"], "/ready", "{probe}");
        let ports = container["ports"].as_array().unwrap();
        let named = ports.iter().find(|one| one["name"] == asked["port"]).unwrap();
        assert_eq!(named["containerPort"], port, "{probe}");
    }
    // A configuration in the manifest must not open the endpoint either.
    for document in &documents {
        assert!(!document.to_string().contains("0.0.0.0"), "{document}");
    }
}

#[test]
fn the_image_is_no_root_and_carries_the_licences() {
    let text = read("Containerfile");
    let lines: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let last = lines.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    let user = lines[last..].iter().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert!(!user.starts_with('0') && !user.starts_with("root"), "{user}");
    assert!(
        lines[last..].iter().any(|line| line.starts_with("COPY ") && line.contains("THIRD-PARTY-NOTICES"))
    );
    let command = lines.iter().find(|line| line.starts_with("CMD ")).unwrap();
    assert!(command.contains("127.0.0.1:") && !command.contains("0.0.0.0"), "{command}");
    for line in &lines {
        assert!(!line.contains(":latest"), "{line}");
    }
    // Both base images can be pinned by digest.
    for argument in ["ARG RUST=", "ARG BASE="] {
        let base = lines.iter().find_map(|line| line.strip_prefix(argument)).unwrap();
        assert!(base.contains(':'), "{base} has no version");
    }
    for line in lines.iter().filter(|line| line.starts_with("FROM ")) {
        assert!(line.contains("${RUST}") || line.contains("${BASE}"), "{line}");
    }
}

#[test]
fn the_units_take_away_what_is_not_needed() {
    for name in ["systemd/snisplice.service", "systemd/snisplice@.service"] {
        let text = read(name);
        let all = |key: &str| -> Vec<&str> {
            text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
        };
        let capabilities = "CAP_NET_BIND_SERVICE CAP_BPF CAP_NET_ADMIN CAP_PERFMON";
        for (key, value) in [
            ("CapabilityBoundingSet", capabilities),
            ("AmbientCapabilities", capabilities),
            ("DynamicUser", "yes"),
            ("NoNewPrivileges", "yes"),
            ("ProtectSystem", "strict"),
            ("ProtectHome", "yes"),
            ("ProtectKernelTunables", "yes"),
            ("ProtectKernelModules", "yes"),
            ("ProtectKernelLogs", "yes"),
            ("ProtectControlGroups", "yes"),
            ("ProtectProc", "invisible"),
            ("PrivateDevices", "yes"),
            ("PrivateTmp", "yes"),
            ("RestrictNamespaces", "yes"),
            ("RestrictSUIDSGID", "yes"),
            ("LockPersonality", "yes"),
            ("MemoryDenyWriteExecute", "yes"),
            ("SystemCallArchitectures", "native"),
            ("UMask", "0077"),
        ] {
            assert_eq!(all(key), [value], "{name}: {key}");
        }
        let start = all("ExecStart");
        let [start] = start[..] else { panic!("{name}: {start:?}") };
        assert!(start.contains("--admin 127.0.0.1:") || start.contains("--admin unix:"), "{name}: {start}");
    }
}
