//! How fast weights are rounded and packed, on one thread, beside a copy of the same bytes:
//!
//!     cargo bench --bench weights [-- OUTPUTS DEPTH]
//!
//! Printed are GB of float weights a second (the median of many runs, interleaved with the copy) and how many
//! times the copy's time that is. The copy reads and writes as many bytes as the weights have.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use optix_data::Latencies;
use optix_passes::quantize::affine::{Affine, channel_maxima, quantize_weights};
use optix_passes::quantize::blocks::{Algorithm, Grid, ZeroPoint};
use optix_passes::quantize::packing::{Layout, QuantizedMatrix};

/// Runs both in turn for a while; median seconds of each, and the median of the ratios of neighbours.
fn interleaved(mut copy: impl FnMut(), mut work: impl FnMut()) -> (f64, f64, f64) {
    let seconds = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    let (mut rounds, mut total) = (Vec::new(), 0.0);
    while rounds.len() < 7 || (total < 2.0 && rounds.len() < 300) {
        let round = (seconds(&mut copy), seconds(&mut work));
        total += round.0 + round.1;
        rounds.push(round);
    }
    let of = |pick: fn(&(f64, f64)) -> f64| Latencies::new(rounds.iter().map(pick)).median();
    (of(|(a, _)| *a), of(|(_, b)| *b), of(|(a, b)| b / a))
}

fn main() {
    let sizes: Vec<usize> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .map(|argument| argument.parse().expect("a size is a number"))
        .collect();
    let (outputs, depth) = match sizes[..] {
        [] => (4096, 4096),
        [outputs, depth] => (outputs, depth),
        _ => panic!("give OUTPUTS and DEPTH, or nothing"),
    };
    rayon_to_one_thread(|| measure_all(outputs, depth));
}

/// Work is spread over threads by the passes; a figure beside a copy wants one.
fn rayon_to_one_thread(run: impl FnOnce() + Send) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(run);
}

fn measure_all(outputs: usize, depth: usize) {
    let weights: Vec<f32> = (0..outputs * depth)
        .map(|i| (i as f32 * 0.37).sin() * (1.0 + (i as f32 * 1e-3).cos()) * 0.05)
        .collect();
    let gigabytes = weights.len() as f64 * 4e-9;
    let mut target = vec![0f32; weights.len()];
    println!("{outputs} x {depth} weights, {:.0} MB, one thread", gigabytes * 1e3);
    let mut show = |name: &str, work: &mut dyn FnMut()| {
        let (copy, own, ratio) =
            interleaved(|| black_box(&mut target).copy_from_slice(black_box(&weights)), work);
        println!(
            "{name:44} {:7.2} GB/s   copy {:6.2} GB/s   {ratio:6.1} x the copy",
            gigabytes / own,
            gigabytes / copy
        );
    };
    for (axis, shape) in [(0, [outputs, depth]), (1, [depth, outputs])] {
        show(&format!("int8, a scale a channel, axis {axis}"), &mut || {
            let maxima = channel_maxima(black_box(&weights), &shape, Some(axis));
            let scales = maxima.iter().map(|&max| Affine::symmetric_int8(max).scale).collect();
            black_box(quantize_weights(&weights, &shape, Some(axis), scales));
        });
    }
    for layout in [Layout::OutputFirst, Layout::DepthFirst] {
        for (bits, block) in [(8, 128), (4, 32), (4, 128), (2, 32)] {
            for algorithm in [Algorithm::Rtn, Algorithm::Mse, Algorithm::Hqq] {
                let grid = Grid { bits, zero_point: ZeroPoint::Integer };
                show(&format!("{bits} bits, blocks of {block}, {algorithm:?}, {layout:?}"), &mut || {
                    let sizes = [outputs, depth, block];
                    black_box(QuantizedMatrix::new(black_box(&weights), layout, sizes, grid, algorithm));
                });
            }
        }
    }
    for bits in [8, 4, 2] {
        let grid = Grid { bits, zero_point: ZeroPoint::Integer };
        let sizes = [outputs, depth, 32];
        let matrix = QuantizedMatrix::new(&weights, Layout::OutputFirst, sizes, grid, Algorithm::Rtn);
        show(&format!("packing {bits} bits, MatMulNBits"), &mut || {
            black_box(black_box(&matrix).matmul_n_bits());
        });
        show(&format!("packing {bits} bits, DequantizeLinear"), &mut || {
            black_box(black_box(&matrix).dequantize_linear(Layout::DepthFirst, &[depth, outputs], false));
        });
    }
}
