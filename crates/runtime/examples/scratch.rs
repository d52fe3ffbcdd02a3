#![allow(missing_docs, unreachable_pub, dead_code, clippy::all, clippy::print_stdout, unsafe_code)]
#[path = "../src/math/mod.rs"]
mod math;
use math::gemm::*;
use std::time::Instant;
use burn::Dispatch as B;
use burn::tensor::{TensorData, backend::Backend};
use burn::tensor::ops::{ConvOptions, FloatTensorOps, ModuleOps};
fn time<R>(name: &str, flops: f64, mut f: impl FnMut() -> R) {
    f(); f();
    let mut best = f64::MAX;
    let t0 = Instant::now();
    while t0.elapsed().as_secs_f64() < 0.3 {
        let t = Instant::now();
        std::hint::black_box(f());
        best = best.min(t.elapsed().as_secs_f64());
    }
    println!("{name:40} {:9.1} us  {:6.1} GF/s", best * 1e6, flops / best / 1e9);
}
fn main() {
    let dev: burn::DispatchDevice = burn::DispatchDevice::Flex(Default::default());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(std::env::args().nth(1).map_or(1, |s| s.parse().unwrap())).build().unwrap();
    pool.install(|| {
        for (n, c, oc, hw, kk, groups) in [(32usize, 16usize, 16usize, 28usize, 3usize, 1usize), (32, 32, 32, 14, 3, 1), (32, 64, 64, 7, 3, 1), (32, 16, 64, 28, 1, 1), (32, 64, 64, 14, 1, 1), (32, 32, 32, 28, 3, 32), (32, 64, 64, 14, 3, 64), (1, 64, 64, 14, 3, 64)] {
            let x = B::float_from_data(TensorData::new(vec![0.5f32; n * c * hw * hw], [n, c, hw, hw]), &dev);
            let w = B::float_from_data(TensorData::new(vec![0.5f32; oc * c / groups * kk * kk], [oc, c / groups, kk, kk]), &dev);
            let fl = 2.0 * (n * oc * c / groups * kk * kk * hw * hw) as f64;
            time(&format!("flex conv n{n} {c}->{oc} {hw}^2 k{kk} g{groups}"), fl, || B::conv2d(x.clone(), w.clone(), None, ConvOptions::new([1, 1], [kk / 2, kk / 2], [1, 1], groups)));
            use math::conv::*;
            let sh = ConvShape { batch: n, channels: c, input: [hw, hw], filters: oc, kernel: [kk, kk], output: [hw, hw], strides: [1, 1], dilations: [1, 1], pads: [kk / 2, kk / 2], groups };
            let xs = vec![0.5f32; n * c * hw * hw]; let ws = vec![0.5f32; oc * c / groups * kk * kk];
            let mut out = vec![0f32; n * oc * hw * hw];
            time("   ours", fl, || { let pf = PackedFilters::new(&sh, &ws); convolve(&sh, &xs, &pf, None, &mut out) });
        }
    });
}
