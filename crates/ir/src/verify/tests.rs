use super::*;
use crate::node::{Attribute, ValueInfo};
use crate::{ModelBuilder, Position, Tensor, text};

/// The model of a text violates exactly these invariants.
#[track_caller]
fn assert_violates(model: &Model, rules: &[Rule]) -> Vec<Violation> {
    let found = verify(model);
    let lines: Vec<String> =
        found.iter().map(|violation| format!("{:?}: {violation}", violation.rule)).collect();
    assert_eq!(found.iter().map(|violation| violation.rule).collect::<Vec<_>>(), rules, "{lines:#?}");
    assert!(lines.iter().all(|line| !line.contains('\n')));
    found
}

fn valid() -> Model {
    text::parse(
        r#"<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
        main (bool c, float[N] x) => (float[N] y) <float[1] w = {2}> {
            a = local.twice <by = 1.0> (x)
            b = Mul (a, w)
            y = If (c) <
                then_branch = then () => (t) <float one = {1}> { t = Add (b, one) },
                else_branch = else () => (e) { e = Neg (b) }
            >
        }
        <domain: "local", opset_import: ["" : 17]> twice <by> (x) => (y) {
            f = Constant <value_float: float = @by> ()
            y = Mul (x, f)
        }"#,
    )
    .unwrap()
}

#[test]
fn a_valid_model_has_no_violations() {
    assert_violates(&valid(), &[]);
    assert_violates(&Model::new(), &[]);
}

#[test]
fn texts_that_violate_one_invariant() {
    use Rule::*;
    let cases: &[(&str, &[Rule], &str)] = &[
        (
            "g (x) => (y) { y = Add (x, z) z = Relu (x) }",
            &[DefinitionBeforeUse],
            "graph `g`, node Add -> `y`, value `z`: input 1 is computed by that node itself or a later one",
        ),
        ("g (x) => (y) { y = Add (x, y) }", &[DefinitionBeforeUse], "sort the nodes, or break the cycle"),
        (
            "g (c) => (y) { y = If (c) <then_branch = t () => (a) { a = Neg (b) }> b = Relu (c) }",
            // The text form looks names up where it reads them, so that `b` is another value.
            &[],
            "",
        ),
        (
            "g (c) => (y) { y = If (c) <then_branch = t () => (c1) { c1 = Neg (c) y = Neg (c1) }> }",
            &[Names],
            "graph `t`, value `y`: its name hides a value of the graph `g`",
        ),
        ("g (x) => (y) { [n] y = Relu <a = 1, a = 2> (x) }", &[Attributes], "node `n` (Relu): attribute `a`"),
        ("g (x) => (y) { y = Relu <a = @b> (x) }", &[Attributes], "but the node is in none"),
        ("g (x) => (y) { y = \"\" (x) }", &[Operators], "the node names no operator"),
        ("g (x) => (y) { y = com.acme.Op (x) }", &[Operators], "set `com.acme`, which is not imported"),
        ("g (x) => (y) { y = Relu (x, x) }", &[Arity], "it has 2 inputs and Relu takes at most 1"),
        ("g (x) => (y) { y = Add (x) }", &[Arity], "it has 1 inputs and Add takes at least 2"),
        ("g (x) => (y, z) { y, z = Add (x, x) }", &[Arity], "2 outputs and Add takes at most 1"),
        ("g (x) => (y) { y = Relu (x, \"\") }", &[], ""),
    ];
    for (graph, rules, message) in cases {
        let Ok(model) = text::parse(&format!("<opset_import: [\"\" : 18]> {graph}")) else {
            assert!(rules.is_empty(), "{graph} should parse");
            continue;
        };
        let found = assert_violates(&model, rules);
        assert!(found.iter().all(|violation| violation.to_string().contains(message)), "{found:?}");
    }
}

#[test]
fn operator_sets() {
    use Rule::*;
    let cases: &[(&str, &[Rule])] = &[
        ("", &[Operators]),
        ("\"\" : 0", &[Operators]),
        ("\"\" : 1001", &[Operators]),
        ("\"\" : 18, \"ai.onnx\" : 17", &[Operators]),
        ("\"\" : 18, \"ai.onnx\" : 18", &[]),
        ("\"ai.onnx\" : 18", &[]),
    ];
    for (imports, rules) in cases {
        let text = format!("<opset_import: [{imports}]> g (x) => (y) {{ y = Relu (x) }}");
        assert_violates(&text::parse(&text).unwrap(), rules);
    }
}

#[test]
fn functions_do_not_call_themselves() {
    let function = |name: &str, body: &str| {
        format!("<domain: \"l\", opset_import: [\"\" : 18, \"l\" : 1]> {name} (x) => (y) {{ {body} }}\n")
    };
    type Functions<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(Functions<'_>, &[&str])] = &[
        (&[("f", "y = l.f (x)")], &["f"]),
        (&[("f", "y = l.g (x)"), ("g", "y = l.h (x)"), ("h", "y = l.f (x)")], &["f", "g", "h"]),
        (&[("f", "y = l.g (x)"), ("g", "y = l.g (x)")], &["g"]),
        (&[("f", "a = l.g (x) y = l.g (a)"), ("g", "y = Relu (x)")], &[]),
        (&[("f", "y = If (x) <then_branch = t () => (z) { z = l.f (x) }>")], &["f"]),
    ];
    for (functions, cyclic) in cases {
        let bodies: String = functions.iter().map(|(name, body)| function(name, body)).collect();
        let text = format!("<opset_import: [\"l\" : 1]> main (x) => (y) {{ y = l.f (x) }} {bodies}");
        let found = verify(&text::parse(&text).unwrap());
        assert_eq!(found.len(), cyclic.len(), "{found:?}");
        for (violation, name) in found.iter().zip(*cyclic) {
            assert_eq!(violation.rule, Rule::Functions);
            assert!(violation.to_string().contains(&format!("`{name}` calls itself")), "{violation}");
        }
    }
    let twice =
        format!("main () => () {{}} {} {}", function("f", "y = Relu (x)"), function("f", "y = Relu (x)"));
    assert_violates(&text::parse(&twice).unwrap(), &[Rule::Functions]);
    let bad = "main () => () {} <domain: \"l\", opset_import: [\"\" : 18]> f <a> (x) => (y) { y = Relu <b = @b> (x) }";
    assert_violates(&text::parse(bad).unwrap(), &[Rule::Attributes]);
}

/// Every way to damage the tables of a model is found, and nothing panics.
#[test]
fn damaged_tables() {
    type Damage = fn(&mut Model);
    fn first(model: &Model) -> NodeId {
        model.graph(model.main()).first.unwrap()
    }
    fn nth_graph(model: &Model, index: usize) -> GraphId {
        model.graphs().nth(index).unwrap()
    }
    let cases: &[(&str, Damage, Rule)] = &[
        ("a forgotten use", |m| m.value_mut(m.find_value(m.main(), "x").unwrap()).uses.clear(), Rule::Uses),
        (
            "a removed value in use",
            |m| drop(m.values.remove(m.find_value(m.main(), "a").unwrap())),
            Rule::DefinitionBeforeUse,
        ),
        ("a removed node in the chain", |m| drop(m.nodes.remove(first(m))), Rule::Order),
        ("a label out of order", |m| m.node_mut(first(m)).label = u64::MAX, Rule::Order),
        (
            "a chain in a circle",
            |m| {
                let node = first(m);
                m.node_mut(node).next = Some(node);
            },
            Rule::Order,
        ),
        ("a wrong count", |m| m.graph_mut(m.main()).node_count = 99, Rule::Order),
        (
            "a graph that holds itself",
            |m| {
                let inner = nth_graph(m, 1);
                let node = m.graph(inner).first.unwrap();
                m.node_mut(node).attributes.push(Attribute::new("body", inner));
                m.set_owner(inner, node);
            },
            Rule::Ownership,
        ),
        ("a wrong owner", |m| m.set_owner(nth_graph(m, 2), first(m)), Rule::Ownership),
        ("a removed subgraph", |m| drop(m.graphs.remove(nth_graph(m, 2))), Rule::Ownership),
        (
            "a graph that nothing holds",
            |m| {
                m.add_graph(None);
            },
            Rule::Ownership,
        ),
        (
            "an input listed twice",
            |m| {
                let info = m.graph(m.main()).inputs()[0].clone();
                m.graph_mut(m.main()).inputs.push(info);
            },
            Rule::Interface,
        ),
        (
            "an input that is not marked",
            |m| m.value_mut(m.find_value(m.main(), "x").unwrap()).is_input = false,
            Rule::Interface,
        ),
        ("an input that is not listed", |m| m.graph_mut(m.main()).inputs.clear(), Rule::Interface),
        (
            "a constant that a node computes",
            |m| {
                let value = m.find_value(m.main(), "a").unwrap();
                m.set_tensor(value, Tensor::scalar(1f32));
            },
            Rule::SingleAssignment,
        ),
        (
            "a constant listed twice",
            |m| {
                let value = m.graph(m.main()).initializers()[0];
                m.graph_mut(m.main()).initializers.push(value);
            },
            Rule::Constants,
        ),
        (
            "a constant of a function",
            |m| {
                m.add_constant(m.functions[0].graph, "k", Tensor::scalar(1f32));
            },
            Rule::Constants,
        ),
        (
            "two nodes with one output",
            |m| {
                let output = m.node(first(m)).outputs.clone();
                let last = m.graph(m.main()).last.unwrap();
                m.node_mut(last).outputs = output;
            },
            Rule::SingleAssignment,
        ),
        (
            "a value without name",
            |m| m.value_mut(m.find_value(m.main(), "a").unwrap()).name.clear(),
            Rule::Names,
        ),
        (
            "two values of one name",
            |m| m.value_mut(m.find_value(m.main(), "a").unwrap()).name = "b".into(),
            Rule::Names,
        ),
        (
            "an output that nothing defines",
            |m| {
                let value = m.add_value(m.main(), "nowhere");
                m.add_output(m.main(), ValueInfo::new(value, None));
            },
            Rule::DefinitionBeforeUse,
        ),
        (
            "a value of a graph beside",
            |m| {
                let inner = nth_graph(m, 2);
                let value = m.graph(inner).outputs()[0].value;
                m.set_input(first(m), 0, Some(value));
            },
            Rule::DefinitionBeforeUse,
        ),
        (
            "a capture that comes too late",
            |m| {
                let holder = m.graph(m.main()).last.unwrap();
                m.move_node(holder, Position::Start);
            },
            Rule::DefinitionBeforeUse,
        ),
    ];
    for (what, damage, rule) in cases {
        let mut model = valid();
        damage(&mut model);
        let found = verify(&model);
        let lines: Vec<String> = found.iter().map(|v| format!("{:?}: {v}", v.rule)).collect();
        assert!(found.iter().any(|violation| violation.rule == *rule), "{what}: {lines:#?}");
    }
}

#[test]
fn depth_is_limited() {
    fn nested(depth: usize) -> Model {
        let mut model = ModelBuilder::new(18).build();
        let mut graph = model.main();
        for level in 1..depth {
            let hint = format!("y{level}");
            let (node, _) = model.add_node(graph, Position::End, Node::new("Op", []), &hint);
            let inner = model.add_graph(Some(node));
            model.node_mut(node).attributes.push(Attribute::new("body", inner));
            graph = inner;
        }
        model
    }
    assert_violates(&nested(MAX_DEPTH), &[]);
    assert_violates(&nested(MAX_DEPTH + 1), &[Rule::Depth]);
    assert_eq!(verify(&nested(3000)).len(), MAX_VIOLATIONS);
}
