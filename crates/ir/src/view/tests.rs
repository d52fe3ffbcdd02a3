use super::*;
use crate::text;

fn model(opset: i64, graph: &str) -> (Model, NodeId) {
    let model = text::parse(&format!("<opset_import: [\"\" : {opset}]> {graph}")).unwrap();
    let node = model.node_list(model.main())[0];
    (model, node)
}

#[test]
fn convolutions_get_the_defaults_of_the_standard() {
    let (m, node) =
        model(18, "g (float[N, 1, 8, 8] x) => (y) <float[1, 1, 1, 2] w = {1, 2}> { y = Conv (x, w) }");
    let conv = Conv::view(&m, node).unwrap();
    assert_eq!(conv.kernel_shape, [1, 2]);
    assert_eq!((conv.strides, conv.dilations, conv.pads), (vec![1, 1], vec![1, 1], vec![0; 4]));
    assert_eq!((conv.group, conv.bias, conv.auto_pad), (1, None, AutoPad::NotSet));
    let (m, node) = model(
        18,
        "g (x, w, b) => (y) { y = Conv <auto_pad = \"SAME_LOWER\", strides = [2], group = 4> (x, w, b) }",
    );
    let conv = Conv::view(&m, node).unwrap();
    assert_eq!((conv.strides, conv.dilations, conv.pads), (vec![2], vec![1], vec![0, 0]));
    assert_eq!((conv.group, conv.auto_pad), (4, AutoPad::SameLower));
    assert!(conv.bias.is_some() && conv.kernel_shape.is_empty());
    let (m, node) =
        model(18, "g (x) => (y) { y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x) }");
    let pool = MaxPool::view(&m, node).unwrap();
    assert_eq!((pool.strides, pool.pads, pool.indices), (vec![1, 1], vec![1; 4], None));
    assert_eq!(Conv::view(&m, node), None);
}

#[test]
fn wrong_attributes_make_no_view() {
    for attributes in ["group = 1.5", "strides = 2", "auto_pad = \"SOME\"", "pads = [1.0]"] {
        let (m, node) = model(18, &format!("g (x, w) => (y) {{ y = Conv <{attributes}> (x, w) }}"));
        assert_eq!(Conv::view(&m, node), None, "{attributes}");
    }
    let (m, node) = model(18, "g (x) => (y) { y = Conv (x) }");
    assert_eq!(Conv::view(&m, node), None);
    let (m, node) = model(18, "g (x) => (y) { y = Cast <to = 99> (x) }");
    assert_eq!(Cast::view(&m, node), None);
}

#[test]
fn parameters_move_from_attributes_to_inputs() {
    let cases = [
        (
            6,
            "g (x) => (y) { y = Clip <min = 0.0, max = 6.0> (x) }",
            Parameter::Known(0.0),
            Parameter::Known(6.0),
        ),
        (
            13,
            "g (x) => (y) <float l = {0}, float h = {6}> { y = Clip (x, l, h) }",
            Parameter::Known(0.0),
            Parameter::Known(6.0),
        ),
        (
            13,
            "g (x) => (y) <float h = {6}> { y = Clip (x, \"\", h) }",
            Parameter::Absent,
            Parameter::Known(6.0),
        ),
        (13, "g (x) => (y) { y = Clip <min = 0.0> (x) }", Parameter::Absent, Parameter::Absent),
    ];
    for (opset, graph, min, max) in cases {
        let (m, node) = model(opset, graph);
        let clip = Clip::view(&m, node).unwrap();
        assert_eq!((clip.min, clip.max), (min, max), "{graph}");
    }
    let (m, node) = model(13, "g (x, float h) => (y) { y = Clip (x, h) }");
    let h = m.find_value(m.main(), "h").unwrap();
    assert_eq!(Clip::view(&m, node).unwrap().min, Parameter::Dynamic(h));
    for (opset, graph) in [
        (12, "g (x) => (y) { y = Unsqueeze <axes = [0, -1]> (x) }"),
        (13, "g (x) => (y) <int64[2] a = {0, -1}> { y = Unsqueeze (x, a) }"),
    ] {
        let (m, node) = model(opset, graph);
        assert_eq!(Unsqueeze::view(&m, node).unwrap().axes.known(), Some(&vec![0, -1]));
    }
    for (opset, op) in
        [(17, "ReduceMean <axes = [1]> (x)"), (18, "ReduceMean (x, a)"), (13, "ReduceSum (x, a)")]
    {
        let (m, node) = model(opset, &format!("g (x) => (y) <int64[1] a = {{1}}> {{ y = {op} }}"));
        let reduce = Reduce::view(&m, node).unwrap();
        assert_eq!((reduce.axes.known(), reduce.keepdims), (Some(&vec![1]), true), "{op}");
    }
}

#[test]
fn meanings_change_between_versions() {
    let softmax = |opset| {
        let (m, node) = model(opset, "g (x) => (y) { y = Softmax (x) }");
        let view = Softmax::view(&m, node).unwrap();
        (view.axis, view.is_flattened)
    };
    assert_eq!((softmax(12), softmax(13)), ((1, true), (-1, false)));
    let norm = |opset, text: &str| {
        let (m, node) = model(opset, &format!("g (x, s) => (y) {{ {text} (x, s, s, s, s) }}"));
        BatchNormalization::view(&m, node).unwrap()
    };
    assert!(!norm(15, "y = BatchNormalization").training);
    assert!(norm(15, "y = BatchNormalization <training_mode = 1>").training);
    assert!(norm(9, "y, m, v, a, b = BatchNormalization").training);
    assert!(!norm(6, "y = BatchNormalization <is_test = 1>").training);
    assert!(!norm(7, "y = BatchNormalization <spatial = 0>").spatial);
    assert_eq!(norm(15, "y = BatchNormalization <epsilon = 0.5>").epsilon, 0.5);
    let dropout = |opset, text: &str| {
        let (m, node) =
            model(opset, &format!("g (x) => (y) <bool t = {{1}}, float r = {{0.5}}> {{ y = {text} }}"));
        Dropout::view(&m, node).unwrap().training
    };
    assert_eq!(dropout(13, "Dropout (x)"), Parameter::Known(false));
    assert_eq!(dropout(13, "Dropout (x, r, t)"), Parameter::Known(true));
    assert_eq!(dropout(7, "Dropout (x)"), Parameter::Known(false));
    assert_eq!(dropout(6, "Dropout (x)"), Parameter::Known(true));
}

#[test]
fn quantization_knows_its_type() {
    let cases = [
        ("QuantizeLinear (x, s)", Some(DType::U8)),
        ("QuantizeLinear (x, s, z)", Some(DType::I8)),
        ("QuantizeLinear (x, s, unknown)", None),
        ("QuantizeLinear <output_dtype = 22> (x, s)", Some(DType::I4)),
    ];
    for (op, dtype) in cases {
        let (m, node) =
            model(21, &format!("g (x, unknown) => (y) <float s = {{1}}, int8 z = {{0}}> {{ y = {op} }}"));
        let view = QuantizeLinear::view(&m, node).unwrap();
        assert_eq!((view.output_dtype, view.axis, view.block_size), (dtype, 1, 0), "{op}");
    }
}

#[test]
fn the_rest_reads_what_is_there() {
    let (m, node) = model(18, "g (float[2, 3, 4] x) => (y) { y = Transpose (x) }");
    assert_eq!(Transpose::view(&m, node).unwrap().perm, Some(vec![2, 1, 0]));
    let (m, node) = model(18, "g (x) => (y) <int64[2] s = {0, -1}> { y = Reshape (x, s) }");
    assert_eq!(Reshape::view(&m, node).unwrap().shape.known(), Some(&vec![0, -1]));
    let (m, node) = model(18, "g (a, b) => (y) { y = Concat <axis = -1> (a, b) }");
    let concat = Concat::view(&m, node).unwrap();
    assert_eq!((concat.inputs.len(), concat.axis), (2, -1));
    let (m, node) = model(18, "g (a, b) => (y) { y = Gemm <alpha = 2.0, transB = 1> (a, b) }");
    let gemm = Gemm::view(&m, node).unwrap();
    assert_eq!((gemm.alpha, gemm.beta, gemm.trans_a, gemm.trans_b, gemm.c), (2.0, 1.0, false, true, None));
    let (m, node) =
        model(18, "g (x) => (y) <int64[4] p = {0, 1, 0, 1}> { y = Pad <mode = \"edge\"> (x, p) }");
    let pad = Pad::view(&m, node).unwrap();
    assert_eq!(
        (pad.mode.as_str(), pad.pads.known(), pad.value.is_absent()),
        ("edge", Some(&vec![0, 1, 0, 1]), true)
    );
    let (m, node) =
        model(18, "g (x) => (y) <float[0] none = {}, int64[2] s = {4, 4}> { y = Resize (x, \"\", none, s) }");
    let resize = Resize::view(&m, node).unwrap();
    assert_eq!((resize.scales, resize.sizes.known()), (Parameter::Absent, Some(&vec![4, 4])));
    assert_eq!(resize.coordinate_mode, "half_pixel");
    let (m, node) = model(18, "g (x) => (y) { y = Cast <to = 10> (x) }");
    assert_eq!(Cast::view(&m, node).unwrap().to, DType::F16);
    let (m, node) = model(18, "g (x) => (a, b) { a, \"\", b = Split <axis = 1, num_outputs = 3> (x) }");
    let split = Split::view(&m, node).unwrap();
    assert_eq!((split.outputs.len(), split.outputs[1], split.split), (3, None, Parameter::Absent));
    let (m, node) = model(18, "g (x, i) => (y) { y = Gather (x, i) }");
    assert_eq!(Gather::view(&m, node).unwrap().axis, 0);
}
