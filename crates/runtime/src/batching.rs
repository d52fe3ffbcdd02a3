//! How many samples are run together: as many as keep kernels busy in little memory, and only where it is
//! proved on the first samples that running them together changes nothing.

use std::collections::HashMap;

use optix_ir::{DType, Dim, Model, Tensor, Type, ValueId};
use optix_pipeline::check::OpsEvaluator;
use optix_pipeline::{Batch, Bound, Dataset, InputSpec, OracleError};

use crate::stream::{Lane, Outcome};

/// Most samples together when the caller does not say.
const MOST: usize = 32;

/// Bytes that the largest value of a batch may take when the caller does not say: beyond the caches,
/// larger batches only cost memory.
const LARGEST: u64 = 8 << 20;

/// Bytes of all values of a batch that are kept when inner ones are wanted too.
const KEPT: u64 = 32 << 20;

/// Batches looked at for one with more than one sample: samples of many shapes may come one at a time.
const SEARCHED: usize = 8;

/// Greatest difference between a sample alone and among others, relative to the greatest value of its
/// output: what summing in another order explains, and a scale shared by the batch does not.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 | DType::F64 => 1e-4,
        dtype if dtype.is_float() => 2e-2,
        _ => 0.0,
    }
}

/// What must not change when samples are run together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Every wanted value.
    Wanted,
    /// The models' outputs: other values need not have an axis of samples.
    Outputs,
}

/// The number of samples that are run together, and what is known of it.
pub struct Batching {
    /// The data in batches of that size.
    pub bound: Bound,
    /// Why samples are run one at a time although the model's inputs have a free batch axis.
    pub alone: Option<String>,
    /// The first batch, with its results: they were needed for the proof.
    pub first: Option<Outcome>,
}

impl Batching {
    fn plain(bound: Bound) -> Batching {
        Batching { bound, alone: None, first: None }
    }

    /// Samples in a batch.
    pub fn size(&self) -> usize {
        self.bound.batch_size()
    }
}

/// How many samples the caller wants together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// So many; by rule without it.
    pub size: Option<usize>,
    /// No more than this in any case.
    pub most: usize,
}

impl From<Option<usize>> for Asked {
    fn from(size: Option<usize>) -> Asked {
        Asked { size, most: usize::MAX }
    }
}

/// Decides how many samples the lanes run together: `asked`, or by the size of the models' values. The
/// first batch is then run as a whole and its first two samples and its last one alone; where that makes a
/// difference, all samples are run alone.
///
/// # Errors
/// When the data do not fit, or a model does not run on the first samples.
pub fn batching(
    lanes: &mut [Lane<'_>],
    dataset: &Dataset,
    inputs: &[InputSpec],
    asked: impl Into<Asked>,
    proof: Proof,
) -> Result<Batching, OracleError> {
    let asked = asked.into();
    let single = dataset.bind(inputs, 1)?;
    if !single.is_batched() || single.batch_size() > 1 {
        return Ok(Batching::plain(single));
    }
    let Some(sample) = single.batches()?.next().transpose()? else { return Ok(Batching::plain(single)) };
    let size = match asked.size {
        Some(size) => size,
        None => {
            let fits = lanes.iter().map(|lane| fitting(lane, &sample, proof)).min().unwrap_or(1);
            // Powers of two: kernels work in blocks.
            1 << fits.ilog2()
        }
    };
    let size = size
        .min(asked.most.max(1))
        .min(dataset.len().and_then(|count| usize::try_from(count).ok()).unwrap_or(size));
    if size <= 1 {
        return Ok(Batching::plain(single));
    }
    let bound = dataset.bind(inputs, size)?;
    let mut tried = None;
    for (index, batch) in bound.batches()?.take(SEARCHED).enumerate() {
        let batch = batch?;
        if batch.count > 1 {
            tried = Some((index, batch));
            break;
        }
    }
    let Some((index, batch)) = tried else { return Ok(Batching::plain(single)) };
    match prove(lanes, &batch, proof)? {
        Ok(outputs) => {
            let first = Some((batch, outputs)).filter(|_| index == 0);
            Ok(Batching { bound, alone: None, first })
        }
        Err(why) => Ok(Batching { bound: single, alone: Some(why), first: None }),
    }
}

/// What the lanes give for a batch, or why its samples must not be run together.
fn prove(
    lanes: &mut [Lane<'_>],
    batch: &Batch,
    proof: Proof,
) -> Result<Result<Vec<Vec<Tensor>>, String>, OracleError> {
    let mut all = Vec::with_capacity(lanes.len());
    let mut samples = vec![0, 1, batch.count - 1];
    samples.dedup();
    for lane in lanes {
        let together = lane.run(batch);
        for &index in &samples {
            let Some(one) = batch.sample(index) else {
                return Ok(Err("its samples cannot be taken apart".into()));
            };
            let alone = lane.run(&one)?;
            let together = match &together {
                Ok(together) => together,
                // Alone it runs: the model takes one sample at a time, whatever its inputs declare.
                Err(error @ (OracleError::Node { .. } | OracleError::Feeds(_))) => {
                    return Ok(Err(format!("{} samples together fail: {error}", batch.count)));
                }
                Err(_) => break,
            };
            let model = lane.model();
            let is_output =
                |value| model.graph(model.main()).outputs().iter().any(|info| info.value == value);
            for ((&value, together), alone) in lane.wanted().iter().zip(together).zip(&alone) {
                if proof == Proof::Outputs && !is_output(value) {
                    continue;
                }
                let name = optix_base::escape_for_terminal(lane.model().value(value).name());
                if let Some(why) = differ(together, alone, index, batch.count) {
                    return Ok(Err(format!("`{name}` {why}")));
                }
            }
        }
        all.push(together?);
    }
    Ok(Ok(all))
}

/// In what a sample's result among `count` others differs from its result alone.
fn differ(together: &Tensor, alone: &Tensor, index: usize, count: usize) -> Option<String> {
    let row = match (together.shape(), alone.shape()) {
        ([all, rest @ ..], [1, own @ ..]) if *all == count && rest == own => row(together, index),
        _ => None,
    };
    let Some(row) = row else {
        return Some(format!(
            "has shape {:?} for {count} samples and {:?} for one: its first axis does not count samples",
            together.shape(),
            alone.shape()
        ));
    };
    if row.bytes() == alone.bytes() {
        return None;
    }
    let tolerance = tolerance(row.dtype());
    let numbers = row.to_f64s().ok().zip(alone.to_f64s().ok()).filter(|_| tolerance > 0.0);
    let Some((row, alone)) = numbers else {
        return Some(format!("of sample {index} is another one among {count} samples than alone"));
    };
    let greatest = alone.iter().filter(|x| x.is_finite()).fold(0f64, |most, x| most.max(x.abs()));
    let error = |(a, b): (&f64, &f64)| match (a - b).abs() {
        error if error.is_finite() => error,
        _ if a == b || (a.is_nan() && b.is_nan()) => 0.0,
        _ => f64::INFINITY,
    };
    let error = row.iter().zip(&alone).map(error).fold(0f64, f64::max);
    (error > tolerance * greatest).then(|| {
        format!(
            "of sample {index} differs by {error:.3e} (of at most {greatest:.3e}) between {count} samples together \
             and one alone"
        )
    })
}

/// One sample's part of a value.
fn row(tensor: &Tensor, index: usize) -> Option<Tensor> {
    let shape: Vec<usize> = std::iter::once(1).chain(tensor.shape().iter().skip(1).copied()).collect();
    if tensor.dtype() == DType::String {
        let size: usize = shape.iter().product();
        let strings = tensor.strings().ok()?;
        return Some(Tensor::from_strings(shape, strings.get(index * size..(index + 1) * size)?));
    }
    if tensor.dtype().is_packed() {
        return None;
    }
    let size = tensor.dtype().byte_len(optix_ir::element_count(&shape)?)?;
    let bytes = tensor.bytes().slice(index * size..(index + 1) * size);
    Tensor::new(tensor.dtype(), shape, bytes).ok()
}

/// Samples that fit together: by the largest value that is computed, and by all that are kept.
fn fitting(lane: &Lane<'_>, sample: &Batch, proof: Proof) -> usize {
    let sizes = value_bytes(lane.model(), &sample.feeds);
    let largest = sizes.values().copied().max().unwrap_or(0);
    let fits = LARGEST / largest.max(1);
    let kept: u64 = lane.wanted().iter().filter_map(|value| sizes.get(value)).sum();
    let fits = if proof == Proof::Outputs { fits.min(KEPT / kept.max(1)) } else { fits };
    usize::try_from(fits).unwrap_or(MOST).clamp(1, MOST)
}

/// Bytes of the values of a model's main graph on such feeds (by the inputs' names), as far as inference
/// tells.
pub fn value_bytes(model: &Model, feeds: &[(String, Tensor)]) -> HashMap<ValueId, u64> {
    let mut model = model.clone();
    let main = model.main();
    for index in 0..model.graph(main).inputs().len() {
        let name = model.value(model.graph(main).inputs()[index].value).name().to_owned();
        let fed = feeds.iter().find(|(input, _)| *input == name);
        if let (Some((_, tensor)), Some(info)) = (fed, model.input_info_mut(main, index)) {
            info.ty = Some(Type::tensor(tensor.dtype(), tensor.shape().iter().map(|&size| Dim::Fixed(size))));
        }
    }
    let facts = optix_ir::infer::analyse(&model, &OpsEvaluator);
    let graph = model.graph(main);
    let computed = model.nodes_of(main).flat_map(|node| model.node(node).outputs().iter().flatten().copied());
    let sizes = graph.inputs().iter().map(|info| info.value).chain(computed).filter_map(|value| {
        let ty = facts.fact(value).ty.clone()?;
        let elements = optix_ir::element_count(&ty.fixed_shape()?)?;
        Some((value, ty.dtype()?.byte_len(elements)? as u64))
    });
    sizes.collect()
}
