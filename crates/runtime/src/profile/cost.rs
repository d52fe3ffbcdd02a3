//! How many arithmetic operations a node takes, from the shapes of its tensors.
//!
//! The formulas count what the operator's definition computes (onnx/docs/Operators.md), not what a kernel
//! happens to execute: a multiply-add is two operations, any function of one number is one. Where a kernel
//! gets by with less (Winograd, pruned zeros), its rate looks better than it is. Movement of data counts
//! as none.

use optix_ir::Node;

/// Shapes of a node's inputs and outputs.
pub(crate) struct Shapes<'a> {
    /// By input slot; none for inputs left out and for values that are no tensors.
    pub inputs: &'a [Option<Vec<usize>>],
    /// By output slot.
    pub outputs: &'a [Option<Vec<usize>>],
}

impl Shapes<'_> {
    fn input(&self, slot: usize) -> Option<&[usize]> {
        self.inputs.get(slot)?.as_deref()
    }

    fn output(&self) -> Option<&[usize]> {
        self.outputs.first()?.as_deref()
    }

    fn in_elements(&self, slot: usize) -> Option<u64> {
        Some(count(self.input(slot)?))
    }

    fn out_elements(&self) -> Option<u64> {
        Some(count(self.output()?))
    }
}

fn count(shape: &[usize]) -> u64 {
    shape.iter().fold(1u64, |product, &size| product.saturating_mul(size as u64))
}

/// Operators that only move, cast or describe data.
const MOVES: &[&str] = &[
    "Cast",
    "CastLike",
    "Compress",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "DepthToSpace",
    "Expand",
    "EyeLike",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "OneHot",
    "Pad",
    "Range",
    "ReorderInput",
    "ReorderOutput",
    "Reshape",
    "ReverseSequence",
    "ScatterElements",
    "ScatterND",
    "Shape",
    "Size",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// Operators with a few operations for every element of the output, and how many.
const ELEMENTS: &[(&str, u64)] = &[
    ("Abs", 1),
    ("Add", 1),
    ("And", 1),
    ("BatchNormalization", 2),
    ("BiasGelu", 9),
    ("Ceil", 1),
    ("Celu", 3),
    ("Clip", 2),
    ("Cos", 1),
    ("DequantizeLinear", 2),
    ("Div", 1),
    ("Elu", 3),
    ("Equal", 1),
    ("Erf", 1),
    ("Exp", 1),
    ("FastGelu", 9),
    ("Floor", 1),
    ("Gelu", 5),
    ("Greater", 1),
    ("GreaterOrEqual", 1),
    ("HardSigmoid", 4),
    ("HardSwish", 5),
    ("LeakyRelu", 2),
    ("Less", 1),
    ("LessOrEqual", 1),
    ("Log", 1),
    ("LogSoftmax", 5),
    ("Max", 1),
    ("Min", 1),
    ("Mish", 4),
    ("Mod", 1),
    ("Mul", 1),
    ("Neg", 1),
    ("Not", 1),
    ("Or", 1),
    ("PRelu", 2),
    ("Pow", 1),
    ("QLinearAdd", 5),
    ("QLinearMul", 5),
    ("QuantizeLinear", 3),
    ("DynamicQuantizeLinear", 5),
    ("QuickGelu", 3),
    ("Reciprocal", 1),
    ("Relu", 1),
    ("Round", 1),
    ("Selu", 3),
    ("Sigmoid", 3),
    ("Sign", 1),
    ("Sin", 1),
    ("Softmax", 5),
    ("Softplus", 3),
    ("Softsign", 3),
    ("Sqrt", 1),
    ("Sub", 1),
    ("Sum", 1),
    ("Tan", 1),
    ("Tanh", 1),
    ("Xor", 1),
];

/// Normalizations: operations for every element of the first input.
const NORMS: &[(&str, u64)] = &[
    ("GroupNormalization", 8),
    ("InstanceNormalization", 8),
    ("LayerNormalization", 8),
    ("LpNormalization", 3),
    ("LRN", 8),
    ("MeanVarianceNormalization", 8),
    ("RMSNormalization", 5),
    ("SimplifiedLayerNormalization", 5),
    ("SkipLayerNormalization", 9),
    ("SkipSimplifiedLayerNormalization", 6),
    ("EmbedLayerNormalization", 10),
];

fn listed(table: &[(&str, u64)], op: &str) -> Option<u64> {
    table.iter().find(|(name, _)| *name == op).map(|(_, each)| *each)
}

/// Operations of a node; `None` where no formula is known. `node` gives attributes where there are any to
/// be had: without them a window's size is not known.
pub(crate) fn flops(op: &str, node: Option<&Node>, shapes: &Shapes<'_>) -> Option<u64> {
    if MOVES.contains(&op) {
        return Some(0);
    }
    if let Some(each) = listed(ELEMENTS, op) {
        return Some(shapes.out_elements()?.saturating_mul(each));
    }
    if let Some(each) = listed(NORMS, op) {
        return Some(shapes.in_elements(0)?.saturating_mul(each));
    }
    match op {
        "Conv" | "FusedConv" | "NhwcFusedConv" | "ConvInteger" => convolution(shapes, 1),
        "QLinearConv" => convolution(shapes, 3),
        "ConvTranspose" => {
            let weights = shapes.input(1)?;
            let per_element = count(weights) / (*weights.first()? as u64).max(1);
            Some(shapes.in_elements(0)?.saturating_mul(2).saturating_mul(per_element))
        }
        "MatMul"
        | "FusedMatMul"
        | "MatMulInteger"
        | "DynamicQuantizeMatMul"
        | "MatMulIntegerToFloat"
        | "MatMulNBits"
        | "QLinearMatMul" => {
            let inner = match node.filter(|node| node.int("transA").unwrap_or(0) != 0) {
                Some(_) => shapes.input(0)?.iter().rev().nth(1),
                None => shapes.input(0)?.last(),
            };
            Some(shapes.out_elements()?.saturating_mul(2).saturating_mul(*inner? as u64))
        }
        "Gemm" | "QGemm" => {
            let rows = (*shapes.output()?.first()? as u64).max(1);
            Some(shapes.out_elements()?.saturating_mul(2).saturating_mul(shapes.in_elements(0)? / rows))
        }
        "LSTM" | "GRU" | "RNN" | "DynamicQuantizeLSTM" => {
            let x = shapes.input(0)?;
            let steps = (*x.first()? as u64).saturating_mul(*x.get(1)? as u64);
            let weights = shapes.in_elements(1)?.saturating_add(shapes.in_elements(2)?);
            Some(steps.saturating_mul(2).saturating_mul(weights))
        }
        "MaxPool" | "AveragePool" | "LpPool" | "QLinearAveragePool" => {
            let window = node?.ints("kernel_shape")?.iter().map(|&size| size.max(1) as u64);
            Some(shapes.out_elements()?.saturating_mul(window.product()))
        }
        "GlobalAveragePool"
        | "GlobalMaxPool"
        | "GlobalLpPool"
        | "QLinearGlobalAveragePool"
        | "ArgMax"
        | "ArgMin"
        | "CumSum" => shapes.in_elements(0),
        reduce if reduce.starts_with("Reduce") => shapes.in_elements(0),
        _ => None,
    }
}

fn convolution(shapes: &Shapes<'_>, weights: usize) -> Option<u64> {
    let weights = shapes.input(weights)?;
    let per_element = count(weights) / (*weights.first()? as u64).max(1);
    Some(shapes.out_elements()?.saturating_mul(2).saturating_mul(per_element))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(op: &str, inputs: &[&[usize]], output: &[usize]) -> Option<u64> {
        let inputs: Vec<Option<Vec<usize>>> = inputs.iter().map(|shape| Some(shape.to_vec())).collect();
        flops(op, None, &Shapes { inputs: &inputs, outputs: &[Some(output.to_vec())] })
    }

    #[test]
    fn counts_follow_the_definitions() {
        // 2 * 3 * 3 * 16 operations for each of 32 * 10 * 10 outputs.
        let conv = of("Conv", &[&[1, 16, 12, 12], &[32, 16, 3, 3]], &[1, 32, 10, 10]);
        assert_eq!(conv, Some(2 * 9 * 16 * 3200));
        // Depthwise: the weights hold one input channel.
        let depthwise = of("Conv", &[&[1, 16, 12, 12], &[16, 1, 3, 3]], &[1, 16, 10, 10]);
        assert_eq!(depthwise, Some(2 * 9 * 1600));
        // Every input element is spread over 2 * 2 places of 8 channels.
        let transposed = of("ConvTranspose", &[&[1, 4, 5, 5], &[4, 8, 2, 2]], &[1, 8, 10, 10]);
        assert_eq!(transposed, Some(2 * 100 * 32));
        assert_eq!(of("MatMul", &[&[7, 5, 3], &[3, 4]], &[7, 5, 4]), Some(2 * 7 * 5 * 3 * 4));
        assert_eq!(of("Gemm", &[&[6, 3], &[4, 3], &[4]], &[6, 4]), Some(2 * 6 * 3 * 4));
        assert_eq!(of("Gemm", &[&[3, 6], &[3, 4]], &[6, 4]), Some(2 * 6 * 3 * 4), "transposed");
        // Five steps of two samples: all gates' weights once a step and sample.
        let lstm = of("LSTM", &[&[5, 2, 3], &[1, 16, 3], &[1, 16, 4]], &[5, 1, 2, 4]);
        assert_eq!(lstm, Some(2 * 5 * 2 * (48 + 64)));
        assert_eq!(of("Relu", &[&[2, 3]], &[2, 3]), Some(6));
        assert_eq!(of("Transpose", &[&[2, 3]], &[3, 2]), Some(0));
        assert_eq!(of("ReduceMean", &[&[2, 3]], &[2]), Some(6));
        assert_eq!(of("Twist", &[&[2, 3]], &[2]), None);
    }
}
