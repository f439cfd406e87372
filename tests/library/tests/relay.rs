//! The relay on real sockets: every byte, every half-close, every reset.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its sockets has failed")]

use std::{io::ErrorKind, time::Duration};

use snisplice::testing::{Account, Carrier, Datapath, End, Pair, Relay, sockopt};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, LocalSet},
};

/// The four sockets of one relayed connection; the relay itself holds the middle two.
struct Rig {
    client: TcpStream,
    backend: TcpStream,
    ended: JoinHandle<(End, Account)>,
}

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn rig(hello: &[u8], idle: Duration) -> Rig {
    let (client, accepted) = connected().await;
    let (upstream, backend) = connected().await;
    let pair = Pair {
        client: accepted,
        backend: upstream,
        hello: hello.to_vec(),
        same_host: false,
        keepalive: None,
    };
    let ended = tokio::task::spawn_local(async move {
        let account = Account::default();
        let end = Relay::new(idle).forward(pair, &account).await;
        (end, account)
    });
    Rig { client, backend, ended }
}

fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(60), test).await };
    LocalSet::new().block_on(&runtime, bounded).expect("hangs");
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn every_byte_arrives_both_ways_at_once_and_is_counted() {
    run(async {
        let rig = rig(b"hello", HOUR).await;
        let (up, down) = (pattern(8_000_001), pattern(9_000_003));
        let (mut client_reads, mut client_writes) = rig.client.into_split();
        let (mut backend_reads, mut backend_writes) = rig.backend.into_split();
        let (mut at_client, mut at_backend) = (Vec::new(), Vec::new());
        tokio::join!(
            async {
                client_writes.write_all(&up).await.unwrap();
                client_writes.shutdown().await.unwrap();
            },
            async {
                backend_writes.write_all(&down).await.unwrap();
                backend_writes.shutdown().await.unwrap();
            },
            async { client_reads.read_to_end(&mut at_client).await.unwrap() },
            async { backend_reads.read_to_end(&mut at_backend).await.unwrap() },
        );
        assert!(at_client == down, "downstream differs");
        assert!(at_backend == [b"hello", &up[..]].concat(), "upstream differs");
        let (end, account) = rig.ended.await.unwrap();
        assert!(matches!(end, End::Finished), "{end:?}");
        assert_eq!(account.bytes(), (5 + up.len() as u64, down.len() as u64));
        assert_eq!(account.carrier(), Some(Carrier::Relay));
    });
}

#[test]
fn a_half_close_leaves_the_other_direction_open() {
    for client_first in [true, false] {
        run(async {
            let rig = rig(b"", HOUR).await;
            let (mut first, mut second) =
                if client_first { (rig.client, rig.backend) } else { (rig.backend, rig.client) };
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            let mut question = Vec::new();
            second.read_to_end(&mut question).await.unwrap();
            assert_eq!(question, b"question");
            second.write_all(b"answer").await.unwrap();
            second.shutdown().await.unwrap();
            let mut answer = Vec::new();
            first.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"answer");
            assert!(matches!(rig.ended.await.unwrap().0, End::Finished));
        });
    }
}

#[test]
fn a_reset_is_passed_on_after_what_was_sent_before_it() {
    for by_client in [true, false] {
        run(async {
            let rig = rig(b"", HOUR).await;
            let (mut resetting, mut other) =
                if by_client { (rig.client, rig.backend) } else { (rig.backend, rig.client) };
            resetting.write_all(b"last words").await.unwrap();
            let mut words = [0; 10];
            other.read_exact(&mut words).await.unwrap();
            sockopt::reset_on_close(&resetting).unwrap();
            drop(resetting);
            let error = other.read(&mut words).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let (end, _) = rig.ended.await.unwrap();
            let wanted = if by_client { End::ClientReset.reason() } else { End::BackendReset.reason() };
            assert_eq!(end.reason(), wanted, "{end:?}");
        });
    }
}

#[test]
fn an_answer_before_a_reset_is_heard() {
    run(async {
        let mut rig = rig(b"", HOUR).await;
        // The backend answers without reading the request. Its close with unread bytes sends RST.
        rig.client.write_all(&pattern(100_000)).await.unwrap();
        rig.backend.readable().await.unwrap();
        rig.backend.write_all(b"too large").await.unwrap();
        drop(rig.backend);
        let mut answer = [0; 9];
        rig.client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"too large");
        assert!(matches!(rig.ended.await.unwrap().0, End::BackendReset | End::Finished));
    });
}

#[test]
fn a_reset_is_noticed_while_the_other_side_takes_nothing() {
    run(async {
        let mut rig = rig(b"", HOUR).await;
        // Fills all buffers between the client and the backend, which does not read.
        let chunk = pattern(1 << 20);
        let blocked = async {
            loop {
                rig.client.write_all(&chunk).await.unwrap();
            }
        };
        let _: Result<(), _> = tokio::time::timeout(Duration::from_millis(500), blocked).await;
        sockopt::reset_on_close(&rig.client).unwrap();
        drop(rig.client);
        assert!(matches!(rig.ended.await.unwrap().0, End::ClientReset));
        drop(rig.backend);
    });
}

#[test]
fn silence_ends_a_connection_and_traffic_keeps_it() {
    run(async {
        let mut rig = rig(b"", Duration::from_millis(200)).await;
        let mut byte = [0; 1];
        // A client's bytes count as activity once it has got a reply.
        rig.backend.write_all(b"x").await.unwrap();
        rig.client.read_exact(&mut byte).await.unwrap();
        for _ in 0..20 {
            rig.client.write_all(b"x").await.unwrap();
            rig.backend.read_exact(&mut byte).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!rig.ended.is_finished());
        assert!(matches!(rig.ended.await.unwrap().0, End::Idle));
    });
}
