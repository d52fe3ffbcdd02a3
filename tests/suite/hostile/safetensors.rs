//! Damaged safetensors files and directories, refused by name whether or not a reader for intact ones is
//! built in.

use super::harness::{OUT, Row, run_all};

/// A file: length of the header as stated, header, payload.
fn stated(length: u64, header: &str, payload: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes()[..], header.as_bytes(), payload].concat()
}

/// A file whose header has the length it says.
fn file(header: &str, payload: &[u8]) -> Vec<u8> {
    stated(header.len() as u64, header, payload)
}

/// A header with one tensor.
fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!("{{\"a\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}")
}

fn row(name: &str, content: impl Into<Vec<u8>>) -> Row {
    let path = "in/a.safetensors";
    let row = Row::new(&format!("safetensors: {name}")).file(path, content);
    row.run(&["inspect", path]).run(&["run", "clean", path, "-o", OUT]).says(&[path, "\n  help: "])
}

fn rows() -> Vec<Row> {
    let two = |first: &str, second: &str| {
        let entry = |name: &str, offsets: &str| {
            format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{offsets}}}")
        };
        format!("{{{},{}}}", entry("a", first), entry("b", second))
    };
    let good = one("F32", "[1]", "[0,4]");
    let directory = |name: &str, path: &str, content: &str| {
        let row = Row::new(&format!("safetensors: {name}")).file(path, content);
        row.run(&["inspect", "in/hf"])
            .run(&["run", "clean", "in/hf", "-o", OUT])
            .says(&["in/hf", "\n  help: "])
    };
    let index = |shard: &str| format!("{{\"metadata\":{{}},\"weight_map\":{{\"a\":\"{shard}\"}}}}");
    vec![
        row("empty file", ""),
        row("three bytes", [1, 2, 3]),
        row("header of no length", stated(0, "{}", &[])),
        row("header of 2^64 - 1", stated(u64::MAX, &good, &[0; 4])),
        row("header of 2^63", stated(1 << 63, &good, &[0; 4])),
        row("header longer than the file", stated(1000, &good, &[0; 4])),
        row("header that is no JSON", file("{\"a\":", &[])),
        row("header that is no object", file("[1, 2, 3]", &[])),
        row("header that is not UTF-8", [&8u64.to_le_bytes()[..], b"{\"\xff\":{}}"].concat()),
        row("header 100,000 deep", file(&format!("{{\"a\":{}", "[".repeat(100_000)), &[])),
        row("tensor twice", file(&two("[0,4]", "[4,8]").replace("\"b\"", "\"a\""), &[0; 8])),
        row("offsets reversed", file(&one("F32", "[1]", "[4,0]"), &[0; 4])),
        row("offsets negative", file(&one("F32", "[1]", "[-4,0]"), &[0; 4])),
        row("offsets past the end", file(&one("F32", "[2]", "[0,8]"), &[0; 4])),
        row(
            "offsets beyond 64 bits",
            file(&one("F32", "[1]", "[18446744073709551612,18446744073709551616]"), &[0; 4]),
        ),
        row("offsets overlap", file(&two("[0,4]", "[2,6]"), &[0; 6])),
        row("offsets leave a hole", file(&two("[0,4]", "[8,12]"), &[0; 12])),
        row("payload too long", file(&good, &[0; 8])),
        row("shape of another size", file(&one("F32", "[3]", "[0,4]"), &[0; 4])),
        row("shape beyond any memory", file(&one("F32", "[4294967296,4294967296]", "[0,4]"), &[0; 4])),
        row("shape negative", file(&one("F32", "[-1]", "[0,4]"), &[0; 4])),
        row("unknown type", file(&one("F33", "[1]", "[0,4]"), &[0; 4])),
        directory("directory that is empty", "in/hf/readme.txt", "hello"),
        directory("index that is no JSON", "in/hf/model.safetensors.index.json", "{"),
        directory("shard missing", "in/hf/model.safetensors.index.json", &index("a.safetensors")),
        directory("shard outside", "in/hf/model.safetensors.index.json", &index("../a.safetensors")),
    ]
}

#[test]
fn damaged_safetensors() {
    run_all(rows());
}
