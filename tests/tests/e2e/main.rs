//! End-to-end tests: the daemon between real clients and servers, in network namespaces. They require root.
//!
//! `cargo xtask test` runs them with all their requirements. `cargo test -p snisplice-tests -- close` runs one topic.

use std::process::ExitCode;

use snisplice_tests::suite;

mod access_log;
mod admin;
mod admission;
mod balance;
mod cli;
mod close;
mod connect;
mod connections;
mod crowd;
mod dns;
mod drain;
mod dynamic;
mod fault;
mod flow;
mod footprint;
mod front;
mod grpc;
mod guard;
mod health;
mod http2;
mod integrity;
mod leak;
mod lifecycle;
mod limits;
mod listening;
mod log;
mod mtu;
mod native_http;
mod negotiation;
mod network;
mod offload;
mod outage;
mod packet;
mod persistence;
mod privileges;
mod proxy_protocol;
mod queue;
mod rejection;
mod reload;
mod route;
mod routing;
mod same_host;
mod setting;
mod slow;
mod soak;
mod status;
mod succession;
mod takeover;
mod terminate;
mod timeouts;
mod tls;
mod transparent;
mod vanish;
mod wan;
mod web;
mod websocket;

fn main() -> ExitCode {
    let topics = [
        access_log::CASES,
        admin::CASES,
        admission::CASES,
        balance::CASES,
        cli::CASES,
        close::CASES,
        connect::CASES,
        connections::CASES,
        crowd::CASES,
        dns::CASES,
        drain::CASES,
        dynamic::CASES,
        fault::CASES,
        footprint::CASES,
        grpc::CASES,
        guard::CASES,
        health::CASES,
        http2::CASES,
        offload::CASES,
        integrity::CASES,
        leak::CASES,
        lifecycle::CASES,
        limits::CASES,
        listening::CASES,
        log::CASES,
        mtu::CASES,
        native_http::CASES,
        negotiation::CASES,
        network::CASES,
        outage::CASES,
        packet::CASES,
        privileges::CASES,
        proxy_protocol::CASES,
        queue::CASES,
        rejection::CASES,
        reload::CASES,
        route::CASES,
        routing::CASES,
        same_host::CASES,
        setting::CASES,
        slow::CASES,
        soak::CASES,
        status::CASES,
        succession::CASES,
        persistence::CASES,
        takeover::CASES,
        terminate::CASES,
        timeouts::CASES,
        tls::CASES,
        transparent::CASES,
        vanish::CASES,
        wan::CASES,
        web::CASES,
        websocket::CASES,
    ];
    suite::run(&topics.concat())
}
