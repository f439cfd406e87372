//! Any text beside a valid Gateway and VirtualService, which it may refer to, overlap or repeat. The seeds are the
//! files with Istio objects.
#![no_main]

use std::ffi::OsStr;

use libfuzzer_sys::fuzz_target;
use snisplice_fuzz::{config, seeds};

const GOOD: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: mygateway}
spec:
  servers:
  - port: {number: 443, name: tls, protocol: TLS}
    tls: {mode: PASSTHROUGH}
    hosts: ['*.example.com']
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: nginx}
spec:
  hosts: [nginx.example.com]
  gateways: [mygateway]
  tls:
  - match: [{port: 443, sniHosts: [nginx.example.com]}]
    route: [{destination: {host: my-nginx, port: {number: 443}}}]
";

fuzz_target!(
    init: seeds::plant("istio", &["config/examples", "config/testdata"], |file, bytes| {
        file.extension() == Some(OsStr::new("yaml")) && bytes.windows(8).any(|word| word == b"istio.io")
    }),
    |text: &str| config::check(&[text, GOOD])
);
