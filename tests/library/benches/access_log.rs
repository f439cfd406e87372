//! The cost of an access log line for its worker, and of a connection while the log is disabled.

use std::{rc::Rc, sync::Arc, time::Duration};

use divan::{Bencher, black_box};
use snisplice::testing::{AccessLog, Account, CloseReason, Line, ListenerAccount, Metrics, Registry};
use snisplice_config::model::{AccessLog as Settings, AccessLogFormat};

fn main() {
    divan::main();
}

fn log(format: AccessLogFormat) -> Arc<AccessLog> {
    let log = Arc::new(AccessLog::default());
    let path = "/dev/null".parse().ok();
    if let Ok(open) = log.prepare(&Settings { path, format }) {
        log.follow(open);
    }
    log
}

#[divan::bench(args = [AccessLogFormat::Json, AccessLogFormat::Text])]
fn line(bencher: Bencher<'_, '_>, format: AccessLogFormat) {
    let log = log(format);
    let address = "198.51.100.7:51000".parse().ok();
    let line = Line {
        route_name: Some("route www.example.com"),
        duration: Duration::from_millis(12),
        upstream_host: address,
        upstream_cluster: Some("web"),
        upstream_local_address: address,
        downstream_local_address: address,
        downstream_remote_address: address,
        requested_server_name: Some("www.example.com"),
        ..Line::default()
    };
    bencher.bench(|| log.write(black_box(&line)));
}

#[divan::bench(args = [false, true])]
fn connection(bencher: Bencher<'_, '_>, on: bool) {
    let log = if on { log(AccessLogFormat::Json) } else { Arc::default() };
    let registry = Rc::new(Registry::default().logging_to(log));
    let listener = Rc::new(ListenerAccount::new(&Arc::new(Metrics::new()), &"https".into(), &registry));
    bencher.bench_local(|| Account::open(black_box(&listener)).ended(CloseReason::UnknownName));
}
