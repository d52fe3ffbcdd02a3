//! How fast calibration looks at activations, on one thread:
//!
//!     cargo bench --bench observers
//!
//! Gigabytes a second of an observer, beside copying the same tensors: of the size of a layer's output (larger
//! than a processor's caches, and within them), with channels as convolutions and as products have them, and
//! the time of each method that chooses a range. Printed are medians.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use optix_data::Latencies;
use optix_ir::DType;
use optix_passes::quantize::observer::Observer;

/// Median seconds of a call, over at least 9 calls and half a second.
fn median(mut call: impl FnMut()) -> f64 {
    let mut seconds = Vec::new();
    while seconds.len() < 9 || seconds.iter().sum::<f64>() < 0.5 {
        let start = Instant::now();
        call();
        seconds.push(start.elapsed().as_secs_f64());
    }
    Latencies::new(seconds).median()
}

/// Bell-shaped numbers, the same everywhere; without those below zero for `rectified`.
fn values(count: usize, rectified: bool) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let bell = (0..count).map(|_| (0..4).map(|_| next()).sum::<f32>() - 2.0);
    bell.map(|x| if rectified { x.max(0.0) } else { x }).collect()
}

fn main() {
    let shapes: [(&str, Vec<usize>); 3] = [
        ("convolution, 16 x 64 x 56 x 56", vec![16, 64, 56, 56]),
        ("convolution, 16 x 32 x 14 x 14", vec![16, 32, 14, 14]),
        ("product, 16 x 128 x 384", vec![16, 128, 384]),
    ];
    for (name, shape) in shapes {
        let count: usize = shape.iter().product();
        let gigabytes = (count * 4) as f64 / 1e9;
        for (kind, rectified) in [("bell", false), ("behind Relu", true)] {
            let elements = values(count, rectified);
            let mut copy = vec![0f32; count];
            let copying = median(|| black_box(&mut copy).copy_from_slice(black_box(&elements)));
            let observing = |axis: Option<i64>| {
                let mut observer = Observer::new(axis);
                median(|| observer.observe(black_box(&elements), &shape, shape[0]))
            };
            let axis = if shape.len() == 4 { 1 } else { -1 };
            let (plain, channels) = (observing(None), observing(Some(axis)));
            println!(
                "{name}, {kind}: copying {:.2} GB/s, observing {:.2} GB/s, with channels {:.2} GB/s",
                gigabytes / copying,
                gigabytes / plain,
                gigabytes / channels
            );
        }
    }
    for (kind, rectified) in [("bell", false), ("behind Relu", true)] {
        let mut observer = Observer::default();
        observer.observe(&values(1 << 20, rectified), &[1 << 20], 1);
        let of = |choose: &dyn Fn(&Observer)| 1e6 * median(|| choose(black_box(&observer)));
        println!(
            "choosing a range, {kind}, microseconds: min-max {:.1}, mean-extremes {:.1}, percentile {:.0}, entropy {:.0}, mse {:.0}",
            of(&|observer| {
                black_box(observer.min_max(DType::U8));
            }),
            of(&|observer| {
                black_box(observer.mean_extremes(DType::U8));
            }),
            of(&|observer| {
                black_box(observer.percentile(99.999, DType::U8));
            }),
            of(&|observer| {
                black_box(observer.entropy(DType::U8));
            }),
            of(&|observer| {
                black_box(observer.mean_squared_error(DType::U8));
            }),
        );
    }
}
