//! The cost of one choice of an endpoint.

use divan::{Bencher, black_box};
use snisplice::testing::Wheel;

fn main() {
    divan::main();
}

/// By the number of members, with weights that share no factor.
#[divan::bench(args = [1, 2, 16, 256])]
fn pick(bencher: Bencher<'_, '_>, members: u32) {
    let wheel = Wheel::new((0..members).map(|member| 1 + member % 7));
    let mut turn = 0;
    bencher.bench_local(|| {
        turn += 1;
        black_box(&wheel).pick(black_box(turn))
    });
}
