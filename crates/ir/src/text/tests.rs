use super::*;
use crate::node::{AttributeValue, Initializer};
use crate::{DType, Model, Tensor, Type};

/// The text of a model with that header, main graph and functions is the same after reading and printing.
#[track_caller]
fn round_trip(text: &str) -> Model {
    let model = parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let printed = print_with(&model, &PrintOptions::full());
    let again = parse(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
    assert_eq!(print_with(&again, &PrintOptions::full()), printed);
    model
}

#[test]
fn the_header_is_kept() {
    let model = round_trip(
        r#"<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1], producer_name: "a \"tool\"",
            producer_version: "1.0", domain: "org.example", model_version: 7, doc_string: "two
            lines \\", metadata_props: ["key": "value", "": ""]>
           g () => () {}"#,
    );
    assert_eq!(model.ir_version, 10);
    assert_eq!(model.opset_version(model.main(), "com.microsoft"), Some(1));
    assert_eq!(model.producer_name, "a \"tool\"");
    assert!(model.doc_string.ends_with("lines \\"));
    assert_eq!((model.model_version, model.metadata.len()), (7, 2));
}

#[test]
fn what_is_printed_is_pinned() {
    let text = r#"<
  ir_version: 8,
  opset_import: ["" : 18]
>
main (float[batch, 3] x, float bias) => (float[batch, 2] y)
<
  float[3, 2] w = {1.0, 2.0, 3.0, 4.0, -5.5, 1e-8},
  float bias = {0.5},
  float[batch, 2] "h.0"
>
{
  [dense] "h.0" = MatMul (x, w)
  y = Clip <note = "a, \"b\""> ("h.0", "", bias)
}
"#;
    assert_eq!(print(&parse(text).unwrap()), text);
}

#[test]
fn every_kind_of_attribute() {
    let model = round_trip(
        r#"<opset_import: ["" : 18]> g (float[2] x) => (float[2] y) {
            y = test.domain.Op:variant <
                i = -3, f = 0.25, whole: float = 2, inf = -inf, nan = nan, s = "text",
                t = int64[2] {1, 2}, named = float scale = {0.5}, ty = seq(map(int64, float[N, ?])),
                ints = [1, 2], floats = [1.0, 2.5], mixed: floats = [1, 2.5], strings = ["a", "b"],
                tensors = [float {1}, int8[1] {-1}], types = [float, optional(string[])],
                empty: ints = [], sparse = sparse_tensor(float[3]) {float[1] {2}, int64[1] {1}},
                "odd name" = 1
            > (x, , "", x,)
        }"#,
    );
    let node = model.node(model.node_list(model.main())[0]);
    assert_eq!((node.domain(), &*node.op_type, &*node.overload), ("test.domain", "Op", "variant"));
    assert_eq!(node.inputs().len(), 4);
    assert_eq!((node.input(1), node.input(2)), (None, None));
    assert_eq!(node.float("whole"), Some(2.0));
    assert_eq!(node.floats("mixed"), Some(&[1.0, 2.5][..]));
    assert!(node.float("nan").unwrap().is_nan());
    assert_eq!(node.float("inf"), Some(f32::NEG_INFINITY));
    assert_eq!(node.tensor("t"), Some(&Tensor::from_i64s(&[1, 2])));
    assert!(matches!(node.attribute("ty"), Some(AttributeValue::Type(Type::Sequence(_)))));
    assert!(matches!(node.attribute("tensors"), Some(AttributeValue::Tensors(list)) if list.len() == 2));
    assert!(matches!(node.attribute("types"), Some(AttributeValue::Types(list)) if list.len() == 2));
    assert!(matches!(node.attribute("empty"), Some(AttributeValue::Ints(list)) if list.is_empty()));
    assert!(matches!(node.attribute("sparse"), Some(AttributeValue::SparseTensor(_))));
    assert_eq!(node.int("odd name"), Some(1));
}

#[test]
fn tensors_of_every_type() {
    let cases = [
        ("float[2] {1, -2.5e3}", Tensor::from_vec([2], vec![1f32, -2500.0])),
        ("double {1e300}", Tensor::scalar(1e300)),
        ("int64[2] {-9223372036854775808, 9223372036854775807}", Tensor::from_i64s(&[i64::MIN, i64::MAX])),
        ("uint64 {18446744073709551615}", Tensor::scalar(u64::MAX)),
        ("int8[3] {-128, 0, 127}", Tensor::from_vec([3], vec![-128i8, 0, 127])),
        ("uint8 {255}", Tensor::scalar(255u8)),
        ("uint32 {4294967295}", Tensor::scalar(u32::MAX)),
        ("bool[2] {1, 0}", Tensor::from_bools([2], &[true, false])),
        ("string[2] {\"a\", \"\"}", Tensor::from_strings([2], &["a", ""])),
        ("float16[2] {15360, 1.5}", Tensor::from_vec([2], vec![half::f16::ONE, half::f16::from_f32(1.5)])),
        ("bfloat16 {16256}", Tensor::scalar(half::bf16::ONE)),
        ("int4[3] {-8, 7, -1}", Tensor::from_codes(DType::I4, [3], &[8, 7, 15])),
        ("uint2[2] {3, 1}", Tensor::from_codes(DType::U2, [2], &[3, 1])),
        ("float8e4m3fn {126}", Tensor::from_codes(DType::F8E4M3FN, [], &[126])),
        ("float4e2m1[1] {15}", Tensor::from_codes(DType::F4E2M1, [1], &[15])),
        ("complex64[2] {1, 2, 3, 4}", Tensor::from_vec([2], vec![[1f32, 2.0], [3.0, 4.0]])),
        ("float[0] {}", Tensor::zeros(DType::F32, [0]).unwrap()),
        ("float[2, 0, 3] {}", Tensor::zeros(DType::F32, [2, 0, 3]).unwrap()),
    ];
    for (text, tensor) in cases {
        assert_eq!(parse_tensor(text).unwrap_or_else(|error| panic!("{text}: {error}")), tensor, "{text}");
        let model = round_trip(&format!("g () => (t) {{ t = Constant <value = {text}> () }}"));
        let node = model.node_list(model.main())[0];
        assert_eq!(model.node(node).tensor("value"), Some(&tensor), "{text}");
    }
    assert!(parse_tensor("float {-nan}").unwrap().single().unwrap().is_sign_negative());
}

#[test]
fn types_are_read_and_written() {
    let cases = [
        "float",
        "float[]",
        "int8[N, 3, ?]",
        "float[\"2*N\"]",
        "seq(optional(string[1]))",
        "map(int64, seq(float[N]))",
        "sparse_tensor(double[3, 4])",
        "opaque(org.example, thing)",
        "opaque(thing)",
        "undefined[3]",
    ];
    for text in cases {
        let model = round_trip(&format!("g ({text} x) => (x) {{}}"));
        let printed = print_graph(&model, model.main());
        assert!(printed.starts_with(&format!("g ({text} x)")), "{text} became {printed}");
    }
    assert_eq!(parse_type("float[N]").unwrap().to_string(), "float[N]");
    assert_eq!(parse_type("float[-1, 2]").unwrap(), parse_type("float[?, 2]").unwrap());
}

#[test]
fn initializers_may_be_defaults_of_inputs() {
    for text in ["g (float[2] x = {1, 2}) => (x) {}", "g (float[2] x) => (x) <float[2] x = {1, 2}> {}"] {
        let model = round_trip(text);
        let x = model.find_value(model.main(), "x").unwrap();
        assert!(model.value(x).is_input() && model.value(x).tensor().is_some(), "{text}");
        assert_eq!(model.value(x).constant(), None);
    }
    let model = round_trip("g () => (s) <sparse_tensor(float[4]) s = {float[1] {1}, int64[1] {2}}> {}");
    let s = model.find_value(model.main(), "s").unwrap();
    assert!(matches!(model.value(s).initializer(), Some(Initializer::Sparse(sparse)) if sparse.shape == [4]));
}

#[test]
fn subgraphs_and_functions() {
    let model = round_trip(
        r#"<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
        main (bool c, float[N] x) => (float[N] y) {
            h = local.scale <factor = 2.0> (x)
            y = If (c) <
                then_branch = then () => (float[N] t) <float one = {1}> { t = Add (h, one) },
                else_branch = "else graph" () => (e) { e = Neg (h) }
            >
        }
        <domain: "local", opset_import: ["" : 17], doc_string: "scales">
        scale <factor, bias: float = 0.5, mode = "up"> (float[N] x) => (y) <float[N] z> {
            f = Constant <value_float: float = @factor> ()
            z = Mul (x, f)
            b = Constant <value_float: float = @bias> ()
            y = Add (z, b)
        }"#,
    );
    let function = &model.functions[0];
    assert_eq!(function.attribute_names, ["factor"]);
    assert_eq!(function.attributes.len(), 2);
    assert_eq!(model.opset_version(function.graph, ""), Some(17));
    assert_eq!(model.graph(function.graph).value_infos.len(), 2);
    let first = model.node(model.nodes_of(function.graph).next().unwrap());
    assert_eq!(first.attribute("value_float"), Some(&AttributeValue::Reference("factor".into(), 1)));
    assert_eq!(model.walk().count(), 4);
    let h = model.find_value(model.main(), "h").unwrap();
    assert_eq!(model.value(h).uses().len(), 2);
}

#[test]
fn errors_name_the_place_and_what_was_expected() {
    let cases: &[(&str, (usize, usize), &str)] = &[
        ("", (1, 1), "expected the graph's name, found the end of the text"),
        ("g (float[2 x) => () {}", (1, 12), "expected `,` or `]` after a dimension, found `x`"),
        ("g (x) = (x) {}", (1, 7), "expected `=>` and the outputs, found `=`"),
        ("g () => (y) {\n  y = Relu (x)\n}", (2, 13), "`x` is used, but no input, constant or node"),
        ("g (x) => (x) {\n  x = Relu (x)\n}", (2, 3), "`x` is defined a second time"),
        ("g () => () { y = \"\nRelu (x) }", (1, 18), "this string has no closing"),
        ("g () => () < float[2] w = {1} > {}", (1, 27), "takes 2 elements, but 1 are given"),
        ("g () => () < float[N] w = {1} > {}", (1, 27), "needs an element type and numeric dimensions"),
        ("g () => () < int8 w = {128} > {}", (1, 24), "`128` is not within -128..=127"),
        ("g () => () < int8 w = {1.5} > {}", (1, 24), "expected an integer element of int8, found `1.5`"),
        ("g () => () < float w = {1e99} > {}", (1, 25), "`1e99` is out of range"),
        ("g () => () < float w = [\"location\": \"w\"] > {}", (1, 24), "tensors in external files"),
        ("g () => () < float w = {...} > {}", (1, 25), "elements were left out when the text was printed"),
        ("g () => () { y = Op <a = []> () }", (1, 26), "an empty list needs its type"),
        ("g () => () { y = Op <a = [1, 2.0]> () }", (1, 30), "a list of int values has an element"),
        ("g () => () { y = Op <a: floot = 1> () }", (1, 25), "`floot` is no attribute type; they are"),
        ("g () => () { y = Op <a: string = 1> () }", (1, 34), "declared string, but the value is int"),
        ("<ir: 3> g () => () {}", (1, 2), "`ir` is no property of a model; they are ir_version"),
        ("<opset_import: [x : 1]> g () => () {}", (1, 17), "expected an operator set's name in quotes"),
        ("g () => () {} trailing", (1, 23), "expected `(` and the function's inputs"),
        ("g () => () {} <domain: \"d\"> f (x, x) => () {}", (1, 35), "`x` is defined a second time"),
        ("g () => () { y = Op <a = 99999999999999999999> () }", (1, 26), "does not fit in 64 bits"),
    ];
    for (text, place, message) in cases {
        let error = parse(text).expect_err(text);
        assert!(error.message.contains(message), "{text:?}: {error}");
        assert_eq!((error.line, error.column), *place, "{text:?}: {error}");
    }
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| {
        let (mut text, mut close) = (String::from("g () => () { "), String::from("}"));
        for _ in 1..depth {
            text += "= Op () <body = g () => () { ";
            close += "> }";
        }
        text + &close
    };
    round_trip(&nested(MAX_DEPTH));
    let error = parse(&nested(MAX_DEPTH + 1)).unwrap_err();
    assert!(error.message.contains("nested 32 deep"), "{error}");
    parse(&nested(100_000)).unwrap_err();
    let seqs = |depth: usize| format!("{}float{}", "seq(".repeat(depth), ")".repeat(depth));
    parse_type(&seqs(MAX_DEPTH - 1)).unwrap();
    parse_type(&seqs(MAX_DEPTH)).unwrap_err();
    parse_type(&seqs(100_000)).unwrap_err();
}

#[test]
fn any_prefix_and_any_byte_is_no_panic() {
    let text = r#"<ir_version: 9, opset_import: ["" : 18]> main (bool c, float[N] x = {}) => (y) <float[2] w = {1, -2e3}>
        { [n] y = a.b.If:o (c, , "é") <b = g () => (x) { = O () }, r: int = @q, s = sparse_tensor(int8[2]) {int8 {1}, int64 {0}}> }"#;
    for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
        let _ = parse(&text[..end]);
        for junk in ["\"", "\\", "<", "{", "...", "-", "é", "\0", "1e", "=>", "@", "#"] {
            let _ = parse(&format!("{}{junk}{}", &text[..end], &text[end..]));
        }
    }
}

#[test]
fn large_tensors_are_abridged_and_not_read_back() {
    let data: Vec<f32> = (0..20).map(|i| i as f32).chain([f32::NAN]).collect();
    let model = crate::ModelBuilder::new(18)
        .constant("w", Tensor::from_vec([21], data))
        .node("Relu", ["w"], ["y"])
        .output("y", "float[21]")
        .build();
    let printed = print(&model);
    let expected = "float[21] w = {... blake3:";
    assert!(printed.contains(expected), "{printed}");
    assert!(printed.contains(" min 0 max 19.00 mean 9.500 deviation 5.766 not-finite 1}"), "{printed}");
    let error = parse(&printed).unwrap_err();
    assert_eq!(error.line, 7);
    assert!(error.message.contains("left out"), "{error}");
    parse(&print_with(&model, &PrintOptions::full())).unwrap();
    let node = model.node_list(model.main())[0];
    assert_eq!(print_node(&model, node), "y = Relu (w)");
}
