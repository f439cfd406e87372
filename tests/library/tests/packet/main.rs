//! The packet programs with synthetic packets, in the running kernel: their results must equal those of the functions
//! that they consist of.
//!
//! Without the privilege to load programs the tests are reported as ignored. With `SNISPLICE_REQUIRE_ALL=1` they fail
//! instead.

mod experiments;
mod flow;
mod guard;
mod icmp;
mod lab;
#[path = "../sockmap/verifier.rs"]
mod verifier;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use snisplice::testing::{packet::Programs, probe};

use self::lab::Lab;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let usable = Programs::load(16);
    let required = std::env::var_os("SNISPLICE_REQUIRE_ALL").is_some_and(|value| value == "1");
    if let Err(error) = &usable {
        eprintln!("the kernel's part cannot be tested here: {error}");
    }
    let ignored = usable.is_err() && !required;
    let trials = [
        trial("the_probe_passes", || {
            probe::socket_info(&Programs::load(16).expect("loads")).expect("is understood");
        }),
        trial("packets_are_carried_between_namespaces", experiments::carried_between_namespaces),
        trial("a_connection_that_is_not_carried_is_told", experiments::not_carried),
        trial("a_flow_whose_packets_get_lost_is_told", experiments::packets_get_lost),
        trial("ipv4_packets_are_translated", || flow::translated(false)),
        trial("ipv6_packets_are_translated", || flow::translated(true)),
        trial("what_belongs_to_no_flow_is_left_alone", flow::left_alone),
        trial("what_is_not_counted_is_not_looked_up", || flow::uncounted(false)),
        trial("what_is_not_counted_is_not_looked_up_over_ipv6", || flow::uncounted(true)),
        trial("what_cannot_be_translated_is_left_to_the_stack", flow::not_understood),
        trial("icmp_errors_are_translated", || icmp::translated(false)),
        trial("icmpv6_errors_are_translated", || icmp::translated(true)),
        trial("only_errors_about_what_is_under_way_are_passed_on", icmp::only_what_is_under_way),
        trial("errors_that_cannot_be_understood_are_left_to_the_stack", icmp::not_understood),
        trial("modes_decide", flow::modes_decide),
        trial("a_flow_is_followed_to_its_end", flow::followed_to_its_end),
        trial("what_was_damaged_ends_nothing", || guard::damaged_ends_nothing(false)),
        trial("what_was_damaged_ends_nothing_over_ipv6", || guard::damaged_ends_nothing(true)),
        trial("our_own_socket_is_not_told_of_what_was_damaged", guard::damaged_is_not_told),
        trial("lengths_that_are_not_there_are_not_believed", guard::lengths_are_not_believed),
        trial("forgeries_change_nothing_that_is_noted", guard::forgeries_change_nothing),
        trial("packets_of_denied_clients_are_dropped", guard::denied_clients),
        trial("packets_that_come_by_another_side_are_dropped", guard::another_side),
        trial("a_copy_that_comes_by_again_is_told_and_not_carried", flow::a_copy_comes_by_again),
        trial("the_end_wakes_once", flow::the_end_wakes_once),
        trial("what_begins_a_connection_becomes_a_question", || flow::begins(false)),
        trial("what_begins_a_connection_becomes_a_question_over_ipv6", || flow::begins(true)),
        trial("what_begins_after_the_end_is_let_in", || flow::let_in(false)),
        trial("what_begins_after_the_end_is_let_in_over_ipv6", || flow::let_in(true)),
        trial("the_verifier_is_soon_done", || {
            let _lab = Lab::new(false);
            verifier::is_soon_done(200_000);
        }),
        trial("processors_do_not_forget_what_another_has_noted", flow::noted_at_once),
    ];
    let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(ignored)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A trial that fails by panicking, as a test does.
fn trial(name: &'static str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}
