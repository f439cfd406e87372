//! Lines as a reader of the file sees them.

use std::{fs, os::fd::AsRawFd as _, path::Path, rc::Rc, time::UNIX_EPOCH};

use serde_json::{Value, json};
use snisplice_config::log_file::LogFile;

use super::*;
use crate::{
    account::{ListenerAccount, registry::Registry},
    metrics::{
        Metrics,
        labels::{CloseReason, Direction},
    },
};

const LONG: Duration = Duration::from_secs(60);

fn settings(path: &Path, format: AccessLogFormat) -> Settings {
    Settings { path: Some(LogFile::Path(path.into())), format }
}

/// A listener whose connections are logged.
fn listener(log: &Arc<AccessLog>) -> Rc<ListenerAccount> {
    let registry = Rc::new(Registry::default().logging_to(log.clone()));
    Rc::new(ListenerAccount::new(&Arc::new(Metrics::new()), &"https".into(), &registry))
}

fn log(path: &Path, format: AccessLogFormat) -> Arc<AccessLog> {
    let log = Arc::new(AccessLog::default());
    log.follow(log.prepare(&settings(path, format)).unwrap());
    log
}

/// The lines so far.
fn lines(log: &AccessLog, path: &Path) -> Vec<String> {
    assert!(log.flush(LONG));
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn parsed(log: &AccessLog, path: &Path) -> Vec<Value> {
    lines(log, path).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Two connected sockets.
fn pair() -> (std::net::TcpStream, std::net::TcpStream) {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
    (client, socket.accept().unwrap().0)
}

#[test]
fn a_connection_has_the_fields_of_istio() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let log = log(&path, AccessLogFormat::Json);
    let (client, accepted) = pair();
    let (connected, endpoint) = pair();
    let account = Account::open(&listener(&log));
    account.has_sockets([accepted.as_raw_fd(), -1]);
    account.asks_for("www.example.com");
    account.routed("route www".into());
    account.goes_to("web".into());
    account.has_sockets([accepted.as_raw_fd(), connected.as_raw_fd()]);
    account.moved(Direction::Up, 517);
    account.moved(Direction::Down, 4_096);
    account.ended(CloseReason::Finished);
    let addresses = |one: &std::net::TcpStream| one.local_addr().unwrap().to_string();
    drop(accepted);
    let (client, connected, endpoint) = (addresses(&client), addresses(&connected), addresses(&endpoint));
    drop(account);
    let [line] = &*lines(&log, &path) else { panic!("one line") };
    let mut value: Value = serde_json::from_str(line).unwrap();
    let own = value["downstream_local_address"].as_str().unwrap();
    assert!(own.starts_with("127.0.0.1:"), "{own}");
    let time = value["start_time"].take();
    let time = humantime::parse_rfc3339(time.as_str().unwrap()).unwrap();
    assert!(time.elapsed().unwrap() < LONG);
    assert!(value["duration"].take().as_u64().unwrap() < 60_000);
    value["downstream_local_address"].take();
    let expected = json!({
        "start_time": null, "route_name": "route www", "method": null, "path": null, "protocol": null,
        "response_code": 0, "response_flags": "-", "response_code_details": null,
        "connection_termination_details": null, "bytes_received": 517, "bytes_sent": 4_096, "duration": null,
        "upstream_service_time": null, "x_forwarded_for": null, "user_agent": null, "request_id": null,
        "authority": null, "upstream_host": endpoint, "upstream_cluster": "web",
        "upstream_local_address": connected, "downstream_local_address": null,
        "downstream_remote_address": client, "requested_server_name": "www.example.com",
        "upstream_transport_failure_reason": null,
    });
    assert_eq!(value, expected);
    // In Istio's order, for readers.
    let names = ["start_time", "route_name", "method", "bytes_received", "requested_server_name"];
    let places: Vec<_> = names.iter().map(|name| line.find(&format!("\"{name}\":")).unwrap()).collect();
    assert!(places.is_sorted(), "{line}");
}

#[test]
fn a_request_has_a_line_and_its_connection_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let log = log(&path, AccessLogFormat::Json);
    let (_client, accepted) = pair();
    let account = Account::open(&listener(&log));
    assert!(account.logs_requests());
    account.has_sockets([accepted.as_raw_fd(), -1]);
    account.asks_for("www.example.com");
    let evil = "/a\"b\\c\r\n{\"method\":\"x\"}\u{0}\u{7f}ä";
    let line = Line {
        method: Some("GET"),
        path: Some(evil),
        protocol: Some("HTTP/1.1"),
        response_code: 200,
        upstream_service_time: Some(Duration::from_millis(7)),
        ..Line::default()
    };
    account.log_request(&line);
    account.log_request(&line);
    account.ended(CloseReason::Finished);
    drop(account);
    let lines = parsed(&log, &path);
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in lines {
        assert_eq!(line["path"], evil);
        assert_eq!(line["method"], "GET");
        assert_eq!(line["response_code"], 200);
        assert_eq!(line["upstream_service_time"], "7");
        assert_eq!(line["requested_server_name"], "www.example.com");
        assert!(line["downstream_remote_address"].is_string());
    }
}

#[test]
fn the_text_has_as_many_columns_whatever_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let log = log(&path, AccessLogFormat::Text);
    let account = Account::open(&listener(&log));
    account.log_request(&Line {
        start_time: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        method: Some("GET"),
        path: Some("/x\" \\\r\n"),
        protocol: Some("HTTP/2"),
        response_code: 503,
        response_flags: "UF,URX",
        user_agent: Some("an \"agent\""),
        route_name: Some("VirtualService default/web http[0]"),
        duration: Duration::from_millis(12),
        ..Line::default()
    });
    drop(account);
    Account::open(&listener(&log)).ended(CloseReason::UnknownName);
    let [request, connection] = &*lines(&log, &path) else { panic!("two lines") };
    assert_eq!(
        request,
        "[2023-11-14T22:13:20.123Z] \"GET /x\\\" \\\\\\u000d\\u000a HTTP/2\" 503 UF,URX - - \"-\" 0 0 12 - \"-\" \
         \"an \\\"agent\\\"\" \"-\" \"-\" \"-\" - - - - - VirtualService_default/web_http[0]"
    );
    let (time, rest) = connection.split_once("] ").unwrap();
    assert!(time.starts_with("[20"), "{connection}");
    assert_eq!(
        rest,
        "\"- - -\" 0 NR filter_chain_not_found unknown_name \"-\" 0 0 0 - \"-\" \"-\" \"-\" \"-\" \"-\" - - - - - -"
    );
}

#[test]
fn a_log_that_is_off_notes_nothing_and_a_reload_switches_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let log = Arc::new(AccessLog::default());
    let account = Account::open(&listener(&log));
    assert!(!account.logs_requests() && account.extras.get().is_none());
    log.follow(log.prepare(&settings(&path, AccessLogFormat::Json)).unwrap());
    // Begun before the change.
    drop(account);
    let begun = Account::open(&listener(&log));
    assert!(begun.logs_requests());
    assert!(lines(&log, &path).is_empty());
    drop(Account::open(&listener(&log)));
    assert_eq!(lines(&log, &path).len(), 1);
    log.follow(log.prepare(&settings(&path, AccessLogFormat::Text)).unwrap());
    drop(Account::open(&listener(&log)));
    assert_eq!(lines(&log, &path).len(), 2);
    log.follow(log.prepare(&Settings::default()).unwrap());
    drop(begun);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    // A failed open changes nothing.
    log.follow(log.prepare(&settings(&path, AccessLogFormat::Json)).unwrap());
    assert!(log.prepare(&settings(folder.path(), AccessLogFormat::Json)).is_err());
    drop(Account::open(&listener(&log)));
    assert_eq!(lines(&log, &path).len(), 3);
}
