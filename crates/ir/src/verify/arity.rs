//! How many inputs and outputs the operators of the standard set take.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::node::Node;

/// Least and most inputs, least and most outputs.
type Arity = (usize, usize, usize, usize);

/// No upper bound.
const ANY: usize = usize::MAX;

/// The operators of the standard set of onnx 1.23 with the bounds of all their versions together:
/// `(least inputs, most inputs, least outputs, most outputs)`.
const ARITIES: &[(Arity, &str)] = &[
    ((0, 0, 1, 1), "Constant RandomNormal RandomUniform SequenceEmpty"),
    ((0, 1, 1, 1), "Optional OptionalHasElement"),
    ((1, ANY, 1, ANY), "Scan SequenceMap"),
    ((1, ANY, 1, 1), "Concat Einsum Max Mean Min SequenceConstruct Sum"),
    ((1, 1, 1, ANY), "If"),
    (
        (1, 1, 1, 1),
        "Abs Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh AveragePool Bernoulli BitCast BitwiseNot \
         BlackmanWindow Cast Ceil Celu ConcatFromSequence ConstantOfShape Cos Cosh DepthToSpace Det Elu Erf \
         Exp EyeLike Flatten Floor Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool HammingWindow \
         HannWindow HardSigmoid HardSwish Hardmax Identity ImageDecoder IsInf IsNaN LRN LeakyRelu Log \
         LogSoftmax LpNormalization LpPool MeanVarianceNormalization Mish Multinomial Neg NonZero Not \
         OptionalGetElement RandomNormalLike RandomUniformLike Reciprocal RegexFullMatch Relu Round Selu \
         SequenceLength Shape Shrink Sigmoid Sign Sin Sinh Size Softmax Softplus Softsign SpaceToDepth Sqrt \
         StringNormalizer Swish Tan Tanh TfIdfVectorizer ThresholdedRelu Transpose",
    ),
    ((1, 1, 1, 2), "MaxPool"),
    ((1, 1, 1, 4), "Unique"),
    ((1, 1, 2, 2), "StringSplit"),
    ((1, 1, 3, 3), "DynamicQuantizeLinear"),
    ((1, 2, 1, ANY), "Split"),
    (
        (1, 2, 1, 1),
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum \
         ReduceSumSquare Reshape SequenceErase SplitToSequence Squeeze Trilu Unsqueeze Upsample",
    ),
    ((1, 2, 2, 2), "TopK"),
    ((1, 3, 1, 1), "Clip DFT"),
    ((1, 3, 1, 2), "Dropout"),
    ((1, 4, 1, 1), "Pad Resize"),
    ((1, 5, 1, 1), "Slice"),
    ((2, ANY, 1, ANY), "Loop"),
    (
        (2, 2, 1, 1),
        "Add AffineGrid And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike CenterCropPad Compress \
         CumProd CumSum Div Equal Expand Gather GatherElements GatherND Greater GreaterOrEqual GridSample \
         Less LessOrEqual MatMul MaxRoiPool Mod Mul Or PRelu Pow RMSNormalization ReverseSequence \
         SequenceAt StringConcat Sub SwiGLU Xor",
    ),
    (
        (2, 3, 1, 1),
        "Conv ConvTranspose DequantizeLinear Gemm MaxUnpool NegativeLogLikelihoodLoss QuantizeLinear \
         SequenceInsert TensorScatter Tile",
    ),
    ((2, 3, 1, 2), "SoftmaxCrossEntropyLoss"),
    ((2, 3, 1, 3), "LayerNormalization"),
    ((2, 4, 1, 1), "ConvInteger MatMulInteger STFT"),
    ((2, 4, 2, 2), "CausalConvWithState"),
    ((2, 5, 1, 1), "NonMaxSuppression"),
    (
        (3, 3, 1, 1),
        "Col2Im GroupNormalization InstanceNormalization OneHot Range RoiAlign Scatter ScatterElements \
         ScatterND Where",
    ),
    ((3, 4, 1, 1), "RotaryEmbedding"),
    ((3, 5, 1, 1), "DeformConv"),
    ((3, 6, 0, 2), "GRU RNN"),
    ((3, 6, 2, 2), "LinearAttention"),
    ((3, 7, 1, 4), "Attention"),
    ((3, 8, 0, 3), "LSTM"),
    ((5, 5, 1, 1), "MelWeightMatrix"),
    ((5, 5, 1, 5), "BatchNormalization"),
    ((8, 8, 1, 1), "QLinearMatMul"),
    ((8, 9, 1, 1), "QLinearConv"),
];

static BY_NAME: LazyLock<HashMap<&str, Arity>> = LazyLock::new(|| {
    let pairs = ARITIES.iter().flat_map(|&(arity, names)| names.split(' ').map(move |name| (name, arity)));
    pairs.collect()
});

/// What is wrong with the number of inputs or outputs of a node of the standard set; unknown operators
/// may have any.
pub(super) fn check(node: &Node) -> Option<String> {
    let &(least_in, most_in, least_out, most_out) = BY_NAME.get(node.op_type.as_str())?;
    let sides =
        [("inputs", &node.inputs, least_in, most_in), ("outputs", &node.outputs, least_out, most_out)];
    sides.into_iter().find_map(|(side, list, least, most)| {
        // Omitted ones at the end say nothing.
        let given = list.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let bound = match (list.len() < least, given > most) {
            (true, _) => format!("at least {least}"),
            (_, true) => format!("at most {most}"),
            _ => return None,
        };
        Some(format!("it has {given} {side} and {} takes {bound}", node.op_type))
    })
}
