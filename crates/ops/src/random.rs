//! Operators that draw random numbers: RandomNormal, RandomUniform and their `Like` forms, Bernoulli,
//! Multinomial, and Dropout.
//!
//! The standard leaves the generator open. Here the numbers follow from the `seed` attribute, and where
//! there is none from the node's name, such that equal runs are equal and unlike nodes unlike.
//!
//! <https://onnx.ai/onnx/operators/onnx__RandomNormal.html> and its neighbours,
//! <https://onnx.ai/onnx/operators/onnx__Bernoulli.html>,
//! <https://onnx.ai/onnx/operators/onnx__Multinomial.html>,
//! <https://onnx.ai/onnx/operators/onnx__Dropout.html>

use half::{bf16, f16};
use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{product, sizes};
use crate::numbers::{Numbers, float_tensor, whole_tensor};

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("RandomNormal", 1, |call| drawn(call, false, Kind::Normal)),
    KernelSpec::onnx("RandomNormalLike", 1, |call| drawn(call, true, Kind::Normal)),
    KernelSpec::onnx("RandomUniform", 1, |call| drawn(call, false, Kind::Uniform)),
    KernelSpec::onnx("RandomUniformLike", 1, |call| drawn(call, true, Kind::Uniform)),
    KernelSpec::onnx("Bernoulli", 15, bernoulli),
    KernelSpec::onnx("Multinomial", 7, multinomial),
    KernelSpec::onnx("Dropout", 7, dropout),
];

/// Random numbers: a counter, scrambled by the finalizer of MurmurHash3 in the variant of SplitMix64.
struct Stream {
    state: u64,
}

fn scramble(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

impl Stream {
    fn of(call: &Call<'_>) -> Stream {
        let seed = match call.node.float("seed") {
            Some(seed) => u64::from(seed.to_bits()),
            // FNV-1a.
            None => call.node.name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
            }),
        };
        Stream { state: scramble(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        scramble(self.state)
    }

    /// Uniform over `0..1`, in steps of 2^-53.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Of the standard normal distribution, by the method of Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.unit()).cos()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Normal,
    Uniform,
}

/// The type that `dtype` names.
fn named_type(call: &Call<'_>) -> Result<Option<DType>, OpError> {
    let Some(code) = call.node.int("dtype") else { return Ok(None) };
    let dtype = i32::try_from(code).ok().and_then(DType::from_onnx);
    dtype.map(Some).ok_or_else(|| call.invalid(format!("`dtype` is {code}, which is no type")))
}

fn drawn(call: &Call<'_>, like: bool, kind: Kind) -> Result<Vec<Tensor>, OpError> {
    let (shape, default) = if like {
        let x = call.input(0)?;
        (x.shape().to_vec(), x.dtype())
    } else {
        let shape = call.node.ints("shape").ok_or_else(|| call.invalid("`shape` is missing"))?;
        (sizes(call, shape)?, DType::F32)
    };
    let dtype = named_type(call)?.unwrap_or(default);
    if !matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16) {
        return Err(call.unsupported(format!("random numbers of type {dtype}")));
    }
    call.check_size(DType::F64, &shape)?;
    let parameter = |name: &str, default: f32| {
        let value = f64::from(call.node.float(name).unwrap_or(default));
        if value.is_finite() { Ok(value) } else { Err(call.invalid(format!("`{name}` is {value}"))) }
    };
    let mut stream = Stream::of(call);
    let count = product(&shape);
    let values: Vec<f64> = match kind {
        Kind::Normal => {
            let (mean, scale) = (parameter("mean", 0.0)?, parameter("scale", 1.0)?);
            (0..count).map(|_| mean + scale * stream.normal()).collect()
        }
        Kind::Uniform => {
            let (low, high) = (parameter("low", 0.0)?, parameter("high", 1.0)?);
            if low > high {
                return Err(call.invalid(format!("there is no number from {low} to {high}")));
            }
            (0..count).map(|_| uniform(&mut stream, dtype, low, high)).collect()
        }
    };
    Ok(vec![float_tensor(call, dtype, shape, &values)?])
}

/// A number from `low` to below `high`, also after it is rounded to its type.
fn uniform(stream: &mut Stream, dtype: DType, low: f64, high: f64) -> f64 {
    let round = |value: f64| match dtype {
        DType::F64 => value,
        DType::F32 => f64::from(value as f32),
        DType::F16 => f16::from_f64(value).to_f64(),
        _ => bf16::from_f64(value).to_f64(),
    };
    // Where next to no number lies between the bounds, this may never end well.
    for _ in 0..64 {
        let value = low + (high - low) * stream.unit();
        if round(value) < high {
            return value;
        }
    }
    low
}

fn bernoulli(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let dtype = named_type(call)?.unwrap_or(x.dtype());
    let Numbers::Floats(values) = Numbers::of(call, x)? else { return Err(call.wrong_type(0, x.dtype())) };
    if let Some(wrong) = values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
        return Err(call.invalid(format!("{wrong} is no probability")));
    }
    let mut stream = Stream::of(call);
    let bits: Vec<i64> = values.iter().map(|&probability| i64::from(stream.unit() < probability)).collect();
    Ok(vec![whole_tensor(call, dtype, x.shape().to_vec(), &bits)?])
}

fn multinomial(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let &[batch, classes] = x.shape() else {
        return Err(call.invalid(format!("shape {:?} is not that of a batch of classes", x.shape())));
    };
    let samples = sizes(call, &[call.node.int("sample_size").unwrap_or(1)])?[0];
    let dtype = named_type(call)?.unwrap_or(DType::I32);
    if !matches!(dtype, DType::I32 | DType::I64) {
        return Err(call.unsupported(format!("classes of type {dtype}")));
    }
    let shape = vec![batch, samples];
    call.check_size(DType::I64, &shape)?;
    let Numbers::Floats(values) = Numbers::of(call, x)? else { return Err(call.wrong_type(0, x.dtype())) };
    if classes == 0 && product(&shape) > 0 {
        return Err(call.invalid("there are no classes"));
    }
    let mut stream = Stream::of(call);
    let mut drawn = Vec::with_capacity(product(&shape));
    for row in values.chunks(classes.max(1)) {
        let greatest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !greatest.is_finite() || row.iter().any(|value| value.is_nan()) {
            return Err(call.invalid("its inputs are no logarithms of probabilities"));
        }
        // Sums of probabilities up to each class, in relation to the most probable one.
        let mut sum = 0.0;
        let sums: Vec<f64> = row
            .iter()
            .map(|value| {
                sum += (value - greatest).exp();
                sum
            })
            .collect();
        for _ in 0..samples {
            let at = stream.unit() * sum;
            let class = sums.partition_point(|&sum| sum <= at);
            drawn.push(class.min(classes - 1) as i64);
        }
    }
    Ok(vec![whole_tensor(call, dtype, shape, &drawn)?])
}

fn dropout(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let training =
        call.optional(2).and_then(|flag| flag.bools().ok()).and_then(|flags| flags.first().copied());
    let ratio = match call.optional(1) {
        Some(ratio) => ratio.single().ok_or_else(|| call.invalid("the ratio is not one number"))?,
        None => 0.5,
    };
    if training != Some(true) || ratio == 0.0 {
        let mask = vec![true; x.len()];
        return Ok(vec![x.clone(), Tensor::from_bools(x.shape().to_vec(), &mask)]);
    }
    if !(0.0..1.0).contains(&ratio) {
        return Err(call.invalid(format!("the ratio is {ratio}; it must be from 0 to below 1")));
    }
    let Numbers::Floats(mut values) = Numbers::of(call, x)? else {
        return Err(call.wrong_type(0, x.dtype()));
    };
    let mut stream = Stream::of(call);
    // Dropping multiplies by zero, and what is kept makes up for what is dropped.
    let mask: Vec<bool> = values.iter().map(|_| stream.unit() >= ratio).collect();
    for (value, &kept) in values.iter_mut().zip(&mask) {
        *value *= if kept { 1.0 / (1.0 - ratio) } else { 0.0 };
    }
    let shape = x.shape().to_vec();
    Ok(vec![float_tensor(call, x.dtype(), shape.clone(), &values)?, Tensor::from_bools(shape, &mask)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(node: &Node, inputs: &[&Tensor]) -> Vec<Tensor> {
        let inputs: Vec<Option<&Tensor>> = inputs.iter().copied().map(Some).collect();
        (crate::find("", &node.op_type).unwrap().run)(&Call::new(node, 22, &inputs)).unwrap()
    }

    fn moments(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, square.sqrt())
    }

    #[test]
    fn numbers_are_distributed_as_they_say() {
        let node = Node::new("RandomNormal", []).with("shape", vec![100i64, 400]).with("mean", 3.0f32);
        let node = node.with("scale", 2.0f32).with("seed", 1.0f32);
        let values = run(&node, &[])[0].to_f64s().unwrap();
        let (mean, deviation) = moments(&values);
        assert!((mean - 3.0).abs() < 0.04 && (deviation - 2.0).abs() < 0.03, "{mean} {deviation}");
        let within = values.iter().filter(|x| (*x - 3.0).abs() < 2.0).count() as f64 / 40_000.0;
        assert!((within - 0.6827).abs() < 0.01, "{within}");
        let neighbours =
            values.windows(2).map(|pair| (pair[0] - 3.0) * (pair[1] - 3.0)).sum::<f64>() / 40_000.0;
        assert!(neighbours.abs() < 0.08, "{neighbours}");

        let node = Node::new("RandomUniform", []).with("shape", vec![40_000i64]).with("low", -1.0f32);
        let values = run(&node, &[])[0].to_f64s().unwrap();
        let (mean, deviation) = moments(&values);
        assert!(mean.abs() < 0.02 && (deviation - 1.0 / 3f64.sqrt()).abs() < 0.01, "{mean} {deviation}");
        assert!(values.iter().all(|x| (-1.0..1.0).contains(x)));

        let probabilities = Tensor::from_vec(vec![40_000], vec![0.3f32; 40_000]);
        let ones = run(&Node::new("Bernoulli", []), &[&probabilities])[0].to_f64s().unwrap();
        assert!((moments(&ones).0 - 0.3).abs() < 0.01);

        let logits = Tensor::from_vec(vec![1, 3], vec![0f32, f32::NEG_INFINITY, 3f32.ln()]);
        let classes = run(&Node::new("Multinomial", []).with("sample_size", 40_000), &[&logits]);
        let classes = classes[0].to_i64s().unwrap();
        assert!(!classes.contains(&1));
        let last = classes.iter().filter(|class| **class == 2).count() as f64 / 40_000.0;
        assert!((last - 0.75).abs() < 0.01, "{last}");
    }

    #[test]
    fn dropping_keeps_the_mean() {
        let x = Tensor::from_vec(vec![40_000], vec![1f32; 40_000]);
        let (ratio, training) = (Tensor::scalar(0.25f32), Tensor::from_bools(vec![], &[true]));
        let outputs = run(&Node::new("Dropout", []), &[&x, &ratio, &training]);
        let (values, mask) = (outputs[0].to_f64s().unwrap(), outputs[1].bools().unwrap());
        assert!((moments(&values).0 - 1.0).abs() < 0.02);
        let scaled = f64::from((1.0 / 0.75) as f32);
        assert!(values.iter().zip(mask).all(|(value, kept)| *value == if kept { scaled } else { 0.0 }));
    }

    #[test]
    fn seeds_and_names_tell_streams_apart() {
        let node = Node::new("RandomUniform", []).with("shape", vec![4i64]);
        let of = |node: Node| run(&node, &[])[0].to_f64s().unwrap();
        assert_eq!(of(node.clone().named("a")), of(node.clone().named("a")));
        assert_ne!(of(node.clone().named("a")), of(node.clone().named("b")));
        assert_ne!(of(node.clone().with("seed", 1.0f32)), of(node.clone().with("seed", 2.0f32)));
        assert_eq!(of(node.clone().named("a").with("seed", 1.0f32)), of(node.with("seed", 1.0f32)));
    }

    #[test]
    fn bounds_hold_in_narrow_types_too() {
        let node = Node::new("RandomUniform", []).with("shape", vec![2000i64]).with("dtype", 16);
        let values = run(&node.clone().with("low", 10.0f32).with("high", 11.0f32), &[])[0].to_f64s().unwrap();
        assert!(values.iter().all(|x| (10.0..11.0).contains(x)));
        let values = run(&node.with("low", 1.0f32).with("high", 1.0f32), &[])[0].to_f64s().unwrap();
        assert!(values.iter().all(|x| *x == 1.0));
    }
}
