//! How fast weights are rounded and packed, on one thread, beside a copy of the same bytes:
//!
//!     cargo bench --bench weights [-- FILTER]
//!
//! Throughput is that of the float weights; the copy reads and writes as many bytes as they have.

#![allow(missing_docs, reason = "what the macro makes has none")]

use std::hint::black_box;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use optix_passes::quantize::affine::{Affine, channel_maxima, quantize_weights};
use optix_passes::quantize::blocks::{Algorithm, Grid, ZeroPoint};
use optix_passes::quantize::packing::{Layout, QuantizedMatrix};

/// Output channels, and weights of each.
const SIZES: [usize; 2] = [1024, 4096];

/// A group whose throughput is that of so many bytes, with their copy in it; work is done by one thread.
fn group<'c>(criterion: &'c mut Criterion, name: &str, weights: &[f32]) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(4 * weights.len() as u64)).sample_size(20);
    let mut target = vec![0f32; weights.len()];
    group.bench_function("copy", |bencher| {
        bencher.iter(|| black_box(&mut target).copy_from_slice(black_box(weights)));
    });
    group
}

/// Work is spread over threads by the passes; a figure beside a copy wants one.
fn one_thread() -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread")
}

fn weights() -> Vec<f32> {
    let [outputs, depth] = SIZES;
    (0..outputs * depth).map(|i| (i as f32 * 0.37).sin() * (1.0 + (i as f32 * 1e-3).cos()) * 0.05).collect()
}

fn channels(criterion: &mut Criterion) {
    let ([outputs, depth], weights, pool) = (SIZES, weights(), one_thread());
    let mut group = group(criterion, "int8, a scale a channel", &weights);
    for (name, axis, shape) in [("first axis", 0, [outputs, depth]), ("last axis", 1, [depth, outputs])] {
        let quantize = || {
            let maxima = channel_maxima(black_box(&weights), &shape, Some(axis));
            let scales = maxima.iter().map(|&max| Affine::symmetric_int8(max).scale).collect();
            quantize_weights(&weights, &shape, Some(axis), scales)
        };
        group.bench_function(name, |bencher| bencher.iter(|| pool.install(quantize)));
    }
}

fn blocks(criterion: &mut Criterion) {
    let ([outputs, depth], weights, pool) = (SIZES, weights(), one_thread());
    let mut group = group(criterion, "blocks", &weights);
    for layout in [Layout::OutputFirst, Layout::DepthFirst] {
        for (bits, block) in [(8, 128), (4, 32), (4, 128), (2, 32)] {
            for algorithm in [Algorithm::Rtn, Algorithm::Mse, Algorithm::Hqq] {
                let grid = Grid { bits, zero_point: ZeroPoint::Integer };
                let name = format!("{bits} bits, blocks of {block}, {algorithm:?}, {layout:?}");
                let sizes = [outputs, depth, block];
                let quantize = || QuantizedMatrix::new(black_box(&weights), layout, sizes, grid, algorithm);
                group.bench_function(name, |bencher| bencher.iter(|| pool.install(quantize)));
            }
        }
    }
}

fn packing(criterion: &mut Criterion) {
    let ([outputs, depth], weights, pool) = (SIZES, weights(), one_thread());
    let mut group = group(criterion, "packing", &weights);
    for bits in [8, 4, 2] {
        let grid = Grid { bits, zero_point: ZeroPoint::Integer };
        let sizes = [outputs, depth, 32];
        let matrix = QuantizedMatrix::new(&weights, Layout::OutputFirst, sizes, grid, Algorithm::Rtn);
        group.bench_function(format!("{bits} bits, MatMulNBits"), |bencher| {
            bencher.iter(|| pool.install(|| black_box(&matrix).matmul_n_bits()));
        });
        let linear = || black_box(&matrix).dequantize_linear(Layout::DepthFirst, &[depth, outputs], false);
        group.bench_function(format!("{bits} bits, DequantizeLinear"), |bencher| {
            bencher.iter(|| pool.install(linear));
        });
    }
}

criterion_group!(benches, channels, blocks, packing);
criterion_main!(benches);
