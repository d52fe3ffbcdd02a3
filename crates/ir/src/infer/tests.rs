use std::fmt::Write as _;

use super::*;
use crate::dtype::DType;
use crate::edit::Position;
use crate::node::Node;
use crate::text::{parse, parse_type};
use crate::types::Dim;

/// Reads a model of one graph and infers it.
#[track_caller]
fn inferred(opset: i64, graph: &str) -> (Model, InferReport) {
    let text = format!("<ir_version: 10, opset_import: [\"\" : {opset}]> {graph}");
    let mut model = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let report = infer(&mut model, &NoEvaluator);
    (model, report)
}

/// The type of a value as text.
fn ty(model: &Model, name: &str) -> String {
    let value = model.find_value(model.main(), name).unwrap_or_else(|| panic!("no value {name}"));
    model.value(value).ty.as_ref().map_or("nothing".into(), ToString::to_string)
}

/// Types as they are written in expectations: without spaces.
fn normal(text: &str) -> String {
    text.replace(' ', "")
}

#[test]
fn one_rule_an_operator() {
    // Inputs; constants; the node; the types of its outputs y, z, ... in order. Operator set 18.
    for (inputs, constants, node, outputs) in [
        ("float[N,3] x", "", "y = Relu(x)", "float[N,3]"),
        ("float[N,3] a, float[3] b", "", "y = Add(a, b)", "float[N,3]"),
        ("float[N,1] a, float[M] b", "", "y = Mul(a, b)", "float[N,M]"),
        ("float[N,3] a, float[3] b", "", "y = Less(a, b)", "bool[N,3]"),
        ("float[2] x, int32[2] e", "", "y = Pow(x, e)", "float[2]"),
        ("bool[N,1] c, int8[3] a, int8 b", "", "y = Where(c, a, b)", "int8[N,3]"),
        ("int64[N,2] x", "", "y = Cast<to = 10>(x)", "float16[N,2]"),
        ("float[N] x", "", "y, z = Dropout(x)", "float[N]; bool[N]"),
        ("float[2,3,4] x", "int64[1] axes = {-1}", "y = ReduceMax(x, axes)", "float[2,3,1]"),
        ("float[2,3,4] x", "", "y = ReduceMean<keepdims = 0>(x)", "float"),
        (
            "float[2,3,4] x",
            "int64[0] axes = {}",
            "y = ReduceSum<noop_with_empty_axes = 1>(x, axes)",
            "float[2,3,4]",
        ),
        ("float[2,3,4] x, int64[2] axes", "", "y = ReduceSum<keepdims = 0>(x, axes)", "float[?]"),
        ("float[2,N] x", "", "y = ArgMax<axis = -1>(x)", "int64[2,1]"),
        ("float[N,3,H,W] x", "", "y = GlobalAveragePool(x)", "float[N,3,1,1]"),
        (
            "float[N,3,32,W] x, float[8,3,3,3] w",
            "",
            "y = Conv<strides = [2,2], pads = [1,1,1,1]>(x, w)",
            "float[N,8,16,floor((W+1)/2)]",
        ),
        (
            "float[1,8,5,5] x, float[8,1,3,3] w",
            "",
            "y = Conv<group = 8, dilations = [2,2]>(x, w)",
            "float[1,8,1,1]",
        ),
        (
            "float[1,1,5,6] x, float[1,1,2,2] w",
            "",
            "y = Conv<auto_pad = \"SAME_UPPER\", strides = [2,2]>(x, w)",
            "float[1,1,3,3]",
        ),
        ("uint8[1,1,5,5] x, uint8[1,1,2,2] w", "", "y = ConvInteger(x, w)", "int32[1,1,4,4]"),
        (
            "float[1,3,5,W] x, float[3,2,2,2] w",
            "",
            "y = ConvTranspose<strides = [2,2]>(x, w)",
            "float[1,2,10,2*W]",
        ),
        (
            "float[1,1,7,7] x",
            "",
            "y = MaxPool<kernel_shape = [3,3], strides = [2,2], ceil_mode = 1>(x)",
            "float[1,1,3,3]",
        ),
        // The last window would start behind the input.
        (
            "float[1,1,4] x",
            "",
            "y = AveragePool<kernel_shape = [1], strides = [3], pads = [0,1], ceil_mode = 1>(x)",
            "float[1,1,2]",
        ),
        ("float[B,S,384] x, float[384,1536] w", "", "y = MatMul(x, w)", "float[B,S,1536]"),
        ("float[3] a, float[N,3,4] b", "", "y = MatMul(a, b)", "float[N,4]"),
        ("float[N,3] a, float[5,3] b", "", "y = Gemm<transB = 1>(a, b)", "float[N,5]"),
        ("uint8[2,3] a, int8[3,4] b", "", "y = MatMulInteger(a, b)", "int32[2,4]"),
        ("float[2,3] a, float[3,4] b", "", "y = Einsum<equation = \"ij,jk->ki\">(a, b)", "float[4,2]"),
        (
            "float[B,2,3] a, float[B,3,4] b",
            "",
            "y = Einsum<equation = \"...ij,...jk\">(a, b)",
            "float[B,2,4]",
        ),
        ("float[N,3] x, float s, int8 zp", "", "y = QuantizeLinear(x, s, zp)", "int8[N,3]"),
        ("float[N,3] x, float s", "", "y = QuantizeLinear(x, s)", "uint8[N,3]"),
        ("int8[N,3] x, float16[3] s", "", "y = DequantizeLinear<axis = 1>(x, s)", "float16[N,3]"),
        ("float[N,3] x", "", "y, z, u = DynamicQuantizeLinear(x)", "uint8[N,3]; float; uint8"),
        ("float[N,3] x", "", "y = LayerNormalization(x, x)", "float[N,3]"),
        (
            "float[T,B,8] x, float[1,16,8] w, float[1,16,4] r",
            "",
            "y, z, u = LSTM<hidden_size = 4>(x, w, r)",
            "float[T,1,B,4]; float[1,B,4]; float[1,B,4]",
        ),
        ("float[B,12,S,32] x", "", "y = Transpose<perm = [0,2,1,3]>(x)", "float[B,S,12,32]"),
        ("float[2,N,4] x", "", "y = Transpose(x)", "float[4,N,2]"),
        ("float[2,3,N,4] x", "", "y = Flatten<axis = 2>(x)", "float[6,4*N]"),
        ("float[1,N,1] x", "int64[1] axes = {0}", "y = Squeeze(x, axes)", "float[N,1]"),
        ("float[N] x", "int64[2] axes = {0, -1}", "y = Unsqueeze(x, axes)", "float[1,N,1]"),
        ("float[N,1] x", "int64[3] shape = {2, 1, 5}", "y = Expand(x, shape)", "float[2,N,5]"),
        ("float[N,2] x", "int64[2] repeats = {3, 2}", "y = Tile(x, repeats)", "float[3*N,4]"),
        ("float[N,2] a, float[M,2] b", "", "y = Concat<axis = 0>(a, b)", "float[M+N,2]"),
        ("float[N,7] x", "", "y, z = Split<axis = 1, num_outputs = 2>(x)", "float[N,4]; float[N,3]"),
        (
            "float[N,7] x",
            "int64[2] parts = {2, 5}",
            "y, z = Split<axis = 1>(x, parts)",
            "float[N,2]; float[N,5]",
        ),
        (
            "float[N,9] x",
            "int64[1] s = {1}, int64[1] e = {-1}, int64[1] a = {1}, int64[1] p = {2}",
            "y = Slice(x, s, e, a, p)",
            "float[N,4]",
        ),
        ("float[N,9] x, int64[2,M] i", "", "y = Gather<axis = 1>(x, i)", "float[N,2,M]"),
        ("float[N,9] x, int64[4,1] i", "", "y = GatherND(x, i)", "float[4,9]"),
        ("float[N,9] x, int64[4,9] i", "", "y = GatherElements(x, i)", "float[4,9]"),
        ("float[N,9] x", "int64[1] k = {3}", "y, z = TopK(x, k)", "float[N,3]; int64[N,3]"),
        ("int64[N] i, float[2] v", "int64 depth = {7}", "y = OneHot(i, depth, v)", "float[N,7]"),
        ("float[N,9] x", "", "y = NonZero(x)", "int64[2,?]"),
        ("float[N,3] x", "int64[4] pads = {1, 0, 2, -1}", "y = Pad(x, pads)", "float[N+3,2]"),
        (
            "float[1,3,H,10] x",
            "float[4] scales = {1, 1, 2, 0.5}",
            "y = Resize(x, , scales)",
            "float[1,3,2*H,5]",
        ),
        ("float[1,3,H,10] x", "int64[4] sizes = {1, 3, 8, 9}", "y = Resize(x, , , sizes)", "float[1,3,8,9]"),
        ("float[1,12,H,W] x", "", "y = DepthToSpace<blocksize = 2>(x)", "float[1,3,2*H,2*W]"),
        ("float[1,3,4,W] x", "", "y = SpaceToDepth<blocksize = 2>(x)", "float[1,12,2,floor(W/2)]"),
        ("", "int64[2] shape = {2, 3}", "y = ConstantOfShape<value = int8[1] {1}>(shape)", "int8[2,3]"),
        (
            "",
            "float from = {0}, float to = {1}, float step = {0.25}",
            "y = Range(from, to, step)",
            "float[4]",
        ),
        ("", "", "y = Constant<value_floats = [1.0, 2.0]>()", "float[2]"),
        ("float[N,2] x", "", "y = Size(x)", "int64"),
        ("float[2] a, float[2] b", "", "y = SequenceConstruct(a, b)", "seq(float[2])"),
        ("float[N] x", "", "y, z = Unique(x)", "float[?]; int64[?]"),
    ] {
        let names: Vec<&str> = node.split('=').next().unwrap().split(',').map(str::trim).collect();
        let text = format!("g ({inputs}) => (float y) <{constants}> {{ {node} }}");
        let text = format!("<ir_version: 10, opset_import: [\"\" : 18]> {text}");
        let mut model = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let main = model.main();
        model.output_info_mut(main, 0).unwrap().ty = None;
        let report = infer(&mut model, &NoEvaluator);
        assert_eq!(report.problems, [], "{node}");
        let found: Vec<String> = names.iter().map(|name| normal(&ty(&model, name))).collect();
        assert_eq!(found.join("; "), outputs, "{node} of {inputs}");
    }
}

#[test]
fn misused_operators_are_told() {
    for (inputs, constants, node, message) in [
        ("float[2] a, float[3] b", "", "Add(a, b)", "do not broadcast"),
        ("float[2] a, int64[2] b", "", "Add(a, b)", "types float and int64"),
        ("float[2,3] a, float[4,5] b", "", "MatMul(a, b)", "3 columns, 4 rows"),
        ("float[2,3] x", "int64[2] s = {-1, 4}", "Reshape(x, s)", "cannot be reshaped"),
        ("float[2,3] x", "int64[2] s = {-1, -1}", "Reshape(x, s)", "-1 twice"),
        ("float[2,3] x", "int64[1] a = {1}", "Squeeze(x, a)", "is not 1"),
        ("float[2,3] x", "int64 i = {5}", "Gather(x, i)", "index 5 is out of range"),
        ("float[2,3] x", "", "Softmax<axis = 2>(x)", "axis 2 is out of range"),
        ("float[2,3] x", "", "Transpose<perm = [0, 0]>(x)", "given twice"),
        ("float[1,3,4,4] x, float[8,2,3,3] w", "", "Conv(x, w)", "channels"),
        ("float[1,3,2,2] x, float[8,3,3,3] w", "", "Conv(x, w)", "does not fit"),
        ("float[1,3,4,4] x, float[8,3,3,3] w", "", "Conv<strides = [0,1]>(x, w)", "`strides` has an entry 0"),
        ("float[1,3,4,4] x, float[8,3,3,3] w", "", "Conv<group = 0>(x, w)", "`group` is 0"),
        ("float[1,3,4,4] x", "", "MaxPool(x)", "`kernel_shape` is missing"),
        ("float[N,4] x, float[3] s", "", "QuantizeLinear<axis = 1>(x, s)", "number of scales"),
        ("float[N,4] x, float[3] s", "", "QuantizeLinear<axis = 5>(x, s)", "axis 5 is out of range"),
        (
            "float[2] x",
            "int64[1] s = {0}, int64[1] e = {2}, int64[1] a = {0}, int64[1] p = {0}",
            "Slice(x, s, e, a, p)",
            "step of the slice is 0",
        ),
        ("", "int64 a = {0}, int64 b = {5}, int64 c = {0}", "Range(a, b, c)", "step of the range is 0"),
        ("float[2,3] a", "", "Einsum<equation = \"ijk->i\">(a)", "does not describe"),
        ("", "int64[1] s = {-3}", "ConstantOfShape(s)", "negative"),
        // Sizes beyond all machines.
        ("float[4611686018427387904] x", "", "Concat<axis = 0>(x, x)", "larger than can be addressed"),
        (
            "float[4611686018427387904] x",
            "int64[1] r = {9223372036854775807}",
            "Tile(x, r)",
            "larger than can be",
        ),
        ("", "int64[3] s = {4294967296, 4294967296, 4294967296}", "ConstantOfShape(s)", "more elements than"),
        (
            "float[9223372036854775807] x",
            "int64[2] p = {9223372036854775807, 9223372036854775807}",
            "Pad(x, p)",
            "larger",
        ),
    ] {
        let (model, report) =
            inferred(18, &format!("g ({inputs}) => (float[] y) <{constants}> {{ y = {node} }}"));
        let [problem] = report.problems.as_slice() else { panic!("{node}: {:?}", report.problems) };
        let text = problem.describe(&model);
        assert!(text.contains(message) && text.contains("-> `y`"), "{node}: {text}");
        assert!(problem.certain);
    }
}

#[test]
fn shapes_are_followed_through_integers() {
    // What exporters write to fold attention heads.
    let (model, report) = inferred(
        15,
        r#"
        g (float[batch, seq, 384] x) => (float[] y, float[] z, int64[] mask)
        <int64 zero = {0}, int64 one = {1}, int64[1] front = {0}, int64[1] heads = {12}, int64[1] minus = {-1},
         int64 two = {2}, int64[1] width = {384}>
        {
            s = Shape(x)
            b0 = Gather(s, zero)
            s0 = Gather(s, one)
            b = Unsqueeze(b0, front)
            t = Unsqueeze(s0, front)
            split = Concat<axis = 0>(b, t, heads, minus)
            r = Reshape(x, split)
            y = Transpose<perm = [0, 2, 1, 3]>(r)
            back = Transpose<perm = [0, 2, 1, 3]>(y)
            merged = Concat<axis = 0>(b, t, width)
            z = Reshape(back, merged)
            total = Mul(b0, s0)
            twice = Mul(total, two)
            half = Div(twice, two)
            flat = Unsqueeze(half, front)
            ones = ConstantOfShape<value = int64[1] {1}>(flat)
            steps = Range(zero, s0, one)
            column = Unsqueeze(steps, front)
            target = Concat<axis = 0>(b, t)
            same = Equal(target, minus)
            front_of = Shape(target)
            full = ConstantOfShape<value = int64[1] {1}>(front_of)
            chosen = Where(same, full, target)
            mask = Expand(column, chosen)
        }"#,
    );
    assert_eq!(report.problems, []);
    for (name, expected) in [
        ("r", "float[batch,seq,12,32]"),
        ("y", "float[batch,12,seq,32]"),
        ("z", "float[batch,seq,384]"),
        ("ones", "int64[batch*seq]"),
        ("steps", "int64[seq]"),
        ("full", "int64[2]"),
        ("mask", "int64[batch,seq]"),
    ] {
        assert_eq!(ty(&model, name), expected, "{name}");
    }
}

#[test]
fn contents_of_higher_rank_are_followed() {
    // Padding amounts as one exporter writes them: pairs, reversed, transposed.
    let (model, report) = inferred(
        13,
        r#"
        g (float[N, 3, 10, W] x) => (float[] y)
        <int64[4] given = {1, 2, 3, 4}, int64[1] count = {4}, int64[2] pairs = {-1, 2}, int64[1] low = {-1},
         int64[1] far = {-9223372036854775807}, int64[1] axis = {0}, int64[1] all = {-1}>
        {
            rest = ConstantOfShape<value = int64[1] {0}>(count)
            long = Concat<axis = 0>(given, rest)
            table = Reshape(long, pairs)
            upside = Slice(table, low, far, axis, low)
            across = Transpose(upside)
            line = Reshape(across, all)
            pads = Cast<to = 7>(line)
            y = Pad(x, pads)
        }"#,
    );
    assert_eq!(report.problems, []);
    assert_eq!(ty(&model, "y"), "float[N,3,17,W + 3]");
}

#[test]
fn declarations_are_checked() {
    let (model, report) = inferred(
        18,
        r#"
        g (float[N, 3] x) => (float[N, 4] y) <float[N, 7] h, int8[N, 3] k>
        { h = Relu(x) k = Neg(x) y = Relu(h) }"#,
    );
    let texts: Vec<String> = report.problems.iter().map(|problem| problem.describe(&model)).collect();
    assert_eq!(
        texts,
        [
            "node Relu -> `h`, value `h`: declared as float[N,7], but it is float[N,3]",
            "node Neg -> `k`, value `k`: declared as int8[N,3], but it is float[N,3]",
            "node Relu -> `y`, value `y`: declared as float[N,4], but it is float[N,3]",
        ]
    );
    assert_eq!(contradictions(&model, &NoEvaluator), report.problems);
    // Inference wins, so that one wrong declaration is one problem.
    assert_eq!(ty(&model, "h"), "float[N,3]");
}

#[test]
fn unknown_operators_give_what_is_declared() {
    let (model, report) = inferred(
        18,
        r#"
        g (float[N, 3] x) => (float[] y) <float[N, 3] declared>
        { plain = custom.Thing(x) declared = custom.Thing(x) y = Relu(declared) z = Relu(plain) }"#,
    );
    assert_eq!((report.problems.len(), report.without_rule.len()), (0, 2));
    assert_eq!(ty(&model, "plain"), "nothing");
    assert_eq!(ty(&model, "y"), "float[N,3]");
    assert_eq!(ty(&model, "z"), "undefined[]");
}

#[test]
fn types_that_passes_set_are_kept_where_nothing_better_is_known() {
    let mut model =
        parse("<opset_import: [\"\" : 18]> g (float[2] x) => (float[] y) { y = Relu(x) }").unwrap();
    let main = model.main();
    let x = model.find_value(main, "x").unwrap();
    let out = model.add_value(main, "fused");
    model.value_mut(out).ty = Some(parse_type("float[5]").unwrap());
    let node = Node::new("Fused", [x]).in_domain("custom");
    model.insert_node(main, Position::End, node, vec![Some(out)]).unwrap();
    infer(&mut model, &NoEvaluator);
    assert_eq!(ty(&model, "fused"), "float[5]");
}

#[test]
fn open_sizes_of_inputs_get_names() {
    let (model, _) = inferred(18, "g (float[?, unknown_0, ?] x) => (float[] y) { y = Add(x, x) }");
    assert_eq!(ty(&model, "y"), "float[unknown_1,unknown_0,unknown_2]");
    // One exporter names all it does not know "?": these are not equal sizes.
    let mut model =
        parse("<opset_import: [\"\" : 18]> g (float[2] x) => (float[] y) { y = Relu(x) }").unwrap();
    let main = model.main();
    model.input_info_mut(main, 0).unwrap().ty =
        Some(Type::tensor(DType::F32, [Dim::symbol("?"), Dim::symbol("?")]));
    infer(&mut model, &NoEvaluator);
    assert_eq!(ty(&model, "y"), "float[unknown_0,unknown_1]");
}

#[test]
fn branches_are_joined() {
    let (model, report) = inferred(
        18,
        r#"
        g (bool c, float[N, 3] x, float[N, 4] w) => (float[] y, float[] same, float[] dead)
        <bool yes = {1}, int64[1] one = {1}>
        {
            y = If (c) <then_branch = t () => (a) { a = Relu(x) }, else_branch = e () => (b) { b = Neg(w) }>
            same = If (c) <then_branch = t () => (a2) { a2 = Relu(x) }, else_branch = e () => (b2) { b2 = Neg(x) }>
            dead = If (yes) <then_branch = t () => (a3) { a3 = Relu(x) }, else_branch = e () => (b3) { b3 = Squeeze(x, one) }>
            maybe = If (c) <then_branch = t () => (a4) { a4 = Relu(x) }, else_branch = e () => (b4) { b4 = Squeeze(x, one) }>
        }"#,
    );
    assert_eq!(ty(&model, "y"), "float[N,?]");
    assert_eq!(ty(&model, "same"), "float[N,3]");
    assert_eq!(ty(&model, "dead"), "float[N,3]");
    // The branch that never runs is not held against the model; the one that may is, with a doubt.
    let [problem] = report.problems.as_slice() else { panic!("{:?}", report.problems) };
    assert!(!problem.certain && problem.describe(&model).contains("`b4`"));
}

#[test]
fn loops_keep_what_does_not_change() {
    let (model, report) = inferred(
        18,
        r#"
        g (int64 n, bool c, float[N, 3] x, float[1, 3] w) => (float[] fixed, float[] grown, float[] rows)
        {
            fixed, grown, rows = Loop (n, c, x, w) <body = b (int64 i, bool k, p, q) => (k2, p2, q2, row)
                { k2 = Identity(k) p2 = Relu(p) q2 = Concat<axis = 0>(q, q) row = ReduceSum<keepdims = 0>(p2) }>
        }"#,
    );
    assert_eq!(report.problems, []);
    assert_eq!(ty(&model, "fixed"), "float[N,3]");
    assert_eq!(ty(&model, "grown"), "float[?,3]");
    assert_eq!(ty(&model, "rows"), "float[?]");
}

#[test]
fn scans_stack_along_their_axis() {
    let (model, report) = inferred(
        18,
        r#"
        g (float[3] s, float[T, 3] x) => (float[] last, float[] all)
        {
            last, all = Scan (s, x) <num_scan_inputs = 1, body = b (p, q) => (p2, o)
                { p2 = Add(p, q) o = Identity(p2) }>
        }"#,
    );
    assert_eq!(report.problems, []);
    assert_eq!((ty(&model, "last").as_str(), ty(&model, "all").as_str()), ("float[3]", "float[T,3]"));
}

#[test]
fn functions_are_followed_call_by_call() {
    let text = r#"<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
        g (float[N, 3] x, float[2, 2, 5] w) => (int64[] y, int64[] z)
        { y = own.mean<axis = 1>(x) z = own.mean<axis = -1>(w) }
        <domain: "own", opset_import: ["" : 13]>
        mean <axis> (v) => (m) { f = Softmax<axis: int = @axis>(v) m = ArgMax<axis: int = @axis, keepdims = 0>(f) }"#;
    let mut model = parse(text).unwrap();
    let report = infer(&mut model, &NoEvaluator);
    assert_eq!(report.problems, []);
    assert_eq!((ty(&model, "y").as_str(), ty(&model, "z").as_str()), ("int64[N]", "int64[2,2]"));
    // The body's values have a type for each call, so none.
    let body = model.functions[0].graph;
    let inner =
        model.values().find(|&value| model.value(value).graph() == body && model.value(value).name() == "f");
    assert_eq!(model.value(inner.unwrap()).ty, None);
}

#[test]
fn functions_that_call_themselves_end() {
    let text = r#"<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
        g (float[N] x) => (float[] y) { y = own.f(x) }
        <domain: "own", opset_import: ["" : 18, "own" : 1]> f (v) => (m) { m = own.f(v) }"#;
    let report = infer(&mut parse(text).unwrap(), &NoEvaluator);
    assert!(report.problems.iter().any(|problem| matches!(problem.kind, ProblemKind::TooLarge(_))));

    // Twenty levels that each call the next one ten times.
    let mut text = String::from(
        r#"<ir_version: 10, opset_import: ["" : 18, "own" : 1]> g (float[N] x) => (float[] y) { y = own.f0(x) }"#,
    );
    for level in 0..20 {
        let _ = write!(
            text,
            "<domain: \"own\", opset_import: [\"\" : 18, \"own\" : 1]> f{level} (v0) => (v10) {{"
        );
        for call in 0..10 {
            let _ = write!(text, " v{} = own.f{}(v{call})", call + 1, level + 1);
        }
        text.push('}');
    }
    text.push_str("<domain: \"own\", opset_import: [\"\" : 18]> f20 (v) => (m) { m = Relu(v) }");
    let report = infer(&mut parse(&text).unwrap(), &NoEvaluator);
    assert!(report.problems.iter().any(|problem| matches!(problem.kind, ProblemKind::Budget(_))));
}

#[test]
fn chains_that_explode_are_cut_short() {
    // Sixty concatenations of a tensor with itself: 2^60 elements. And as many of a small integer tensor.
    for dtype in ["float", "int64"] {
        let mut graph = format!("g ({dtype}[8] v0) => ({dtype}[] v70) {{");
        for step in 0..70 {
            let _ = write!(graph, " v{} = Concat<axis = 0>(v{step}, v{step})", step + 1);
        }
        let (model, report) = inferred(18, &(graph + "}"));
        assert!(report.problems.iter().any(|problem| matches!(problem.kind, ProblemKind::TooLarge(_))));
        assert_eq!(ty(&model, "v59"), format!("{dtype}[{}]", 8u64 << 59));
        // What is declared is all that is left.
        assert_eq!(ty(&model, "v70"), format!("{dtype}[]"));
    }
    // Symbols that grow: given up, not written out.
    let mut graph = String::from("g (float[N, M] v0) => (float[] v40) {");
    for step in 0..40 {
        let _ = write!(
            graph,
            " v{} = Flatten<axis = 0>(v{step}) w{step} = Concat<axis = 1>(v{step}, v{step})",
            step + 1
        );
    }
    let (_, report) = inferred(18, &(graph + "}"));
    assert_eq!(report.problems, []);
    // More dimensions than anything has.
    let mut graph = String::from("g (float[2] v0) => (float[] v300) <int64[1] a = {0}> {");
    for step in 0..300 {
        let _ = write!(graph, " v{} = Unsqueeze(v{step}, a)", step + 1);
    }
    let (_, report) = inferred(18, &(graph + "}"));
    assert_eq!(report.problems.len(), 1);
    assert!(matches!(&report.problems[0].kind, ProblemKind::TooLarge(what) if what.contains("dimensions")));
}

#[test]
fn long_chains_take_linear_time() {
    let mut model =
        parse("<opset_import: [\"\" : 18]> g (float[N, 3, 4, 5] x) => (float[] y) { y = Relu(x) }").unwrap();
    let main = model.main();
    let mut last = model.find_value(main, "y").unwrap();
    for index in 0..50_000 {
        let next = model.add_value(main, format!("v{index}"));
        model.insert_node(main, Position::End, Node::new("Relu", [last]), vec![Some(next)]).unwrap();
        last = next;
    }
    let report = infer(&mut model, &NoEvaluator);
    assert_eq!((report.problems.len(), report.known), (0, 50_002));
    assert_eq!(model.value(last).ty, Some(parse_type("float[N, 3, 4, 5]").unwrap()));
}

/// An evaluator that knows `Floor` alone.
struct Floors;

impl Evaluator for Floors {
    fn evaluate(&self, model: &Model, node: NodeId, inputs: &[Option<&Tensor>]) -> Option<Vec<Tensor>> {
        if !model.node(node).is("Floor") {
            return None;
        }
        let values = inputs[0]?.to_slice::<f32>().ok()?.iter().map(|value| value.floor()).collect();
        Some(vec![Tensor::from_vec(inputs[0]?.shape(), values)])
    }
}

#[test]
fn constants_are_computed_where_somebody_can() {
    let text = r#"<ir_version: 10, opset_import: ["" : 18]> g () => (float[] y)
        <float a = {0}, float b = {4.75}, float c = {1}> { limit = Floor(b) y = Range(a, limit, c) }"#;
    for (evaluator, expected) in [(&Floors as &dyn Evaluator, "float[4]"), (&NoEvaluator, "float[?]")] {
        let mut model = parse(text).unwrap();
        infer(&mut model, evaluator);
        assert_eq!(ty(&model, "y"), expected);
    }
}

#[test]
fn defaults_of_inputs_are_not_constants() {
    // Files of IR version 3 had to list all constants as inputs.
    for (ir, expected) in [(8, "float[?]"), (3, "float[6]")] {
        let text = format!(
            "<ir_version: {ir}, opset_import: [\"\" : 18]>
             g (float[1] x, int64[1] s = {{6}}) => (float[] y) {{ y = Expand(x, s) }}"
        );
        let mut model = parse(&text).unwrap();
        infer(&mut model, &NoEvaluator);
        assert_eq!(ty(&model, "y"), expected);
    }
}

#[test]
fn single_nodes_can_be_asked() {
    let model =
        parse("<opset_import: [\"\" : 18]> g (float[N] x) => (float[] y) { y = Relu(x) z = own.Op(y) }")
            .unwrap();
    let nodes = model.node_list(model.main());
    let given = Fact::of_type(parse_type("float16[7]").unwrap());
    let found = infer_node(&model, nodes[0], &[Some(&given)], &NoEvaluator).unwrap();
    assert_eq!(found, std::slice::from_ref(&given));
    assert_eq!(infer_node(&model, nodes[1], &[Some(&given)], &NoEvaluator).unwrap(), [Fact::unknown()]);
}

#[test]
fn the_table_has_no_operator_twice() {
    let mut names: Vec<&str> = FAMILIES.iter().copied().flatten().map(|(name, _)| *name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(has_rule("Conv") && has_rule("If") && !has_rule("Nonsense"));
}
