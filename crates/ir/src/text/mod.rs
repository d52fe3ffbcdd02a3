//! The standard ONNX text form, read and written.
//!
//! The syntax is the one of ONNX's `onnx.parser` and `onnx.printer` (its `docs/Syntax.md`):
//!
//! ```
//! let model = optix_ir::text::parse(r#"
//!     <ir_version: 8, opset_import: ["" : 18]>
//!     classify (float[batch, 3] x) => (float[batch, 2] y)
//!     <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {0.5, -0.5}, float[batch, 2] z>
//!     {
//!         [dense] z = Gemm <alpha = 1.0, transB = 0> (x, w, b)
//!         y = Softmax <axis = -1> (z)      # a comment
//!     }
//! "#).unwrap();
//! let again = optix_ir::text::parse(&optix_ir::text::print(&model)).unwrap();
//! assert_eq!(optix_ir::text::print(&again), optix_ir::text::print(&model));
//! ```
//!
//! The lists in parentheses are the graph's inputs and outputs; the `<...>` behind them holds initializers
//! (`type name = {elements}`) and declared types of inner values (`type name`); nodes follow in execution
//! order. Functions of the model follow the main graph. `float` is a scalar, `float[]` a tensor of unknown
//! rank, `float[N, ?]` one with a symbolic and an unknown dimension (a negative size is unknown, too).
//! Elements of 16-bit and smaller floating-point types are written as the integers of their bit patterns,
//! as ONNX does.
//!
//! What the standard leaves open or lacks:
//! * Elements of 2- and 4-bit tensors are one number each; complex elements are two.
//! * float16 and bfloat16 elements with a decimal point or an exponent are read as numbers.
//! * A sparse tensor is `sparse_tensor(float[4, 4]) name = {float[2] {1, 2}, int64[2] {3, 9}}`: its
//!   elements, then their places.
//! * Lists of tensors, of graphs and of types are read (ONNX's parser drops them).
//! * Domains, operators, attributes and subgraphs whose names are no identifiers are quoted.
//! * **Abridged text.** Tensors of more elements than [`PrintOptions::max_elements`], and strings that are
//!   not UTF-8, print as `{... blake3:HASH min A max B mean C deviation D}` and `...`. That is for reading:
//!   the parser refuses it, saying so, since the data are not there.
//!
//! Documentation, free-form properties of graphs, nodes and values, payload bits of NaNs, and what a file
//! carried beside the model have no place in the syntax and are not printed; tensors in external files are
//! refused. Nesting is limited to 32 levels.

mod lex;
mod parse;
mod parse_attribute;
mod parse_tensor;
mod parse_type;
mod print;
mod print_tensor;
#[cfg(test)]
mod tests;

pub use lex::ParseError;
pub use parse::parse;
pub use parse_tensor::parse_tensor;
pub use parse_type::parse_type;
pub use print::{PrintOptions, print, print_graph, print_node, print_with};

/// How deep graphs, and types, may be nested.
const MAX_DEPTH: usize = 32;

/// Whether a name can be written without quotes: a letter or `_`, then letters, digits and `_`, and no
/// word that starts a type.
fn is_plain(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    first && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') && !starts_type(name)
}

/// Whether a word starts a type.
fn starts_type(word: &str) -> bool {
    matches!(word, "seq" | "map" | "optional" | "sparse_tensor" | "opaque" | "undefined")
        || crate::DType::from_name(word).is_some()
}

/// Names of the attribute types, by `AttributeProto.AttributeType` number.
const ATTRIBUTE_TYPES: [(&str, i32); 14] = [
    ("float", 1),
    ("int", 2),
    ("string", 3),
    ("tensor", 4),
    ("graph", 5),
    ("floats", 6),
    ("ints", 7),
    ("strings", 8),
    ("tensors", 9),
    ("graphs", 10),
    ("sparse_tensor", 11),
    ("sparse_tensors", 12),
    ("type_proto", 13),
    ("type_protos", 14),
];
