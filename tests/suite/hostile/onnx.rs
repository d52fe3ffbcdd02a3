//! What is wrong with the protobuf message or with the graph in it.

use super::harness::{Row, fixture, run_all};
use super::pb::*;

/// Bytes without any order, the same ones every time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A graph within a graph within a graph.
fn nested(depth: usize) -> Pb {
    let condition = || tensor("c", BOOL, &[], &[1]);
    let mut inner = Graph { outputs: vec![info("y", FLOAT, &[1, 3])], ..Graph::default() };
    inner.nodes = vec![node("Identity", &["x"], &["y"])];
    for level in 0..depth {
        let graph = inner.message();
        let output = format!("y{level}");
        inner.nodes = vec![
            node("If", &["c"], &[&output])
                .message(5, &graph_attribute("then_branch", &graph))
                .message(5, &graph_attribute("else_branch", &Pb::new())),
        ];
        inner.outputs = vec![info(&output, FLOAT, &[1, 3])];
    }
    inner.inputs = vec![info("x", FLOAT, &[1, 3])];
    inner.constants = vec![condition()];
    inner.model()
}

/// A function that calls another.
fn function(name: &str, calls: &[&str]) -> Pb {
    let mut function = Pb::new().put(1, name).put(4, "a").put(5, "b");
    for (index, callee) in calls.iter().enumerate() {
        let output = if index + 1 == calls.len() { "b".to_owned() } else { format!("t{index}") };
        function = function.message(7, &node_of("local", callee, &["a"], &[&output]));
    }
    if calls.is_empty() {
        function = function.message(7, &node("Neg", &["a"], &["b"]));
    }
    let imports = [Pb::new().int(2, 17), Pb::new().put(1, "local").int(2, 1)];
    function.message(9, &imports[0]).message(9, &imports[1]).put(10, "local")
}

fn with_functions(called: &str, functions: &[Pb]) -> Pb {
    let mut graph = product();
    graph.nodes.push(node_of("local", called, &["y"], &["z"]));
    graph.outputs = vec![info("z", FLOAT, &[1, 3])];
    let model = graph.model().message(8, &Pb::new().put(1, "local").int(2, 1));
    functions.iter().fold(model, |model, function| model.message(25, function))
}

fn parsing() -> Vec<Row> {
    let valid = product().model().0;
    let graph = product().message();
    let head = |bytes: &[u8]| Pb::new().int(1, 8).raw(bytes);
    let mut not_utf8 = valid.clone();
    let at = not_utf8.windows(7).position(|window| window == b"product").expect("the node's name");
    not_utf8[at] = 0xff;
    let cut = |length: usize| fixture("models/fmnist_mobilenet.onnx")[..length].to_vec();
    vec![
        Row::model("empty file", "", &["the file is empty"]),
        Row::model("one byte", [8], &["damaged"]),
        Row::model("random bytes", noise(4096), &["not a readable ONNX model"]),
        Row::model("zeros", vec![0; 4096], &["not a readable ONNX model"]),
        Row::model("number of eleven bytes", head(&[&[0x10][..], &[0xff; 11]].concat()), &["not a readable"]),
        Row::model("length past the end", head(&[0x12, 0x7f, b'a']), &["cut short or damaged"]),
        Row::model(
            "length of 2^63",
            head(&[0x12, 255, 255, 255, 255, 255, 255, 255, 255, 127]),
            &["readable"],
        ),
        Row::model("length that is negative", head(&[&[0x12][..], &[255; 9], &[1]].concat()), &["readable"]),
        Row::model("graph is a number", head(&[0x38, 1]), &["field 7", "another type"]),
        Row::model("field number 0", head(&[0x00, 1]), &["not a readable ONNX model"]),
        Row::model("field number beyond 2^29", head(&[0x80, 0x80, 0x80, 0x80, 0x20, 1]), &["not a readable"]),
        Row::model("group that ends nothing", head(&[0x54]), &["not a readable ONNX model"]),
        Row::model("group without an end", head(&[0x53]), &["cut short or damaged"]),
        Row::model("groups 5,000 deep", head(&[0xA3; 5000]), &["not a readable ONNX model"]),
        Row::model("graphs 40 deep", nested(40), &["--limits depth=N"]),
        Row::model("graphs 2,000 deep", nested(2000), &["--limits depth=N"]),
        Row::new("graphs 2,000 deep, limit raised")
            .file("in/model.onnx", nested(2000))
            .run(&["inspect", "in/model.onnx", "--limits", "depth=100000"])
            .says(&["nested", "model.onnx"]),
        Row::model(
            "a million empty nodes",
            model(&Pb::new().raw(&[0x0A, 0].repeat(1_000_000))),
            &["--limits element-memory=N"],
        ),
        Row::model(
            "a million empty initializers",
            model(&Pb::new().raw(&[0x2A, 0].repeat(1_000_000))),
            &["--limits element-memory=N"],
        ),
        Row::model("300,000 unknown fields", head(&[0xA0, 0x3F, 1].repeat(300_000)), &["does not define"]),
        Row::model("name that is not UTF-8", not_utf8, &["not UTF-8"]),
        Row::model("no graph", Pb::new().int(1, 8).message(8, &Pb::new().int(2, 17)), &["it has no graph"]),
        Row::model("no IR version", Pb::new().message(7, &graph), &["it states no IR version"]),
        Row::model("IR version 0", Pb::new().int(1, 0).message(7, &graph), &["IR version is 0"]),
        Row::model("IR version -1", Pb::new().int(1, -1).message(7, &graph), &["IR version is -1"]),
        Row::model("cut at byte 100", cut(100), &["cut short or damaged"]),
        Row::model("cut within the weights", cut(100_000), &["cut short or damaged"]),
        Row::model("two models on end", [valid.clone(), valid.clone()].concat(), &["taken in this graph"]),
        Row::model("text form", "ir_version: 8\ngraph {\n}\n", &["text form"]),
        Row::model("JSON", "{\"model_type\": \"bert\"}", &["JSON"]),
        Row::model("web page", "<!DOCTYPE html><html></html>", &["download went wrong"]),
        Row::model(
            "Git LFS pointer",
            "version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            &["lfs pull"],
        ),
        Row::model("pickle", [&[0x80, 2][..], b"}q\0."].concat(), &["pickle", "safetensors"]),
        Row::model("zip of PyTorch", [b"PK\x03\x04".as_slice(), &noise(64)].concat(), &["zip", "export"]),
        Row::model("GGUF", [b"GGUF\x03\0\0\0".as_slice(), &[0; 16]].concat(), &["GGUF"]),
        Row::model("gzip", [&[0x1f, 0x8b, 8, 0][..], &noise(64)].concat(), &["decompress it first"]),
        Row::model("HDF5", b"\x89HDF\r\n\x1a\nabcdefgh".to_vec(), &["HDF5", "export"]),
        Row::model("TensorFlow Lite", b"\x1c\0\0\0TFL3\0\0\0\0".to_vec(), &["Lite", "convert"]),
        Row::model("program", b"\x7fELF\x02\x01\x01\0".to_vec(), &["a program"]),
        Row::model("NumPy array", b"\x93NUMPY\x01\0v\0".to_vec(), &["NumPy array"]),
        // A hole takes no disk; the address space must hold the map.
        Row::model(
            "2.5 GiB in one message",
            Pb::new().int(1, 8).raw(&[0x3A, 0x80, 0x80, 0x80, 0x80, 0x0A]),
            &["2 GiB"],
        )
        .prepare(|root| {
            let file = std::fs::File::options().write(true).open(root.join("in/model.onnx")).expect("a file");
            file.set_len(5 << 29).expect("a hole");
        })
        .limits("ulimit -v 8000000"),
    ]
}

fn graphs() -> Vec<Row> {
    let relu = |name: &str, from: &str, to: &str| node("Relu", &[from], &[to]).put(3, name);
    let with_imports = |imports: &[(&str, i64)]| {
        let model = Pb::new().int(1, 8).message(7, &product().message());
        imports.iter().fold(model, |model, (domain, version)| {
            model.message(8, &Pb::new().put(1, domain).int(2, *version))
        })
    };
    let outputs = |outputs: Vec<Pb>| Graph { outputs, ..product() }.model();
    let inputs = |inputs: Vec<Pb>| Graph { inputs, ..product() }.model();
    let attribute = |attributes: &[Pb]| {
        let relu = node("Softmax", &["y"], &["z"]).put(3, "soft");
        with_nodes(vec![attributes.iter().fold(relu, |node, attribute| node.message(5, attribute))])
    };
    let branch = |nodes: Vec<Pb>, output: &str| {
        Graph { nodes, outputs: vec![info(output, FLOAT, &[1, 3])], ..Graph::default() }.message()
    };
    let condition = |then_branch: &Pb| {
        let node = node("If", &["c"], &["z"])
            .put(3, "choice")
            .message(5, &graph_attribute("then_branch", then_branch))
            .message(5, &graph_attribute("else_branch", &branch(vec![relu("", "y", "e")], "e")));
        with_constants(vec![node], vec![tensor("c", BOOL, &[], &[1])])
    };
    vec![
        Row::model("node that needs itself", with_nodes(vec![relu("loop", "a", "a")]), &["`loop`", "cycle"]),
        Row::model(
            "two nodes in a circle",
            with_nodes(vec![relu("p", "b", "a"), relu("q", "a", "b")]),
            &["cycle"],
        ),
        Row::model(
            "circle through a subgraph",
            condition(&branch(vec![relu("inner", "z", "t")], "t")),
            &["`choice`", "cycle"],
        ),
        Row::model(
            "two nodes make one value",
            with_nodes(vec![relu("again", "x", "y")]),
            &["`again`", "`y`", "taken"],
        ),
        Row::model(
            "node gives one name twice",
            with_nodes(vec![node("Split", &["y"], &["p", "p"]).put(3, "halves")]),
            &["`halves`", "`p`", "taken"],
        ),
        Row::model(
            "input that nothing defines",
            with_nodes(vec![relu("lost", "nowhere", "z")]),
            &["`lost`", "`nowhere`", "defined by nothing"],
        ),
        Row::model(
            "node makes an initializer",
            with_nodes(vec![relu("over", "x", "w")]),
            &["`over`", "`w`", "taken"],
        ),
        Row::model(
            "subgraph hides a value around it",
            condition(&branch(vec![relu("shadow", "x", "y")], "y")),
            &["`y`"],
        ),
        Row::model(
            "output that nothing computes",
            outputs(vec![info("nowhere", FLOAT, &[1])]),
            &["the main graph", "`nowhere`", "computed by nothing"],
        ),
        Row::model(
            "two inputs of one name",
            inputs(vec![info("x", FLOAT, &[1, 4]), info("x", FLOAT, &[1, 4])]),
            &["`x`", "taken"],
        ),
        Row::model(
            "input without a name",
            inputs(vec![info("x", FLOAT, &[1, 4]), info("", FLOAT, &[1])]),
            &["an input has no name"],
        ),
        Row::model(
            "two initializers of one name",
            with_constants(vec![], vec![tensor("w", FLOAT, &[1], &floats(&[1.0]))]),
            &["an initializer", "`w`", "taken"],
        ),
        Row::model(
            "initializer without a name",
            with_constants(vec![], vec![tensor("", FLOAT, &[1], &floats(&[1.0]))]),
            &["an initializer has no name"],
        ),
        Row::model(
            "node without an operator",
            with_nodes(vec![Pb::new().put(1, "y").put(2, "z").put(3, "what")]),
            &["`what`", "which operator"],
        ),
        Row::model(
            "too many inputs",
            with_nodes(vec![node("Relu", &["y", "y"], &["z"]).put(3, "two")]),
            &["`two`"],
        ),
        Row::model(
            "too few inputs",
            with_nodes(vec![node("MatMul", &["y"], &["z"]).put(3, "half")]),
            &["`half`"],
        ),
        Row::model(
            "too many outputs",
            with_nodes(vec![node("Relu", &["y"], &["p", "q"]).put(3, "wide")]),
            &["`wide`"],
        ),
        Row::model(
            "attribute twice",
            attribute(&[int_attribute("axis", 1), int_attribute("axis", 0)]),
            &["`soft`", "axis"],
        ),
        Row::model("attribute without a name", attribute(&[int_attribute("", 1)]), &["`soft`", "name"]),
        Row::model(
            "attribute of a type that lies",
            attribute(&[Pb::new().put(1, "axis").int(3, 1).int(20, 1)]),
            &["`axis`", "it says it is FLOAT, but holds INT"],
        ),
        Row::model(
            "attribute of an unknown type",
            attribute(&[Pb::new().put(1, "axis").int(20, 99)]),
            &["`axis`", "99"],
        ),
        Row::model(
            "attribute without value",
            attribute(&[Pb::new().put(1, "axis")]),
            &["no type and no value"],
        ),
        Row::model(
            "reference outside of a function",
            attribute(&[Pb::new().put(1, "axis").int(20, 2).put(21, "of")]),
            &["`soft`", "function"],
        ),
        Row::model("operator set 0", with_imports(&[("", 0)]), &["operator set", "0"]),
        Row::model("operator set -1", with_imports(&[("", -1)]), &["operator set", "-1"]),
        Row::model("operator set 999999", with_imports(&[("", 999_999)]), &["operator set", "999999"]),
        Row::model("operator set twice", with_imports(&[("", 17), ("", 13)]), &["operator set"]),
        Row::model("operator set not imported", with_imports(&[("other", 1)]), &["`product`", "import"]),
        Row::model(
            "function that calls itself",
            with_functions("f", &[function("f", &["f"])]),
            &["`f`", "itself"],
        ),
        Row::model(
            "functions that call each other",
            with_functions("f", &[function("f", &["g"]), function("g", &["f"])]),
            &["`f`", "itself"],
        ),
        Row::model(
            "function twice",
            with_functions("f", &[function("f", &[]), function("f", &[])]),
            &["`f`"],
        ),
        Row::model(
            "branch that needs a later value",
            {
                let mut graph = product();
                graph.nodes = vec![
                    node("If", &["c"], &["z"])
                        .message(
                            5,
                            &graph_attribute("then_branch", &branch(vec![relu("", "later", "t")], "t")),
                        )
                        .message(5, &graph_attribute("else_branch", &branch(vec![relu("", "z2", "e")], "e"))),
                    node("MatMul", &["x", "w"], &["y"]),
                ];
                graph.constants.push(tensor("c", BOOL, &[], &[1]));
                graph.model()
            },
            &["`later`"],
        ),
        Row::model(
            "type without elements",
            inputs(vec![
                info("x", FLOAT, &[1, 4]),
                Pb::new().put(1, "s").message(2, &Pb::new().message(4, &Pb::new())),
            ]),
            &["`s`", "sequence"],
        ),
        Row::model("unknown element type", inputs(vec![info("x", 99, &[1, 4])]), &["`x`", "99"]),
        Row::model(
            "input of 10,000 dimensions",
            inputs(vec![info("x", FLOAT, &[1; 10_000])]),
            &["`x`", "10000"],
        ),
        Row::model(
            "name of 70,000 bytes",
            with_nodes(vec![relu(&"n".repeat(70_000), "y", "z")]),
            &["--limits name-bytes=N"],
        ),
        Row::model(
            "names with terminal codes in an error",
            with_nodes(vec![relu("\u{1b}[31mred\u{202e}\0", "\u{7}", "z")]),
            &["\\u{1b}[31mred\\u{202e}\\u{0}"],
        ),
    ]
}

fn legal() -> Vec<Row> {
    let chain = |length: usize| {
        let mut graph = product();
        let mut last = "y".to_owned();
        for index in 0..length {
            let next = format!("v{index}");
            graph.nodes.push(node("Relu", &[&last], &[&next]));
            last = next;
        }
        graph.outputs = vec![info(&last, FLOAT, &[1, 3])];
        graph.model()
    };
    let unused = with_constants(vec![], vec![tensor("nobody", FLOAT, &[1], &floats(&[1.0]))]);
    let odd = "\u{1b}[31m\n../../x\u{202e}\0 <script>=cmd|";
    let bomb: Vec<Pb> = (0..12)
        .map(|level| {
            let next = format!("f{}", level + 1);
            function(
                &format!("f{level}"),
                if level == 11 { vec![] } else { vec![next.as_str(); 10] }.as_slice(),
            )
        })
        .collect();
    let properties = |model: Pb| {
        let entry = Pb::new().put(1, "key").put(2, "value");
        model.message(14, &entry).message(14, &entry)
    };
    vec![
        Row::legal("valid", product().model(), &[]),
        Row::legal("unknown fields", product().model().int(1000, 5).put(2000, "more"), &[]),
        Row::legal(
            "unknown operator",
            with_nodes(vec![node_of("other.domain", "Magic", &["y"], &["z"])])
                .message(8, &Pb::new().put(1, "other.domain").int(2, 1)),
            &[],
        ),
        Row::legal("unused initializer", unused, &[]),
        Row::legal("odd names", with_nodes(vec![node("Relu", &["y"], &[odd]).put(3, odd)]), &[]),
        Row::legal(
            "name of 60,000 bytes",
            with_nodes(vec![node("Relu", &["y"], &["z"]).put(3, "n".repeat(60_000))]),
            &[],
        ),
        Row::legal("metadata twice", properties(product().model()), &[]),
        Row::legal(
            "nodes out of order",
            {
                let mut graph = product();
                graph.nodes.insert(0, node("Relu", &["y"], &["z"]));
                graph.outputs = vec![info("z", FLOAT, &[1, 3])];
                graph.model()
            },
            &["written sorted"],
        ),
        Row::legal("function called 10^11 times", with_functions("f0", &bomb), &[]),
        Row::legal("graphs 20 deep", nested(20), &[]),
        Row::legal("chain of 100,000 nodes", chain(100_000), &[]),
        Row::new("chain of a million nodes")
            .file("in/model.onnx", chain(1_000_000))
            .run(&["inspect", "in/model.onnx"])
            .done(0)
            .says(&["1000001"]),
    ]
}

#[test]
fn damaged_messages() {
    run_all(parsing());
}

#[test]
fn damaged_graphs() {
    run_all(graphs());
}

#[test]
fn odd_but_legal_models() {
    run_all(legal());
}
