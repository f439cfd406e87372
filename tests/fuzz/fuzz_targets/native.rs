//! Any text as the only configuration file. The seeds are the files without a Kubernetes object.
#![no_main]

use std::ffi::OsStr;

use libfuzzer_sys::fuzz_target;
use snisplice_fuzz::{config, seeds};

fuzz_target!(
    init: seeds::plant("native", &["config/examples", "config/testdata"], |file, bytes| {
        file.extension() == Some(OsStr::new("yaml")) && !bytes.windows(11).any(|word| word == b"apiVersion:")
    }),
    |text: &str| config::check(&[text])
);
