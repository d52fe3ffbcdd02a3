//! What looking at intermediate values costs, on one thread:
//!
//!     cargo bench --bench capture [-- MODEL [NAME=SIZE ...]]
//!
//! Runs a model (the two fixtures when none is named; the first axis is 1 and 32, other free dimensions need a
//! size by their name) for its outputs, and for those and everything that calibration for integer arithmetic
//! looks at: what convolutions and products read that is no constant. Runs of both are interleaved in one
//! process; printed are the medians of the CPU time of a run and of the ratios of neighbours.

#![allow(clippy::print_stdout)]

use std::path::Path;

use optix_data::Latencies;
use optix_ir::{Dim, Model, Tensor, Type, ValueId};
use optix_runtime::{Cpu, Engine, LoadOptions, Session};
use rustix::time::{ClockId, clock_gettime};

/// Seconds of this process.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Gives free dimensions sizes.
fn bind(model: &mut Model, batch: usize, sizes: &[(String, usize)]) {
    let main = model.main();
    for index in 0..model.graph(main).inputs().len() {
        let value = model.graph(main).inputs()[index].value;
        let Some(Type::Tensor(tensor)) = model.value(value).ty.clone() else { continue };
        let (Some(dtype), Some(shape)) = (tensor.dtype, tensor.shape) else { continue };
        let dims = shape.iter().enumerate().map(|(axis, dim)| match dim {
            Dim::Fixed(size) => Dim::Fixed(*size),
            _ if axis == 0 => Dim::Fixed(batch),
            Dim::Symbol(name) => match sizes.iter().find(|(known, _)| **known == **name) {
                Some((_, size)) => Dim::Fixed(*size),
                None => panic!("give a size: {name}=SIZE"),
            },
            Dim::Unknown => {
                panic!("input `{}` has a free dimension without a name", model.value(value).name())
            }
        });
        let ty = Some(Type::tensor(dtype, dims.collect::<Vec<_>>()));
        model.value_mut(value).ty = ty;
    }
}

/// The values that calibration looks at, and the outputs.
fn looked_at(model: &Model) -> Vec<ValueId> {
    let main = model.main();
    let mut wanted: Vec<ValueId> = model.graph(main).outputs().iter().map(|info| info.value).collect();
    for node in model.nodes_of(main).map(|id| model.node(id)) {
        if matches!(node.op_type.as_str(), "Conv" | "ConvTranspose" | "MatMul" | "Gemm") {
            let read = node.inputs().iter().take(2).flatten().copied();
            wanted.extend(read.filter(|&value| model.value(value).initializer().is_none()));
        }
    }
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

fn measure(path: &Path, batch: usize, sizes: &[(String, usize)]) {
    let loaded = optix_io::load(path, &optix_io::LoadOptions::default());
    let mut model = loaded.unwrap_or_else(|error| panic!("{}: {error}", path.display())).model;
    bind(&mut model, batch, sizes);
    let feeds = optix_pipeline::check::random_feeds(&model, 1).expect("inputs are dense tensors");
    let inputs = model.graph(model.main()).inputs();
    let feeds: Vec<(ValueId, Tensor)> = inputs
        .iter()
        .filter_map(|info| {
            let name = model.value(info.value).name();
            feeds.iter().find(|(fed, _)| fed == name).map(|(_, tensor)| (info.value, tensor.clone()))
        })
        .collect();
    let outputs: Vec<ValueId> = model.graph(model.main()).outputs().iter().map(|info| info.value).collect();
    let wanted = looked_at(&model);
    let options = LoadOptions { threads: 1, ..LoadOptions::default() };
    let load = || Cpu.load(&model, &options).expect("the model runs");
    let (mut plain, mut looking) = (load(), load());
    let run = |session: &mut Box<dyn Session>, wanted: &[ValueId]| {
        let start = cpu_seconds();
        session.run_with(&feeds, wanted, &mut |_, _| Ok(())).expect("the model runs");
        cpu_seconds() - start
    };
    let (mut rounds, mut seconds) = (Vec::new(), 0.0);
    while rounds.len() < 10 || seconds < 4.0 {
        // Who goes first alternates.
        let (a, b) = if rounds.len() % 2 == 0 {
            let a = run(&mut plain, &outputs);
            (a, run(&mut looking, &wanted))
        } else {
            let b = run(&mut looking, &wanted);
            (run(&mut plain, &outputs), b)
        };
        rounds.push((a, b));
        seconds += a + b;
    }
    let of = |pick: fn(&(f64, f64)) -> f64| Latencies::new(rounds.iter().map(pick)).median();
    println!(
        "{} batch {batch}: {} values looked at; {:.3} ms plain, {:.3} ms looking, ratio {:.3} ({} rounds)",
        path.file_name().unwrap_or_default().to_string_lossy(),
        wanted.len(),
        1e3 * of(|(a, _)| *a),
        1e3 * of(|(_, b)| *b),
        of(|(a, b)| b / a),
        rounds.len()
    );
}

fn main() {
    let mut paths = Vec::new();
    let mut sizes = Vec::new();
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match argument.split_once('=') {
            Some((name, size)) => sizes.push((name.to_owned(), size.parse().expect("a size is a number"))),
            None => paths.push(argument),
        }
    }
    if paths.is_empty() {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/");
        paths =
            ["fmnist_mobilenet.onnx", "fmnist_resnet.onnx"].map(|name| format!("{fixtures}{name}")).into();
    }
    for path in &paths {
        for batch in [1, 32] {
            measure(Path::new(path), batch, &sizes);
        }
    }
}
