//! Weights and bias of one node in integers.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, Tensor, ValueId};
use optix_pipeline::{Layer, PassError};

use super::affine::{Affine, channel_maxima, quantize_weights, round_weights};
use super::float8;
use super::placement::WeightedNode;
use super::rewrite;
use super::saturation;
use super::types::ActivationType;

/// How weights become integers.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeightOptions {
    /// One scale a channel.
    pub(super) per_channel: bool,
    /// Scales wide enough that no pair of products is clipped to int16.
    pub(super) no_saturation: bool,
    /// Biases become int32 where activations are integers.
    pub(super) integer_bias: bool,
    /// Type of activations.
    pub(super) activations: ActivationType,
    /// Type of weights.
    pub(super) weights: DType,
}

/// Integers that stand for a constant already: by the constant, the axis of its channels and the bits of the
/// scales.
pub(super) type SharedWeights = BTreeMap<(ValueId, Option<usize>, Vec<u32>), ValueId>;

/// Replaces weights and bias of one node; returns its row of the ledger. Ranges of its channels are `clip` times
/// what they hold.
pub(super) fn quantize_node(
    options: WeightOptions,
    model: &mut Model,
    weighted: &WeightedNode,
    input_scale: f32,
    clip: Option<&[f32]>,
    shared: &mut SharedWeights,
    replaced: &mut Vec<ValueId>,
) -> Result<Layer, PassError> {
    let id = weighted.node;
    let (name, op) = optix_pipeline::naming::node_and_op(model, id);
    let weights = model.node(id).input(weighted.weight_slot).expect("checked by the placement");
    let tensor = model.constant(weights).expect("checked by the placement").clone();
    let dtype = options.weights;
    let axis = if options.per_channel { weighted.channel_axis } else { None };
    let floats = tensor.to_slice::<f32>().map_err(|error| PassError::Options(error.to_string()))?;
    let maxima = channel_maxima(&floats, tensor.shape(), axis);
    let mut scales = clipped_scales(&maxima, clip, dtype);
    let bias_slot = weighted.bias_slot.filter(|_| options.integer_bias && !dtype.is_float());
    let bias = bias_slot.and_then(|slot| model.node(id).input(slot));
    let bias_tensor = bias.and_then(|bias| model.constant(bias)).cloned();
    let mut reason = None;
    // Four bits are too few for it.
    if options.no_saturation && dtype == DType::I8 && op != "ConvTranspose" {
        saturation::widen(&mut scales, model, id, &floats, tensor.shape());
    }
    if let Some(bias) = &bias_tensor {
        let biases = bias.to_slice::<f32>().map_err(|error| PassError::Options(error.to_string()))?;
        let fixed = fit_bias(&mut scales, &maxima, &biases, input_scale);
        if fixed > 0 {
            reason = Some(format!("{fixed} weight scales widened so that the bias fits int32"));
        }
    }
    let quantized = match dtype {
        DType::I8 => quantize_weights(&floats, tensor.shape(), axis, scales),
        _ if dtype.is_float() => float8::quantize_weights(&floats, tensor.shape(), axis, scales, dtype),
        _ => round_weights(&floats, tensor.shape(), axis, scales, dtype),
    };
    // Nodes that read the same weights with other scales (for their biases, or in another order) have others.
    let shared_key = (weights, axis, quantized.scales.iter().map(|scale| scale.to_bits()).collect());
    let graph = model.node(id).graph();
    let bytes_before =
        tensor.bytes().len() as u64 + bias_tensor.as_ref().map_or(0, |b| b.bytes().len() as u64);
    let mut bytes_after = (quantized.integers.bytes().len() + quantized.scales.len() * 5) as u64;
    let weight_name = model.value(weights).name().to_owned();
    let new = match shared.get(&shared_key) {
        Some(&known) if model.value(known).graph() == graph => known,
        _ => {
            let integers = quantized.integers.clone();
            let new = rewrite::dequantized_constant(
                model,
                graph,
                id,
                &weight_name,
                integers,
                &quantized.scales,
                axis,
            );
            shared.insert(shared_key, new);
            new
        }
    };
    model.set_input(id, weighted.weight_slot, Some(new));
    replaced.push(weights);
    if let (Some(slot), Some(bias), Some(value)) = (bias_slot, bias_tensor, bias) {
        let biases = bias.to_slice::<f32>().map_err(|error| PassError::Options(error.to_string()))?;
        let scales: Vec<f32> = quantized.scales.iter().map(|scale| scale * input_scale).collect();
        let integers: Vec<i32> = biases
            .iter()
            .enumerate()
            .map(|(channel, &bias)| {
                let scale = f64::from(scales[channel % scales.len()]);
                (f64::from(bias) / scale).round_ties_even() as i32
            })
            .collect();
        let bias_axis = (scales.len() > 1 || axis.is_some()).then_some(0);
        let integers = Tensor::from_vec(bias.shape().to_vec(), integers);
        let bias_name = model.value(value).name().to_owned();
        let new = rewrite::dequantized_constant(model, graph, id, &bias_name, integers, &scales, bias_axis);
        model.set_input(id, slot, Some(new));
        bytes_after += (bias.bytes().len() + scales.len() * 8) as u64;
        replaced.push(value);
    }
    Ok(Layer {
        node: name,
        op,
        action: action(options),
        reason,
        bytes_before,
        bytes_after,
        weight_sqnr_db: quantized.sqnr_db(),
        ..Layer::default()
    })
}

/// Scales of channels with these greatest magnitudes, some of which may be clipped.
pub(super) fn clipped_scales(maxima: &[f32], clip: Option<&[f32]>, dtype: DType) -> Vec<f32> {
    let factor = |channel: usize| clip.and_then(|clip| clip.get(channel)).copied().unwrap_or(1.0);
    let scale = |(channel, &max): (usize, &f32)| Affine::symmetric(max * factor(channel), dtype).scale;
    maxima.iter().enumerate().map(scale).collect()
}

/// What the ledger calls it: the type of the weights, and that of the activations where it is not of 8 bits.
fn action(WeightOptions { activations, weights, .. }: WeightOptions) -> String {
    match activations.dtype().bits() {
        8 => weights.name().to_owned(),
        _ => format!("{}, {} activations", weights.name(), activations.name()),
    }
}

/// Greatest integer a bias may become; a little below the type's limit, which f32 cannot hold.
pub(crate) const GREATEST_BIAS: f64 = 2_147_483_000.0;

/// Widens weight scales whose bias would not fit 32 bits, and gives channels without weights a scale
/// that keeps their bias precise. Returns how many were widened.
fn fit_bias(scales: &mut [f32], maxima: &[f32], biases: &[f32], input_scale: f32) -> usize {
    /// Steps a bias gets when there are no weights to say how fine it must be.
    const FINE: f64 = 1_048_576.0;
    let mut widened = 0;
    let channels = scales.len();
    for (index, &bias) in biases.iter().enumerate() {
        let channel = index % channels;
        let magnitude = f64::from(bias.abs());
        if !magnitude.is_finite() || magnitude == 0.0 {
            continue;
        }
        if maxima[channel] == 0.0 && channels == biases.len() {
            scales[channel] = ((magnitude / FINE / f64::from(input_scale)) as f32).max(f32::MIN_POSITIVE);
        } else if magnitude / (f64::from(scales[channel]) * f64::from(input_scale)) > GREATEST_BIAS {
            scales[channel] = (magnitude / GREATEST_BIAS / f64::from(input_scale)) as f32;
            widened += 1;
        }
    }
    widened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_that_does_not_fit_widens_its_channel_only() {
        let mut scales = vec![1e-9, 0.01, 1.0];
        let widened = fit_bias(&mut scales, &[1e-7, 1.0, 0.0], &[100.0, 100.0, 0.3], 1e-4);
        assert_eq!(widened, 1);
        assert!((100.0 / (f64::from(scales[0]) * 1e-4)) < f64::from(i32::MAX));
        assert_eq!(scales[1], 0.01);
        let step = scales[2] * 1e-4;
        assert!(step < 1e-6, "a channel without weights keeps a precise bias");
    }
}
