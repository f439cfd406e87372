//! Any text as a Kubernetes Secret, and as PEM.
#![no_main]

use std::ffi::OsStr;

use libfuzzer_sys::fuzz_target;
use snisplice_fuzz::{secrets, seeds};

const PEM: [&[u8]; 2] = [
    b"-----BEGIN CERTIFICATE-----\nMAAw\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nMAAw\n-----END PRIVATE KEY-----\n",
    b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
];

fuzz_target!(
    init: {
        seeds::write("secrets", &PEM);
        seeds::plant("secrets", &["config/testdata/istio-secrets"], |file, _| {
            file.extension() == Some(OsStr::new("yaml"))
        });
    },
    |text: &str| secrets::check(text)
);
