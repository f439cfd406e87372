//! The output and the exit codes of the commands.

use std::fs;

use anyhow::{Result, ensure};
use snisplice_tests::{
    daemon::{cli, cli_with},
    lab::Lab,
    suite::Case,
};

use crate::flow::{self, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::once("cli::check_prints_the_routes", check_prints_the_routes),
    Case::once("cli::check_can_be_strict", check_can_be_strict),
    Case::once("cli::a_bad_file_is_refused_with_every_error_and_its_place", bad_file_is_refused),
    Case::once("cli::a_missing_file_is_named", missing_file_is_named),
    Case::once("cli::explain_names_listener_rule_and_endpoint", explain_names_what_serves),
    Case::once("cli::probe_judges_each_datapath", probe_judges_each_datapath),
];

fn check_prints_the_routes(lab: &Lab) -> Result<()> {
    let file = lab.dir().join("good.yaml");
    fs::write(&file, flow::yaml(""))?;
    let said = cli_with(lab, "check", &file, &[])?.ok()?;
    for word in ["front", NAME, "pool"] {
        ensure!(said.stdout.contains(word), "{word} is missing in:\n{}", said.stdout);
    }
    Ok(())
}

/// A configuration that is not served as written has an exit code of its own, for a pipeline.
fn check_can_be_strict(lab: &Lab) -> Result<()> {
    let file = lab.dir().join("doubtful.yaml");
    let other = "  - name: again\n    listeners: [front]\n    sni: [\"www.example.com\"]\n    backends: [{name: pool}]\nbackends:";
    let cases = [
        (flow::yaml(""), 0, 0),
        (flow::yaml("").replace("backends:\n  -", &format!("{other}\n  -")), 0, 3),
        (flow::yaml("surprise: 1\n"), 2, 2),
    ];
    for (yaml, plain, strict) in cases {
        fs::write(&file, &yaml)?;
        for (args, expected) in [(&[][..], plain), (&["--strict"][..], strict)] {
            let said = cli_with(lab, "check", &file, args)?;
            ensure!(said.code == Some(expected), "{args:?} of\n{yaml}\n{said:?}");
        }
    }
    Ok(())
}

fn bad_file_is_refused(lab: &Lab) -> Result<()> {
    let file = lab.dir().join("bad.yaml");
    // Two errors far from each other: an unknown key, and an invalid port.
    let yaml = flow::yaml("surprise: 1\n").replace(":9000", ":90000");
    fs::write(&file, &yaml)?;
    let line_of = |needle: &str| yaml.lines().position(|line| line.contains(needle)).map(|index| index + 1);
    for subcommand in ["check", "run"] {
        let said = cli_with(lab, subcommand, &file, &[])?;
        ensure!(said.code == Some(2), "{subcommand}: {said:?}");
        let all = said.stdout + &said.stderr;
        for (needle, field) in [("90000", "backends[0].endpoints[0]"), ("surprise", "surprise")] {
            let place = format!("bad.yaml:{}:", line_of(needle).unwrap_or_default());
            let told = all.lines().any(|line| line.contains(&place) && line.contains(field));
            ensure!(told, "{subcommand}: no line with {place} and {field} in:\n{all}");
        }
    }
    Ok(())
}

fn missing_file_is_named(lab: &Lab) -> Result<()> {
    let file = lab.dir().join("nowhere.yaml");
    for subcommand in ["check", "run"] {
        let said = cli_with(lab, subcommand, &file, &[])?;
        ensure!(said.code.is_some_and(|code| code != 0), "{said:?}");
        ensure!((said.stdout + &said.stderr).contains("nowhere.yaml"), "the file is not named");
    }
    Ok(())
}

fn explain_names_what_serves(lab: &Lab) -> Result<()> {
    let file = lab.dir().join("good.yaml");
    fs::write(&file, flow::yaml(""))?;
    let served = cli_with(lab, "explain", &file, &["--sni", &NAME.to_uppercase(), "--port", "8443"])?.ok()?;
    for word in ["front", "www", "pool", "10.0.2.2:9000"] {
        ensure!(served.stdout.contains(word), "{word} is missing in:\n{}", served.stdout);
    }
    let unserved = cli_with(lab, "explain", &file, &["--sni", "other.example.com"])?;
    ensure!(!unserved.stdout.contains("10.0.2.2:9000"), "{}", unserved.stdout);
    Ok(())
}

fn probe_judges_each_datapath(lab: &Lab) -> Result<()> {
    let said = cli(lab, &["probe"])?;
    for word in ["sockmap", "relay", "ok       packets over IPv4", "packets can be carried"] {
        ensure!(said.stdout.contains(word), "{word} is missing in:\n{}", said.stdout);
    }
    Ok(())
}
