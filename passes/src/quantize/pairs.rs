//! Reading QDQ: which values come out of a `DequantizeLinear`, which go into a `QuantizeLinear`, and what
//! stands between.

use optix_ir::{DType, Model, Node, NodeId, Tensor, Use, ValueId};

/// Integers with what they stand for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Integers {
    /// The integers.
    pub(crate) value: ValueId,
    /// Their type.
    pub(crate) dtype: DType,
    /// Constant float scale: one, or one a place along `axis`.
    pub(crate) scale: ValueId,
    /// Constant zero point; none is 0.
    pub(crate) zero_point: Option<ValueId>,
    /// The axis along which scales lie, where there is more than one.
    pub(crate) axis: Option<i64>,
}

impl Integers {
    /// Scales, as many as there are.
    pub(crate) fn scales(&self, model: &Model) -> Vec<f32> {
        let tensor = model.constant(self.scale);
        tensor.and_then(|tensor| tensor.to_slice::<f32>().ok()).map(Vec::from).unwrap_or_default()
    }

    /// Zero points; none where nothing is written.
    pub(crate) fn zero_points(&self, model: &Model) -> Vec<i64> {
        let tensor = self.zero_point.and_then(|value| model.constant(value));
        tensor.and_then(|tensor| tensor.to_i64s().ok()).unwrap_or_default()
    }

    /// The one scale and zero point.
    pub(crate) fn single(&self, model: &Model) -> Option<(f32, i64)> {
        match (&self.scales(model)[..], &self.zero_points(model)[..]) {
            ([scale], []) => Some((*scale, 0)),
            ([scale], [zero]) => Some((*scale, *zero)),
            _ => None,
        }
    }
}

fn is_one_of(node: &Node, op_type: &str) -> bool {
    node.op_type == op_type && matches!(node.domain(), "" | "com.microsoft")
}

/// Whether this is a `DequantizeLinear`, the standard's or onnxruntime's.
pub(super) fn is_dequantize(node: &Node) -> bool {
    is_one_of(node, "DequantizeLinear")
}

/// Whether this is a `QuantizeLinear`, the standard's or onnxruntime's.
pub(super) fn is_quantize(node: &Node) -> bool {
    is_one_of(node, "QuantizeLinear")
}

/// Scale, zero point and axis of a quantizing or dequantizing node, with the integers that it reads or makes.
fn parameters(model: &Model, node: &Node, integers: ValueId) -> Result<Integers, String> {
    let scale = node.input(1).ok_or("a scale is missing")?;
    let scales = model.constant(scale).ok_or("a scale is computed while the model runs")?;
    if scales.dtype() != DType::F32 {
        return Err(format!("a scale is {}, integer operators want float32", scales.dtype()));
    }
    let zero_point = node.input(2);
    let zero = match zero_point {
        None => None,
        Some(value) => Some(model.constant(value).ok_or("a zero point is computed while the model runs")?),
    };
    let known = model.value(integers).ty.as_ref().and_then(|ty| ty.dtype());
    let dtype = zero
        .map(Tensor::dtype)
        .or_else(|| model.constant(integers).map(Tensor::dtype))
        .or(known)
        .ok_or("a type of integers is not known")?;
    if node.int("block_size").unwrap_or(0) != 0 || scales.rank() > 1 {
        return Err("scales lie in blocks".to_owned());
    }
    let axis = (scales.len() != 1).then(|| node.int("axis").unwrap_or(1));
    Ok(Integers { value: integers, dtype, scale, zero_point, axis })
}

/// The integers behind a float value.
///
/// # Errors
/// Why there are none.
pub(crate) fn dequantized(model: &Model, value: ValueId) -> Result<Integers, String> {
    let (producer, _) = model.value(value).producer().ok_or("an input is not quantized")?;
    let node = model.node(producer);
    if !is_dequantize(node) {
        return Err("an input is not quantized".to_owned());
    }
    parameters(model, node, node.input(0).ok_or("a DequantizeLinear has no input")?)
}

/// The quantizer behind a node.
pub(super) struct Quantizer {
    /// The `QuantizeLinear`.
    pub(super) node: NodeId,
    /// A Relu or Clip before it that cuts no more than it does itself.
    pub(super) absorbed: Option<NodeId>,
    /// What it makes.
    pub(super) integers: Integers,
}

/// The quantizer that alone reads a value, perhaps behind an activation function that changes nothing for
/// it.
///
/// # Errors
/// Why there is none.
pub(super) fn quantizer(model: &Model, value: ValueId) -> Result<Quantizer, String> {
    let only = |value: ValueId| match *model.value(value).uses() {
        [Use::Node(user, 0)] => Ok(user),
        [] => Err("nothing reads its result".to_owned()),
        [_] => Err("its result is read as float".to_owned()),
        _ => Err("its result is read by more than a QuantizeLinear".to_owned()),
    };
    let mut user = only(value)?;
    let mut absorbed = None;
    if !is_quantize(model.node(user)) && (model.node(user).is("Relu") || model.node(user).is("Clip")) {
        absorbed = Some(user);
        let behind = model.node(user).output(0).ok_or("an activation function has no result")?;
        user = only(behind)?;
    }
    let node = model.node(user);
    if !is_quantize(node) {
        return Err("its result is not quantized".to_owned());
    }
    if node.graph() != model.value(value).graph() {
        return Err("its result is quantized in a subgraph".to_owned());
    }
    let output = node.output(0).ok_or("a QuantizeLinear has no result")?;
    let integers = parameters(model, node, output)?;
    if let Some(id) = absorbed
        && !changes_nothing(model, id, &integers)
    {
        return Err("the activation function before its QuantizeLinear cuts more than that does".to_owned());
    }
    Ok(Quantizer { node: user, absorbed, integers })
}

/// Whether a Relu or Clip changes no integer that a quantizer makes of its result. Rounding keeps order, so
/// it is enough that its bounds become the bounds of the integer type.
fn changes_nothing(model: &Model, id: NodeId, integers: &Integers) -> bool {
    let node = model.node(id);
    let Some((scale, zero)) = integers.single(model) else { return false };
    let Some((low, high)) = integers.dtype.integer_range() else { return false };
    let bound = |slot: usize, name: &str| match node.input(slot) {
        Some(value) => model.constant(value).and_then(Tensor::single).ok_or(()),
        None => Ok(node.float(name).map_or(f64::NAN, f64::from)),
    };
    let (least, greatest) = if node.is("Relu") {
        (0.0, f64::NAN)
    } else {
        match (bound(1, "min"), bound(2, "max")) {
            (Ok(least), Ok(greatest)) => (least, greatest),
            _ => return false,
        }
    };
    let integer = |real: f64| {
        let integer = f64::from(real as f32 / scale).round_ties_even() + zero as f64;
        integer.clamp(low as f64, high as f64)
    };
    // A bound that is not there is NaN.
    (least.is_nan() || integer(least) == low as f64)
        && (greatest.is_nan() || integer(greatest) == high as f64)
}
