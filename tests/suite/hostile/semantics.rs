//! Models that are well formed and ask for the impossible: sizes of terabytes, loops without end, operators
//! whose inputs contradict each other. Loading and quantizing survive them; running them says which node.

use super::archive::array;
use super::harness::{MODEL, OUT, Row, run_all};
use super::pb::*;

/// The product, then these nodes and constants; their value `z` is the output.
fn ending(nodes: Vec<Pb>, constants: Vec<Pb>) -> Pb {
    let mut graph = product();
    graph.nodes.extend(nodes);
    graph.constants.extend(constants);
    graph.outputs = vec![Pb::new().put(1, "z")];
    graph.model()
}

/// A model that is quantized without harm and cannot be run: `infer` names the node.
fn row(name: &str, model: Pb, says: &[&str]) -> [Row; 2] {
    let quantized = Row::new(&format!("{name}, quantized"))
        .file(MODEL, model.clone())
        .run(&["inspect", MODEL])
        .run(&["quantize", MODEL, "-o", OUT])
        .done(0);
    let run = Row::new(&format!("{name}, run"))
        .file(MODEL, model)
        .file("in/x.npy", array("<f4", "(1, 4)", &floats(&[1.0; 4])))
        .run(&["infer", MODEL, "--data", "in/x.npy", "-o", OUT])
        .says(says);
    [quantized, run]
}

/// With little address space; whoever runs out of it reports the environment.
fn without_memory(row: Row) -> Row {
    let row = row.limits("ulimit -v 1500000");
    if row.is_refused() { row.refused(3) } else { row }
}

fn rows() -> Vec<Row> {
    let scalar = |name: &str, value: i64| tensor(name, INT64, &[], &ints(&[value]));
    let f = |name: &str, value: f32| tensor(name, FLOAT, &[], &floats(&[value]));
    let one = |node: Pb, constants: Vec<Pb>| ending(vec![node.put(3, "last")], constants);
    let mut doubled = vec![];
    for level in 0..60 {
        let from = if level == 0 { "y".to_owned() } else { format!("d{}", level - 1) };
        let to = if level == 59 { "z".to_owned() } else { format!("d{level}") };
        doubled.push(node("Concat", &[&from, &from], &[&to]).message(5, &int_attribute("axis", 0)));
    }
    let mut doubled_constant = vec![];
    for level in 0..60 {
        let from = if level == 0 { "k".to_owned() } else { format!("d{}", level - 1) };
        let to = if level == 59 { "z".to_owned() } else { format!("d{level}") };
        doubled_constant.push(node("Concat", &[&from, &from], &[&to]).message(5, &int_attribute("axis", 0)));
    }
    let body = {
        let graph = Graph {
            nodes: vec![node("Identity", &["go"], &["on"]), node("Identity", &["a"], &["b"])],
            inputs: vec![info("i", INT64, &[]), info("go", BOOL, &[]), info("a", FLOAT, &[1, 3])],
            outputs: vec![info("on", BOOL, &[]), info("b", FLOAT, &[1, 3])],
            ..Graph::default()
        };
        graph.message()
    };
    let conv = |attributes: &[Pb]| {
        let conv = node("Conv", &["image", "kernel"], &["z"]).put(3, "last");
        let conv = attributes.iter().fold(conv, |node, attribute| node.message(5, attribute));
        ending(
            vec![node("Reshape", &["x", "shape"], &["image"]), conv],
            vec![sizes("shape", &[1, 1, 2, 2]), tensor("kernel", FLOAT, &[1, 1, 1, 1], &floats(&[1.0]))],
        )
    };
    let row_of_quantized = |name: &str, model: Pb| {
        let [quantized, run] = row(name, model, &["`last`"]);
        [
            quantized.only_last().refused(2).says(&[
                "`last`",
                "quantized already",
                "start from the float model",
            ]),
            run,
        ]
    };
    let rows = [
        row(
            "ConstantOfShape of 2^36",
            one(node("ConstantOfShape", &["s"], &["z"]), vec![sizes("s", &[1 << 36])]),
            &["`last`"],
        ),
        row(
            "ConstantOfShape of 2^80",
            one(node("ConstantOfShape", &["s"], &["z"]), vec![sizes("s", &[1 << 40, 1 << 40])]),
            &["`last`"],
        ),
        row(
            "ConstantOfShape of -1",
            one(node("ConstantOfShape", &["s"], &["z"]), vec![sizes("s", &[-1])]),
            &["`last`"],
        ),
        row(
            "Expand to 2^36",
            one(node("Expand", &["y", "s"], &["z"]), vec![sizes("s", &[1 << 36, 1, 3])]),
            &["`last`"],
        ),
        row(
            "Expand a constant to 2^36",
            one(node("Expand", &["k", "s"], &["z"]), vec![f("k", 1.0), sizes("s", &[1 << 36])]),
            &["`last`"],
        ),
        row("60 doublings", ending(doubled, vec![]), &["Concat", "no memory", "machine with more"])
            .map(without_memory),
        row(
            "60 doublings of a constant",
            ending(doubled_constant, vec![tensor("k", FLOAT, &[1], &floats(&[1.0]))]),
            &["Concat", "no memory", "machine with more"],
        )
        .map(without_memory),
        row(
            "Tile to 2^60",
            one(node("Tile", &["y", "r"], &["z"]), vec![sizes("r", &[1 << 30, 1 << 30])]),
            &["`last`"],
        ),
        row("Tile by -1", one(node("Tile", &["y", "r"], &["z"]), vec![sizes("r", &[-1, 1])]), &["`last`"]),
        row(
            "Range to 2^40",
            one(
                node("Range", &["a", "b", "c"], &["z"]),
                vec![scalar("a", 0), scalar("b", 1 << 40), scalar("c", 1)],
            ),
            &["`last`"],
        ),
        row(
            "Range by 0",
            one(
                node("Range", &["a", "b", "c"], &["z"]),
                vec![scalar("a", 0), scalar("b", 9), scalar("c", 0)],
            ),
            &["`last`"],
        ),
        row(
            "Range of NaN",
            one(node("Range", &["a", "b", "c"], &["z"]), vec![f("a", 0.0), f("b", f32::NAN), f("c", 1.0)]),
            &["`last`"],
        ),
        row(
            "Range by a hair",
            one(node("Range", &["a", "b", "c"], &["z"]), vec![f("a", 0.0), f("b", 1e30), f("c", 1e-30)]),
            &["`last`"],
        ),
        row(
            "Pad by 2^40",
            one(node("Pad", &["y", "p"], &["z"]), vec![sizes("p", &[0, 0, 1 << 40, 0])]),
            &["`last`"],
        ),
        row(
            "Pad by -2^40",
            one(node("Pad", &["y", "p"], &["z"]), vec![sizes("p", &[0, 0, -(1 << 40), 0])]),
            &["`last`"],
        ),
        row(
            "OneHot of 2^40",
            one(
                node("OneHot", &["i", "d", "v"], &["z"]),
                vec![sizes("i", &[1]), scalar("d", 1 << 40), tensor("v", FLOAT, &[2], &floats(&[0.0, 1.0]))],
            ),
            &["`last`"],
        ),
        row(
            "Resize by 10^20",
            one(
                node("Resize", &["y", "", "s"], &["z"]),
                vec![tensor("s", FLOAT, &[2], &floats(&[1e20, 1e20]))],
            ),
            &["`last`"],
        ),
        row(
            "Resize by NaN",
            one(
                node("Resize", &["y", "", "s"], &["z"]),
                vec![tensor("s", FLOAT, &[2], &floats(&[f32::NAN, 1.0]))],
            ),
            &["`last`"],
        ),
        row(
            "Reshape with two -1",
            one(node("Reshape", &["y", "s"], &["z"]), vec![sizes("s", &[-1, -1])]),
            &["`last`"],
        ),
        row(
            "Reshape to another size",
            one(node("Reshape", &["y", "s"], &["z"]), vec![sizes("s", &[4])]),
            &["`last`"],
        ),
        row(
            "Reshape beyond 64 bits",
            one(node("Reshape", &["y", "s"], &["z"]), vec![sizes("s", &[i64::MAX, i64::MAX])]),
            &["`last`"],
        ),
        row(
            "Reshape to -7",
            one(node("Reshape", &["y", "s"], &["z"]), vec![sizes("s", &[-7, 3])]),
            &["`last`"],
        ),
        row("Gather outside", one(node("Gather", &["y", "i"], &["z"]), vec![sizes("i", &[99])]), &["`last`"]),
        row(
            "Gather at -2^63",
            one(node("Gather", &["y", "i"], &["z"]), vec![sizes("i", &[i64::MIN])]),
            &["`last`"],
        ),
        row(
            "Gather a constant outside",
            one(node("Gather", &["w", "i"], &["z"]), vec![sizes("i", &[4])]),
            &["`last`"],
        ),
        row(
            "Div by a constant 0",
            one(node("Div", &["a", "b"], &["z"]), vec![scalar("a", 1), scalar("b", 0)]),
            &["`last`"],
        ),
        row(
            "Div of the least by -1",
            ending(
                vec![node("Div", &["a", "b"], &["q"]).put(3, "last"), node("Reshape", &["y", "q"], &["z"])],
                vec![sizes("a", &[i64::MIN]), sizes("b", &[-1])],
            ),
            &["node"],
        ),
        row(
            "Mod by a constant 0",
            one(node("Mod", &["a", "b"], &["z"]), vec![scalar("a", 1), scalar("b", 0)]),
            &["`last`"],
        ),
        row(
            "Transpose by a wrong order",
            one(node("Transpose", &["y"], &["z"]).message(5, &ints_attribute("perm", &[0, 7])), vec![]),
            &["`last`"],
        ),
        row(
            "Concat on axis 99",
            one(node("Concat", &["y", "y"], &["z"]).message(5, &int_attribute("axis", 99)), vec![]),
            &["`last`"],
        ),
        row(
            "Softmax on axis -2^63",
            one(node("Softmax", &["y"], &["z"]).message(5, &int_attribute("axis", i64::MIN)), vec![]),
            &["`last`"],
        ),
        row(
            "Squeeze a size of 3",
            one(node("Squeeze", &["y", "a"], &["z"]), vec![sizes("a", &[1])]),
            &["`last`"],
        ),
        row(
            "Unsqueeze at 2^62",
            one(node("Unsqueeze", &["y", "a"], &["z"]), vec![sizes("a", &[1 << 62])]),
            &["`last`"],
        ),
        row(
            "Slice by 0",
            one(node("Slice", &["y", "a", "b", "a", "a"], &["z"]), vec![sizes("a", &[0]), sizes("b", &[9])]),
            &["`last`"],
        ),
        row("MatMul of sizes that do not fit", one(node("MatMul", &["y", "w"], &["z"]), vec![]), &["`last`"]),
        row("Conv with stride 0", conv(&[ints_attribute("strides", &[0, 0])]), &["`last`"]),
        row("Conv with dilation 0", conv(&[ints_attribute("dilations", &[0, 0])]), &["`last`"]),
        row("Conv with stride -1", conv(&[ints_attribute("strides", &[-1, 1])]), &["`last`"]),
        row("Conv with group 0", conv(&[int_attribute("group", 0)]), &["`last`"]),
        row("Conv with group 7", conv(&[int_attribute("group", 7)]), &["`last`"]),
        row(
            "Conv with pads of 2^40",
            conv(&[ints_attribute("pads", &[1 << 40, 0, 1 << 40, 0])]),
            &["`last`"],
        ),
        row("Conv with pads of -9", conv(&[ints_attribute("pads", &[-9, -9, -9, -9])]), &["`last`"]),
        row("Conv with pads of 2^63 - 1", conv(&[ints_attribute("pads", &[i64::MAX; 4])]), &["`last`"]),
        row("Conv with another kernel shape", conv(&[ints_attribute("kernel_shape", &[5, 5])]), &["`last`"]),
        row("Conv with three strides", conv(&[ints_attribute("strides", &[1, 1, 1])]), &["`last`"]),
        row_of_quantized(
            "QuantizeLinear on axis 9",
            one(
                node("QuantizeLinear", &["y", "s"], &["z"]).message(5, &int_attribute("axis", 9)),
                vec![tensor("s", FLOAT, &[3], &floats(&[1.0; 3]))],
            ),
        ),
        row_of_quantized(
            "QuantizeLinear with two scales for three",
            one(
                node("QuantizeLinear", &["y", "s"], &["z"]).message(5, &int_attribute("axis", 1)),
                vec![tensor("s", FLOAT, &[2], &floats(&[1.0; 2]))],
            ),
        ),
        row_of_quantized(
            "DequantizeLinear with another zero point",
            one(
                node("DequantizeLinear", &["k", "s", "p"], &["z"]),
                vec![tensor("k", INT8, &[2], &[1, 2]), f("s", 1.0), tensor("p", INT64, &[], &ints(&[0]))],
            ),
        ),
        row(
            "Loop of 2^62 turns",
            ending(
                vec![
                    node("Loop", &["n", "c", "y"], &["z"])
                        .put(3, "last")
                        .message(5, &graph_attribute("body", &body)),
                ],
                vec![scalar("n", 1 << 62), tensor("c", BOOL, &[], &[1])],
            ),
            &["`last`"],
        ),
        row(
            "Einsum without sense",
            one(
                node("Einsum", &["y"], &["z"])
                    .message(5, &Pb::new().put(1, "equation").put(4, "i->jk...q").int(20, 3)),
                vec![],
            ),
            &["`last`"],
        ),
    ];
    rows.into_iter().flatten().collect()
}

fn declared() -> Vec<Row> {
    let lying = |rest: Pb| {
        let mut graph = product();
        graph.rest = rest;
        graph.model()
    };
    vec![
        Row::legal(
            "declared shape that is not so",
            lying(Pb::new().message(13, &info("y", FLOAT, &[7, 7]))),
            &[],
        ),
        Row::legal(
            "declared type that is not so",
            lying(Pb::new().message(13, &info("y", STRING, &[1, 3]))),
            &[],
        ),
        Row::legal(
            "declared sizes of terabytes",
            Graph { inputs: vec![info("x", FLOAT, &[1 << 40, 4])], ..product() }.model(),
            &[],
        ),
        Row::new("scale 0, negative, NaN")
            .file(MODEL, {
                let quantized = |scale: f32, output: &str, input: &str, name: &str| {
                    (
                        node("QuantizeLinear", &[input, name], &[output]),
                        tensor(name, FLOAT, &[], &floats(&[scale])),
                    )
                };
                let (a, p) = quantized(0.0, "a", "y", "p");
                let (b, q) = quantized(-1.0, "b", "y", "q");
                let (c, r) = quantized(f32::NAN, "c", "y", "r");
                let mut graph = product();
                graph.nodes.extend([a, b, c]);
                graph.constants.extend([p, q, r]);
                graph.outputs.extend(["a", "b", "c"].map(|name| Pb::new().put(1, name)));
                graph.model()
            })
            .run(&["inspect", MODEL])
            .run(&["run", "clean", MODEL, "-o", OUT])
            .done(0),
        Row::new("already quantized")
            .file(MODEL, fixture_model())
            .run(&["quantize", MODEL, "-o", OUT])
            .says(&["quantized already", "start from the float model"]),
    ]
}

fn fixture_model() -> Vec<u8> {
    super::harness::fixture("graphs/quantized_conv.onnx")
}

#[test]
fn impossible_demands() {
    run_all(rows());
}

#[test]
fn declarations_that_lie() {
    run_all(declared());
}
