//! Signal processing.

use crate::dtype::DType;
use crate::infer::call::{Call, Rule, one, rank_only};
use crate::infer::dims::{self, Outcome};
use crate::infer::expr::Expr;
use crate::infer::fact::Fact;
use crate::types::Dim;

pub(super) const RULES: &[(&str, Rule)] = &[("DFT", fourier), ("MelWeightMatrix", mel), ("STFT", short_time)];

/// The last dimension holds real and imaginary parts: 1 or 2 of them.
fn fourier(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(shape) = call.shape(0) else { return one(call.dtype(0), None) };
    let rank = shape.len();
    // An attribute until operator set 19, an input since; either way the last dimension is not one of them.
    let axis = match (call.node.int("axis"), call.has(2)) {
        (Some(axis), _) => Some(axis),
        (None, true) => call.scalar(2).and_then(|axis| axis.constant()),
        (None, false) => Some(if call.opset < 20 { 1 } else { -2 }),
    };
    let Some(axis) = axis else { return Ok(vec![rank_only(call.dtype(0), rank)]) };
    let mut result = shape.clone();
    let axis = dims::axis(axis, rank)?;
    if call.has(1) {
        result[axis] = call.scalar(1).map_or(Dim::Unknown, |length| length.dim());
    }
    let (onesided, inverse) = (call.flag("onesided"), call.flag("inverse"));
    if onesided && !inverse {
        result[axis] = dims::map(&result[axis], |length| length.floor_div(2)?.add(&Expr::from(1)))?;
    } else if onesided && !call.has(1) {
        // From half a spectrum the length cannot be told: taken to be even.
        result[axis] = dims::map(&result[axis], |length| length.sub(&Expr::from(1))?.mul(&Expr::from(2)))?;
    }
    result[rank - 1] = Dim::Fixed(if onesided && inverse { 1 } else { 2 });
    one(call.dtype(0), Some(result))
}

fn short_time(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let batch = call.shape(0).and_then(|shape| shape.first()).cloned().unwrap_or(Dim::Unknown);
    let signal = call.shape(0).and_then(|shape| Expr::of(shape.get(1)?));
    let window = call.shape(2).and_then(|shape| Expr::of(shape.first()?));
    let frame = call.scalar(3).or(window);
    let step = call.scalar(1).and_then(|step| step.constant()).filter(|&step| step > 0);
    let frames = signal
        .zip(frame.clone())
        .zip(step)
        .and_then(|((signal, frame), step)| signal.sub(&frame)?.floor_div(step)?.add(&Expr::from(1)));
    let bins = frame.and_then(|frame| match call.int("onesided", 1) {
        0 => Some(frame),
        _ => frame.floor_div(2)?.add(&Expr::from(1)),
    });
    let dim = |size: Option<Expr>| size.map_or(Dim::Unknown, |size| size.dim());
    one(dtype, Some(vec![batch, dim(frames), dim(bins), Dim::Fixed(2)]))
}

fn mel(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype_attribute("output_datatype").or(Some(DType::F32));
    let bins = call.scalar(1).and_then(|length| length.floor_div(2)?.add(&Expr::from(1)));
    let dim = |size: Option<Expr>| size.map_or(Dim::Unknown, |size| size.dim());
    one(dtype, Some(vec![dim(bins), dim(call.scalar(0))]))
}
