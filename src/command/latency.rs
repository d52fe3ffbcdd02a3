//! The latency of the original and the written model, for the report.

use std::collections::HashMap;

use anyhow::{Context, bail};
use optix_data::{Dataset, Latencies, Ratio};
use optix_ir::{Dim, Model, Tensor};
use optix_pipeline::check::random_tensor;
use optix_pipeline::report::{Interval, KernelFacts, LatencyFacts, Report, Requirement};
use optix_pipeline::{Deployment, KernelTime, Layer, Numerics, Recipe};
use optix_runtime::EngineDeployment;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::setup;

/// Seconds that the comparison takes.
const SECONDS: f64 = 2.0;

/// Whether the models differ in more than looks: cleaning up is asked for its own sake.
pub fn is_worth_it(recipe: &Recipe) -> bool {
    recipe.require.latency_ratio.is_some()
        || recipe.steps.iter().any(|step| step.pass.promises().numerics == Numerics::Lossy)
}

/// Measures both on one sample, the layers' kernels too; `None` when there are too few figures to tell.
///
/// # Errors
/// When there is nothing to feed, or a model does not run.
pub fn measure(
    deployment: &mut EngineDeployment,
    before: &Model,
    after: &Model,
    datasets: &[&Dataset],
    layers: &mut [&mut Layer],
) -> anyhow::Result<Option<LatencyFacts>> {
    let (feeds, input) = match datasets.first() {
        Some(dataset) => (sample(before, dataset)?, "one sample".to_owned()),
        None => (random(before)?, "random numbers".to_owned()),
    };
    let seconds = deployment.latencies(&[before, after], &feeds, SECONDS)?;
    // Some engines tell nothing about their kernels.
    let kernels = [before, after].map(|model| deployment.kernels(model, &feeds).unwrap_or_default());
    attribute(layers, [before, after], &kernels);
    let kernels = kernel_facts(&kernels[1]);
    let [before, after] = seconds.as_slice() else { bail!("the engine gave no figures") };
    let Some(ratio) = Ratio::of_pairs(after, before) else { return Ok(None) };
    let median = |seconds: &[f64]| Latencies::new(seconds.iter().copied()).median();
    Ok(Some(LatencyFacts {
        engine: deployment.describe(),
        input,
        before_seconds: median(before),
        after_seconds: median(after),
        ratio: Interval { value: ratio.ratio, low: ratio.interval.low, high: ratio.interval.high },
        pairs: ratio.pairs as u64,
        kernels,
    }))
}

/// Operators of kernels that convolve or multiply, in integers and in floats; onnxruntime's own included.
const INTEGER: &[&str] = &[
    "QLinearConv",
    "ConvInteger",
    "QLinearMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QGemm",
    "MatMulNBits",
];
const FLOAT: &[&str] = &["Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"];

fn kernel_facts(kernels: &[KernelTime]) -> Option<KernelFacts> {
    let of =
        |kinds: &[&str]| kernels.iter().filter(|kernel| kinds.contains(&kernel.op_type.as_str())).count();
    let total: f64 = kernels.iter().map(|kernel| kernel.seconds).sum();
    let quantizes = |kernel: &&KernelTime| kernel.op_type.ends_with("uantizeLinear");
    let quantizers: f64 = kernels.iter().filter(quantizes).map(|kernel| kernel.seconds).sum();
    (total > 0.0).then(|| KernelFacts {
        integer: of(INTEGER) as u64,
        float: of(FLOAT) as u64,
        quantizers: kernels.iter().filter(quantizes).count() as u64,
        quantizer_share: quantizers.max(0.0) / total,
    })
}

/// Writes what each layer's kernel took before and after into its row.
fn attribute(layers: &mut [&mut Layer], models: [&Model; 2], kernels: &[Vec<KernelTime>; 2]) {
    let [before, after] = [0, 1].map(|index| {
        let mut seconds: HashMap<String, f64> = HashMap::new();
        for kernel in &kernels[index] {
            if let Some(&node) = kernel.nodes.first() {
                let (name, _) = optix_pipeline::naming::node_and_op(models[index], node);
                *seconds.entry(name).or_default() += kernel.seconds;
            }
        }
        seconds
    });
    for layer in layers {
        layer.micros_before = before.get(&layer.node).map(|seconds| seconds * 1e6);
        layer.micros_after = after.get(&layer.node).map(|seconds| seconds * 1e6);
    }
}

fn sample(model: &Model, dataset: &Dataset) -> anyhow::Result<Vec<(String, Tensor)>> {
    let bound = dataset.bind(&setup::inputs(model)?, 1)?;
    let batch = bound.batches()?.next().context("the data hold no samples")??;
    Ok(batch.feeds)
}

/// Random inputs with one sample, where nothing but the number of samples is free.
fn random(model: &Model) -> anyhow::Result<Vec<(String, Tensor)>> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut feeds = Vec::new();
    for spec in setup::inputs(model)? {
        let mut shape = Vec::new();
        for (axis, dim) in spec.shape.iter().enumerate() {
            match dim {
                Dim::Fixed(size) => shape.push(*size),
                _ if axis == 0 => shape.push(1),
                _ => bail!(
                    "input `{}` has sizes that the model leaves free: give data with --calib or --eval",
                    optix_base::escape_for_terminal(&spec.name)
                ),
            }
        }
        let count = optix_ir::element_count(&shape).filter(|&count| count <= 1 << 28);
        let tensor = count.and_then(|count| random_tensor(spec.dtype, shape, count, &mut random));
        let tensor = tensor.with_context(|| {
            format!("input `{}` cannot be filled", optix_base::escape_for_terminal(&spec.name))
        })?;
        feeds.push((spec.name, tensor));
    }
    Ok(feeds)
}

/// The requirement that nobody has to state: a quantized model is not slower. Only a difference that is
/// shown counts.
pub fn not_slower(report: &Report, allowed: bool) -> Option<Requirement> {
    let latency = report.latency.as_ref()?;
    if allowed || latency.ratio.low <= 1.0 {
        return None;
    }
    Some(Requirement {
        name: "not-slower".to_owned(),
        threshold: 1.0,
        value: Some(latency.ratio.low),
        met: false,
        note: "the model is slower than the original; --allow-slower accepts that".to_owned(),
    })
}
