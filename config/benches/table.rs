//! The cost of 100,000 routes: to load, in memory, and for each connection.
//!
//! `cargo bench -p snisplice-config`

use std::{
    fmt::Write as _,
    hint::black_box,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use divan::{AllocProfiler, Bencher};
use snisplice_config::{
    Documents, Options, Source, Translation, load, model::route_table::RouteTable, name::ServerName,
};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const SIZES: [usize; 4] = [1, 100, 10_000, 100_000];

fn main() {
    divan::main();
}

/// Half exact names, half wildcards, and a backend for every ten routes.
fn native(routes: usize) -> Documents {
    let mut text = String::from("listeners:\n  - {name: public, bind: \"0.0.0.0:443\"}\nbackends:\n");
    for backend in 0..routes.div_ceil(10) {
        writeln!(text, "  - name: backend-{backend}\n    endpoints: [\"10.0.0.1:443\", \"10.0.0.2:443\"]")
            .expect("a String takes everything");
    }
    text += "routes:\n";
    for route in 0..routes {
        let wildcard = if route % 2 == 0 { "" } else { "*." };
        writeln!(
            text,
            "  - name: route-{route}\n    sni: [\"{wildcard}tenant-{route}.apps.example.com\"]\n    backends: [{{name: backend-{}, weight: 1}}]",
            route / 10
        )
        .expect("a String takes everything");
    }
    [Source { name: "bench.yaml".into(), text }].into_iter().collect()
}

fn loaded(routes: usize) -> Translation {
    let translation = load(&native(routes), &Options::default());
    assert!(translation.model.is_some());
    translation
}

fn table(routes: usize) -> RouteTable {
    loaded(routes).model.map(|mut model| model.listeners.remove(0).routes).unwrap_or_default()
}

static TABLES: LazyLock<[(usize, RouteTable); 4]> = LazyLock::new(|| SIZES.map(|size| (size, table(size))));

fn lookup(bencher: Bencher<'_, '_>, size: usize, text: impl Fn(usize) -> String, hit: bool) {
    let table = &TABLES.iter().find(|(known, _)| *known == size).expect("a size of the list").1;
    // More names than fit into the nearest cache, in an unpredictable order.
    let names: Vec<_> = (0..4_096_usize)
        .map(|turn| ServerName::parse(text(turn.wrapping_mul(7_919) % size)).expect("a name"))
        .collect();
    let turn = AtomicUsize::new(0);
    bencher.bench(|| {
        let name = &names[turn.fetch_add(1, Ordering::Relaxed) % names.len()];
        let found = black_box(table).lookup(black_box(name)).is_some();
        assert_eq!(found, hit);
    });
}

#[divan::bench(args = SIZES)]
fn lookup_exact(bencher: Bencher<'_, '_>, size: usize) {
    lookup(bencher, size, |route| format!("tenant-{}.apps.example.com", route / 2 * 2), true);
}

#[divan::bench(args = &SIZES[1..])]
fn lookup_wildcard(bencher: Bencher<'_, '_>, size: usize) {
    lookup(bencher, size, |route| format!("a.b.tenant-{}.apps.example.com", route / 2 * 2 + 1), true);
}

#[divan::bench(args = SIZES)]
fn lookup_miss(bencher: Bencher<'_, '_>, size: usize) {
    lookup(bencher, size, |route| format!("x.tenant-{route}.apps.example.org"), false);
}

/// The greatest number of labels of a name.
#[divan::bench(args = SIZES)]
fn lookup_hostile(bencher: Bencher<'_, '_>, size: usize) {
    lookup(bencher, size, |route| format!("{}{}", "a.".repeat(120), route % 10), false);
}

#[divan::bench]
fn parse_name() -> ServerName {
    ServerName::parse(black_box("Tenant-12345.apps.example.com")).expect("a name")
}

#[divan::bench(args = SIZES, sample_count = 5)]
fn load_yaml(bencher: Bencher<'_, '_>, size: usize) {
    let sources = native(size);
    bencher.bench(|| load(black_box(&sources), &Options::default()));
}
