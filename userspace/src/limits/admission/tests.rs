use snisplice_config::model::access::Access;

use super::*;

/// A listener without limits.
const ANY: Group<'static> = Group { name: "any", access: None };

fn rate(per_second: u32, burst: u32) -> Rate {
    Rate { per_second, burst }
}

fn peer(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

#[test]
fn the_client_of_a_trusted_proxy_counts_once_it_is_named() {
    let limits = Limits { connections_per_source: Some(1), ..Limits::default() };
    let admission = Admission::new(10, &limits);
    let now = Instant::now();
    let proxied = || admission.admit(None, ANY, now).unwrap().try_place().unwrap();
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
    let admit = |last| admission.admit(Some(peer(last)), ANY, now).map(|one| one.try_place().unwrap());
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
    let permit = |last| admission.admit(Some(peer(last)), ANY, now).unwrap().try_place().unwrap();
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
    let admit = || admission.admit(Some(peer(1)), ANY, Instant::now()).unwrap();
    let silent = admit().place().await;
    let begun = Instant::now().checked_sub(PATIENCE).unwrap();
    let served = async {
        let hello = silent.hello(Some(peer(1)), false, begun);
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

#[test]
fn a_listener_and_a_route_count_their_own() {
    let admission = Admission::new(64, &Limits::default());
    let now = Instant::now();
    let two = Access { max_connections: Some(2), ..Access::default() };
    let one = Access { max_connections: Some(1), ..Access::default() };
    let listener = Group { name: "public", access: Some(&two) };
    let route = Group { name: "shop", access: Some(&one) };
    let admit = |last| admission.admit(Some(peer(last)), listener, now);
    let place = |admitted: Admitted| admitted.try_place().unwrap();
    let (first, second) = (place(admit(1).unwrap()), admit(2).unwrap());
    assert_eq!(admit(3).unwrap_err(), Overload::Listener);
    assert!(admission.admit(Some(peer(3)), ANY, now).is_ok(), "another listener");
    first.takes(route, now).unwrap();
    assert_eq!(place(second).takes(route, now).unwrap_err(), Overload::Route);
    let second = place(admit(2).unwrap());
    drop(first.connect(&"web".into(), Some(1), None, now).unwrap());
    assert_eq!(second.connect(&"web".into(), Some(1), None, now).unwrap_err(), Overload::Backend);
    drop(first);
    second.takes(route, now).unwrap();
    assert!(second.connect(&"web".into(), Some(1), None, now).is_ok());
    drop(second);
    assert_eq!((admission.refused(Overload::Listener), admission.refused(Overload::Route)), (1, 1));
    assert_eq!(admission.usage().connections, (64, 0));
    assert_eq!(admission.usage().sources.1, 0);
}

#[test]
fn a_limit_of_a_reload_counts_the_connections_of_before() {
    let admission = Admission::new(64, &Limits::default());
    let now = Instant::now();
    let public = |access| Group { name: "public", access };
    let held: Vec<_> =
        (0..3).map(|last| admission.admit(Some(peer(last)), public(None), now).unwrap()).collect();
    let three = Access { max_connections: Some(3), ..Access::default() };
    let refused = admission.admit(Some(peer(9)), public(Some(&three)), now).unwrap_err();
    assert_eq!(refused, Overload::Listener);
    drop(held);
    assert!(admission.admit(Some(peer(9)), public(Some(&three)), now).is_ok());
}

#[test]
fn new_connections_take_tokens_of_source_listener_and_route() {
    let limits =
        Limits { connection_rate_per_source: 1, connection_burst_per_source: 3, ..Limits::default() };
    let admission = Admission::new(64, &limits);
    let now = Instant::now();
    let access = Access { rate: Some(rate(10, 5)), ..Access::default() };
    let listener = Group { name: "public", access: Some(&access) };
    let admit = |last, now| admission.admit(Some(peer(last)), listener, now).map(drop);
    for _ in 0..3 {
        admit(1, now).unwrap();
    }
    for _ in 0..100 {
        assert_eq!(admit(1, now), Err(Overload::SourceRate), "a flood takes no token of the listener");
    }
    assert_eq!((admit(2, now), admit(2, now)), (Ok(()), Ok(())));
    assert_eq!(admit(2, now), Err(Overload::ListenerRate));
    assert_eq!(admit(1, now + Duration::from_secs(1)), Ok(()));

    let access = Access { rate: Some(rate(10, 1)), ..Access::default() };
    let route = Group { name: "public", access: Some(&access) };
    let permit = || admission.admit(None, ANY, now).unwrap().try_place().unwrap();
    permit().takes(route, now).unwrap();
    assert_eq!(
        permit().takes(route, now),
        Err(Overload::RouteRate),
        "a listener of the same name is another one"
    );
    permit().takes(route, now + Duration::from_millis(100)).unwrap();
    assert_eq!(admission.refused(Overload::SourceRate), 100);
}

#[test]
fn a_client_that_is_known_later_counts_from_then_on() {
    let admission = Admission::new(8, &Limits { connections_per_source: Some(1), ..Limits::default() });
    let now = Instant::now();
    let permit = || admission.admit(None, ANY, now).unwrap().try_place().unwrap();
    let (first, second, third) = (permit(), permit(), permit());
    assert_eq!(admission.usage().sources.1, 0);
    first.comes_from(peer(1), now).unwrap();
    assert_eq!(second.comes_from(peer(1), now), Err(Overload::Source));
    third.comes_from(peer(2), now).unwrap();
    assert_eq!(admission.usage().sources.1, 2);
    drop((first, second, third));
    assert_eq!(admission.usage().sources.1, 0);
    permit().comes_from(peer(1), now).unwrap();
}

#[test]
fn a_source_with_many_silent_connections_leaves_hellos_to_others() {
    let limits = Limits { hellos: Some(8), connections_per_source: Some(0), ..Limits::default() };
    let admission = Admission::new(1_000, &limits);
    let now = Instant::now();
    let permit = || admission.admit(None, ANY, now).unwrap().try_place().unwrap();
    let permits: Vec<_> = (0..500).map(|_| permit()).collect();
    let (first, rest) = permits.split_first().unwrap();
    let slow = first.hello(Some(peer(2)), false, now);
    let flood: Vec<_> = rest.iter().map(|permit| permit.hello(Some(peer(1)), true, now)).collect();
    assert_eq!(admission.usage().hellos, (8, 5), "four of one source, and the other one");
    assert_eq!(admission.refused(Overload::Hellos), 499 - 4);
    drop((slow, flood));
    assert_eq!(admission.usage().hellos.1, 0);
}
