//! Random inputs for a model, and the comparison that holds passes to their word.

use optix_ir::infer::Evaluator;
use optix_ir::{DType, Dim, Model, NodeId, Tensor, Type};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::oracle::{Oracle, OracleError};

/// Computes constants for shape inference with the reference kernels.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpsEvaluator;

impl Evaluator for OpsEvaluator {
    fn evaluate(&self, model: &Model, node: NodeId, inputs: &[Option<&Tensor>]) -> Option<Vec<Tensor>> {
        optix_ops::evaluate(model, node, inputs).ok()
    }
}

/// Size that a dimension without a fixed one gets: small for the batch, and elsewhere one that strided
/// networks divide evenly.
fn free_size(axis: usize) -> usize {
    if axis == 0 { 2 } else { 64 }
}

/// Random feeds for all inputs of a model that have no default: floats uniform in -1..1, integers and
/// bools 0 or 1, which are legal as token ids, masks and indices alike. Equal symbols get equal sizes.
///
/// # Errors
/// When an input is not a dense tensor of a type that can be drawn.
pub fn random_feeds(model: &Model, seed: u64) -> Result<Vec<(String, Tensor)>, OracleError> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut symbols: Vec<(String, usize)> = Vec::new();
    let mut feeds = Vec::new();
    for info in model.graph(model.main()).inputs() {
        let value = model.value(info.value);
        if value.initializer().is_some() {
            continue;
        }
        let refuse = |what: &str| {
            OracleError::Feeds(format!("input `{}` {what}: no random value can be made", value.name()))
        };
        let tensor = match &value.ty {
            Some(Type::Tensor(tensor)) => tensor,
            _ => return Err(refuse("is not a dense tensor")),
        };
        let dtype = tensor.dtype.ok_or_else(|| refuse("has no element type"))?;
        let dims = tensor.shape.as_ref().ok_or_else(|| refuse("has no rank"))?;
        let mut shape = Vec::new();
        for (axis, dim) in dims.iter().enumerate() {
            shape.push(match dim {
                Dim::Fixed(size) => *size,
                Dim::Unknown => free_size(axis),
                Dim::Symbol(name) => match symbols.iter().find(|(known, _)| known.as_str() == &**name) {
                    Some((_, size)) => *size,
                    None => {
                        symbols.push((name.to_string(), free_size(axis)));
                        free_size(axis)
                    }
                },
            });
        }
        let count = optix_ir::element_count(&shape).filter(|&count| count <= 1 << 28);
        let count = count.ok_or_else(|| refuse("is too large"))?;
        let tensor = random_tensor(dtype, shape, count, &mut random).ok_or_else(|| refuse(dtype.name()))?;
        feeds.push((value.name().to_owned(), tensor));
    }
    Ok(feeds)
}

/// A tensor of `count` random elements, as [`random_feeds`] draws them; `None` for types it does not draw.
pub fn random_tensor(
    dtype: DType,
    shape: Vec<usize>,
    count: usize,
    random: &mut ChaCha8Rng,
) -> Option<Tensor> {
    let mut unit = || f64::from(random.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0;
    macro_rules! floats {
        ($convert:expr) => {
            Tensor::from_vec(shape, (0..count).map(|_| $convert(unit())).collect::<Vec<_>>())
        };
    }
    macro_rules! bits {
        ($rust:ty) => {
            Tensor::from_vec(shape, (0..count).map(|_| (unit() > 0.0) as $rust).collect::<Vec<_>>())
        };
    }
    Some(match dtype {
        DType::F32 => floats!(|x| x as f32),
        DType::F64 => floats!(|x| x),
        DType::F16 => floats!(half::f16::from_f64),
        DType::BF16 => floats!(half::bf16::from_f64),
        DType::I64 => bits!(i64),
        DType::I32 => bits!(i32),
        DType::I16 => bits!(i16),
        DType::I8 => bits!(i8),
        DType::U64 => bits!(u64),
        DType::U32 => bits!(u32),
        DType::U16 => bits!(u16),
        DType::U8 => bits!(u8),
        DType::Bool => Tensor::from_bools(shape, &(0..count).map(|_| unit() > 0.0).collect::<Vec<_>>()),
        _ => return None,
    })
}

/// max|difference| / max|reference| of two models' outputs on random inputs, the greatest over all
/// outputs; infinite when shapes, types or non-finite values differ.
///
/// # Errors
/// When one of the models cannot be run: [`OracleError::Feeds`] where random inputs do not suit `before`
/// (say, an input that is a shape), [`OracleError::Node`] where only `after` fails on them.
pub fn difference(
    oracle: &mut dyn Oracle,
    before: &Model,
    after: &Model,
    seed: u64,
) -> Result<f64, OracleError> {
    let feeds = random_feeds(before, seed)?;
    let expected = oracle.outputs(before, &feeds).map_err(|error| match error {
        OracleError::Node { node, what } => {
            OracleError::Feeds(format!("random inputs do not suit this model: node {node}: {what}"))
        }
        error => error,
    })?;
    let found = oracle.outputs(after, &feeds)?;
    let worst = expected.iter().zip(&found).map(|(a, b)| relative_difference(a, b)).fold(0.0, f64::max);
    Ok(if expected.len() == found.len() { worst } else { f64::INFINITY })
}

/// max|difference| / max|reference| of two tensors; see [`difference`].
pub fn relative_difference(reference: &Tensor, other: &Tensor) -> f64 {
    if reference.dtype() != other.dtype() || reference.shape() != other.shape() {
        return f64::INFINITY;
    }
    if reference.bytes() == other.bytes() {
        return 0.0;
    }
    let (Ok(a), Ok(b)) = (reference.to_f64s(), other.to_f64s()) else { return f64::INFINITY };
    let (mut worst, mut greatest) = (0.0f64, 0.0f64);
    for (&a, &b) in a.iter().zip(&b) {
        if a.is_finite() && b.is_finite() {
            worst = worst.max((a - b).abs());
            greatest = greatest.max(a.abs());
        } else if !(a == b || a.is_nan() && b.is_nan()) {
            return f64::INFINITY;
        }
    }
    if worst == 0.0 { 0.0 } else { worst / greatest.max(f64::MIN_POSITIVE) }
}
