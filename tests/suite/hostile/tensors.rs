//! What is wrong with tensors: shapes, element types, payloads.

use super::harness::{Row, run_all};
use super::pb::*;

/// A sparse initializer `s` of shape 2x3 with these indices.
fn sparse(shape: &[i64], indices: Pb) -> Pb {
    let values = tensor("s", FLOAT, &[2], &floats(&[1.0, 2.0]));
    let sparse = Pb::new().message(1, &values).message(2, &indices);
    let sparse = shape.iter().fold(sparse, |sparse, &size| sparse.int(3, size));
    let mut graph = product();
    graph.rest = Pb::new().message(15, &sparse);
    graph.model()
}

fn bad() -> Vec<Row> {
    let twelve = floats(&[0.5; 12]);
    let weights = |dims: &[i64], raw: &[u8]| with_weights(tensor("w", FLOAT, dims, raw));
    let typed = |dtype: i64, dims: &[i64], values: &[i64]| {
        let tensor = values.iter().fold(header("t", dtype, dims), |tensor, &value| tensor.int(5, value));
        with_constants(vec![], vec![tensor])
    };
    let more = |tensor: Pb| with_constants(vec![], vec![tensor]);
    let i64s = |dims: &[i64], values: &[i64]| tensor("", INT64, dims, &ints(values));
    vec![
        Row::model("shape beyond any memory", weights(&[1 << 40, 1 << 30], &twelve), &["initializer `w`"]),
        Row::model("shape of 2^62", weights(&[1 << 62], &twelve), &["initializer `w`"]),
        Row::model("shape of 2^63 - 1, twice", weights(&[i64::MAX, i64::MAX], &[]), &["initializer `w`"]),
        Row::model(
            "shape whose product wraps to 12",
            weights(&[1 << 33, 1 << 31, 12], &twelve),
            &["initializer `w`"],
        ),
        Row::model("negative size", weights(&[-4, 3], &twelve), &["initializer `w`", "size -4"]),
        Row::model(
            "least size there is",
            weights(&[i64::MIN], &twelve),
            &["initializer `w`", "-9223372036854775808"],
        ),
        Row::model("payload too short", weights(&[4, 3], &twelve[..44]), &["initializer `w`", "48", "44"]),
        Row::model(
            "payload too long",
            weights(&[4, 3], &floats(&[0.5; 13])),
            &["initializer `w`", "48", "52"],
        ),
        Row::model(
            "payload missing",
            with_weights(header("w", FLOAT, &[4, 3])),
            &["initializer `w`", "48", "0"],
        ),
        Row::model("payload empty", weights(&[4, 3], &[]), &["initializer `w`", "48", "0"]),
        Row::model(
            "payload that splits an element",
            weights(&[4, 3], &twelve[..47]),
            &["initializer `w`", "47"],
        ),
        Row::model(
            "raw and typed payload",
            with_weights(tensor("w", FLOAT, &[4, 3], &twelve).put(4, &twelve)),
            &["initializer `w`", "`raw_data` and in a typed field"],
        ),
        Row::model("payload in another type's field", typed(FLOAT, &[2], &[1, 2]), &["`t`", "`int32_data`"]),
        Row::model("no element type", more(tensor("t", 0, &[1], &[0; 4])), &["`t`", "no element type"]),
        Row::model("element type 99", more(tensor("t", 99, &[1], &[0; 4])), &["`t`", "element type 99"]),
        Row::model("element type -1", more(tensor("t", -1, &[1], &[0; 4])), &["`t`", "element type -1"]),
        Row::model(
            "strings in raw data",
            more(tensor("t", STRING, &[1], b"abcd")),
            &["`t`", "strings cannot be"],
        ),
        Row::model("fewer strings than the shape", more(header("t", STRING, &[3]).put(6, "a")), &["`t`"]),
        Row::model(
            "three 4-bit numbers in one byte",
            more(tensor("t", UINT4, &[3], &[0x21])),
            &["`t`", "2", "1"],
        ),
        Row::model("1000 in int8", typed(INT8, &[1], &[1000]), &["`t`", "1000"]),
        Row::model("2 in bool", typed(BOOL, &[1], &[2]), &["`t`", "bool has the value 2"]),
        Row::model("2 in raw bool", more(tensor("t", BOOL, &[2], &[0, 2])), &["`t`", "bool has the value 2"]),
        Row::model("10,000 dimensions", weights(&[1; 10_000], &floats(&[1.0])), &["`w`", "10000 dimensions"]),
        Row::model(
            "segment of a tensor",
            more(tensor("t", FLOAT, &[1], &[0; 4]).message(3, &Pb::new().int(1, 0).int(2, 1))),
            &["`t`", "segment"],
        ),
        Row::model("data location 7", more(header("t", FLOAT, &[1]).int(14, 7)), &["`t`", "location 7"]),
        Row::model(
            "sparse index outside",
            sparse(&[2, 3], i64s(&[2], &[0, 6])),
            &["sparse initializer `s`", "outside"],
        ),
        Row::model("sparse index negative", sparse(&[2, 3], i64s(&[2], &[-1, 2])), &["`s`", "outside"]),
        Row::model("sparse indices descending", sparse(&[2, 3], i64s(&[2], &[4, 2])), &["`s`", "ascending"]),
        Row::model("sparse index twice", sparse(&[2, 3], i64s(&[2], &[4, 4])), &["`s`", "twice"]),
        Row::model(
            "sparse indices of another rank",
            sparse(&[2, 3], i64s(&[2, 3], &[0; 6])),
            &["`s`", "[2, 3]"],
        ),
        Row::model(
            "sparse shape beyond memory",
            sparse(&[i64::MAX, i64::MAX], i64s(&[2], &[0, 1])),
            &["`s`", "more elements"],
        ),
        Row::model(
            "sparse indices that are floats",
            sparse(&[2, 3], tensor("", FLOAT, &[2], &floats(&[0.0, 1.0]))),
            &["`s`", "not int64"],
        ),
        Row::model(
            "sparse tensor without indices",
            {
                let mut graph = product();
                graph.rest = Pb::new().message(15, &Pb::new().message(1, &tensor("s", FLOAT, &[0], &[])));
                graph.model()
            },
            &["`s`", "without values or indices"],
        ),
        Row::model(
            "attribute tensor that is damaged",
            with_nodes(vec![
                node("Constant", &[], &["k"])
                    .put(3, "const")
                    .message(5, &tensor_attribute("value", &tensor("", FLOAT, &[2], &[0; 4]))),
            ]),
            &["`const`", "attribute `value`"],
        ),
    ]
}

fn legal() -> Vec<Row> {
    let with = |values: [f32; 12]| with_weights(tensor("w", FLOAT, &[4, 3], &floats(&values)));
    let mut odd = [0.25f32; 12];
    odd[1] = f32::NAN;
    odd[5] = f32::NAN;
    odd[7] = f32::INFINITY;
    let mut tiny = [0.25f32; 12];
    tiny[3] = f32::from_bits(1);
    let more = |tensor: Pb| with_constants(vec![], vec![tensor]);
    vec![
        Row::legal("NaN and infinity in weights", with(odd), &[]),
        Row::new("NaN and infinity are warned of, named and counted")
            .file("in/model.onnx", with(odd))
            .run(&["quantize", "in/model.onnx", "-o", "out/old.onnx"])
            .done(0)
            .says(&["warning", "`w`", "2 NaN", "1 infinite", "of 12"]),
        Row::legal("denormal weight", with(tiny), &[]),
        Row::legal("all weights zero", with([0.0; 12]), &[]),
        Row::legal("all weights huge", with([f32::MAX; 12]), &[]),
        Row::legal("tensor without elements", more(tensor("t", FLOAT, &[0, 4], &[])), &[]),
        Row::legal("no elements, other sizes huge", more(tensor("t", FLOAT, &[0, 1 << 40], &[])), &[]),
        Row::legal("scalar", more(tensor("t", FLOAT, &[], &floats(&[1.0]))), &[]),
        Row::legal(
            "input without elements",
            Graph { inputs: vec![info("x", FLOAT, &[0, 4])], ..product() }.model(),
            &[],
        ),
    ]
}

#[test]
fn damaged_tensors() {
    run_all(bad());
}

#[test]
fn odd_but_legal_tensors() {
    run_all(legal());
}
