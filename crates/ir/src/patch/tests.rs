use super::*;
use crate::verify::verify;
use crate::{DType, Dim, text};

const HEADER: &str = "<ir_version: 9, opset_import: [\"\" : 18, \"l\" : 1]>";

fn model(graph: &str) -> Model {
    let model = text::parse(&format!("{HEADER} {graph}")).unwrap();
    assert_valid(&model);
    model
}

#[track_caller]
fn assert_valid(model: &Model) {
    let found: Vec<String> = verify(model).iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{found:#?}\n{}", text::print(model));
}

#[track_caller]
fn assert_is(model: &Model, expected: &str) {
    assert_valid(model);
    let expected = text::parse(&format!("{HEADER} {expected}")).unwrap();
    assert_eq!(text::print(model), text::print(&expected));
}

fn value(model: &Model, name: &str) -> ValueId {
    let graphs = model.graphs();
    graphs.into_iter().find_map(|graph| model.find_value(graph, name)).unwrap()
}

fn node(model: &Model, output: &str) -> NodeId {
    model.value(value(model, output)).producer().unwrap().0
}

/// The patch is refused, and the model is as it was.
#[track_caller]
fn assert_refused(model: &mut Model, patch: Patch) -> PatchError {
    let before = text::print(model);
    let error = patch.apply(model).unwrap_err();
    assert_eq!(text::print(model), before);
    assert_valid(model);
    assert!(error.to_string().starts_with("patch `test`: "), "{error}");
    error
}

#[test]
fn folding_two_nodes_into_one() {
    let mut model = model(
        "g (float[N] x) => (float[N] y) <float[1] k = {2}, float[1] l = {3}> {
            a = Mul (x, k) [last] y = Mul (a, l) }",
    );
    let mut patch = Patch::new("test");
    let k = patch.constant("k", Tensor::from_vec([1], vec![6f32]));
    let product = patch.node("Mul", (value(&model, "x"), k)).named("folded").output("y_folded");
    patch.replace(value(&model, "y"), product).remove(node(&model, "y")).remove_if_dead(node(&model, "a"));
    patch.check(&model).unwrap();
    let applied = patch.apply(&mut model).unwrap();
    assert_eq!((applied.nodes.len(), applied.removed.len()), (1, 2));
    assert_eq!(model.value(applied.value(product)).name(), "y");
    assert_eq!(model.value(applied.value(product)).ty, Some(Type::tensor(DType::F32, [Dim::symbol("N")])));
    // The constants that only the removed nodes used are gone, too.
    assert_is(&model, "g (float[N] x) => (float[N] y) <float[1] k_1 = {6}> { [folded] y = Mul (x, k_1) }");
}

#[test]
fn a_value_replaced_by_something_computed_from_it() {
    let mut model =
        model("g (float[N] x) => (float[N] y, float[N] a) { a = Neg (x) b = Relu (a) y = Add (a, b) }");
    let a = value(&model, "a");
    let mut patch = Patch::new("test");
    let scale = patch.constant("scale", Tensor::scalar(0.5f32));
    let quantized = patch.node("QuantizeLinear", (a, scale)).output("a_q");
    let back = patch.node("DequantizeLinear", (quantized, scale)).output("a_dq");
    patch.replace(a, back);
    patch.apply(&mut model).unwrap();
    assert_is(
        &model,
        "g (float[N] x) => (float[N] y, float[N] a) <float scale = {0.5}> {
            a_dq = Neg (x)
            a_q = QuantizeLinear (a_dq, scale)
            a = DequantizeLinear (a_q, scale)
            b = Relu (a)
            y = Add (a, b)
        }",
    );
}

#[test]
fn one_input_rewired() {
    let mut model = model("g (float[N] x) => (y) { a = Neg (x) y = Add (x, a) }");
    let mut patch = Patch::new("test");
    let copy = patch.node("Abs", [value(&model, "x")]).output("copy");
    patch.set_input(node(&model, "y"), 0, copy);
    patch.set_attribute(node(&model, "y"), "note", "rewired").remove_attribute(node(&model, "y"), "none");
    patch.apply(&mut model).unwrap();
    assert_is(
        &model,
        "g (float[N] x) => (y) { a = Neg (x) copy = Abs (x) y = Add <note = \"rewired\"> (copy, a) }",
    );
}

#[test]
fn nodes_move_when_the_order_asks_for_it() {
    // `late` is computed behind the user of what it is to replace.
    let mut graph =
        model("g (x) => (y, z) { early = Neg (x) y = Relu (early) late = Abs (x) z = Exp (late) }");
    let mut patch = Patch::new("test");
    patch.replace(value(&graph, "early"), value(&graph, "late")).remove(node(&graph, "early"));
    patch.apply(&mut graph).unwrap();
    assert_is(&graph, "g (x) => (y, z) { late = Abs (x) y = Relu (late) z = Exp (late) }");

    // The same with a new node, and with the user in a subgraph.
    let mut graph = model(
        "g (c, x) => (y, z) {
            early = Neg (x)
            y = If (c) <then_branch = t () => (u) { u = Relu (early) }, else_branch = e () => (early) {}>
            late = Abs (x)
            z = Exp (late)
        }",
    );
    let mut patch = Patch::new("test");
    let new = patch.node("Sqrt", [value(&graph, "late")]).output("new");
    patch.replace(value(&graph, "early"), new).remove(node(&graph, "early")).allow_identity();
    patch.apply(&mut graph).unwrap();
    assert_valid(&graph);
    let order: Vec<&str> = graph.nodes_of(graph.main()).map(|id| graph.node(id).op_type.as_str()).collect();
    assert_eq!(order, ["Abs", "Sqrt", "If", "Exp"]);
}

#[test]
fn a_graph_output_keeps_its_name() {
    let text = "g (float[N] x) => (float[N] y, float[N] z) { y = Identity (x) z = Relu (x) }";
    let replace_y = |model: &Model, new: &str| {
        let mut patch = Patch::new("test");
        patch.replace(value(model, "y"), value(model, new)).remove(node(model, "y"));
        patch
    };
    for new in ["x", "z"] {
        let mut refused = model(text);
        let patch = replace_y(&refused, new);
        assert!(matches!(assert_refused(&mut refused, patch), PatchError::InterfaceName { .. }));
        let mut asked = model(text);
        let mut patch = replace_y(&asked, new);
        patch.allow_identity();
        let applied = patch.apply(&mut asked).unwrap();
        assert_valid(&asked);
        assert_eq!(applied.nodes.len(), 1);
        let y = value(&asked, "y");
        assert_eq!(asked.graph(asked.main()).outputs()[0].value, y);
        assert_eq!(asked.node(applied.nodes[0]).input(0), Some(value(&asked, new)));
    }
    // One new value for two outputs.
    let mut both = model("g (x) => (y, z) { y = Relu (x) z = Relu (x) }");
    let mut patch = Patch::new("test");
    let relu = patch.node("Relu", [value(&both, "x")]).output("r");
    patch.replace(value(&both, "y"), relu).replace(value(&both, "z"), relu).allow_identity();
    patch.remove(node(&both, "y")).remove(node(&both, "z"));
    patch.apply(&mut both).unwrap();
    assert_is(&both, "g (x) => (y, z) { y = Relu (x) z = Identity (y) }");
    // An input that is an output stays one.
    let mut through = model("g (x) => (x, y) { y = Relu (x) }");
    let mut patch = Patch::new("test");
    let neg = patch.node("Neg", [value(&through, "x")]).output("n");
    patch.replace(value(&through, "x"), neg);
    patch.apply(&mut through).unwrap();
    assert_is(&through, "g (x) => (x, y) { n = Neg (x) y = Relu (n) }");
}

#[test]
fn what_is_still_used_stays() {
    let text = "g (x) => (y, z) { a = Neg (x) y = Relu (a) z = Abs (a) }";
    let mut graph = model(text);
    let mut patch = Patch::new("test");
    let new = patch.node("Relu", [value(&graph, "x")]).output("n");
    patch.replace(value(&graph, "y"), new).remove(node(&graph, "y")).remove(node(&graph, "a"));
    let error = assert_refused(&mut graph, patch.clone());
    assert!(error.to_string().contains("node Neg -> `a` cannot be removed, its output `a`"), "{error}");
    // Asked for only if dead, it stays.
    let mut patch = Patch::new("test");
    let new = patch.node("Relu", [value(&graph, "x")]).output("n");
    patch.replace(value(&graph, "y"), new).remove(node(&graph, "y")).remove_if_dead(node(&graph, "a"));
    patch.apply(&mut graph).unwrap();
    assert_is(&graph, "g (x) => (y, z) { a = Neg (x) y = Relu (x) z = Abs (a) }");
    // Used by a new node, or captured by a subgraph.
    let mut graph =
        model("g (c, x) => (y) { a = Neg (x) y = If (c) <then_branch = t () => (b) { b = Neg (a) }> }");
    let mut patch = Patch::new("test");
    patch.remove(node(&graph, "a"));
    assert!(matches!(assert_refused(&mut graph, patch), PatchError::StillUsed { .. }));
    let mut patch = Patch::new("test");
    let new = patch.node("Abs", [value(&graph, "a")]).output("n");
    patch.replace(value(&graph, "y"), new).remove(node(&graph, "y")).remove(node(&graph, "a"));
    assert!(matches!(assert_refused(&mut graph, patch), PatchError::StillUsed { .. }));
    // With the subgraph gone, nothing captures it any more.
    let mut patch = Patch::new("test");
    let new = patch.node("Abs", [value(&graph, "x")]).output("n");
    patch.replace(value(&graph, "y"), new).remove(node(&graph, "y")).remove(node(&graph, "a"));
    patch.apply(&mut graph).unwrap();
    assert_is(&graph, "g (c, x) => (y) { y = Abs (x) }");
}

#[test]
fn bad_patches_are_refused_whole() {
    let text = "g (c, float[2] x) => (float[2] y) {
        a = Neg (x)
        y = If (c) <then_branch = t () => (b) { b = Neg (a) }, else_branch = e () => (d) { d = Abs (a) }>
    }";
    let mut graph = model(text);
    let tensor = |shape: usize| Tensor::zeros(DType::F32, [shape]).unwrap();

    let mut patch = Patch::new("test");
    let wrong = patch.constant("w", tensor(3));
    patch.replace(value(&graph, "y"), wrong);
    let error = assert_refused(&mut graph, patch);
    assert!(error.to_string().contains("`y` is float[2] and cannot be replaced by `w`, which is float[3]"));

    let mut patch = Patch::new("test");
    let inner = patch.node("Neg", [value(&graph, "b")]).output("n");
    patch.replace(value(&graph, "y"), inner);
    assert!(matches!(assert_refused(&mut graph, patch), PatchError::NotVisible { .. }));

    let mut patch = Patch::new("test");
    patch.replace(value(&graph, "d"), value(&graph, "b"));
    assert!(matches!(assert_refused(&mut graph, patch), PatchError::NotVisible { .. }));

    let mut patch = Patch::new("test");
    let loops = patch.node("Neg", [value(&graph, "y")]).output("n");
    patch.set_input(node(&graph, "a"), 0, loops);
    let error = assert_refused(&mut graph, patch);
    assert!(matches!(&error, PatchError::Cycle { nodes, .. } if nodes.contains("the new Neg")), "{error}");

    let mut patch = Patch::new("test");
    patch.set_input(node(&graph, "b"), 0, value(&graph, "y"));
    assert!(matches!(assert_refused(&mut graph, patch), PatchError::NotVisible { .. }));

    let mut patch = Patch::new("test");
    patch.replace(value(&graph, "y"), Operand::Omitted);
    assert!(matches!(assert_refused(&mut graph, patch), PatchError::Inconsistent { .. }));

    let mut patch = Patch::new("test");
    let (one, two) = (patch.constant("o", tensor(2)), patch.constant("t", tensor(2)));
    patch.replace(value(&graph, "a"), one).replace(value(&graph, "a"), two);
    assert!(matches!(assert_refused(&mut graph, patch), PatchError::Inconsistent { .. }));

    let mut patch = Patch::new("test");
    let copy = patch.node_like(graph.node(node(&graph, "y")), [value(&graph, "c")]).output("z");
    patch.replace(value(&graph, "y"), copy);
    assert!(matches!(assert_refused(&mut graph, patch), PatchError::Inconsistent { .. }));

    let mut other = model(text);
    let gone = node(&other, "y");
    let mut patch = Patch::new("test");
    let one = patch.constant("o", tensor(2));
    patch.replace(value(&other, "y"), one).remove(gone);
    patch.clone().apply(&mut other).unwrap();
    assert!(matches!(assert_refused(&mut other, patch), PatchError::Stale { .. }));
}

#[test]
fn constants_in_functions_are_nodes() {
    let mut graph = model(
        "g (x) => (y) { y = l.f (x) } <domain: \"l\", opset_import: [\"\" : 18]> f (x) => (y) { y = Neg (x) }",
    );
    let body = graph.functions[0].graph;
    let y = graph.graph(body).outputs()[0].value;
    let x = graph.graph(body).inputs()[0].value;
    let mut patch = Patch::new("test");
    let minus_one = patch.constant("m", Tensor::scalar(-1f32));
    let product = patch.node("Mul", (x, minus_one)).output("p");
    patch.replace(y, product).remove(graph.value(y).producer().unwrap().0);
    patch.apply(&mut graph).unwrap();
    assert_valid(&graph);
    let ops: Vec<&str> = graph.nodes_of(body).map(|id| graph.node(id).op_type.as_str()).collect();
    assert_eq!(ops, ["Constant", "Mul"]);
}

#[test]
fn inside_a_subgraph() {
    let mut graph = model(
        "g (c, x) => (y) { a = Neg (x) y = If (c) <then_branch = t () => (b) { m = Abs (a) b = Neg (m) }> }",
    );
    let mut patch = Patch::new("test");
    let new = patch.node("Neg", [value(&graph, "a")]).output("n");
    patch.replace(value(&graph, "b"), new);
    patch.remove(node(&graph, "b")).remove_if_dead(node(&graph, "m"));
    patch.apply(&mut graph).unwrap();
    assert_is(
        &graph,
        "g (c, x) => (y) { a = Neg (x) y = If (c) <then_branch = t () => (b) { b = Neg (a) }> }",
    );
}
