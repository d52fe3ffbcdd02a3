//! Writing the text form.

use std::fmt::Write;

use super::{ATTRIBUTE_TYPES, MAX_DEPTH, is_plain};
use crate::ids::{GraphId, NodeId, ValueId};
use crate::model::Model;
use crate::node::{Attribute, AttributeValue, Function, Initializer, Node, OpsetImport, ValueInfo};

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

pub(super) struct Printer<'a> {
    model: &'a Model,
    pub(super) options: &'a PrintOptions,
    out: String,
    /// How many graphs deep we are.
    depth: usize,
}

impl<'a> Printer<'a> {
    fn new(model: &'a Model, options: &'a PrintOptions) -> Self {
        Printer { model, options, out: String::new(), depth: 0 }
    }

    // ---- small things -------------------------------------------------------------------------------

    pub(super) fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// A number or another thing that displays as it is written.
    pub(super) fn show(&mut self, thing: impl std::fmt::Display) {
        write!(self.out, "{thing}").expect("writing to a string succeeds");
    }

    fn line(&mut self) {
        self.out.push('\n');
        for _ in 0..self.depth {
            self.out.push_str("  ");
        }
    }

    pub(super) fn quoted(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            if matches!(character, '"' | '\\') {
                self.out.push('\\');
            }
            self.out.push(character);
        }
        self.out.push('"');
    }

    pub(super) fn name(&mut self, name: &str) {
        if is_plain(name) { self.put(name) } else { self.quoted(name) }
    }

    fn value_name(&mut self, value: Option<ValueId>) {
        let model = self.model;
        match value {
            Some(value) => self.name(model.value(value).name()),
            None => self.put("\"\""),
        }
    }

    pub(super) fn separated<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut print: impl FnMut(&mut Self, T),
    ) {
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.put(", ");
            }
            print(self, item);
        }
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
