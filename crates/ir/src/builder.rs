//! Small models in a few lines, for tests and examples.

use std::collections::HashMap;

use crate::edit::Position;
use crate::ids::{GraphId, NodeId, ValueId};
use crate::model::Model;
use crate::node::{Attribute, AttributeValue, Carry, Initializer, Node, OpsetImport, ValueInfo};
use crate::tensor::Tensor;
use crate::text;

/// Builds a model piece by piece, in execution order. Values go by name; types are written as in the text
/// form (`float[batch, 3, 8, 8]`).
///
/// ```
/// use optix_ir::{ModelBuilder, Tensor};
///
/// let model = ModelBuilder::new(18)
///     .input("x", "float[batch, 2]")
///     .constant("w", Tensor::from_vec([2, 2], vec![1f32, 2., 3., 4.]))
///     .node("MatMul", ["x", "w"], ["y"])
///     .node("Softmax", ["y"], ["z"]).attr("axis", -1)
///     .output("z", "float[batch, 2]")
///     .build();
/// assert_eq!(model.node_list(model.main()).len(), 2);
/// ```
///
/// What is wrong (an unknown name, one given twice, a type that is none) is kept until
/// [`ModelBuilder::build`], so that chains stay short. See [`crate::text::parse`] for the other way.
#[derive(Clone, Debug)]
pub struct ModelBuilder {
    model: Model,
    /// Graphs we are in with the names of their values, innermost last.
    scopes: Vec<(GraphId, HashMap<String, ValueId>)>,
    last_node: Option<NodeId>,
    fault: Option<BuildError>,
}

/// What is wrong with the pieces given to a [`ModelBuilder`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A name that no input, constant or earlier node gave.
    #[error("`{0}` is not defined yet: define values before they are used")]
    Undefined(String),
    /// A name given twice.
    #[error("`{0}` is defined twice")]
    Twice(String),
    /// A type's text is wrong.
    #[error("`{ty}` is no type: {error}")]
    Type {
        /// The text.
        ty: String,
        /// What is wrong with it.
        error: text::ParseError,
    },
    /// An attribute, name or the like was given before there was a node.
    #[error("there is no node yet that `{0}` could belong to")]
    NoNode(String),
}

impl ModelBuilder {
    /// An empty model written in that version of the standard operator set, its graph called `main`.
    pub fn new(opset: i64) -> ModelBuilder {
        let mut model = Model::new();
        let main = model.main();
        model.graph_mut(main).name = "main".into();
        ModelBuilder { model, scopes: vec![(main, HashMap::new())], last_node: None, fault: None }
            .import("", opset)
    }

    /// Imports a further operator set.
    pub fn import(mut self, domain: &str, version: i64) -> ModelBuilder {
        self.model.opset_imports.push(OpsetImport {
            domain: domain.into(),
            version,
            carry: Carry::default(),
        });
        self
    }

    fn fail(&mut self, fault: BuildError) {
        self.fault.get_or_insert(fault);
    }

    fn graph(&self) -> GraphId {
        self.scopes.last().expect("the main graph's scope stays").0
    }

    fn find(&mut self, name: &str) -> Option<ValueId> {
        let found = self.scopes.iter().rev().find_map(|(_, names)| names.get(name)).copied();
        if found.is_none() {
            self.fail(BuildError::Undefined(name.into()));
        }
        found
    }

    fn define(&mut self, name: &str) -> Option<ValueId> {
        let (graph, names) = self.scopes.last_mut().expect("the main graph's scope stays");
        if names.contains_key(name) {
            self.fail(BuildError::Twice(name.into()));
            return None;
        }
        let value = self.model.add_value(*graph, name);
        names.insert(name.into(), value);
        Some(value)
    }

    fn info(&mut self, value: ValueId, ty: &str) -> ValueInfo {
        let ty = match ty {
            "" => None,
            text => match text::parse_type(text) {
                Ok(ty) => Some(ty),
                Err(error) => {
                    self.fail(BuildError::Type { ty: text.into(), error });
                    None
                }
            },
        };
        ValueInfo::new(value, ty)
    }

    /// An input of the graph; an empty type means that none is declared.
    pub fn input(mut self, name: &str, ty: &str) -> ModelBuilder {
        if let Some(value) = self.define(name) {
            let info = self.info(value, ty);
            self.model.add_input(info);
        }
        self
    }

    /// A constant (an initializer).
    pub fn constant(mut self, name: &str, tensor: Tensor) -> ModelBuilder {
        if let Some(value) = self.define(name) {
            self.model.set_initializer(value, Initializer::Dense(Box::new(tensor.into())));
        }
        self
    }

    /// An input with a default that the caller may override.
    pub fn input_with_default(mut self, name: &str, tensor: Tensor) -> ModelBuilder {
        if let Some(value) = self.define(name) {
            self.model.add_input(ValueInfo::new(value, Some(crate::Type::of(&tensor))));
            self.model.set_initializer(value, Initializer::Dense(Box::new(tensor.into())));
        }
        self
    }

    /// A node behind the ones there are; `""` stands for an omitted input or output. An operator of
    /// another domain is written `domain::Operator`.
    pub fn node<'n>(
        mut self,
        op_type: &str,
        inputs: impl IntoIterator<Item = &'n str>,
        outputs: impl IntoIterator<Item = &'n str>,
    ) -> ModelBuilder {
        let inputs: Vec<Option<ValueId>> =
            inputs.into_iter().map(|name| if name.is_empty() { None } else { self.find(name) }).collect();
        let outputs: Vec<Option<ValueId>> =
            outputs.into_iter().map(|name| if name.is_empty() { None } else { self.define(name) }).collect();
        let (domain, op_type) = op_type.split_once("::").unwrap_or(("", op_type));
        let node = Node::with_optional_inputs(op_type, inputs).in_domain(domain);
        let graph = self.graph();
        let id = self.model.insert_node(graph, Position::End, node, outputs);
        self.last_node = Some(id.expect("the outputs are new"));
        self
    }

    /// An attribute of the last node.
    pub fn attr(mut self, name: &str, value: impl Into<AttributeValue>) -> ModelBuilder {
        match self.last_node {
            Some(node) => self.model.node_mut(node).attributes.push(Attribute::new(name, value)),
            None => self.fail(BuildError::NoNode(name.into())),
        }
        self
    }

    /// A name for the last node.
    pub fn named(mut self, name: &str) -> ModelBuilder {
        match self.last_node {
            Some(node) => self.model.node_mut(node).name = name.into(),
            None => self.fail(BuildError::NoNode(name.into())),
        }
        self
    }

    /// A subgraph as attribute of the last node: `fill` gets the builder inside the new graph.
    ///
    /// ```
    /// # use optix_ir::ModelBuilder;
    /// let model = ModelBuilder::new(18)
    ///     .input("c", "bool").input("x", "float[N]")
    ///     .node("If", ["c"], ["y"])
    ///     .subgraph("then_branch", |b| b.node("Relu", ["x"], ["t"]).output("t", ""))
    ///     .subgraph("else_branch", |b| b.node("Neg", ["x"], ["e"]).output("e", ""))
    ///     .output("y", "float[N]")
    ///     .build();
    /// ```
    pub fn subgraph(
        mut self,
        attribute: &str,
        fill: impl FnOnce(ModelBuilder) -> ModelBuilder,
    ) -> ModelBuilder {
        let Some(holder) = self.last_node else {
            self.fail(BuildError::NoNode(attribute.into()));
            return self;
        };
        let graph = self.model.add_graph(Some(holder));
        self.model.graph_mut(graph).name = attribute.into();
        self = self.attr(attribute, graph);
        self.scopes.push((graph, HashMap::new()));
        self = fill(self);
        self.scopes.pop();
        self.last_node = Some(holder);
        self
    }

    /// Makes a value an output of the graph; an empty type means that none is declared.
    pub fn output(mut self, name: &str, ty: &str) -> ModelBuilder {
        if let Some(value) = self.find(name) {
            let info = self.info(value, ty);
            let graph = self.graph();
            self.model.add_output(graph, info);
        }
        self
    }

    /// Declares the type of an inner value.
    pub fn value_info(mut self, name: &str, ty: &str) -> ModelBuilder {
        if let Some(value) = self.find(name) {
            let info = self.info(value, ty);
            let graph = self.graph();
            self.model.add_value_info(graph, info);
        }
        self
    }

    /// The model.
    ///
    /// # Errors
    /// The first thing that was wrong with the pieces.
    pub fn try_build(self) -> Result<Model, BuildError> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok(self.model),
        }
    }

    /// The model.
    ///
    /// # Panics
    /// Where [`ModelBuilder::try_build`] has an error: the pieces are the program's own.
    pub fn build(self) -> Model {
        self.try_build().unwrap_or_else(|error| panic!("{error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Use;

    #[test]
    fn subgraphs_see_the_values_around_them() {
        let model = ModelBuilder::new(18)
            .input("c", "bool")
            .input("x", "float[N]")
            .node("If", ["c"], ["y"])
            .subgraph("then_branch", |b| b.node("Relu", ["x"], ["t"]).output("t", ""))
            .subgraph("else_branch", |b| b.node("Neg", ["x"], ["e"]).output("e", ""))
            .output("y", "float[N]")
            .build();
        let main = model.main();
        let x = model.find_value(main, "x").unwrap();
        let holder = model.node_list(main)[0];
        let inner: Vec<NodeId> = model.walk().skip(1).collect();
        assert_eq!(model.value(x).uses(), [Use::Node(inner[0], 0), Use::Node(inner[1], 0)]);
        assert_eq!(model.graph(model.node(inner[1]).graph()).owner(), Some(holder));
        assert_eq!(model.opset_of(inner[0]), Some(18));
    }

    #[test]
    fn mistakes_are_told() {
        let builder = || ModelBuilder::new(18).input("x", "float");
        let cases = [
            (builder().node("Relu", ["y"], ["z"]), BuildError::Undefined("y".into())),
            (builder().input("x", "float"), BuildError::Twice("x".into())),
            (builder().attr("axis", 1i64), BuildError::NoNode("axis".into())),
        ];
        for (builder, fault) in cases {
            assert_eq!(builder.try_build().unwrap_err(), fault);
        }
        let error = builder().input("y", "flout[3]").try_build().unwrap_err();
        assert!(error.to_string().contains("`flout[3]` is no type"), "{error}");
    }
}
