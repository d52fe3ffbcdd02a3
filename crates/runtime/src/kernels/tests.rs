//! Every fast kernel against the reference kernel of `optix_ops`, on random tensors and edge shapes.

use optix_ir::{DType, Node, Tensor};
use optix_ops::Call;

use super::{Job, Make, Setup, find};

/// A small generator: the tests need spread, not quality.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }

    fn floats(&mut self, shape: &[usize]) -> Tensor {
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| self.next() * 6.0 - 3.0).collect();
        Tensor::from_vec(shape, data)
    }

    fn positive(&mut self, shape: &[usize]) -> Tensor {
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| self.next() + 0.1).collect();
        Tensor::from_vec(shape, data)
    }

    fn bytes(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let data: Vec<u8> = (0..shape.iter().product()).map(|_| (self.next() * 256.0) as u8).collect();
        Tensor::from_codes(dtype, shape, &data)
    }
}

/// How near a fast result must be to the reference.
#[derive(Clone, Copy)]
enum Near {
    /// Bit for bit.
    Exact,
    /// Difference at most this fraction of the largest reference element.
    Relative(f32),
}

fn check(what: &str, opset: i64, node: &Node, inputs: &[Option<Tensor>], near: Near) {
    let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
    let call = Call::new(node, opset, &inputs);
    let spec = find("", &node.op_type, opset).unwrap_or_else(|| panic!("{what}: no fast kernel"));
    let reference = optix_ops::find("", &node.op_type).unwrap_or_else(|| panic!("{what}: no reference"));
    let want = (reference.run)(&call).unwrap_or_else(|error| panic!("{what}: reference: {error}"));
    // Once with all inputs constant when the kernel prepares, once with none.
    let none = vec![None; inputs.len()];
    let mut results = Vec::new();
    match spec.make {
        Make::Plain(run) => results.push(run(&Job::new(call, &Default::default(), None))),
        Make::Prepared(make) => {
            for constants in [&none, &inputs] {
                let kernel =
                    make(&Setup { node, opset, constants }).unwrap_or_else(|| panic!("{what}: not made"));
                results.push(kernel.run(&Job::new(call, &Default::default(), None)));
            }
        }
    }
    for result in results {
        let got = result.unwrap_or_else(|error| panic!("{what}: {error}"));
        let got = got.unwrap_or_else(|| panic!("{what}: declined"));
        // Optional outputs at the end may be left out.
        assert!(!got.is_empty() && got.len() <= want.len(), "{what}: number of outputs");
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(
                (got.dtype(), got.shape()),
                (want.dtype(), want.shape()),
                "{what}: type of the output"
            );
            match near {
                Near::Exact => assert!(got.bytes() == want.bytes(), "{what}: {got:?} is not {want:?}"),
                Near::Relative(limit) => compare(what, got, want, limit),
            }
        }
    }
}

fn compare(what: &str, got: &Tensor, want: &Tensor, limit: f32) {
    let (got, want) = (got.to_slice::<f32>().unwrap(), want.to_slice::<f32>().unwrap());
    let largest = want.iter().filter(|x| x.is_finite()).fold(1e-20f32, |a, &b| a.max(b.abs()));
    for (index, (&got, &want)) in got.iter().zip(want.iter()).enumerate() {
        let equal = got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= limit * largest;
        assert!(equal, "{what}: element {index} is {got}, not {want}");
    }
}

fn node(op_type: &str) -> Node {
    Node::new(op_type, [])
}

const CLOSE: Near = Near::Relative(2e-6);

#[test]
fn elementwise() {
    let mut random = Random(1);
    let shapes: &[(&[usize], &[usize])] = &[
        (&[2, 3, 4], &[2, 3, 4]),
        (&[2, 3, 4], &[]),
        (&[], &[5]),
        (&[2, 3, 1, 5], &[3, 4, 1]),
        (&[1, 16, 1, 1], &[4, 16, 9, 9]),
        (&[4, 16, 9, 9], &[1, 16, 1, 1]),
        (&[7, 1], &[1, 9]),
        (&[3, 0], &[1, 1]),
        (&[1], &[1, 1, 1]),
        (&[300, 1, 700], &[700]),
    ];
    for op in ["Add", "Sub", "Mul", "Div", "PRelu", "Max", "Min"] {
        for (a, b) in shapes {
            // PRelu's slope broadcasts to the input, not the other way.
            if op == "PRelu" && super::elementwise::broadcast(a, b).as_deref() != Some(*a) {
                continue;
            }
            let inputs = [Some(random.floats(a)), Some(random.floats(b))];
            check(&format!("{op} {a:?} {b:?}"), 16, &node(op), &inputs, Near::Exact);
        }
    }
    for exponent in [2.0f32, 0.5, 3.0, -1.0] {
        let inputs = [Some(random.positive(&[3, 5])), Some(Tensor::scalar(exponent))];
        check(&format!("Pow {exponent}"), 15, &node("Pow"), &inputs, CLOSE);
    }
    let inputs = [
        Some(Tensor::from_bools(vec![2, 1, 3], &[true, false, true, false, false, true])),
        Some(random.floats(&[4, 1])),
        Some(random.floats(&[2, 4, 3])),
    ];
    check("Where", 16, &node("Where"), &inputs, Near::Exact);
}

#[test]
fn activations() {
    let mut random = Random(2);
    let special =
        Tensor::from_vec(vec![7], vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30, -1e30]);
    let ops = [
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Erf",
        "Exp",
        "Elu",
        "Neg",
        "Abs",
        "Floor",
        "Ceil",
    ];
    for op in ops {
        for input in [random.floats(&[3, 50]), random.floats(&[0]), random.floats(&[])] {
            check(op, 20, &node(op), &[Some(input)], CLOSE);
        }
    }
    for op in ["Relu", "Sigmoid", "Tanh", "Erf", "Exp"] {
        check(&format!("{op} of special numbers"), 20, &node(op), &[Some(special.clone())], CLOSE);
    }
    for op in ["Sqrt", "Reciprocal", "Log"] {
        check(op, 20, &node(op), &[Some(random.positive(&[5, 7]))], CLOSE);
    }
    for approximate in ["none", "tanh"] {
        let node = node("Gelu").with("approximate", approximate);
        check("Gelu", 20, &node, &[Some(random.floats(&[4, 33]))], CLOSE);
    }
    let x = random.floats(&[40]);
    let scalar = |x: f32| Some(Tensor::scalar(x));
    for bounds in
        [[scalar(-1.0), scalar(2.0)], [None, scalar(0.5)], [scalar(0.0), None], [scalar(1.0), scalar(-1.0)]]
    {
        let [low, high] = bounds;
        check("Clip", 13, &node("Clip"), &[Some(x.clone()), low, high], Near::Exact);
    }
    check("Clip 6", 6, &node("Clip").with("min", 0.0).with("max", 6.0), &[Some(x)], Near::Exact);
}

#[test]
fn convolutions() {
    let mut random = Random(3);
    type Case = (&'static [usize], &'static [usize], &'static [(&'static str, &'static [i64])], i64);
    let cases: &[Case] = &[
        (&[2, 3, 8, 8], &[4, 3, 3, 3], &[("pads", &[1, 1, 1, 1])], 1),
        (&[1, 8, 9, 7], &[8, 1, 3, 3], &[("pads", &[1, 1, 1, 1]), ("strides", &[2, 2])], 8),
        (&[1, 4, 6, 6], &[6, 2, 1, 1], &[], 2),
        (&[1, 2, 10, 10], &[3, 2, 3, 2], &[("pads", &[0, 1, 2, 0]), ("dilations", &[2, 3])], 1),
        (&[2, 3, 20], &[5, 3, 4], &[("strides", &[3]), ("pads", &[2, 1])], 1),
    ];
    for (input, weights, attributes, group) in cases {
        let what = format!("Conv {input:?} {weights:?} {attributes:?}");
        let node = attributes.iter().fold(node("Conv").with("group", *group), |n, (k, v)| n.with(k, *v));
        let bias = random.floats(&weights[..1]);
        for bias in [None, Some(bias)] {
            let inputs = [Some(random.floats(input)), Some(random.floats(weights)), bias];
            check(&what, 11, &node, &inputs, CLOSE);
        }
    }
    for mode in ["SAME_UPPER", "SAME_LOWER", "VALID"] {
        let node = node("Conv").with("auto_pad", mode).with("strides", vec![2i64, 1]);
        let inputs = [Some(random.floats(&[1, 2, 7, 6])), Some(random.floats(&[2, 2, 3, 4]))];
        check(&format!("Conv {mode}"), 11, &node, &inputs, CLOSE);
    }
    let cases: &[Case] = &[
        (&[1, 3, 4, 5], &[3, 2, 3, 3], &[], 1),
        (&[2, 4, 5, 3], &[4, 2, 2, 2], &[("strides", &[2, 2])], 1),
        (&[1, 4, 4, 4], &[4, 1, 3, 3], &[("strides", &[2, 3]), ("pads", &[1, 0, 1, 2])], 2),
        (&[1, 2, 6], &[2, 3, 3], &[("strides", &[2]), ("output_padding", &[1]), ("dilations", &[2])], 1),
    ];
    for (input, weights, attributes, group) in cases {
        let what = format!("ConvTranspose {input:?} {weights:?} {attributes:?}");
        let node =
            attributes.iter().fold(node("ConvTranspose").with("group", *group), |n, (k, v)| n.with(k, *v));
        let bias = random.floats(&[weights[1] * *group as usize]);
        let inputs = [Some(random.floats(input)), Some(random.floats(weights)), Some(bias)];
        check(&what, 11, &node, &inputs, CLOSE);
    }
}

#[test]
fn products() {
    let mut random = Random(4);
    let shapes: &[(&[usize], &[usize])] = &[
        (&[3, 4], &[4, 5]),
        (&[4], &[4]),
        (&[4], &[2, 4, 3]),
        (&[2, 3, 4], &[4]),
        (&[2, 1, 3, 4], &[5, 4, 6]),
        (&[2, 12, 20, 32], &[2, 12, 32, 20]),
        (&[6, 30, 17], &[17, 50]),
        (&[3, 0], &[0, 2]),
    ];
    for (a, b) in shapes {
        let inputs = [Some(random.floats(a)), Some(random.floats(b))];
        check(&format!("MatMul {a:?} {b:?}"), 13, &node("MatMul"), &inputs, CLOSE);
        for dtype in [DType::U8, DType::I8] {
            let zeros = |value: u8| Some(Tensor::from_codes(dtype, vec![], &[value]));
            let inputs = [
                Some(random.bytes(DType::U8, a)),
                Some(random.bytes(dtype, b)),
                Some(Tensor::from_codes(DType::U8, vec![], &[121])),
                zeros(7),
            ];
            check(&format!("MatMulInteger {a:?} {b:?}"), 10, &node("MatMulInteger"), &inputs, Near::Exact);
        }
    }
    let zeros = Some(random.bytes(DType::I8, &[5]));
    let inputs =
        [Some(random.bytes(DType::U8, &[3, 4])), Some(random.bytes(DType::I8, &[4, 5])), None, zeros];
    check("MatMulInteger per column", 10, &node("MatMulInteger"), &inputs, Near::Exact);
    for (ta, tb) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for c in [
            None,
            Some(random.floats(&[])),
            Some(random.floats(&[6])),
            Some(random.floats(&[5, 1])),
            Some(random.floats(&[5, 6])),
        ] {
            let a = random.floats(if ta == 1 { &[7, 5] } else { &[5, 7] });
            let b = random.floats(if tb == 1 { &[6, 7] } else { &[7, 6] });
            let node =
                node("Gemm").with("transA", ta).with("transB", tb).with("alpha", 0.5).with("beta", 2.0);
            check("Gemm", 13, &node, &[Some(a), Some(b), c], CLOSE);
        }
    }
}

#[test]
fn pools() {
    let mut random = Random(5);
    let list = |values: &[i64]| values.to_vec();
    for op in ["MaxPool", "AveragePool"] {
        for ceil in [0, 1] {
            for (kernel, strides, pads) in [
                ([2, 2], [2, 2], [0, 0, 0, 0]),
                ([3, 3], [2, 1], [1, 1, 1, 1]),
                ([3, 2], [3, 2], [0, 1, 1, 0]),
            ] {
                for include in [0, 1] {
                    let mut node = node(op)
                        .with("kernel_shape", list(&kernel))
                        .with("strides", list(&strides))
                        .with("pads", list(&pads))
                        .with("ceil_mode", ceil);
                    if op == "AveragePool" {
                        node = node.with("count_include_pad", include);
                    }
                    let what = format!("{op} {kernel:?} {strides:?} {pads:?} ceil {ceil} include {include}");
                    check(&what, 19, &node, &[Some(random.floats(&[2, 3, 9, 8]))], CLOSE);
                }
            }
        }
        let node = node(op).with("kernel_shape", list(&[3])).with("strides", list(&[2]));
        check(&format!("{op} 1d"), 19, &node, &[Some(random.floats(&[1, 2, 11]))], CLOSE);
    }
    for op in ["GlobalAveragePool", "GlobalMaxPool"] {
        check(op, 13, &node(op), &[Some(random.floats(&[2, 5, 7, 7]))], CLOSE);
    }
}

#[test]
fn normalizations() {
    let mut random = Random(6);
    let channels = |random: &mut Random| Some(random.floats(&[6]));
    let inputs = [
        Some(random.floats(&[2, 6, 5, 3])),
        channels(&mut random),
        channels(&mut random),
        channels(&mut random),
        Some(random.positive(&[6])),
    ];
    check("BatchNormalization", 15, &node("BatchNormalization").with("epsilon", 1e-3), &inputs, CLOSE);
    for axis in [-1, 1] {
        let x = random.floats(&[4, 3, 20]);
        let shape = if axis == -1 { vec![20] } else { vec![3, 20] };
        let inputs = [Some(x), Some(random.floats(&shape)), Some(random.floats(&shape))];
        check("LayerNormalization", 17, &node("LayerNormalization").with("axis", axis), &inputs, CLOSE);
        check("LayerNormalization", 17, &node("LayerNormalization").with("axis", axis), &inputs[..2], CLOSE);
    }
    let inputs = [Some(random.floats(&[2, 6, 5, 3])), channels(&mut random), channels(&mut random)];
    check("InstanceNormalization", 6, &node("InstanceNormalization"), &inputs, CLOSE);
}

#[test]
fn reductions_and_softmax() {
    let mut random = Random(7);
    for op in ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL2"] {
        for axes in [vec![], vec![2i64], vec![-1], vec![0], vec![1, 2], vec![0, 1, 2]] {
            for keep in [0, 1] {
                let mut attributes = node(op).with("keepdims", keep);
                if !axes.is_empty() {
                    attributes = attributes.with("axes", axes.clone());
                }
                // Version 11 takes axes as attribute everywhere, version 18 as input.
                check(
                    &format!("{op} {axes:?}"),
                    11,
                    &attributes,
                    &[Some(random.floats(&[3, 40, 21]))],
                    // Sums of mixed signs cancel: the error is that of the summands.
                    Near::Relative(1e-3),
                );
                let inputs = [Some(random.floats(&[3, 40, 21])), Some(Tensor::from_i64s(&axes))];
                check(
                    &format!("{op} {axes:?}"),
                    18,
                    &node(op).with("keepdims", keep),
                    &inputs,
                    Near::Relative(1e-3),
                );
            }
        }
    }
    for op in ["Softmax", "LogSoftmax"] {
        for opset in [11, 13] {
            for axis in [0, 1, -1] {
                let node = node(op).with("axis", axis);
                check(
                    &format!("{op} {opset} {axis}"),
                    opset,
                    &node,
                    &[Some(random.floats(&[4, 5, 18]))],
                    CLOSE,
                );
            }
        }
    }
}

#[test]
fn layouts() {
    let mut random = Random(8);
    let x = random.floats(&[2, 3, 40, 5]);
    for perm in [[0, 1, 2, 3], [0, 2, 1, 3], [0, 2, 3, 1], [3, 2, 1, 0], [0, 1, 3, 2], [1, 0, 2, 3]] {
        let node = node("Transpose").with("perm", perm.to_vec());
        check(&format!("Transpose {perm:?}"), 13, &node, &[Some(x.clone())], Near::Exact);
    }
    check("Transpose", 13, &node("Transpose"), &[Some(random.bytes(DType::U8, &[33, 17]))], Near::Exact);
    for axis in [0, 1, -1] {
        let inputs = [Some(random.floats(&[2, 3, 4])), Some(random.floats(&[2, 3, 4]))];
        check("Concat", 13, &node("Concat").with("axis", axis), &inputs, Near::Exact);
    }
    for axis in [0, 1, 2] {
        let indices = Tensor::from_vec(vec![2, 2], vec![0i64, -1, 1, 0]);
        let inputs = [Some(random.floats(&[2, 3, 4])), Some(indices)];
        check("Gather", 13, &node("Gather").with("axis", axis), &inputs, Near::Exact);
    }
    type Parts = &'static [i64];
    let slices: &[(Parts, Parts, Parts, Parts)] = &[
        (&[1], &[i64::MAX], &[1], &[1]),
        (&[0, -3], &[1, -1], &[0, 2], &[1, 1]),
        (&[0, 1], &[2, 40], &[1, 2], &[1, 3]),
        (&[5], &[2], &[2], &[1]),
        (&[1, 0, 0, 4], &[2, 3, 39, 5], &[0, 1, 2, 3], &[1, 2, 7, 1]),
    ];
    for (starts, ends, axes, steps) in slices {
        let list = |values: &[i64]| Some(Tensor::from_i64s(values));
        let inputs = [Some(x.clone()), list(starts), list(ends), list(axes), list(steps)];
        check(&format!("Slice {starts:?} {ends:?}"), 13, &node("Slice"), &inputs, Near::Exact);
    }
    for (from, to) in [(&[3, 1][..], &[2, 3, 4][..]), (&[1], &[3]), (&[2, 3], &[1, 1]), (&[], &[2, 2])] {
        let inputs = [Some(random.floats(from)), Some(Tensor::from_i64s(to))];
        let from: Vec<usize> = from.to_vec();
        check(&format!("Expand {from:?} {to:?}"), 13, &node("Expand"), &inputs, Near::Exact);
    }
}

#[test]
fn quantization() {
    let mut random = Random(9);
    for dtype in [DType::U8, DType::I8] {
        // Halves meet the rounding rule, large numbers the limits.
        let halves: Vec<f32> = (-600..600).map(|i| i as f32 * 0.25).collect();
        let code = |value: u8| Some(Tensor::from_codes(dtype, vec![], &[value]));
        let inputs = [Some(Tensor::from_vec(vec![1200], halves)), Some(Tensor::scalar(0.5f32)), code(3)];
        check("QuantizeLinear", 13, &node("QuantizeLinear"), &inputs, Near::Exact);
        for axis in [0, 1, 2] {
            let length = [4, 3, 50][axis as usize];
            let scales = random.positive(&[length]);
            let zeros = random.bytes(dtype, &[length]);
            let inputs = [Some(random.floats(&[4, 3, 50])), Some(scales), Some(zeros)];
            check("QuantizeLinear", 13, &node("QuantizeLinear").with("axis", axis), &inputs, Near::Exact);
            let codes = Some(random.bytes(dtype, &[4, 3, 50]));
            let inputs = [codes, inputs[1].clone(), inputs[2].clone()];
            check("DequantizeLinear", 13, &node("DequantizeLinear").with("axis", axis), &inputs, Near::Exact);
        }
        let inputs = [Some(random.bytes(dtype, &[70])), Some(Tensor::scalar(0.1f32)), None];
        check("DequantizeLinear", 13, &node("DequantizeLinear"), &inputs, Near::Exact);
    }
    let inputs =
        [Some(Tensor::from_vec(vec![3], vec![-5i32, 7, 1 << 26])), Some(random.positive(&[3])), None];
    check("DequantizeLinear of int32", 13, &node("DequantizeLinear").with("axis", 0), &inputs, Near::Exact);
    for shift in [0.0, 5.0, -5.0] {
        let x =
            random.floats(&[3, 70]).to_slice::<f32>().unwrap().iter().map(|x| x + shift).collect::<Vec<_>>();
        let inputs = [Some(Tensor::from_vec(vec![3, 70], x))];
        check("DynamicQuantizeLinear", 11, &node("DynamicQuantizeLinear"), &inputs, Near::Exact);
    }
}

#[test]
fn resizing() {
    let mut random = Random(10);
    for transform in ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"] {
        for (mode, nearest) in [
            ("linear", "floor"),
            ("nearest", "floor"),
            ("nearest", "ceil"),
            ("nearest", "round_prefer_floor"),
            ("nearest", "round_prefer_ceil"),
        ] {
            for scales in [[2.0f32, 2.0], [1.5, 3.0], [0.5, 0.7], [1.0, 4.0]] {
                let node = node("Resize")
                    .with("mode", mode)
                    .with("nearest_mode", nearest)
                    .with("coordinate_transformation_mode", transform);
                let what = format!("Resize {transform} {mode} {nearest} {scales:?}");
                let scales_are_whole = (scales[0] * 6.0).fract() == 0.0 && (scales[1] * 5.0).fract() == 0.0;
                let scales = Tensor::from_vec(vec![4], vec![1.0, 1.0, scales[0], scales[1]]);
                let inputs = [Some(random.floats(&[2, 3, 6, 5])), None, Some(scales)];
                // What lies between whole sizes is left to the reference.
                if transform != "align_corners" || scales_are_whole {
                    check(&what, 13, &node, &inputs, CLOSE);
                }
                let sizes = Tensor::from_i64s(&[2, 3, 9, 7]);
                let inputs = [inputs[0].clone(), None, None, Some(sizes)];
                check(&what, 13, &node, &inputs, CLOSE);
            }
        }
    }
}
