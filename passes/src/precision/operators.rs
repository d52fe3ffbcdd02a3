//! What the standard and the numbers ask of each operator.
//!
//! Which operators take 16-bit floats from which version of the operator set on is written down from the
//! type constraints of the schemas of onnx 1.23 (all versions); tests/peers/check_types.py compares the table
//! with the schemas. Operators that are not in it stay float32: quantizers, sequences, tests for infinity
//! and whatever reads the bits of a number.

use std::collections::HashMap;
use std::sync::LazyLock;

use optix_ir::{DType, Model, Node};

/// First version with float16, first version with bfloat16 (none in operator set 28), operators.
const ADMITTED: &[(i64, Option<i64>, &str)] = &[
    (
        1,
        Some(13),
        "Abs Add ArgMax ArgMin Cast Ceil Clip Concat DepthToSpace Div Dropout Exp Flatten Floor Gather Gemm Greater \
         Hardmax Identity LRN Less Log LogSoftmax MatMul Max Mean Min Mul Neg Pad Reciprocal ReduceL1 ReduceL2 \
         ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu \
         Reshape Shape Sigmoid Size Slice Softmax SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile Transpose \
         Unsqueeze",
    ),
    (1, Some(14), "BatchNormalization"),
    (1, Some(15), "Pow"),
    (1, Some(16), "LeakyRelu PRelu"),
    (
        1,
        Some(22),
        "AveragePool Conv ConvTranspose Elu GRU GlobalAveragePool GlobalLpPool GlobalMaxPool HardSigmoid \
         InstanceNormalization LSTM LpNormalization LpPool MaxPool MaxRoiPool RNN RandomNormal RandomNormalLike \
         RandomUniform RandomUniformLike Selu Softplus Softsign",
    ),
    (1, Some(24), "TopK"),
    (7, Some(22), "Acos Asin Atan Cos Sin Tan"),
    (8, Some(13), "Expand"),
    (9, Some(13), "Erf MeanVarianceNormalization NonZero Sign"),
    (9, Some(16), "Where"),
    (9, Some(20), "ConstantOfShape"),
    (9, Some(22), "Acosh Asinh Atanh Cosh EyeLike MaxUnpool Sinh"),
    (9, Some(28), "Compress OneHot"),
    (9, None, "Scatter Shrink"),
    (10, Some(13), "Mod Resize"),
    (10, Some(22), "RoiAlign ThresholdedRelu"),
    (10, Some(28), "ReverseSequence"),
    (11, Some(13), "Equal GatherElements GatherND ScatterElements ScatterND"),
    (11, Some(22), "Det Round"),
    (11, Some(28), "Unique"),
    (12, Some(13), "SoftmaxCrossEntropyLoss"),
    (12, Some(16), "GreaterOrEqual LessOrEqual"),
    (12, Some(22), "NegativeLogLikelihoodLoss"),
    (12, Some(28), "Einsum"),
    (14, Some(14), "CumSum Trilu"),
    (14, Some(22), "HardSwish"),
    (15, Some(15), "CastLike"),
    (16, Some(22), "GridSample"),
    (17, Some(17), "DFT LayerNormalization STFT"),
    (18, Some(18), "CenterCropPad Col2Im GroupNormalization"),
    (18, Some(22), "Mish"),
    (19, Some(22), "DeformConv"),
    (20, Some(20), "AffineGrid Gelu"),
    (23, Some(23), "Attention RMSNormalization RotaryEmbedding"),
    (24, Some(24), "Swish TensorScatter"),
    (26, Some(26), "CumProd"),
    (27, Some(27), "CausalConvWithState LinearAttention Range"),
    (28, Some(28), "Celu SwiGLU"),
    // Their outputs are of any type that a branch or body gives.
    (1, Some(16), "If Loop"),
    (8, Some(16), "Scan"),
];

static VERSIONS: LazyLock<HashMap<&'static str, (i64, Option<i64>)>> = LazyLock::new(|| {
    let rows = ADMITTED
        .iter()
        .flat_map(|&(half, brain, names)| names.split_whitespace().map(move |name| (name, (half, brain))));
    rows.collect()
});

/// Whether an operator of the standard set takes a 16-bit type in a version of the set; otherwise why not.
pub(super) fn admits(op: &str, opset: i64, low: DType) -> Result<(), String> {
    let Some(&(half, brain)) = VERSIONS.get(op) else {
        return Err(format!("{op} is not converted: it takes float32, or its meaning hangs on the type"));
    };
    let from = if low == DType::F16 { Some(half) } else { brain };
    match from {
        Some(from) if opset >= from => Ok(()),
        Some(from) => {
            Err(format!("{op} takes {low} from operator set {from} on, the model is written in {opset}"))
        }
        None => Err(format!("{op} does not take {low}")),
    }
}

/// Input slots that are float32 whatever the others are.
pub(super) fn is_fixed_input(op: &str, opset: i64, slot: usize) -> bool {
    match op {
        // Region and scales; in version 10 only the scales.
        "Resize" if opset >= 11 => slot == 1 || slot == 2,
        "Resize" => slot == 1,
        "Dropout" => slot == 1,
        "OneHot" => slot < 2,
        _ => false,
    }
}

/// Output slots that are float32 whatever the others are.
pub(super) fn is_fixed_output(op: &str, slot: usize) -> bool {
    // Mean and deviation are of the type the node computes in (`stash_type`).
    op == "LayerNormalization" && slot > 0
}

/// What an operator does to the numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Moves or copies elements: no number changes, so no rounding is added.
    Moves,
    /// One simple result an element: nothing is lost when it stays float32 between float32 nodes.
    Elementwise,
    /// What 16 bits are for.
    Computes,
}

/// Operators that only move elements.
const MOVES: &str = "Cast CastLike CenterCropPad Compress Concat ConstantOfShape DepthToSpace Dropout Expand EyeLike Flatten \
                     Gather GatherElements GatherND Identity Max MaxPool Min NonZero Pad ReduceMax ReduceMin Relu Reshape \
                     ReverseSequence Scatter ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze \
                     TensorScatter Tile Transpose Trilu Unsqueeze Where";
const ELEMENTWISE: &str = "Abs Acos Acosh Add ArgMax ArgMin Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Div Elu Equal Erf \
                           Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish LeakyRelu Less LessOrEqual Log Mean \
                           Mish Mod Mul Neg PRelu Pow RandomNormal RandomNormalLike RandomUniform RandomUniformLike \
                           Reciprocal Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh \
                           ThresholdedRelu";

pub(super) fn kind(op: &str) -> Kind {
    static KINDS: LazyLock<HashMap<&'static str, Kind>> = LazyLock::new(|| {
        let rows = |names: &'static str, kind| names.split_whitespace().map(move |name| (name, kind));
        rows(MOVES, Kind::Moves).chain(rows(ELEMENTWISE, Kind::Elementwise)).collect()
    });
    KINDS.get(op).copied().unwrap_or(Kind::Computes)
}

/// How an operator may go wrong in 16 bits though its inputs and outputs fit: what its kernel adds up or
/// computes on the way. The list is that of the operators which automatic mixed precision keeps in float32
/// in training frameworks; with calibration data it is narrowed to the nodes that are at risk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Risk {
    /// Adds up so many elements of the size of its input.
    Sum,
    /// Adds up so many squares of its input.
    SquareSum,
    /// Squares its input.
    Square,
    /// Grows exponentially.
    Exponential,
    /// Adds up so many numbers of at most 1.
    Softmax,
    /// Small errors of the input become large ones of the output.
    Steep,
    /// An angle whose turns are lost in rounding.
    Angle,
    /// The order of near numbers changes, and with it integers that come out.
    Order,
}

/// The risk of a node, by operator and form.
pub(super) fn risk(model: &Model, node: &Node) -> Option<Risk> {
    Some(match node.op_type.as_str() {
        "ReduceMean" | "ReduceSum" | "ReduceL1" | "GlobalAveragePool" | "CumSum" => Risk::Sum,
        "ReduceL2"
        | "ReduceSumSquare"
        | "LayerNormalization"
        | "RMSNormalization"
        | "GroupNormalization"
        | "InstanceNormalization"
        | "MeanVarianceNormalization"
        | "LpNormalization"
        | "GlobalLpPool"
        | "LpPool"
        | "LRN" => Risk::SquareSum,
        "Mul" if node.input(0).is_some() && node.input(0) == node.input(1) => Risk::Square,
        "Pow" => match node.input(1).and_then(|exponent| model.constant(exponent)?.single()) {
            Some(exponent) if (0.0..=1.0).contains(&exponent) => return None,
            Some(2.0) => Risk::Square,
            _ => Risk::Steep,
        },
        "Exp" | "Sinh" | "Cosh" | "ReduceLogSumExp" => Risk::Exponential,
        "Softmax" | "LogSoftmax" => Risk::Softmax,
        "Log"
        | "ReduceLogSum"
        | "ReduceProd"
        | "CumProd"
        | "Acos"
        | "Asin"
        | "Acosh"
        | "Atanh"
        | "Tan"
        | "SoftmaxCrossEntropyLoss"
        | "NegativeLogLikelihoodLoss"
        | "Det"
        | "DFT"
        | "STFT" => Risk::Steep,
        "Sin" | "Cos" => Risk::Angle,
        "TopK" | "Unique" | "RoiAlign" | "MaxRoiPool" | "OneHot" | "Hardmax" | "Mod" => Risk::Order,
        _ => return None,
    })
}

/// How many elements a node adds up for one of its output, from the shape of its input; `None` when a
/// size is not known.
pub(super) fn depth(model: &Model, node: &Node, shape: &[Option<usize>]) -> Option<f64> {
    let rank = shape.len() as i64;
    let size = |axis: i64| -> Option<f64> {
        let axis = if axis < 0 { axis.checked_add(rank)? } else { axis };
        Some((*shape.get(usize::try_from(axis).ok()?)?)? as f64)
    };
    let product = |axes: Vec<i64>| axes.into_iter().try_fold(1.0, |all, axis| Some(all * size(axis)?));
    match node.op_type.as_str() {
        "Softmax" | "LogSoftmax" => {
            let version = model.opset_version(node.graph(), "").unwrap_or(i64::MAX);
            if version >= 13 {
                return size(node.int("axis").unwrap_or(-1));
            }
            let axis = node.int("axis").unwrap_or(1);
            let axis = if axis < 0 { axis.checked_add(rank)? } else { axis };
            product((axis..rank).collect())
        }
        "LayerNormalization" | "RMSNormalization" => {
            let axis = node.int("axis").unwrap_or(-1);
            let axis = if axis < 0 { axis.checked_add(rank)? } else { axis };
            product((axis..rank).collect())
        }
        "CumSum" => {
            let axis = model.constant(node.input(1)?)?.to_i64s().ok()?;
            size(*axis.first()?)
        }
        "LpNormalization" => size(node.int("axis").unwrap_or(-1)),
        "LRN" => Some(node.int("size").unwrap_or(1) as f64),
        "LpPool" => node.ints("kernel_shape").map(|sizes| sizes.iter().map(|&size| size as f64).product()),
        "MeanVarianceNormalization" => {
            let axes = node.ints("axes").unwrap_or(&[0, 2, 3]).to_vec();
            product(axes)
        }
        op if op.starts_with("Reduce") => {
            let axes = match (node.ints("axes"), node.input(1)) {
                (Some(axes), _) => Some(axes.to_vec()),
                (None, Some(axes)) => Some(model.constant(axes)?.to_i64s().ok()?),
                (None, None) => None,
            };
            match axes.filter(|axes| !axes.is_empty()) {
                Some(axes) => product(axes),
                None if node.int("noop_with_empty_axes").unwrap_or(0) != 0 => Some(1.0),
                None => product((0..rank).collect()),
            }
        }
        // Everything behind batch and channels.
        _ => product((2.min(rank)..rank).collect()),
    }
}

/// Operators for which the CPU provider of onnxruntime 1.32 has float16 kernels, from its kernel registry
/// (tests/peers/check_types.py reads it again). All others it runs in float32 between casts of its own.
pub(super) const NATIVE_HALF: &str = "Attention Cast Celu Clip Compress Concat ConstantOfShape DequantizeLinear Dropout Expand Flatten Gather \
     GatherElements GatherND Identity If IsInf IsNaN LayerNormalization Loop Max Min Mod QuantizeLinear \
     RMSNormalization RandomNormalLike RandomUniformLike Reshape ReverseSequence RotaryEmbedding Round Scan \
     Scatter ScatterElements ScatterND Shape Shrink Sign Slice Split Squeeze TensorScatter Transpose Unsqueeze";

/// Whether onnxruntime's CPU provider computes an operator in float16 itself.
pub(super) fn is_native_half(op: &str) -> bool {
    NATIVE_HALF.split_whitespace().any(|name| name == op)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_the_standards() {
        assert!(admits("Conv", 9, DType::F16).is_ok());
        assert_eq!(
            admits("Conv", 13, DType::BF16).unwrap_err(),
            "Conv takes bfloat16 from operator set 22 on, the model is written in 13"
        );
        assert!(admits("Range", 26, DType::F16).is_err() && admits("Range", 27, DType::F16).is_ok());
        assert!(admits("Shrink", 28, DType::BF16).is_err());
        assert!(admits("NonMaxSuppression", 28, DType::F16).is_err());
        assert!(is_fixed_input("Resize", 13, 2) && !is_fixed_input("Resize", 10, 2));
    }

    #[test]
    fn no_operator_is_listed_twice() {
        let names: Vec<&str> = ADMITTED.iter().flat_map(|(_, _, names)| names.split_whitespace()).collect();
        assert_eq!(names.len(), VERSIONS.len());
        for list in [MOVES, ELEMENTWISE] {
            for name in list.split_whitespace() {
                assert!(VERSIONS.contains_key(name), "{name} has a kind and is never converted");
            }
        }
        assert!(
            MOVES.split_whitespace().all(|name| !ELEMENTWISE.split_whitespace().any(|other| other == name))
        );
    }
}
