//! Writing the text form.

use std::fmt::Write;

use super::{ATTRIBUTE_TYPES, MAX_DEPTH, is_plain};
use crate::dtype::DType;
use crate::ids::{GraphId, NodeId, ValueId};
use crate::model::Model;
use crate::node::{
    Attribute, AttributeValue, Function, Initializer, Node, OpsetImport, StoredSparse, StoredTensor,
    ValueInfo,
};
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, Type};

/// How much to print.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrintOptions {
    /// Tensors of more elements are abridged; 16 unless said otherwise.
    pub max_elements: usize,
    /// Whether abridged tensors get a hash and statistics, which means reading all of their data.
    pub statistics: bool,
}

impl Default for PrintOptions {
    fn default() -> Self {
        PrintOptions { max_elements: 16, statistics: true }
    }
}

impl PrintOptions {
    /// Every element of every tensor, so that the text can be read back.
    pub fn full() -> PrintOptions {
        PrintOptions { max_elements: usize::MAX, statistics: false }
    }
}

/// A model's text, large tensors abridged.
pub fn print(model: &Model) -> String {
    print_with(model, &PrintOptions::default())
}

/// A model's text.
pub fn print_with(model: &Model, options: &PrintOptions) -> String {
    let mut printer = Printer::new(model, options);
    printer.model();
    printer.out
}

/// One graph's text, large tensors abridged.
pub fn print_graph(model: &Model, graph: GraphId) -> String {
    let options = PrintOptions::default();
    let mut printer = Printer::new(model, &options);
    printer.graph(graph);
    printer.out
}

/// One node's text in one line (more, when it holds subgraphs), large tensors abridged, without line end.
pub fn print_node(model: &Model, node: NodeId) -> String {
    let options = PrintOptions::default();
    let mut printer = Printer::new(model, &options);
    printer.node(node);
    printer.out
}

/// Name of an attribute value's type in the text form.
pub(super) fn kind_name(value: &AttributeValue) -> &'static str {
    match value {
        AttributeValue::Float(_) => "float",
        AttributeValue::Int(_) => "int",
        AttributeValue::String(_) => "string",
        AttributeValue::Tensor(_) => "tensor",
        AttributeValue::SparseTensor(_) => "sparse_tensor",
        AttributeValue::Graph(_) => "graph",
        AttributeValue::Type(_) => "type_proto",
        AttributeValue::Floats(_) => "floats",
        AttributeValue::Ints(_) => "ints",
        AttributeValue::Strings(_) => "strings",
        AttributeValue::Tensors(_) => "tensors",
        AttributeValue::SparseTensors(_) => "sparse_tensors",
        AttributeValue::Graphs(_) => "graphs",
        AttributeValue::Types(_) => "type_protos",
        AttributeValue::Reference(_, number) => attribute_type_name(*number).unwrap_or("a reference"),
    }
}

fn attribute_type_name(number: i32) -> Option<&'static str> {
    ATTRIBUTE_TYPES.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}

struct Printer<'a> {
    model: &'a Model,
    options: &'a PrintOptions,
    out: String,
    /// How many graphs deep we are.
    depth: usize,
}

impl<'a> Printer<'a> {
    fn new(model: &'a Model, options: &'a PrintOptions) -> Self {
        Printer { model, options, out: String::new(), depth: 0 }
    }

    // ---- small things -------------------------------------------------------------------------------

    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// A number or another thing that displays as it is written.
    fn show(&mut self, thing: impl std::fmt::Display) {
        write!(self.out, "{thing}").expect("writing to a string succeeds");
    }

    fn line(&mut self) {
        self.out.push('\n');
        for _ in 0..self.depth {
            self.out.push_str("  ");
        }
    }

    fn quoted(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            if matches!(character, '"' | '\\') {
                self.out.push('\\');
            }
            self.out.push(character);
        }
        self.out.push('"');
    }

    fn name(&mut self, name: &str) {
        if is_plain(name) { self.put(name) } else { self.quoted(name) }
    }

    fn value_name(&mut self, value: Option<ValueId>) {
        let model = self.model;
        match value {
            Some(value) => self.name(model.value(value).name()),
            None => self.put("\"\""),
        }
    }

    fn separated<T>(&mut self, items: impl IntoIterator<Item = T>, mut print: impl FnMut(&mut Self, T)) {
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.put(", ");
            }
            print(self, item);
        }
    }

    // ---- types and tensors --------------------------------------------------------------------------

    fn ty(&mut self, ty: &Type) {
        match ty {
            Type::Tensor(tensor) => self.tensor_type(tensor),
            Type::SparseTensor(tensor) => {
                self.put("sparse_tensor(");
                self.tensor_type(tensor);
                self.put(")");
            }
            Type::Sequence(element) | Type::Optional(element) => {
                self.put(if matches!(ty, Type::Sequence(_)) { "seq(" } else { "optional(" });
                self.ty(element);
                self.put(")");
            }
            Type::Map(key, value) => {
                self.show(format_args!("map({key}, "));
                self.ty(value);
                self.put(")");
            }
            Type::Opaque { domain, name } => {
                self.put("opaque(");
                if !domain.is_empty() {
                    self.path(domain);
                    self.put(", ");
                }
                if !name.is_empty() || !domain.is_empty() {
                    self.path(name);
                }
                self.put(")");
            }
        }
    }

    /// A name that may have parts separated by points.
    fn path(&mut self, path: &str) {
        if path.split('.').all(is_plain) { self.put(path) } else { self.quoted(path) }
    }

    fn tensor_type(&mut self, ty: &TensorType) {
        self.put(ty.dtype.map_or("undefined", DType::name));
        match &ty.shape {
            None => self.put("[]"),
            Some(shape) if shape.is_empty() => {}
            Some(shape) => {
                self.put("[");
                self.separated(shape, |printer, dim| match dim {
                    Dim::Symbol(name) => printer.name(name),
                    other => printer.show(other),
                });
                self.put("]");
            }
        }
    }

    fn shape(&mut self, dtype: DType, shape: &[usize]) {
        self.put(dtype.name());
        if !shape.is_empty() {
            self.put("[");
            self.separated(shape, |printer, dim| printer.show(dim));
            self.put("]");
        }
    }

    /// `{elements}`
    fn elements(&mut self, tensor: &Tensor) {
        self.put("{");
        if tensor.len() > self.options.max_elements || !self.all_elements(tensor) {
            self.abridged(tensor);
        }
        self.put("}");
    }

    /// False, with nothing printed, when the tensor cannot be written in this syntax.
    fn all_elements(&mut self, tensor: &Tensor) -> bool {
        use DType::*;
        macro_rules! floats {
            ($rust:ty) => {
                match tensor.to_slice::<$rust>() {
                    Ok(data) => self.separated(data.iter(), |printer, number| printer.number(*number)),
                    Err(_) => return false,
                }
            };
        }
        macro_rules! patterns {
            ($rust:ty) => {
                match tensor.to_slice::<$rust>() {
                    Ok(data) => self.separated(data.iter(), |printer, number| printer.show(number.to_bits())),
                    Err(_) => return false,
                }
            };
        }
        macro_rules! pairs {
            ($rust:ty) => {
                match tensor.to_slice::<[$rust; 2]>() {
                    Ok(data) => {
                        self.separated(data.iter().flatten(), |printer, number| printer.number(*number));
                    }
                    Err(_) => return false,
                }
            };
        }
        match tensor.dtype() {
            F32 => floats!(f32),
            F64 => floats!(f64),
            F16 => patterns!(half::f16),
            BF16 => patterns!(half::bf16),
            Complex64 => pairs!(f32),
            Complex128 => pairs!(f64),
            // Saturates as 64-bit signed integers.
            U64 => match tensor.to_slice::<u64>() {
                Ok(data) => self.separated(data.iter(), |printer, number| printer.show(number)),
                Err(_) => return false,
            },
            String => {
                let Ok(data) = tensor.strings() else { return false };
                let texts: Vec<&str> =
                    data.iter().filter_map(|bytes| std::str::from_utf8(bytes).ok()).collect();
                if texts.len() != data.len() {
                    return false;
                }
                self.separated(texts, |printer, text| printer.quoted(text));
            }
            F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0 | F4E2M1 | F6E2M3 | F6E3M2 => {
                let Ok(codes) = tensor.codes() else { return false };
                self.separated(codes.iter(), |printer, code| printer.show(code));
            }
            _ => {
                let Ok(data) = tensor.to_i64s() else { return false };
                self.separated(data, |printer, number| printer.show(number));
            }
        }
        true
    }

    /// A float in the fewest digits that read back as the same number, with a point or an exponent.
    fn number(&mut self, number: impl std::fmt::Debug + Copy + Into<f64>) {
        let wide: f64 = number.into();
        if wide.is_nan() {
            self.put(if wide.is_sign_negative() { "-nan" } else { "nan" });
        } else {
            self.show(format_args!("{number:?}"));
        }
    }

    fn abridged(&mut self, tensor: &Tensor) {
        self.put("...");
        if !self.options.statistics {
            return;
        }
        let hash = blake3::hash(tensor.bytes()).to_hex();
        self.show(format_args!(" blake3:{}", hash.get(..16).unwrap_or_default()));
        let Ok(numbers) = tensor.to_f64s() else { return };
        let finite = || numbers.iter().copied().filter(|number| number.is_finite());
        let count = finite().count();
        if count > 0 {
            let mean = finite().sum::<f64>() / count as f64;
            let variance = finite().map(|number| (number - mean).powi(2)).sum::<f64>() / count as f64;
            let (low, high) =
                finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
            for (name, number) in
                [("min", low), ("max", high), ("mean", mean), ("deviation", variance.sqrt())]
            {
                self.show(format_args!(" {name} {}", four_digits(number)));
            }
        }
        if count < numbers.len() {
            self.show(format_args!(" not-finite {}", numbers.len() - count));
        }
    }

    fn tensor(&mut self, stored: &StoredTensor) {
        self.shape(stored.tensor.dtype(), stored.tensor.shape());
        if !stored.name.is_empty() {
            self.put(" ");
            self.name(&stored.name);
        }
        self.put(" ");
        self.elements(&stored.tensor);
    }

    fn sparse_type(&mut self, sparse: &StoredSparse) {
        self.put("sparse_tensor(");
        self.shape(sparse.values.tensor.dtype(), &sparse.shape);
        self.put(")");
    }

    fn sparse_elements(&mut self, sparse: &StoredSparse) {
        self.put("{");
        for (index, part) in [&sparse.values.tensor, &sparse.indices.tensor].into_iter().enumerate() {
            self.put(if index == 0 { "" } else { ", " });
            self.shape(part.dtype(), part.shape());
            self.put(" ");
            self.elements(part);
        }
        self.put("}");
    }

    fn sparse(&mut self, sparse: &StoredSparse) {
        self.sparse_type(sparse);
        if !sparse.values.name.is_empty() {
            self.put(" ");
            self.name(&sparse.values.name);
        }
        self.put(" = ");
        self.sparse_elements(sparse);
    }

    // ---- attributes and nodes -----------------------------------------------------------------------

    fn bytes(&mut self, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.quoted(text),
            Err(_) => self.put("..."),
        }
    }

    fn attribute(&mut self, attribute: &Attribute) {
        self.name(&attribute.name);
        let value = &attribute.value;
        let is_empty_list = match value {
            AttributeValue::Floats(list) => list.is_empty(),
            AttributeValue::Ints(list) => list.is_empty(),
            AttributeValue::Strings(list) => list.is_empty(),
            AttributeValue::Tensors(list) => list.is_empty(),
            AttributeValue::SparseTensors(list) => list.is_empty(),
            AttributeValue::Graphs(list) => list.is_empty(),
            AttributeValue::Types(list) => list.is_empty(),
            _ => false,
        };
        // Elsewhere the value says its type itself.
        if let AttributeValue::Reference(name, number) = value {
            if let Some(kind) = attribute_type_name(*number) {
                self.show(format_args!(": {kind}"));
            }
            self.put(" = @");
            self.name(name);
            return;
        }
        if is_empty_list {
            self.show(format_args!(": {} = []", kind_name(value)));
            return;
        }
        self.put(" = ");
        let is_list = kind_name(value).ends_with('s');
        self.put(if is_list { "[" } else { "" });
        match value {
            AttributeValue::Float(number) => self.number(*number),
            AttributeValue::Int(number) => self.show(number),
            AttributeValue::String(bytes) => self.bytes(bytes),
            AttributeValue::Tensor(tensor) => self.tensor(tensor),
            AttributeValue::SparseTensor(sparse) => self.sparse(sparse),
            AttributeValue::Graph(graph) => self.graph(*graph),
            AttributeValue::Type(ty) => self.ty(ty),
            AttributeValue::Floats(list) => self.separated(list, |printer, number| printer.number(*number)),
            AttributeValue::Ints(list) => self.separated(list, |printer, number| printer.show(number)),
            AttributeValue::Strings(list) => self.separated(list, |printer, bytes| printer.bytes(bytes)),
            AttributeValue::Tensors(list) => self.separated(list, Self::tensor),
            AttributeValue::SparseTensors(list) => self.separated(list, Self::sparse),
            AttributeValue::Graphs(list) => self.separated(list, |printer, &graph| printer.graph(graph)),
            AttributeValue::Types(list) => self.separated(list, Self::ty),
            AttributeValue::Reference(..) => {}
        }
        self.put(if is_list { "]" } else { "" });
    }

    fn attributes(&mut self, attributes: &[Attribute]) {
        if !attributes.is_empty() {
            self.put(" <");
            self.separated(attributes, Self::attribute);
            self.put(">");
        }
    }

    fn node(&mut self, id: NodeId) {
        let node: &'a Node = self.model.node(id);
        if !node.name.is_empty() {
            self.put("[");
            self.name(&node.name);
            self.put("] ");
        }
        self.separated(node.outputs(), |printer, &output| printer.value_name(output));
        self.put(if node.outputs().is_empty() { "= " } else { " = " });
        if !node.domain.is_empty() {
            self.path(&node.domain);
            self.put(".");
        }
        self.name(&node.op_type);
        if !node.overload.is_empty() {
            self.put(":");
            self.name(&node.overload);
        }
        // Long ones stand behind the inputs, for the eye.
        let has_graph = node.subgraphs().next().is_some();
        if !has_graph {
            self.attributes(&node.attributes);
        }
        self.put(" (");
        self.separated(node.inputs(), |printer, &input| printer.value_name(input));
        self.put(")");
        if has_graph {
            self.attributes(&node.attributes);
        }
    }

    // ---- graphs and the model -----------------------------------------------------------------------

    fn value_info(&mut self, info: &ValueInfo) {
        if let Some(ty) = &info.ty {
            self.ty(ty);
            self.put(" ");
        }
        self.value_name(Some(info.value));
    }

    fn graph(&mut self, id: GraphId) {
        let graph = self.model.graph(id);
        self.name(&graph.name);
        if self.depth >= MAX_DEPTH {
            self.put("...");
            return;
        }
        self.put(" (");
        self.separated(graph.inputs(), Self::value_info);
        self.put(") => (");
        self.separated(graph.outputs(), Self::value_info);
        self.put(")");
        self.constants(id);
        self.nodes(id);
    }

    /// Initializers and declared types.
    fn constants(&mut self, id: GraphId) {
        let model = self.model;
        let graph = model.graph(id);
        let count = graph.initializers().len() + graph.value_infos.len();
        if count == 0 {
            return;
        }
        self.line();
        self.put("<");
        self.depth += 1;
        let mut index = 0;
        for &value in graph.initializers() {
            self.line();
            let name = model.value(value).name();
            match model.value(value).initializer() {
                Some(Initializer::Dense(stored)) => {
                    self.shape(stored.tensor.dtype(), stored.tensor.shape());
                    self.put(" ");
                    self.name(name);
                    self.put(" = ");
                    self.elements(&stored.tensor);
                }
                Some(Initializer::Sparse(sparse)) => {
                    self.sparse_type(sparse);
                    self.put(" ");
                    self.name(name);
                    self.put(" = ");
                    self.sparse_elements(sparse);
                }
                None => self.name(name),
            }
            index += 1;
            self.put(if index < count { "," } else { "" });
        }
        for info in &graph.value_infos {
            self.line();
            self.value_info(info);
            index += 1;
            self.put(if index < count { "," } else { "" });
        }
        self.depth -= 1;
        self.line();
        self.put(">");
    }

    fn nodes(&mut self, id: GraphId) {
        self.line();
        self.put("{");
        self.depth += 1;
        for node in self.model.nodes_of(id) {
            self.line();
            self.node(node);
        }
        self.depth -= 1;
        self.line();
        self.put("}");
    }

    fn opset_imports(&mut self, imports: &[OpsetImport]) {
        self.put("[");
        self.separated(imports, |printer, import| {
            printer.quoted(&import.domain);
            printer.show(format_args!(" : {}", import.version));
        });
        self.put("]");
    }

    fn model(&mut self) {
        let model = self.model;
        self.show(format_args!("<\n  ir_version: {},\n  opset_import: ", model.ir_version));
        self.opset_imports(&model.opset_imports);
        let texts = [
            ("producer_name", &model.producer_name),
            ("producer_version", &model.producer_version),
            ("domain", &model.domain),
            ("doc_string", &model.doc_string),
        ];
        for (key, text) in texts {
            if !text.is_empty() {
                self.show(format_args!(",\n  {key}: "));
                self.quoted(text);
            }
        }
        if model.model_version != 0 {
            self.show(format_args!(",\n  model_version: {}", model.model_version));
        }
        if !model.metadata.is_empty() {
            self.put(",\n  metadata_props: [");
            self.separated(&model.metadata, |printer, property| {
                printer.quoted(&property.key);
                printer.put(": ");
                printer.quoted(&property.value);
            });
            self.put("]");
        }
        self.put("\n>\n");
        self.graph(model.main());
        self.put("\n");
        for function in &model.functions {
            self.put("\n");
            self.function(function);
        }
    }

    fn function(&mut self, function: &Function) {
        self.put("<\n  domain: ");
        self.quoted(&function.domain);
        if !function.overload.is_empty() {
            self.put(",\n  overload: ");
            self.quoted(&function.overload);
        }
        if !function.doc_string.is_empty() {
            self.put(",\n  doc_string: ");
            self.quoted(&function.doc_string);
        }
        self.put(",\n  opset_import: ");
        self.opset_imports(&function.opset_imports);
        self.put("\n>\n");
        self.name(&function.name);
        if !(function.attribute_names.is_empty() && function.attributes.is_empty()) {
            self.put(" <");
            self.separated(&function.attribute_names, |printer, name| printer.name(name));
            self.put(if function.attribute_names.is_empty() || function.attributes.is_empty() {
                ""
            } else {
                ", "
            });
            self.separated(&function.attributes, Self::attribute);
            self.put(">");
        }
        let body = self.model.graph(function.graph);
        self.put(" (");
        self.separated(body.inputs(), |printer, info| printer.value_name(Some(info.value)));
        self.put(") => (");
        self.separated(body.outputs(), |printer, info| printer.value_name(Some(info.value)));
        self.put(")");
        self.constants(function.graph);
        self.nodes(function.graph);
        self.put("\n");
    }
}

/// Four significant digits: enough to recognize a tensor by.
fn four_digits(number: f64) -> String {
    let magnitude = number.abs();
    if number == 0.0 || (1e-3..1e6).contains(&magnitude) {
        let places = if magnitude > 0.0 { (3 - magnitude.log10().floor() as i32).clamp(0, 6) } else { 0 };
        format!("{number:.*}", places as usize)
    } else {
        format!("{number:.3e}")
    }
}
