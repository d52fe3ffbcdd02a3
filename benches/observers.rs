//! How fast calibration looks at activations, on one thread, beside a copy of the same tensor, and how long it
//! takes to choose a range:
//!
//!     cargo bench --bench observers [-- FILTER]
//!
//! Tensors are of the size of a layer's output: larger than a processor's caches, and within them.

#![allow(missing_docs, reason = "what the macro makes has none")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use optix_ir::DType;
use optix_passes::quantize::observer::Observer;

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

const KINDS: [(&str, bool); 2] = [("bell", false), ("behind Relu", true)];

fn observing(criterion: &mut Criterion) {
    let shapes: [(&str, Vec<usize>, i64); 3] = [
        ("convolution 16 x 64 x 56 x 56", vec![16, 64, 56, 56], 1),
        ("convolution 16 x 32 x 14 x 14", vec![16, 32, 14, 14], 1),
        ("product 16 x 128 x 384", vec![16, 128, 384], -1),
    ];
    for (name, shape, axis) in shapes {
        let count: usize = shape.iter().product();
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(4 * count as u64)).sample_size(20);
        for (kind, rectified) in KINDS {
            let elements = values(count, rectified);
            let mut copy = vec![0f32; count];
            group.bench_function(format!("{kind}, copy"), |bencher| {
                bencher.iter(|| black_box(&mut copy).copy_from_slice(black_box(&elements)));
            });
            for (what, axis) in [("observer", None), ("observer with channels", Some(axis))] {
                let mut observer = Observer::new(axis);
                group.bench_function(format!("{kind}, {what}"), |bencher| {
                    bencher.iter(|| observer.observe(black_box(&elements), &shape, shape[0]));
                });
            }
        }
    }
}

fn choosing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("choosing a range");
    for (kind, rectified) in KINDS {
        let mut observer = Observer::default();
        observer.observe(&values(1 << 20, rectified), &[1 << 20], 1);
        let mut bench = |name: &str, choose: &dyn Fn(&Observer)| {
            group.bench_function(format!("{kind}, {name}"), |bencher| {
                bencher.iter(|| choose(black_box(&observer)));
            });
        };
        bench("min-max", &|observer| {
            black_box(observer.min_max(DType::U8));
        });
        bench("mean-extremes", &|observer| {
            black_box(observer.mean_extremes(DType::U8));
        });
        bench("percentile", &|observer| {
            black_box(observer.percentile(99.999, DType::U8));
        });
        bench("entropy", &|observer| {
            black_box(observer.entropy(DType::U8));
        });
        bench("mse", &|observer| {
            black_box(observer.mean_squared_error(DType::U8));
        });
    }
}

criterion_group!(benches, observing, choosing);
criterion_main!(benches);
