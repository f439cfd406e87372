use super::*;

fn peer(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

#[test]
fn the_client_of_a_trusted_proxy_counts_once_it_is_named() {
    let limits = Limits { connections_per_source: Some(1), ..Limits::default() };
    let admission = Admission::new(10, &limits);
    let now = Instant::now();
    let proxied = || admission.admit(None, now).unwrap().try_place().unwrap();
    let permits = [proxied(), proxied(), proxied()];
    assert_eq!(admission.usage().sources.1, 0);
    assert_eq!(permits[0].comes_from(peer(1), now), Ok(()));
    assert_eq!(permits[1].comes_from(peer(1), now), Err(Overload::Source));
    assert_eq!(permits[2].comes_from(peer(2), now), Ok(()));
    // The client named last counts.
    assert_eq!(permits[2].comes_from(peer(3), now), Ok(()));
    assert_eq!(admission.usage().sources.1, 2);
    drop(permits);
    assert_eq!(admission.usage().sources.1, 0);
}

#[test]
fn one_source_leaves_half_of_the_places_to_others() {
    let admission = Admission::new(64, &Limits::default());
    let now = Instant::now();
    let admit = |last| admission.admit(Some(peer(last)), now).map(|one| one.try_place().unwrap());
    let mut held: Vec<_> = (0..32).map(|_| admit(1).unwrap()).collect();
    assert_eq!(admit(1).unwrap_err(), Overload::Source);
    held.extend((0..32).map(|_| admit(2).unwrap()));
    assert!(admission.is_full());
    assert_eq!(admission.refused(Overload::Source), 1);
    drop(held);
    assert_eq!(admission.usage().connections, (64, 0));
    assert_eq!(admission.usage().sources, (Some(32), 0));
}

#[test]
fn a_permit_is_no_larger_than_a_semaphores() {
    assert_eq!(size_of::<Permit>(), size_of::<tokio::sync::OwnedSemaphorePermit>());
}

#[test]
fn what_a_backend_takes_is_given_back() {
    let admission = Admission::new(8, &Limits::default());
    let now = Instant::now();
    let permit = |last| admission.admit(Some(peer(last)), now).unwrap().try_place().unwrap();
    let (first, second) = (permit(1), permit(2));
    let name = "shop".into();
    let pending = first.connect(&name, Some(1), None, now).unwrap();
    assert_eq!(second.connect(&name, Some(1), None, now).unwrap_err(), Overload::Backend);
    drop(pending);
    assert_eq!(second.connect(&name, Some(1), None, now).unwrap_err(), Overload::Backend);
    drop(first);
    drop(second.connect(&name, Some(1), None, now).unwrap());
    assert_eq!(admission.usage().pending, (4, 0));
    assert_eq!(admission.refused(Overload::Backend), 2);
}

#[test]
fn a_reload_changes_all_but_the_number_of_places() {
    let admission = Admission::new(8, &Limits::default());
    admission.follow(&Limits { connections_per_source: Some(0), hellos: Some(3), ..Limits::default() });
    let usage = admission.usage();
    assert_eq!((usage.connections.0, usage.hellos.0, usage.sources.0), (8, 3, None));
}

#[tokio::test]
async fn the_oldest_silent_client_makes_room_for_one_that_waits_for_a_place() {
    let admission = Admission::new(1, &Limits { connections_per_source: Some(0), ..Limits::default() });
    let admit = || admission.admit(Some(peer(1)), Instant::now()).unwrap();
    let silent = admit().place().await;
    let begun = Instant::now().checked_sub(PATIENCE).unwrap();
    let served = async {
        let hello = silent.hello(false, begun);
        hello.made_room().await;
        drop(hello);
        drop(silent);
    };
    let waits = admit().place();
    let ((), permit) = tokio::join!(served, waits);
    assert_eq!(admission.refused(Overload::Hellos), 1);
    let usage = admission.usage();
    assert_eq!((usage.hellos.1, usage.waiting, usage.connections), (0, 0, (1, 1)));
    drop(permit);
    assert!(!admission.is_full());
}

#[test]
fn the_log_tells_once_a_minute_how_often() {
    let (mut notice, now) = (Notice::default(), Instant::now());
    assert_eq!(notice.happens(now), Some(1));
    for second in 1..60 {
        assert_eq!(notice.happens(now + Duration::from_secs(second)), None);
    }
    assert_eq!(notice.happens(now + SILENCE), Some(60));
}
