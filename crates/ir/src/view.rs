//! Nodes of well-known operators, read typed.
//!
//! `Conv::view(&model, node)` is `None` when the node is another operator, lacks a required input or
//! output, or has an attribute of the wrong type (or one that refers to a function's attribute). Otherwise
//! every attribute is there, with the default of the standard where the node does not say it; what moved
//! from attributes to inputs between versions of the standard is read from either place. That sizes fit
//! each other is not checked.

mod reader;
#[cfg(test)]
mod tests;

pub use reader::{AutoPad, Parameter};

use crate::dtype::DType;
use crate::ids::{NodeId, ValueId};
use crate::model::Model;
use reader::Reader;

/// Defines a view: each field with the expression that reads it from the reader.
macro_rules! view {
    (
        $(#[$doc:meta])* $name:ident = [$($op:literal),+] as $reader:ident;
        $($(#[$field_doc:meta])* $field:ident: $ty:ty = $value:expr;)+
    ) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Debug)]
        pub struct $name {
            /// The node.
            pub node: NodeId,
            $($(#[$field_doc])* pub $field: $ty,)+
        }

        impl $name {
            /// Reads the node; see the [module](self)'s documentation.
            pub fn view(model: &Model, node: NodeId) -> Option<$name> {
                let $reader = Reader::new(model, node, &[$($op),+])?;
                $(let $field = $value;)+
                Some($name { node, $($field),+ })
            }
        }
    };
}

view! {
    /// Convolution. Lists have one entry for each spatial axis (`pads` two: all begins, then all ends) and
    /// are empty when not even the number of axes is known.
    Conv = ["Conv"] as r;
    /// Input: `[batch, channels, spatial...]`.
    x: ValueId = r.input(0)?;
    /// Kernels: `[filters, channels / group, spatial...]`.
    w: ValueId = r.input(1)?;
    /// Bias: `[filters]`.
    bias: Option<ValueId> = r.optional(2);
    /// Output: `[batch, filters, spatial...]`.
    y: ValueId = r.output(0)?;
    /// How `pads` comes about.
    auto_pad: AutoPad = r.auto_pad()?;
    /// Kernel size.
    kernel_shape: Vec<i64> = r.kernel_shape(Some(w))?;
    /// Steps of the window; ones by default.
    strides: Vec<i64> = r.per_axis("strides", 1, Some(w), 1)?;
    /// Distances between kernel elements; ones by default.
    dilations: Vec<i64> = r.per_axis("dilations", 1, Some(w), 1)?;
    /// Padding; zeros by default, and meaningless unless `auto_pad` is `NotSet`.
    pads: Vec<i64> = r.per_axis("pads", 0, Some(w), 2)?;
    /// Number of groups.
    group: i64 = r.int("group", 1)?;
}

view! {
    /// Transposed convolution; lists as in [`Conv`].
    ConvTranspose = ["ConvTranspose"] as r;
    /// Input: `[batch, channels, spatial...]`.
    x: ValueId = r.input(0)?;
    /// Kernels: `[channels, filters / group, spatial...]`.
    w: ValueId = r.input(1)?;
    /// Bias: `[filters]`.
    bias: Option<ValueId> = r.optional(2);
    /// Output.
    y: ValueId = r.output(0)?;
    /// How `pads` comes about.
    auto_pad: AutoPad = r.auto_pad()?;
    /// Kernel size.
    kernel_shape: Vec<i64> = r.kernel_shape(Some(w))?;
    /// Steps of the window; ones by default.
    strides: Vec<i64> = r.per_axis("strides", 1, Some(w), 1)?;
    /// Distances between kernel elements; ones by default.
    dilations: Vec<i64> = r.per_axis("dilations", 1, Some(w), 1)?;
    /// Padding taken off; zeros by default.
    pads: Vec<i64> = r.per_axis("pads", 0, Some(w), 2)?;
    /// Added at the ends; zeros by default.
    output_padding: Vec<i64> = r.per_axis("output_padding", 0, Some(w), 1)?;
    /// Spatial output shape that determines the padding, where given.
    output_shape: Option<Vec<i64>> = r.ints("output_shape")?;
    /// Number of groups.
    group: i64 = r.int("group", 1)?;
}

view! {
    /// `y = alpha * a' * b' + beta * c`.
    Gemm = ["Gemm"] as r;
    /// Left matrix.
    a: ValueId = r.input(0)?;
    /// Right matrix.
    b: ValueId = r.input(1)?;
    /// Addend.
    c: Option<ValueId> = r.optional(2);
    /// Result.
    y: ValueId = r.output(0)?;
    /// Factor of the product.
    alpha: f32 = r.float("alpha", 1.0)?;
    /// Factor of the addend.
    beta: f32 = r.float("beta", 1.0)?;
    /// Whether `a` is transposed.
    trans_a: bool = r.int("transA", 0)? != 0;
    /// Whether `b` is transposed.
    trans_b: bool = r.int("transB", 0)? != 0;
}

view! {
    /// Matrix product, over leading axes as numpy's.
    MatMul = ["MatMul"] as r;
    /// Left operand.
    a: ValueId = r.input(0)?;
    /// Right operand.
    b: ValueId = r.input(1)?;
    /// Product.
    y: ValueId = r.output(0)?;
}

view! {
    /// Batch normalization.
    BatchNormalization = ["BatchNormalization"] as r;
    /// Input: `[batch, channels, ...]`.
    x: ValueId = r.input(0)?;
    /// Factor: `[channels]`.
    scale: ValueId = r.input(1)?;
    /// Addend: `[channels]`.
    bias: ValueId = r.input(2)?;
    /// Running mean: `[channels]`.
    mean: ValueId = r.input(3)?;
    /// Running variance: `[channels]`.
    variance: ValueId = r.input(4)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// Added to the variance.
    epsilon: f32 = r.float("epsilon", 1e-5)?;
    /// Whether batch statistics are used instead of the running ones: `training_mode` since version 14,
    /// further outputs in 7 to 13, the lack of `is_test` before.
    training: bool = match r.opset() {
        14.. => r.int("training_mode", 0)? != 0,
        7..14 => (1..5).any(|slot| r.output(slot).is_some()),
        _ => r.int("is_test", 0)? == 0,
    };
    /// Whether statistics are per channel, not per element: always since version 9.
    spatial: bool = r.opset() >= 9 || r.int("spatial", 1)? != 0;
}

view! {
    /// Layer normalization.
    LayerNormalization = ["LayerNormalization"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Factor: shape of the normalized axes.
    scale: ValueId = r.input(1)?;
    /// Addend: likewise.
    bias: Option<ValueId> = r.optional(2);
    /// Output.
    y: ValueId = r.output(0)?;
    /// First normalized axis; negative ones count from the end.
    axis: i64 = r.int("axis", -1)?;
    /// Added to the variance.
    epsilon: f32 = r.float("epsilon", 1e-5)?;
}

view! {
    /// Instance normalization.
    InstanceNormalization = ["InstanceNormalization"] as r;
    /// Input: `[batch, channels, ...]`.
    x: ValueId = r.input(0)?;
    /// Factor: `[channels]`.
    scale: ValueId = r.input(1)?;
    /// Addend: `[channels]`.
    bias: ValueId = r.input(2)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// Added to the variance.
    epsilon: f32 = r.float("epsilon", 1e-5)?;
}

view! {
    /// `y = saturate(round(x / scale) + zero_point)`.
    QuantizeLinear = ["QuantizeLinear"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Scale: one, one for each slice along `axis`, or one for each block.
    scale: ValueId = r.input(1)?;
    /// Zero point, of the output's type; zero when missing.
    zero_point: Option<ValueId> = r.optional(2);
    /// Output.
    y: ValueId = r.output(0)?;
    /// Axis of per-axis and blocked quantization.
    axis: i64 = r.int("axis", 1)?;
    /// Elements that share a scale along `axis`; 0 when not blocked.
    block_size: i64 = r.int("block_size", 0)?;
    /// Type asked for: the zero point's type, else `output_dtype`, else uint8. `None` when the zero point's
    /// type is not known.
    output_dtype: Option<DType> = match zero_point {
        Some(zero_point) => r.dtype(zero_point),
        None => match r.int("output_dtype", 0)? {
            0 => Some(DType::U8),
            code => Some(i32::try_from(code).ok().and_then(DType::from_onnx)?),
        },
    };
    /// Whether float8 results saturate.
    saturate: bool = r.int("saturate", 1)? != 0;
}

view! {
    /// `y = (x - zero_point) * scale`.
    DequantizeLinear = ["DequantizeLinear"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Scale: one, one for each slice along `axis`, or one for each block.
    scale: ValueId = r.input(1)?;
    /// Zero point, of the input's type; zero when missing.
    zero_point: Option<ValueId> = r.optional(2);
    /// Output, of the scale's type unless `output_dtype` says otherwise.
    y: ValueId = r.output(0)?;
    /// Axis of per-axis and blocked quantization.
    axis: i64 = r.int("axis", 1)?;
    /// Elements that share a scale along `axis`; 0 when not blocked.
    block_size: i64 = r.int("block_size", 0)?;
}

view! {
    /// `y = min(max(x, min), max)`.
    Clip = ["Clip"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// Lower bound; `Absent` is none.
    min: Parameter<f64> = r.number("min", 11, 1)?;
    /// Upper bound; `Absent` is none.
    max: Parameter<f64> = r.number("max", 11, 2)?;
}

view! {
    /// Reshape.
    Reshape = ["Reshape"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// The new shape: 0 copies a size (unless `allow_zero`), -1 is what is left.
    shape: Parameter<Vec<i64>> = r.list("shape", 5, 1)?;
    /// Whether 0 is a size.
    allow_zero: bool = r.int("allowzero", 0)? != 0;
}

view! {
    /// Joins axes to a matrix.
    Flatten = ["Flatten"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// First axis of the second dimension.
    axis: i64 = r.int("axis", 1)?;
}

view! {
    /// Removes axes of size 1.
    Squeeze = ["Squeeze"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// Which; `Absent` is all.
    axes: Parameter<Vec<i64>> = r.list("axes", 13, 1)?;
}

view! {
    /// Inserts axes of size 1.
    Unsqueeze = ["Unsqueeze"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// Where, in the output.
    axes: Parameter<Vec<i64>> = r.list("axes", 13, 1)?;
}

view! {
    /// Permutes axes.
    Transpose = ["Transpose"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// The permutation; by default the reverse order, `None` when the rank is not known then.
    perm: Option<Vec<i64>> = match r.ints("perm")? {
        Some(perm) => Some(perm),
        None => r.rank(x).map(|rank| (0..rank as i64).rev().collect()),
    };
}

view! {
    /// Pads.
    Pad = ["Pad"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// `constant`, `reflect`, `edge` or `wrap`.
    mode: String = r.string("mode", "constant")?;
    /// Elements added (removed, where negative): all begins, then all ends.
    pads: Parameter<Vec<i64>> = r.list("pads", 11, 1)?;
    /// What is filled in; `Absent` is zero.
    value: Parameter<f64> = r.number("value", 11, 2)?;
    /// The axes that `pads` speaks of; `Absent` is all.
    axes: Parameter<Vec<i64>> = r.list("axes", 0, 3)?;
}

view! {
    /// Converts the element type.
    Cast = ["Cast"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// The new element type.
    to: DType = DType::from_onnx(i32::try_from(r.int("to", 0)?).ok()?)?;
    /// Whether float8 results saturate.
    saturate: bool = r.int("saturate", 1)? != 0;
}

view! {
    /// Joins tensors along an axis.
    Concat = ["Concat"] as r;
    /// Inputs.
    inputs: Vec<ValueId> = r.inputs()?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// The axis; negative ones count from the end.
    axis: i64 = r.int("axis", 1)?;
}

view! {
    /// Splits a tensor along an axis.
    Split = ["Split"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Outputs; one that nobody wants is `None`.
    outputs: Vec<Option<ValueId>> = r.outputs();
    /// The axis.
    axis: i64 = r.int("axis", 0)?;
    /// Sizes of the parts; `Absent` is equal parts.
    split: Parameter<Vec<i64>> = r.list("split", 13, 1)?;
}

view! {
    /// Cuts out a part.
    Slice = ["Slice"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// First indices.
    starts: Parameter<Vec<i64>> = r.list("starts", 10, 1)?;
    /// Indices behind the last.
    ends: Parameter<Vec<i64>> = r.list("ends", 10, 2)?;
    /// The axes meant; `Absent` is the first ones in order.
    axes: Parameter<Vec<i64>> = r.list("axes", 10, 3)?;
    /// Steps; `Absent` is ones.
    steps: Parameter<Vec<i64>> = r.list("", 10, 4)?;
}

view! {
    /// Picks slices along an axis.
    Gather = ["Gather"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Indices.
    indices: ValueId = r.input(1)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// The axis.
    axis: i64 = r.int("axis", 0)?;
}

view! {
    /// Softmax.
    Softmax = ["Softmax"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// The axis: -1 by default, 1 before version 13.
    axis: i64 = r.int("axis", if r.opset() >= 13 { -1 } else { 1 })?;
    /// Before version 13 all axes from `axis` on are normalized as one.
    is_flattened: bool = r.opset() < 13;
}

view! {
    /// Maximum over windows; lists as in [`Conv`].
    MaxPool = ["MaxPool"] as r;
    /// Input: `[batch, channels, spatial...]`.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// Places of the maxima.
    indices: Option<ValueId> = r.output(1);
    /// How `pads` comes about.
    auto_pad: AutoPad = r.auto_pad()?;
    /// Window size.
    kernel_shape: Vec<i64> = r.ints("kernel_shape")??;
    /// Steps of the window; ones by default.
    strides: Vec<i64> = r.per_axis("strides", 1, None, 1)?;
    /// Distances between window elements; ones by default.
    dilations: Vec<i64> = r.per_axis("dilations", 1, None, 1)?;
    /// Padding; zeros by default.
    pads: Vec<i64> = r.per_axis("pads", 0, None, 2)?;
    /// Whether output sizes are rounded up.
    ceil_mode: bool = r.int("ceil_mode", 0)? != 0;
    /// Whether indices count columns first.
    storage_order: i64 = r.int("storage_order", 0)?;
}

view! {
    /// Mean over windows; lists as in [`Conv`].
    AveragePool = ["AveragePool"] as r;
    /// Input: `[batch, channels, spatial...]`.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// How `pads` comes about.
    auto_pad: AutoPad = r.auto_pad()?;
    /// Window size.
    kernel_shape: Vec<i64> = r.ints("kernel_shape")??;
    /// Steps of the window; ones by default.
    strides: Vec<i64> = r.per_axis("strides", 1, None, 1)?;
    /// Distances between window elements; ones by default.
    dilations: Vec<i64> = r.per_axis("dilations", 1, None, 1)?;
    /// Padding; zeros by default.
    pads: Vec<i64> = r.per_axis("pads", 0, None, 2)?;
    /// Whether output sizes are rounded up.
    ceil_mode: bool = r.int("ceil_mode", 0)? != 0;
    /// Whether padding counts in the mean.
    count_include_pad: bool = r.int("count_include_pad", 0)? != 0;
}

view! {
    /// Resizes by interpolation (version 10 and later).
    Resize = ["Resize"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// Region of interest, for one coordinate mode.
    roi: Option<ValueId> = if r.opset() < 11 { None } else { r.optional(1) };
    /// Factors of the sizes. An empty constant counts as `Absent`.
    scales: Parameter<Vec<f64>> = r.numbers(if r.opset() < 11 { 1 } else { 2 })?;
    /// Sizes of the output.
    sizes: Parameter<Vec<i64>> = r.list("", 0, 3)?;
    /// `nearest`, `linear` or `cubic`.
    mode: String = r.string("mode", "nearest")?;
    /// How places of the output map to the input; before version 11 always `asymmetric`.
    coordinate_mode: String = if r.opset() < 11 {
        "asymmetric".to_owned()
    } else {
        r.string("coordinate_transformation_mode", "half_pixel")?
    };
    /// How `nearest` rounds; before version 11 always `floor`.
    nearest_mode: String =
        if r.opset() < 11 { "floor".to_owned() } else { r.string("nearest_mode", "round_prefer_floor")? };
    /// Coefficient of cubic interpolation.
    cubic_coeff_a: f32 = r.float("cubic_coeff_a", -0.75)?;
    /// Whether weights outside of the input are dropped.
    exclude_outside: bool = r.int("exclude_outside", 0)? != 0;
    /// Value outside of the input, for one coordinate mode.
    extrapolation_value: f32 = r.float("extrapolation_value", 0.0)?;
    /// Whether to smooth when shrinking.
    antialias: bool = r.int("antialias", 0)? != 0;
    /// The axes that `roi`, `scales` and `sizes` speak of; `None` is all.
    axes: Option<Vec<i64>> = r.ints("axes")?;
    /// What to do where `sizes` would change the aspect ratio.
    keep_aspect_ratio_policy: String = r.string("keep_aspect_ratio_policy", "stretch")?;
}

view! {
    /// The reductions (`ReduceMean`, `ReduceSum`, `ReduceMax`, ...).
    Reduce = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
        "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"] as r;
    /// Which one.
    op_type: String = r.op_type();
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// The axes reduced; `Absent` is all, or none with `noop_with_empty_axes`.
    axes: Parameter<Vec<i64>> = r.list("axes", if op_type == "ReduceSum" { 13 } else { 18 }, 1)?;
    /// Whether reduced axes stay, with size 1.
    keepdims: bool = r.int("keepdims", 1)? != 0;
    /// Whether no axes means that nothing is reduced.
    noop_with_empty_axes: bool = r.int("noop_with_empty_axes", 0)? != 0;
}

view! {
    /// Dropout.
    Dropout = ["Dropout"] as r;
    /// Input.
    x: ValueId = r.input(0)?;
    /// Output.
    y: ValueId = r.output(0)?;
    /// What was kept.
    mask: Option<ValueId> = r.output(1);
    /// Whether it drops anything: an input since version 12, never in 7 to 11, the lack of `is_test` before.
    training: Parameter<bool> = match r.opset() {
        12.. => r.truth(2)?,
        7..12 => Parameter::Known(false),
        _ => Parameter::Known(r.int("is_test", 0)? == 0),
    };
}
