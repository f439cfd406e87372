//! `trafficPolicy.loadBalancer` and `connectionPool.tcp` of a `DestinationRule`.

use std::time::Duration;

use super::http;
use crate::{
    decode::{Diagnostics, View},
    model::{
        Backend,
        balancing::{Aggression, Algorithm, HashKey, LoadBalancing, SlowStart},
        scope::ScopedTimeouts,
    },
};

/// The policy of the rules for a destination.
#[derive(Debug, Default)]
pub(super) struct Policy<'n> {
    load_balancer: Option<View<'n>>,
    pool: Option<View<'n>>,
}

impl<'n> Policy<'n> {
    /// Applies a `trafficPolicy`, which overrides earlier values.
    pub(super) fn apply(&mut self, policy: &View<'n>) {
        let set = |key| policy.peek(key).filter(|view: &View<'n>| !view.is_unset());
        self.load_balancer = set("loadBalancer").or(self.load_balancer.take());
        self.pool = set("connectionPool").or(self.pool.take());
    }

    /// Sets the fields of a backend. [`tell`] reports errors.
    pub(super) fn shape(&self, backend: &mut Backend) {
        let mut unheard = Diagnostics::default();
        if let Some(view) = &self.load_balancer {
            backend.load_balancing = load_balancer(view, &mut unheard);
        }
        if let Some(view) = &self.pool {
            let Pool { max_connections, connect_timeout, timeouts } = pool(view, &mut unheard);
            (backend.max_connections, backend.connect_timeout) = (max_connections, connect_timeout);
            backend.timeouts = timeouts.shared();
        }
    }
}

/// Reports errors and unsupported fields of a `trafficPolicy`.
pub(super) fn tell(policy: &View<'_>, diagnostics: &mut Diagnostics) {
    let set = |key| policy.peek(key).filter(|view| !view.is_unset());
    if let Some(view) = set("loadBalancer") {
        load_balancer(&view, diagnostics);
    }
    if let Some(view) = set("connectionPool") {
        pool(&view, diagnostics);
    }
}

fn load_balancer(view: &View<'_>, diagnostics: &mut Diagnostics) -> LoadBalancing {
    let expected = "{simple, consistentHash, warmup}";
    let Some(mut fields) = view.fields(expected, diagnostics) else { return LoadBalancing::default() };
    let simple = fields.take_set("simple");
    let hash = fields.take_set("consistentHash");
    let warmup = fields.take_set("warmup");
    let former_warmup = fields.take_set("warmupDurationSecs");
    if let Some(view) = fields.take_set("localityLbSetting") {
        view.ignored("endpoints have no locality here: all of a destination are used alike")
            .emit(diagnostics);
    }
    fields.finish(diagnostics);
    let (algorithm, may_warm) = match (&simple, &hash) {
        (_, Some(view)) => (consistent_hash(view, diagnostics), false),
        (Some(view), None) => self::simple(view, diagnostics),
        (None, None) => (Algorithm::default(), true),
    };
    if let (Some(simple), Some(_)) = (&simple, &hash) {
        simple
            .warn("consistentHash is there too, and is taken")
            .remedy("keep one of the two")
            .emit(diagnostics);
    }
    let slow_start = match (&warmup, &former_warmup) {
        (Some(view), _) => self::warmup(view, diagnostics),
        (None, Some(view)) => http::duration(view, diagnostics).and_then(window),
        (None, None) => None,
    };
    if let Some(view) = warmup.or(former_warmup).filter(|_| !may_warm) {
        view.ignored("only ROUND_ROBIN and LEAST_REQUEST have a warmup").emit(diagnostics);
    }
    let hash_key = HashKey::Source;
    LoadBalancing {
        algorithm,
        hash_key,
        hash_balance_factor: None,
        slow_start: slow_start.filter(|_| may_warm),
    }
}

/// The algorithm, and whether Istio applies a warmup to it.
fn simple(view: &View<'_>, diagnostics: &mut Diagnostics) -> (Algorithm, bool) {
    let expected = "LEAST_REQUEST, ROUND_ROBIN or RANDOM";
    let default = (Algorithm::default(), true);
    let Some(text) = view.text(expected, diagnostics) else { return default };
    match text {
        "ROUND_ROBIN" => (Algorithm::RoundRobin, true),
        // Envoy's LEAST_REQUEST compares two random endpoints, as random_two_choices does.
        "LEAST_REQUEST" | "LEAST_CONN" | "UNSPECIFIED" => default,
        "RANDOM" => {
            view.note("served as LEAST_REQUEST: of two random endpoints the less loaded one is taken")
                .emit(diagnostics);
            (Algorithm::RandomTwoChoices, false)
        }
        "PASSTHROUGH" => {
            view.warn(
                "not applied: a connection to this gateway has no other destination address; LEAST_REQUEST is used",
            )
            .expected(expected)
            .emit(diagnostics);
            (Algorithm::RandomTwoChoices, false)
        }
        other => {
            view.error(format!("there is no algorithm '{other}': LEAST_REQUEST is used"))
                .expected(expected)
                .emit(diagnostics);
            default
        }
    }
}

const RING: &str = "no ring is used: Maglev hashing with 65537 entries has the place of ringHash";

fn consistent_hash(view: &View<'_>, diagnostics: &mut Diagnostics) -> Algorithm {
    let default = Algorithm::default();
    let Some(mut fields) = view.fields("{useSourceIp, maglev, ringHash}", diagnostics) else {
        return default;
    };
    let source = fields.take("useSourceIp");
    let requests = ["httpHeaderName", "httpCookie", "httpQueryParameterName"].map(|key| fields.take_set(key));
    let ring = fields.take("ringHash");
    let maglev = fields.take("maglev");
    let former_ring_size = fields.take_number("minimumRingSize");
    fields.finish(diagnostics);
    for view in requests.into_iter().flatten() {
        view.error("cannot be hashed: an endpoint is chosen for a connection, and TLS that is passed through shows no request; \
                    LEAST_REQUEST is used")
            .remedy("write useSourceIp: true")
            .emit(diagnostics);
    }
    let ring_size = ring.as_ref().and_then(|ring| {
        let mut fields = ring.fields("{minimumRingSize}", diagnostics)?;
        let size = fields.take_number("minimumRingSize");
        fields.finish(diagnostics);
        size
    });
    if let Some(view) = ring_size.or(former_ring_size) {
        view.ignored(RING).emit(diagnostics);
    } else if let Some(view) = &ring {
        view.note(RING).emit(diagnostics);
    }
    if let Some(view) = &maglev
        && let Some(mut fields) = view.fields("{tableSize}", diagnostics)
    {
        let size = fields.take_number("tableSize");
        fields.finish(diagnostics);
        if let Some(view) = size.filter(|size| !size.says("65537")) {
            view.ignored("the table has 65537 entries").emit(diagnostics);
        }
    }
    let by_source = source.and_then(|view| view.flag(diagnostics)).unwrap_or(false);
    if by_source { Algorithm::Maglev } else { default }
}

fn window(window: Duration) -> Option<SlowStart> {
    let slow_start = SlowStart {
        window,
        aggression: Aggression::default(),
        min_weight_percent: SlowStart::MIN_WEIGHT_PERCENT,
    };
    (!window.is_zero()).then_some(slow_start)
}

fn warmup(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<SlowStart> {
    let mut fields = view.fields("{duration, minimumPercent, aggression}", diagnostics)?;
    let duration = fields.require("duration", "a duration such as 60s", diagnostics);
    let percent = fields.take("minimumPercent");
    let aggression = fields.take_set("aggression");
    fields.finish(diagnostics);
    let mut slow_start = window(http::duration(&duration?, diagnostics)?)?;
    if let Some(view) = percent {
        // 0 is Envoy's minimum, with which an endpoint would never start.
        slow_start.min_weight_percent = view.number(0..=100_u8, diagnostics)?.max(1);
    }
    if let Some(view) = aggression {
        slow_start.aggression = view.parse(Aggression::EXPECTED, diagnostics)?;
    }
    Some(slow_start)
}

struct Pool {
    max_connections: Option<usize>,
    connect_timeout: Option<Duration>,
    timeouts: ScopedTimeouts,
}

/// The silence of an endpoint before it is probed.
fn keepalive(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Duration> {
    let mut fields = view.fields("{time, interval, probes}", diagnostics)?;
    let time = fields.take_set("time");
    let fixed = [fields.take_set("interval"), fields.take_number("probes")];
    fields.finish(diagnostics);
    for view in fixed.iter().flatten() {
        view.warn("not applied: six probes follow, each after a sixth of 'time'").emit(diagnostics);
    }
    match time {
        Some(view) => http::duration(&view, diagnostics),
        // Linux' default, which Istio names (tcp(7), `tcp_keepalive_time`).
        None => Some(Duration::from_secs(7_200)),
    }
}

/// The HTTP part is read with the HTTP routes.
fn pool(view: &View<'_>, diagnostics: &mut Diagnostics) -> Pool {
    let mut read = Pool { max_connections: None, connect_timeout: None, timeouts: ScopedTimeouts::default() };
    let Some(mut fields) = view.fields("{tcp, http}", diagnostics) else { return read };
    let tcp = fields.take_set("tcp");
    fields.known(&["http"]);
    fields.finish(diagnostics);
    let Some(tcp) = tcp else { return read };
    let expected = "{maxConnections, connectTimeout, maxConnectionDuration, idleTimeout, tcpKeepalive}";
    let Some(mut fields) = tcp.fields(expected, diagnostics) else { return read };
    let most = fields.take_number("maxConnections");
    let timeout = fields.take_set("connectTimeout");
    let [longest, idle, keepalive] =
        ["maxConnectionDuration", "idleTimeout", "tcpKeepalive"].map(|key| fields.take_set(key));
    fields.finish(diagnostics);
    let mut time = |view: Option<View<'_>>| view.and_then(|view| http::duration(&view, diagnostics));
    read.timeouts.max_duration = time(longest);
    // Envoy: 0s disables the idle timeout.
    let idle = time(idle).map(|idle| if idle.is_zero() { ScopedTimeouts::NEVER } else { idle });
    read.timeouts.idle = idle;
    read.timeouts.keepalive = keepalive.and_then(|view| self::keepalive(&view, diagnostics));
    // Envoy's default is the greatest number.
    read.max_connections = most
        .and_then(|view| view.number(1..=u64::from(u32::MAX), diagnostics))
        .and_then(|most| usize::try_from(most).ok());
    read.connect_timeout =
        timeout.and_then(|view| http::duration(&view, diagnostics)).filter(|limit| !limit.is_zero());
    read
}
