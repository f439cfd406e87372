//! The TLS parameters of a terminating server, swept with openssl in the same way as testssl: versions, cipher
//! suites, compression, renegotiation, and the alerts of RFC 8446 section 6.

use std::{
    io::{Read as _, Write as _},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{hello, lab::Lab, process::run, suite::Case, tcp};

use crate::front::{self, HTTPS, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::once("tls::versions_and_suites_are_those_of_the_configuration", sweep),
    Case::once("tls::there_is_no_compression_and_no_renegotiation", no_extras),
    Case::once("tls::a_downgrade_is_marked", downgrade),
    Case::once("tls::alerts_are_those_of_the_rfc", alerts),
];

fn openssl(lab: &Lab, args: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &front::address(HTTPS), "-servername", NAME]).args(args);
    let said = run(&lab.client, &mut command)?;
    Ok((said.code, said.stdout + &said.stderr))
}

/// The suite of a successful handshake.
fn chosen(said: &str) -> Option<String> {
    let suite = said.lines().find_map(|line| line.split_once("Cipher is "))?.1;
    (suite != "(NONE)").then(|| suite.to_owned())
}

/// The versions and suites that the server accepts. Everything is offered first, and then all suites except those
/// found so far.
fn accepted(lab: &Lab) -> Result<(Vec<&'static str>, Vec<String>)> {
    let mut versions = Vec::new();
    for version in ["-tls1", "-tls1_1", "-tls1_2", "-tls1_3"] {
        let (code, said) = openssl(lab, &[version, "-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"])?;
        if code == Some(0) {
            versions.push(version);
        } else {
            ensure!(
                said.contains("alert protocol version") || said.contains("alert number 70"),
                "{version}: {said}"
            );
        }
    }
    let mut suites: Vec<String> = Vec::new();
    loop {
        let without: String = suites.iter().flat_map(|suite| [":!", suite.as_str()]).collect();
        let offer = format!("ALL:COMPLEMENTOFALL:@SECLEVEL=0{without}");
        let (code, said) = openssl(lab, &["-tls1_2", "-cipher", &offer])?;
        match chosen(&said).filter(|_| code == Some(0)) {
            Some(suite) => suites.push(suite),
            None => break,
        }
    }
    let mut left = vec![
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_AES_128_CCM_SHA256",
        "TLS_AES_128_CCM_8_SHA256",
    ];
    loop {
        let (code, said) = openssl(lab, &["-tls1_3", "-ciphersuites", &left.join(":")])?;
        let Some(suite) = chosen(&said).filter(|_| code == Some(0)) else { break };
        left.retain(|other| *other != suite);
        suites.push(suite);
    }
    suites.sort_unstable();
    Ok((versions, suites))
}

fn sweep(lab: &Lab) -> Result<()> {
    // The library's suites for an ECDSA key. Neither CBC nor a key exchange without forward secrecy.
    let of_1_2 =
        ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"];
    let of_1_3 = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
    let both = [of_1_2, of_1_3].concat();
    let cases: [(&str, &[&str], &[&str]); 4] = [
        ("mode: SIMPLE", &["-tls1_2", "-tls1_3"], &both),
        ("mode: SIMPLE, minProtocolVersion: TLSV1_3", &["-tls1_3"], &of_1_3),
        ("mode: SIMPLE, maxProtocolVersion: TLSV1_2", &["-tls1_2"], &of_1_2),
        (
            "mode: SIMPLE, maxProtocolVersion: TLSV1_2, cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384]",
            &["-tls1_2"],
            &["ECDHE-ECDSA-AES256-GCM-SHA384"],
        ),
    ];
    for (tls, versions, suites) in cases {
        let (daemon, directory) = front::start_with(lab, tls, "")?;
        let found = accepted(lab)?;
        ensure!(found.0 == versions && found.1 == suites, "{tls}: {found:?}");
        drop(daemon);
        std::fs::remove_dir_all(directory)?;
    }
    Ok(())
}

fn no_extras(lab: &Lab) -> Result<()> {
    let (_daemon, _) = front::start(lab, "")?;
    for version in ["-tls1_2", "-tls1_3"] {
        let (code, said) = openssl(lab, &[version, "-comp"])?;
        ensure!(code == Some(0) && said.contains("Compression: NONE"), "{said}");
    }
    // A line `R` makes openssl renegotiate.
    let script = format!(
        "(sleep 0.3; echo R; sleep 1) | openssl s_client -connect {} -servername {NAME} -tls1_2 -alpn http/1.1",
        front::address(HTTPS)
    );
    let mut command = Command::new("sh");
    let said = run(&lab.client, command.args(["-c", &script]))?;
    let text = said.stdout + &said.stderr;
    ensure!(text.contains("RENEGOTIATING") && text.contains("no renegotiation"), "{text}");
    ensure!(!text.contains("read R BLOCK"), "{text}");
    Ok(())
}

/// RFC 8446 section 4.1.3: a server with TLS 1.3 marks its random in a TLS 1.2 handshake.
fn downgrade(lab: &Lab) -> Result<()> {
    const SENTINEL: &str = "444f574e47524401";
    for (tls, is_marked) in [("mode: SIMPLE", true), ("mode: SIMPLE, maxProtocolVersion: TLSV1_2", false)] {
        let (daemon, directory) = front::start_with(lab, tls, "")?;
        let (_, said) = openssl(lab, &["-tls1_2", "-msg"])?;
        let (_, hello) = said.split_once("ServerHello").context("no ServerHello is shown")?;
        let digits: String =
            hello.split_once("<<<").map_or(hello, |(hello, _)| hello).split_whitespace().collect();
        ensure!(digits.contains(SENTINEL) == is_marked, "{tls}: {hello}");
        drop(daemon);
        std::fs::remove_dir_all(directory)?;
    }
    Ok(())
}

/// A record (RFC 8446 section 5.1).
fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[kind, 3, 3, length[0], length[1]], payload].concat()
}

fn alerts(lab: &Lab) -> Result<()> {
    let (_daemon, _) = front::start(lab, "")?;
    let hello = hello::naming(NAME)?;
    // The bytes after a valid hello, and the expected unencrypted alert, if the server's keys are not in use yet.
    let cases: [(&str, Vec<u8>, u8); 4] = [
        ("a record of no known kind", record(99, &[0]), 10),
        ("a record that is too long", vec![22, 3, 3, 0xff, 0xff], 22),
        ("a second hello", hello.clone(), 10),
        ("an application's data", record(23, &[0; 40]), 20),
    ];
    for (name, bytes, description) in cases {
        let mut client = tcp::connect(&lab.client, &front::address(HTTPS))?;
        client.write_all(&hello)?;
        // The first records of the reply are unencrypted. The alert is encrypted, so the test identifies it by its
        // length.
        let mut first = [0; 5];
        client.read_exact(&mut first)?;
        ensure!(first[0] == 22, "{name}: no handshake");
        client.write_all(&bytes)?;
        let (rest, _) = tcp::read_to_end(&mut client)?;
        let last = records(&[&first[..], &rest].concat()).pop().context("no record")?;
        let in_clear = last.0 == 21 && last.1 == [2, description];
        // Two bytes of an alert, its type, and the tag of the cipher.
        let encrypted = last.0 == 23 && last.1.len() == 2 + 1 + 16;
        ensure!(in_clear || encrypted, "{name}: {last:?}");
    }
    let refused: [(&[&str], &str); 4] = [
        (&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "70"),
        (&["-tls1_2", "-cipher", "AES128-SHA"], "40"),
        (&["-alpn", "smtp"], "120"),
        (&["-tls1_3", "-groups", "X448"], "40"),
    ];
    for (args, number) in refused {
        let (code, said) = openssl(lab, args)?;
        ensure!(code != Some(0) && said.contains(&format!("SSL alert number {number}")), "{args:?}: {said}");
    }
    // A client that rejects the server's certificate sends an alert, and is counted.
    let (code, said) = openssl(lab, &["-tls1_3", "-verify_return_error", "-CAfile", "/dev/null"])?;
    ensure!(code != Some(0), "{said}");
    Ok(())
}

/// The records in these bytes: kind and payload.
fn records(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut records = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        records.push((*kind, rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    records
}
