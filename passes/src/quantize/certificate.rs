//! Proof that integer sums stay within their types.
//!
//! Two types matter. All kernels add up products in int32. And some add neighbouring products in int16 first:
//! onnxruntime's kernels for uint8 activations and int8 weights on x86 processors without VNNI instructions
//! multiply with `VPMADDUBSW`, which clips the sum of two products to int16 (Intel, Software Developer's Manual,
//! volume 2, PMADDUBSW); see `MultiplyAccumulateRowU8S8Avx2` in MLAS,
//! `onnxruntime/core/mlas/lib/x86_64/QgemmU8X8KernelAvx2.S`, and the AVX-512 kernels beside it. The kernels of
//! uint8 weights do not clip, nor do those of int8 activations; but a dequantized int8 activation is none:
//! onnxruntime turns it into uint8 on these processors, unless `session.qdqisint8allowed` is set. (Its option
//! `session.x64quantprecision` turns int8 weights into uint8 as well, so that nothing is clipped; but version 1.32
//! fails with it on models whose weights share a zero point.) With VNNI nothing is clipped either, but sums of raw products are added up in int32 with saturation (`VPDPBUSDS`), on
//! top of the corrections for zero points, so it is these sums that have to stay within int32, and not only the
//! result.
//!
//! The pairs are elements 0 and 1, 2 and 3, ... of the depth of the product. Convolutions become products whose
//! depth runs over the places of the kernel, and within a place over the input channels of the group
//! (`onnxruntime/core/providers/cpu/quantization/qlinearconv.cc` reorders the weights so). Depthwise convolutions
//! have kernels of their own, which do not pair. All this was confirmed on a processor with AVX2 and without
//! VNNI, onnxruntime 1.32, by weights of which two at a time were not zero.

use optix_ir::{DType, Model, Node, NodeId, Tensor, ValueId};
use optix_pipeline::{
    Cx, Family, Interface, Layer, Named, Numerics, Pass, PassError, Promises, Requires, Topology,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::quantized::constant_bytes;

/// Proves for every quantized layer that no sum leaves its integer type, or says how far it might go.
///
/// Changes nothing; put it behind the step that quantizes. For each Conv, Gemm and MatMul whose operands are
/// dequantized integers, and for QLinearConv, QLinearMatMul, ConvInteger and MatMulInteger, the ledger says:
///
/// - `proven`: whatever the activations, int32 sums cannot overflow, and pairs of products fit int16.
/// - `pairs may saturate`: on x86 processors without VNNI instructions (AVX2, first generations of AVX-512),
///   onnxruntime adds products with int8 weights in pairs, as int16. Activations and weights that are great at
///   the same places are clipped there, and results are other ones than on other processors. Uint8 weights,
///   and int8 ones within -64 to 64, never are.
/// - `may overflow`: int32 sums may overflow.
///
/// The proof is about all activations that the integer type can hold, so "may" means that some input would do
/// it, not that any real one does.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 13]>
/// model (uint8[N, 2] x) => (float[N, 2] y)
/// <
///     float x_scale = {0.1}, uint8 x_zero_point = {0},
///     int8[2, 2] w = {127, 1, 127, 1}, float w_scale = {0.01}, int8 w_zero_point = {0}
/// >
/// {
///     a = DequantizeLinear (x, x_scale, x_zero_point)
///     b = DequantizeLinear (w, w_scale, w_zero_point)
///     y = MatMul (a, b)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 13]>
/// model (uint8[N, 2] x) => (float[N, 2] y)
/// <
///     float x_scale = {0.1}, uint8 x_zero_point = {0},
///     int8[2, 2] w = {127, 1, 127, 1}, float w_scale = {0.01}, int8 w_zero_point = {0}
/// >
/// {
///     a = DequantizeLinear (x, x_scale, x_zero_point)
///     b = DequantizeLinear (w, w_scale, w_zero_point)
///     y = MatMul (a, b)
/// }
/// ```
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CertifyOverflow {}

impl Named for CertifyOverflow {
    const NAME: &'static str = "certify-overflow";
    const FAMILY: Family = Family::Quantize;
}

impl Pass for CertifyOverflow {
    fn requires(&self) -> Requires {
        Requires { inferred_types: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Exact, interface: Interface::Kept, topology: Topology::Kept }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let order: Vec<NodeId> = model.walk().collect();
        let total = order.len() as u64;
        let mut saturating = 0u64;
        for (index, id) in order.into_iter().enumerate() {
            let node = model.node(id);
            if !node.domain().is_empty() || !MULTIPLIES.contains(&node.op_type.as_str()) {
                continue;
            }
            cx.progress("proving", index as u64, total)?;
            let found = operands(model, id).and_then(|operands| certify(&operands));
            let certificate = match found {
                Ok(certificate) => certificate,
                Err(reason) => {
                    cx.skip(model, id, reason);
                    continue;
                }
            };
            cx.count(certificate.counter(), 1);
            saturating += u64::from(certificate.may_saturate());
            let (name, op) = optix_pipeline::naming::node_and_op(model, id);
            let inputs = model.node(id).inputs().iter().flatten();
            let bytes =
                inputs.map(|&value| constant_bytes(model, dequantized(model, value).unwrap_or(value))).sum();
            cx.layer(Layer {
                node: name,
                op,
                action: certificate.verdict().to_owned(),
                reason: Some(certificate.explain()),
                bytes_before: bytes,
                bytes_after: bytes,
                ..Layer::default()
            });
        }
        if saturating > 0 {
            cx.warn(format!(
                "{saturating} layers may compute something else on x86 processors without VNNI instructions, \
                 where onnxruntime clips pairs of products to int16; uint8 weights or 7-bit ones are safe"
            ));
        }
        Ok(())
    }
}

/// Operators that add up products of integers, or would if their operands were quantized.
const MULTIPLIES: &[&str] =
    &["Conv", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"];

/// How the weights of a product lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WeightLayout {
    /// `[out, in / groups, places...]`: a convolution.
    Convolution {
        /// Groups of channels, at least 1.
        groups: usize,
    },
    /// `[..., in, out]`: MatMul, and Gemm as it is.
    InOut,
    /// `[out, in]`: Gemm with `transB`.
    OutIn,
}

impl WeightLayout {
    /// How the weights of a convolution or a product lie.
    pub(super) fn of(node: &Node) -> WeightLayout {
        match node.op_type.as_str() {
            "Conv" | "QLinearConv" | "ConvInteger" => {
                let groups = usize::try_from(node.int("group").unwrap_or(1)).unwrap_or(1);
                WeightLayout::Convolution { groups }
            }
            "Gemm" if node.int("transB").unwrap_or(0) != 0 => WeightLayout::OutIn,
            _ => WeightLayout::InOut,
        }
    }
}

/// Pairs of products that are added in int16.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pairs {
    /// All of them; 0 where the kernel adds none.
    pub count: u64,
    /// Those whose sum may leave int16.
    pub possible: u64,
    /// Greatest magnitude that the sum of a pair may have, were it not clipped.
    pub worst: i32,
}

/// Whether onnxruntime may clip sums of two products when int8 weights meet 8-bit activations on an x86
/// processor without VNNI instructions. `weights` are the integers, int8, laid out as `layout` says; weights of
/// other types and shapes are never clipped.
///
/// It depends on two neighbouring weights at a time: with activations of 255, weights of one sign whose sum is
/// beyond 128 leave int16; weights within -64 to 64 never do.
pub fn pairs_can_saturate(weights: &Tensor, layout: WeightLayout) -> bool {
    let Some(arrangement) = Arrangement::of(weights.shape(), layout) else { return false };
    match weights.to_slice::<i8>() {
        Ok(elements) => analyse(&elements, &arrangement, true).pairs.possible > 0,
        Err(_) => false,
    }
}

/// What of a tensor of weights is multiplied with what, in the order of the kernels.
pub(super) struct Arrangement {
    /// Sums: output channels, or columns of all matrices.
    pub(super) channels: usize,
    /// Products in each sum.
    depth: usize,
    order: Order,
    /// Whether the kernel for these weights adds pairs at all.
    pub(super) is_paired: bool,
}

enum Order {
    Convolution { inputs: usize, places: usize },
    OutIn,
    InOut { columns: usize },
}

impl Arrangement {
    pub(super) fn of(shape: &[usize], layout: WeightLayout) -> Option<Arrangement> {
        Some(match (layout, shape) {
            (WeightLayout::Convolution { groups }, &[channels, inputs, ref places @ ..]) => {
                let places = optix_ir::element_count(places)?;
                let is_depthwise = groups > 1 && inputs == 1 && channels == groups;
                Arrangement {
                    channels,
                    depth: inputs.checked_mul(places)?,
                    order: Order::Convolution { inputs, places },
                    is_paired: !is_depthwise,
                }
            }
            (WeightLayout::OutIn, &[channels, depth]) => {
                Arrangement { channels, depth, order: Order::OutIn, is_paired: true }
            }
            (WeightLayout::InOut, &[ref matrices @ .., depth, columns]) => Arrangement {
                channels: optix_ir::element_count(matrices)?.checked_mul(columns)?,
                depth,
                order: Order::InOut { columns },
                is_paired: true,
            },
            _ => return None,
        })
    }

    /// Calls `visit` with channel, place in the depth and element: depth in order within each channel.
    pub(super) fn each<T: Copy>(&self, elements: &[T], mut visit: impl FnMut(usize, usize, T)) {
        let &Arrangement { channels, depth, .. } = self;
        // A shape may declare any number of channels without elements.
        if elements.is_empty() {
            return;
        }
        match self.order {
            Order::Convolution { inputs, places } => {
                for channel in 0..channels {
                    for place in 0..places {
                        for input in 0..inputs {
                            let at = (channel * inputs + input) * places + place;
                            visit(channel, place * inputs + input, elements[at]);
                        }
                    }
                }
            }
            Order::OutIn => {
                for (at, &element) in elements.iter().enumerate().take(channels * depth) {
                    visit(at / depth, at % depth, element);
                }
            }
            // Along memory, not along the depth.
            Order::InOut { columns } => {
                for (at, &element) in elements.iter().enumerate() {
                    let (row, column) = (at / columns, at % columns);
                    visit(row / depth * columns + column, row % depth, element);
                }
            }
        }
    }
}

/// What weights alone say.
struct Sums {
    /// Sum of the magnitudes of each channel's weights.
    magnitudes: Vec<i64>,
    pairs: Pairs,
}

/// `with_pairs`: whether the kernel adds pairs in int16 where the arrangement allows.
fn analyse<T: Copy + Into<i32>>(elements: &[T], arrangement: &Arrangement, with_pairs: bool) -> Sums {
    const ACTIVATION: i32 = u8::MAX as i32;
    let is_paired = with_pairs && arrangement.is_paired;
    let channels = if elements.is_empty() { 0 } else { arrangement.channels };
    let mut sums = Sums { magnitudes: vec![0; channels], pairs: Pairs::default() };
    let mut first = vec![0i32; channels];
    arrangement.each(elements, |channel, depth, weight| {
        let weight: i32 = weight.into();
        sums.magnitudes[channel] += i64::from(weight.abs());
        if !is_paired {
            return;
        }
        if depth % 2 == 0 {
            first[channel] = weight;
            return;
        }
        // Weights of unlike signs work against each other; one product alone always fits.
        let pair = [first[channel], weight];
        let most = ACTIVATION * pair.iter().map(|weight| weight.max(&0)).sum::<i32>();
        let least = ACTIVATION * pair.iter().map(|weight| weight.min(&0)).sum::<i32>();
        sums.pairs.count += 1;
        sums.pairs.possible += u64::from(most > i32::from(i16::MAX) || least < i32::from(i16::MIN));
        sums.pairs.worst = sums.pairs.worst.max(most).max(-least);
    });
    sums
}

/// A product of integers, as its node has it.
struct Operands<'m> {
    activation: DType,
    /// Whether a `DequantizeLinear` stands between the activations and the product.
    is_dequantized: bool,
    /// None where it is only known when the model runs.
    activation_zero: Option<i64>,
    weights: &'m Tensor,
    /// One, or one a channel.
    weight_zeros: Vec<i64>,
    layout: WeightLayout,
    /// int32 numbers added to the sums: none, one, or one a channel.
    bias: Vec<i64>,
}

/// The operands of a node; why it has none.
fn operands(model: &Model, id: NodeId) -> Result<Operands<'_>, String> {
    let node = model.node(id);
    let float = || "it is not quantized: an operand is not a dequantized integer".to_owned();
    let quantized = |slot: usize| {
        let producer = model.value(node.input(slot)?).producer()?.0;
        Some(model.node(producer)).filter(|producer| producer.is("DequantizeLinear"))
    };
    // Integers, zero point and bias by the slots of the node that has them.
    let (x, x_zero, w, w_zero, bias) = match node.op_type.as_str() {
        "Conv" | "Gemm" | "MatMul" => {
            let (x, w) = (quantized(0).ok_or_else(float)?, quantized(1).ok_or_else(float)?);
            if w.int("block_size").unwrap_or(0) != 0 {
                return Err("its weights have scales by blocks: it is computed in float".to_owned());
            }
            // A bias that is no dequantized integer is added in float.
            let bias = quantized(2).and_then(|bias| bias.input(0));
            (x.input(0), x.input(2), w.input(0), w.input(2), bias)
        }
        "QLinearConv" => (node.input(0), node.input(2), node.input(3), node.input(5), node.input(8)),
        "QLinearMatMul" => (node.input(0), node.input(2), node.input(3), node.input(5), None),
        _ => (node.input(0), node.input(2), node.input(1), node.input(3), None),
    };
    let (x, w) = (x.ok_or_else(float)?, w.ok_or_else(float)?);
    let activation = model.value(x).ty.as_ref().and_then(|ty| ty.dtype());
    let activation = activation.or_else(|| Some(model.constant(x_zero?)?.dtype()));
    let zero_points = |value: Option<ValueId>| match value {
        None => Some(vec![0]),
        Some(value) => model.constant(value).and_then(|zeros| zeros.to_i64s().ok()),
    };
    Ok(Operands {
        activation: activation.ok_or("the type of its activations is not known")?,
        is_dequantized: matches!(node.op_type.as_str(), "Conv" | "Gemm" | "MatMul"),
        activation_zero: zero_points(x_zero).and_then(|zeros| zeros.first().copied()),
        weights: model.constant(w).ok_or("both its operands are activations")?,
        weight_zeros: zero_points(w_zero).ok_or("the zero points of its weights are not constant")?,
        layout: WeightLayout::of(node),
        bias: match bias {
            None => Vec::new(),
            Some(bias) => {
                let bias = model.constant(bias).and_then(|bias| bias.to_i64s().ok());
                bias.ok_or("its bias is not constant")?
            }
        },
    })
}

/// The integers behind a `DequantizeLinear`.
fn dequantized(model: &Model, value: ValueId) -> Option<ValueId> {
    let (producer, _) = model.value(value).producer()?;
    model.node(producer).input(0).filter(|_| model.node(producer).is("DequantizeLinear"))
}

/// What is known of one layer.
struct Certificate {
    /// Greatest magnitude that a sum may have on the way to its end.
    reach: i64,
    /// Whether products are added in pairs, and which of them may leave int16.
    pairs: Pairs,
}

/// Bounds the sums of a product for all activations of its type.
fn certify(operands: &Operands<'_>) -> Result<Certificate, String> {
    let greatest: i64 = match operands.activation {
        DType::U8 => u8::MAX.into(),
        DType::I8 => -i64::from(i8::MIN),
        DType::U16 => u16::MAX.into(),
        DType::I16 => -i64::from(i16::MIN),
        other => {
            return Err(format!("its activations are {other}, which is no type of quantized activations"));
        }
    };
    let shape = operands.weights.shape();
    let arrangement = Arrangement::of(shape, operands.layout)
        .ok_or_else(|| format!("its weights have the shape {shape:?}, which does not suit the operator"))?;
    let text = |error: optix_ir::TensorError| error.to_string();
    let sums = match operands.weights.dtype() {
        DType::I8 => {
            let elements = operands.weights.to_slice::<i8>().map_err(text)?;
            // Dequantized int8 becomes uint8, its zero point with it.
            let becomes_unsigned = operands.activation == DType::I8 && operands.is_dequantized;
            analyse(&elements, &arrangement, operands.activation == DType::U8 || becomes_unsigned)
        }
        DType::U8 => analyse(&operands.weights.to_slice::<u8>().map_err(text)?, &arrangement, false),
        other => return Err(format!("its weights are {other}: no integer kernel takes them")),
    };
    let columns = match arrangement.order {
        Order::InOut { columns } => columns,
        _ => arrangement.channels,
    };
    let fits = |list: &[i64]| list.len() == 1 || list.len() == columns;
    if !fits(&operands.weight_zeros) {
        return Err(format!("{} zero points for {columns} channels", operands.weight_zeros.len()));
    }
    // Raw products and corrections for zero points, in whatever order they are added.
    let zero = operands.activation_zero.map_or(greatest, i64::abs);
    let of = |list: &[i64], channel: usize| match list {
        [only] => only.saturating_abs(),
        list if list.len() == columns => list[channel % columns].saturating_abs(),
        // One for each element of the result, or none: the greatest bounds them all.
        list => list.iter().map(|number| number.saturating_abs()).max().unwrap_or(0),
    };
    let depth = i64::try_from(arrangement.depth).unwrap_or(i64::MAX);
    let reach = sums.magnitudes.iter().enumerate().map(|(channel, &magnitude)| {
        let zeros = of(&operands.weight_zeros, channel).saturating_mul(depth);
        let weights = magnitude.saturating_add(zeros);
        weights.saturating_mul(greatest.saturating_add(zero)).saturating_add(of(&operands.bias, channel))
    });
    Ok(Certificate { reach: reach.max().unwrap_or(0), pairs: sums.pairs })
}

impl Certificate {
    fn may_overflow(&self) -> bool {
        self.reach > i64::from(i32::MAX)
    }

    fn may_saturate(&self) -> bool {
        self.pairs.possible > 0
    }

    fn verdict(&self) -> &'static str {
        match (self.may_overflow(), self.may_saturate()) {
            (true, _) => "may overflow",
            (false, true) => "pairs may saturate",
            (false, false) => "proven",
        }
    }

    fn counter(&self) -> &'static str {
        match (self.may_overflow(), self.may_saturate()) {
            (true, _) => "layers whose sums may overflow",
            (false, true) => "layers whose pairs may saturate",
            (false, false) => "layers proven",
        }
    }

    fn explain(&self) -> String {
        let share = self.reach as f64 / f64::from(i32::MAX) * 100.0;
        let mut text = format!("sums reach at most {}, {share:.2}% of int32", self.reach);
        let Pairs { count, possible, worst } = self.pairs;
        if possible > 0 {
            text.push_str(&format!("; {possible} of {count} pairs may reach {worst}, beyond int16"));
        } else if count > 0 {
            text.push_str(&format!("; pairs reach at most {worst}, within int16"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(shape: &[usize], weights: &[i8], layout: WeightLayout) -> Pairs {
        let arrangement = Arrangement::of(shape, layout).unwrap();
        analyse(weights, &arrangement, true).pairs
    }

    /// Positions of two weights in a tensor that meet in a pair.
    fn partners(shape: &[usize], layout: WeightLayout) -> Vec<(usize, usize)> {
        let count = shape.iter().product();
        let mut found = Vec::new();
        for a in 0..count {
            for b in a + 1..count {
                let mut weights = vec![0i8; count];
                (weights[a], weights[b]) = (127, 127);
                if pairs_can_saturate(&Tensor::from_vec(shape.to_vec(), weights), layout) {
                    found.push((a, b));
                }
            }
        }
        found
    }

    #[test]
    fn pairs_are_those_that_onnxruntime_was_seen_to_clip() {
        // Seen with onnxruntime 1.32 on AVX2: of all pairs of two weights of 127, these gave 32,767 for 64,770.
        assert_eq!(partners(&[5, 1], WeightLayout::InOut), [(0, 1), (2, 3)]);
        assert_eq!(partners(&[1, 8], WeightLayout::OutIn), [(0, 1), (2, 3), (4, 5), (6, 7)]);
        assert_eq!(partners(&[4, 2], WeightLayout::InOut), [(0, 2), (1, 3), (4, 6), (5, 7)]);
        let convolution = WeightLayout::Convolution { groups: 1 };
        assert_eq!(partners(&[1, 1, 3, 3], convolution), [(0, 1), (2, 3), (4, 5), (6, 7)]);
        // Channels 0 to 2 at places 0 to 2: (0, 0) with (1, 0), (0, 1) with (2, 0), (0, 2) with (1, 2), (1, 1)
        // with (2, 1).
        assert_eq!(partners(&[1, 3, 1, 3], convolution), [(0, 3), (1, 6), (2, 5), (4, 7)]);
        assert_eq!(partners(&[1, 2, 2, 1], convolution), [(0, 2), (1, 3)]);
        // Depthwise convolutions are not paired; groups of several channels are.
        assert_eq!(partners(&[2, 1, 3], WeightLayout::Convolution { groups: 2 }), []);
        assert_eq!(partners(&[2, 2, 1], WeightLayout::Convolution { groups: 2 }), [(0, 1), (2, 3)]);
        // Several matrices, one behind the other.
        assert_eq!(partners(&[2, 2, 1], WeightLayout::InOut), [(0, 1), (2, 3)]);
    }

    #[test]
    fn the_limit_is_exact() {
        let possible = |a: i8, b: i8| pairs(&[2, 1], &[a, b], WeightLayout::InOut).possible == 1;
        // 255 * 128 = 32,640 fits and 255 * 129 = 32,895 does not, on both sides.
        for (a, b, expected) in [
            (127, 1, false),
            (127, 2, true),
            (64, 64, false),
            (64, 65, true),
            (-128, 0, false),
            (-128, -1, true),
            (-64, -64, false),
            (-64, -65, true),
            (127, -128, false),
        ] {
            assert_eq!(possible(a, b), expected, "{a} {b}");
            // Against all activations, one by one.
            let clips = |x: i32, y: i32| {
                let sum = x * i32::from(a) + y * i32::from(b);
                i16::try_from(sum).is_err()
            };
            let found = (0..=255).any(|x| (0..=255).any(|y| clips(x, y)));
            assert_eq!(found, expected, "{a} {b}");
        }
        assert_eq!(pairs(&[2, 1], &[127, 127], WeightLayout::InOut).worst, 64_770);
        assert_eq!(pairs(&[2, 1], &[-128, -128], WeightLayout::InOut).worst, 65_280);
    }

    #[test]
    fn shapes_that_hold_nothing_or_do_not_suit() {
        for (shape, layout) in [
            (vec![0, 3], WeightLayout::InOut),
            (vec![3, 0], WeightLayout::OutIn),
            (vec![0, 0, 0], WeightLayout::InOut),
            (vec![1 << 60, 0], WeightLayout::OutIn),
            (vec![0, 1 << 60], WeightLayout::InOut),
            (vec![1 << 60, 0, 5], WeightLayout::Convolution { groups: 1 }),
            (vec![2, 0, 3], WeightLayout::Convolution { groups: 1 }),
            (vec![4], WeightLayout::InOut),
            (vec![2, 2, 2], WeightLayout::OutIn),
            (vec![], WeightLayout::Convolution { groups: 0 }),
        ] {
            let count = shape.iter().product();
            assert!(!pairs_can_saturate(&Tensor::from_vec(shape, vec![127i8; count]), layout));
        }
        let unsigned = Tensor::from_vec(vec![2, 1], vec![255u8; 2]);
        assert!(!pairs_can_saturate(&unsigned, WeightLayout::InOut));
    }

    #[test]
    fn sums_are_bounded_by_what_can_happen() {
        let weights = Tensor::from_vec(vec![3, 2], vec![127i8, -1, 127, 2, -127, 3]);
        let operands = |activation: DType, zero: Option<i64>, bias: Vec<i64>| Operands {
            activation,
            is_dequantized: false,
            activation_zero: zero,
            weights: &weights,
            weight_zeros: vec![0],
            layout: WeightLayout::InOut,
            bias,
        };
        let reach = |operands: &Operands<'_>| certify(operands).unwrap().reach;
        assert_eq!(reach(&operands(DType::U8, Some(0), vec![])), 381 * 255);
        assert_eq!(reach(&operands(DType::U8, Some(128), vec![7, 9])), 381 * (255 + 128) + 7);
        assert_eq!(reach(&operands(DType::U8, None, vec![-9])), 381 * 510 + 9);
        assert_eq!(reach(&operands(DType::I8, Some(-5), vec![0, 1 << 40])), 6 * 133 + (1 << 40));
        assert_eq!(reach(&operands(DType::U8, Some(0), vec![i64::MIN])), i64::MAX);
        let found = certify(&operands(DType::U8, Some(0), vec![])).unwrap();
        assert_eq!((found.verdict(), found.pairs.count, found.pairs.possible), ("pairs may saturate", 2, 1));
        let found = certify(&operands(DType::I8, Some(0), vec![])).unwrap();
        assert_eq!((found.verdict(), found.pairs.count), ("proven", 0));
        // onnxruntime makes uint8 of int8 activations where it may.
        let dequantized = Operands { is_dequantized: true, ..operands(DType::I8, Some(0), vec![]) };
        assert_eq!(certify(&dequantized).unwrap().verdict(), "pairs may saturate");
        let dequantized = Operands { is_dequantized: true, ..operands(DType::I16, Some(0), vec![]) };
        assert_eq!(certify(&dequantized).unwrap().verdict(), "proven");
        let found = certify(&operands(DType::U8, Some(0), vec![i64::from(i32::MAX)])).unwrap();
        assert_eq!(found.verdict(), "may overflow");
        assert!(certify(&operands(DType::F32, None, vec![])).is_err());
        let wrong = Operands { weight_zeros: vec![0; 5], ..operands(DType::U8, None, vec![]) };
        assert!(certify(&wrong).is_err());
        let none = Operands { weight_zeros: vec![], ..operands(DType::U8, None, vec![]) };
        assert!(certify(&none).is_err());
    }
}
