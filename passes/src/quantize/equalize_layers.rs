//! Ranges of weights balanced between one layer and the next.

use std::collections::BTreeMap;

use optix_ir::{Model, NodeId, Tensor, ValueId};
use optix_pipeline::{
    Cx, DecisionError, Family, Interface, Layer, Named, Numerics, OracleError, PackedFloats, Pass, PassError,
    Promises, Requires, Topology, decibels,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chains::{self, Chain, Weights};
use super::quantized::{constant_bytes, refuse_quantized};
use super::reservoir::Channels;
use super::rewrite::drop_unused;
use crate::names::{check_patterns, not_excluded};

/// When chains of layers are equalized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EqualizeMode {
    /// Where the error that int8 would make gets less, as estimated from calibration data.
    #[default]
    Auto,
    /// Everywhere; needs no calibration data.
    Always,
}

/// Balances the ranges of channels between layers that follow one another, so that one scale for many
/// channels loses less. The float model computes the same as before (cross-layer equalization, Nagel et
/// al. 2019, arXiv 1906.04721).
///
/// Channel i of a Conv, ConvTranspose or Gemm is divided by s_i, and the weights of the next layer that read it
/// are multiplied by s_i, with s_i = sqrt(max|W1_i| / max|W2_i|); a depthwise convolution between two
/// layers is balanced with both. Between them only Relu, LeakyRelu, PRelu and Identity may stand,
/// which let a positive factor through; Clip and HardSwish do not. Values on the way must have one reader.
///
/// In mode `auto` a chain of layers is changed only where the expected noise of int8 weights and
/// activations at the outputs of its layers falls. Fold batch normalization before.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// layers (float[N, 2] x) => (float[N, 2] y)
/// <float[2, 2] w1 = {8, 0, 0, 0.5}, float[2, 2] w2 = {0.5, 0.25, 1, 2}>
/// {
///     a = Gemm (x, w1)
///     b = Relu (a)
///     y = Gemm (b, w2)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// layers (float[N, 2] x) => (float[N, 2] y)
/// <float[2, 2] w1_equalized = {2, 0, 0, 1}, float[2, 2] w2_equalized = {2, 1, 0.5, 1}>
/// {
///     a = Gemm (x, w1_equalized)
///     b = Relu (a)
///     y = Gemm (b, w2_equalized)
/// }
/// ```
///
/// With `absorb-bias`, what a channel behind a Relu never falls below is moved from its bias into
/// the next layer's. "Never" is: mean - 3 deviations and the least value seen in calibration. On other data results may
/// move then.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct EqualizeLayers {
    /// Which chains are changed.
    pub mode: EqualizeMode,
    /// Estimate with one weight scale a layer, as `per-channel = false` of quantize-static has it.
    pub per_tensor: bool,
    /// Move high biases into the next layer; needs calibration data.
    pub absorb_bias: bool,
    /// Leave these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Named for EqualizeLayers {
    const NAME: &'static str = "equalize-layers";
    const FAMILY: Family = Family::Quantize;
}

/// Sweeps at most; a handful is usual.
const SWEEPS: usize = 50;

/// A sweep that moves no scale by more than this ends it.
const SETTLED: f64 = 1e-3;

/// Share of its noise that a chain must lose to be changed: gains below the estimate's own error were
/// losses when measured.
const LEAST_GAIN: f64 = 0.1;

/// What calibration saw around a chain: its layers' inputs and outputs.
type Seen = BTreeMap<ValueId, Channels>;

impl Pass for EqualizeLayers {
    fn requires(&self) -> Requires {
        let calibration = self.mode == EqualizeMode::Auto || self.absorb_bias;
        Requires { calibration, inferred_types: true, opset: 7 }
    }

    fn promises(&self) -> Promises {
        // A deep network adds up the rounding of every layer.
        let numerics = if self.absorb_bias { Numerics::Lossy } else { Numerics::Within(1e-3) };
        // A layer without a bias may get one.
        let topology = if self.absorb_bias { Topology::Changed } else { Topology::Kept };
        Promises { numerics, interface: Interface::Kept, topology }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        refuse_quantized(model)?;
        check_patterns(model, &self.exclude)?;
        let wanted = |id: NodeId| not_excluded(model, id, &self.exclude);
        let (chains, alone) = chains::find(model, &wanted);
        for (node, reason) in alone {
            cx.skip(model, node, reason);
        }
        // Filled when the first decision is made, and never when a lock is applied.
        let mut seen: Option<Seen> = None;
        for (index, chain) in chains.iter().enumerate() {
            cx.progress("equalizing layers", index as u64, chains.len() as u64)?;
            let mut weights: Vec<Weights> = chain.layers.iter().map(|layer| layer.weights.clone()).collect();
            let scales = equalize(&mut weights);
            let decision = if self.requires().calibration {
                let key = chain.layers.first().map_or("", |layer| model.value(layer.output).name());
                cx.decide(&format!("chain/{key}"), |cx| {
                    if seen.is_none() {
                        seen = Some(calibrate(model, &chains, cx)?);
                    }
                    let nothing = Seen::new();
                    Ok(self.decided(chain, &weights, &scales, seen.as_ref().unwrap_or(&nothing)))
                })?
            } else {
                self.decided(chain, &weights, &scales, &Seen::new())
            };
            let (expected, shifts) = match decision {
                Decision::Left(reason) => {
                    for layer in &chain.layers {
                        cx.skip(model, layer.weights.node, reason.as_str());
                        row(model, layer.weights.node, "as it was", &reason, cx);
                    }
                    continue;
                }
                Decision::Equalized { expected, shifts } => (expected, shifts),
            };
            let shifts: Vec<Vec<f32>> = shifts.into_iter().map(|PackedFloats(shifts)| shifts).collect();
            let absorbed = absorb(&mut weights, &shifts)?;
            if !cx.may_edit("equalize-layers") {
                return Ok(());
            }
            for (at, new) in weights.iter().enumerate() {
                write(model, new);
                let said = match scales.get(at) {
                    Some(scales) => {
                        let least = scales.iter().copied().fold(f64::INFINITY, f64::min);
                        let greatest = scales.iter().copied().fold(0.0, f64::max);
                        format!("its channels divided by {least:.3} to {greatest:.3}{expected}")
                    }
                    None => format!("the last of its chain{expected}"),
                };
                row(model, new.node, "equalized", &said, cx);
            }
            cx.count("chains equalized", 1);
            cx.count("layers equalized", weights.len() as u64);
            cx.count("biases absorbed", absorbed);
        }
        Ok(())
    }
}

/// What is decided about a chain, as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum Decision {
    /// It stays as it is, for this reason.
    Left(String),
    /// It is equalized.
    Equalized {
        /// What it is expected to gain, in words.
        expected: String,
        /// What moves from the bias of each layer but the last into the next one's; empty for none.
        shifts: Vec<PackedFloats>,
    },
}

impl EqualizeLayers {
    /// What is best for a chain, on what calibration saw.
    fn decided(&self, chain: &Chain, weights: &[Weights], scales: &[Vec<f64>], seen: &Seen) -> Decision {
        if let Err(reason) = self.judge(chain, weights, scales, seen) {
            return Decision::Left(reason);
        }
        let noise =
            |weights: &[Weights], scales: &[Vec<f64>]| noise(chain, weights, scales, seen, self.per_tensor);
        let ones: Vec<Vec<f64>> = scales.iter().map(|scales| vec![1.0; scales.len()]).collect();
        let before: Vec<Weights> = chain.layers.iter().map(|layer| layer.weights.clone()).collect();
        let expected = match (noise(&before, &ones), noise(weights, scales)) {
            (Some(before), Some(after)) => {
                format!("; expected {:.1} -> {:.1} dB", decibels(before), decibels(after))
            }
            _ => String::new(),
        };
        let shifts = if self.absorb_bias { shifts(chain, weights, scales, seen) } else { Vec::new() };
        Decision::Equalized { expected, shifts: shifts.into_iter().map(PackedFloats).collect() }
    }

    /// Whether a chain is to be changed, or why not.
    fn judge(
        &self,
        chain: &Chain,
        weights: &[Weights],
        scales: &[Vec<f64>],
        seen: &Seen,
    ) -> Result<(), String> {
        if weights.iter().any(|weights| !weights.is_finite()) {
            return Err("a weight would not be finite any more".to_owned());
        }
        if scales.iter().flatten().all(|scale| (scale - 1.0).abs() < SETTLED) {
            return Err("its channels are balanced already".to_owned());
        }
        if self.mode == EqualizeMode::Always {
            return Ok(());
        }
        let ones: Vec<Vec<f64>> = scales.iter().map(|scales| vec![1.0; scales.len()]).collect();
        let before: Vec<Weights> = chain.layers.iter().map(|layer| layer.weights.clone()).collect();
        let before = noise(chain, &before, &ones, seen, self.per_tensor);
        let after = noise(chain, weights, scales, seen, self.per_tensor);
        let (Some(before), Some(after)) = (before, after) else {
            return Err("calibration saw no finite values of it".to_owned());
        };
        if after > before * (1.0 - LEAST_GAIN) {
            return Err(format!(
                "equalizing its chain of {} layers would take int8 from {:.1} to {:.1} dB",
                weights.len(),
                decibels(before),
                decibels(after)
            ));
        }
        Ok(())
    }
}

/// One pass over the calibration data: channels of the inputs and outputs of all layers.
fn calibrate(model: &Model, chains: &[Chain], cx: &mut Cx<'_>) -> Result<Seen, PassError> {
    let mut seen = Seen::new();
    for layer in chains.iter().flat_map(|chain| &chain.layers) {
        seen.entry(layer.input).or_insert_with(|| Channels::new(layer.weights.inputs));
        seen.entry(layer.output).or_insert_with(|| Channels::new(layer.weights.outputs));
    }
    let wanted: Vec<ValueId> = seen.keys().copied().collect();
    let samples = cx.observe(model, &wanted, &mut |value, tensor| {
        let elements = tensor
            .to_slice::<f32>()
            .map_err(|error| OracleError::Feeds(format!("value `{}`: {error}", model.value(value).name())))?;
        // Channels are axis 1 of all these.
        let inner = tensor.shape().iter().skip(2).product();
        if let Some(channels) = seen.get_mut(&value) {
            channels.observe(&elements, inner);
        }
        Ok(())
    })?;
    cx.count("calibration samples", samples);
    Ok(seen)
}

/// Sweeps over a chain until its scales settle. Returns by what the channels of every layer but the last
/// were divided in all.
fn equalize(weights: &mut [Weights]) -> Vec<Vec<f64>> {
    let links = weights.len().saturating_sub(1);
    let mut total: Vec<Vec<f64>> =
        weights[..links].iter().map(|weights| vec![1.0; weights.outputs]).collect();
    for _ in 0..SWEEPS {
        let mut moved = 0f64;
        let mut at = 0;
        while at < links {
            // A depthwise convolution between two layers is balanced with both at once.
            let triple = at + 2 < weights.len() && weights[at + 1].is_depthwise();
            let first = weights[at].output_maxima();
            let scales: Vec<Vec<f64>> = if triple {
                let (middle, last) = (weights[at + 1].output_maxima(), weights[at + 2].input_maxima());
                let root = |i: usize| (first[i] * middle[i] * last[i]).cbrt();
                vec![
                    (0..first.len()).map(|i| first[i] / root(i)).collect(),
                    (0..first.len()).map(|i| root(i) / last[i]).collect(),
                ]
            } else {
                let second = weights[at + 1].input_maxima();
                vec![first.iter().zip(&second).map(|(first, second)| (first / second).sqrt()).collect()]
            };
            // A dead channel in any of them leaves all as they are.
            let dead: Vec<bool> = (0..first.len())
                .map(|i| scales.iter().any(|scales| !scales[i].is_finite() || scales[i] <= 0.0))
                .collect();
            for (offset, mut scales) in scales.into_iter().enumerate() {
                for (scale, dead) in scales.iter_mut().zip(&dead) {
                    if *dead {
                        *scale = 1.0;
                    }
                    moved = moved.max((*scale - 1.0).abs());
                }
                weights[at + offset].divide_outputs(&scales);
                weights[at + offset + 1].multiply_inputs(&scales);
                for (total, scale) in total[at + offset].iter_mut().zip(&scales) {
                    *total *= scale;
                }
            }
            at += if triple { 2 } else { 1 };
        }
        if moved < SETTLED {
            break;
        }
    }
    total
}

/// Expected noise by signal of int8 at the outputs of a chain's layers, summed: rounding of weights (step
/// squared by 12, times the mean square of what they multiply) and of the input (likewise, times the
/// squares of the weights). Outputs count in the units they had before any division.
fn noise(
    chain: &Chain,
    weights: &[Weights],
    scales: &[Vec<f64>],
    seen: &Seen,
    per_tensor: bool,
) -> Option<f64> {
    let mut sum = 0.0;
    for (at, (layer, weights)) in chain.layers.iter().zip(weights).enumerate() {
        let (input, output) = (seen.get(&layer.input)?, seen.get(&layer.output)?);
        if input.count() == 0 || input.non_finite() + output.non_finite() > 0 {
            return None;
        }
        let divided = at.checked_sub(1).and_then(|before| scales.get(before));
        let divisor = |channel: usize| divided.map_or(1.0, |scales| scales[channel]);
        let ends = |ends: &[f32], better: fn(f64, f64) -> f64| {
            ends.iter().enumerate().map(|(i, &end)| f64::from(end) / divisor(i)).fold(0.0, better)
        };
        let step = (ends(&input.high, f64::max) - ends(&input.low, f64::min)) / 255.0;
        let squares: Vec<f64> =
            input.mean_squares().iter().enumerate().map(|(i, square)| square / divisor(i).powi(2)).collect();
        let mut maxima = weights.output_maxima();
        if per_tensor {
            let max = maxima.iter().copied().fold(0.0, f64::max);
            maxima.fill(max);
        }
        // Of every output channel: squares of its weights, and mean squares of what they multiply.
        let (mut weight, mut read) = (vec![0.0; weights.outputs], vec![0.0; weights.outputs]);
        weights.each(|value, input, output| {
            weight[output] += value * value;
            read[output] += squares[input];
        });
        let unit = |channel: usize| scales.get(at).map_or(1.0, |scales| scales[channel]);
        let noise: f64 = (0..weights.outputs)
            .map(|k| {
                let rounded = (maxima[k] / 127.0).powi(2) / 12.0 * read[k] + step * step / 12.0 * weight[k];
                rounded * unit(k).powi(2)
            })
            .sum();
        let signal: f64 = output.mean_squares().iter().sum();
        if signal > 0.0 {
            sum += noise / signal;
        }
    }
    (sum.is_finite() && sum > 0.0).then_some(sum)
}

/// What the channels of each layer but the last never fall below, where it can move into the next layer's
/// bias; empty where it cannot.
fn shifts(chain: &Chain, weights: &[Weights], scales: &[Vec<f64>], seen: &Seen) -> Vec<Vec<f32>> {
    let mut has_bias = weights.first().is_some_and(|weights| weights.bias.is_some());
    let mut found = Vec::new();
    for at in 0..chain.layers.len().saturating_sub(1) {
        let own = |output: &Channels| -> Option<Vec<f32>> {
            // Zeros of a padding would have to become what is absorbed; other activations are not shifted by it.
            if !chain.layers[at].rectified || !has_bias || !weights[at + 1].unpadded {
                return None;
            }
            let moments = output.means().into_iter().zip(output.deviations()).zip(&output.low);
            let shifts: Vec<f32> = moments
                .zip(&scales[at])
                .map(|(((mean, deviation), &low), scale)| {
                    ((mean - 3.0 * deviation).min(f64::from(low)).max(0.0) / scale) as f32
                })
                .collect();
            let is_some = shifts.iter().all(|by| by.is_finite()) && shifts.iter().any(|&by| by > 0.0);
            is_some.then_some(shifts)
        };
        let own = seen.get(&chain.layers[at].output).and_then(own).unwrap_or_default();
        // What is absorbed gives the next layer a bias.
        has_bias = weights[at + 1].bias.is_some() || !own.is_empty();
        found.push(own);
    }
    found
}

/// Moves shifts into the biases of the next layers. Returns the number of channels.
///
/// # Errors
/// When the shifts, which may be those of a lock, do not fit the layers.
fn absorb(weights: &mut [Weights], shifts: &[Vec<f32>]) -> Result<u64, PassError> {
    let mut absorbed = 0;
    for (at, shifts) in shifts.iter().enumerate().filter(|(_, shifts)| !shifts.is_empty()) {
        let fits = weights.len() > at + 1
            && shifts.len() == weights[at].outputs
            && shifts.iter().all(|by| by.is_finite() && *by >= 0.0);
        let Some(bias) = weights[at].bias.as_mut().filter(|_| fits) else {
            let what = format!("the biases of layer {at} of a chain cannot be shifted so");
            return Err(DecisionError::Unusable { key: "chain".to_owned(), what }.into());
        };
        absorbed += shifts.iter().filter(|&&shift| shift > 0.0).count() as u64;
        bias.iter_mut().zip(shifts).for_each(|(bias, shift)| *bias -= f64::from(*shift));
        let next = &mut weights[at + 1];
        let mut moved = vec![0.0; next.outputs];
        next.each(|value, input, output| {
            moved[output] += value * shifts.get(input).map_or(0.0, |&by| f64::from(by));
        });
        let bias = next.bias.get_or_insert_with(|| vec![0.0; moved.len()]);
        bias.iter_mut().zip(&moved).for_each(|(bias, moved)| *bias += moved);
    }
    Ok(absorbed)
}

/// Writes a layer's weights and bias back.
fn write(model: &mut Model, weights: &Weights) {
    let mut replaced = Vec::new();
    let graph = model.node(weights.node).graph();
    let values = weights.values.iter().map(|&value| value as f32).collect();
    let bias = weights.bias.as_ref().map(|bias| bias.iter().map(|&value| value as f32).collect::<Vec<_>>());
    let tensors = [
        (1, Some(Tensor::from_vec(weights.shape.clone(), values))),
        (2, bias.map(|bias| Tensor::from_vec(vec![bias.len()], bias))),
    ];
    for (slot, tensor) in tensors {
        let Some(tensor) = tensor else { continue };
        let old = model.node(weights.node).input(slot);
        let name = match old {
            Some(old) => model.value(old).name().to_owned(),
            None => format!(
                "{}_bias",
                model.node(weights.node).input(1).map_or("layer", |w| model.value(w).name())
            ),
        };
        let new = model.add_constant(graph, &format!("{name}_equalized"), tensor);
        model.set_input(weights.node, slot, Some(new));
        replaced.extend(old);
    }
    drop_unused(model, replaced);
}

fn row(model: &Model, id: NodeId, action: &str, reason: &str, cx: &mut Cx<'_>) {
    let (node, op) = optix_pipeline::naming::node_and_op(model, id);
    let bytes =
        model.node(id).inputs().iter().skip(1).flatten().map(|&value| constant_bytes(model, value)).sum();
    cx.layer(Layer {
        node,
        op,
        action: action.to_owned(),
        reason: Some(reason.to_owned()),
        bytes_before: bytes,
        bytes_after: bytes,
        ..Layer::default()
    });
}
