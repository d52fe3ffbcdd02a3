//! Changes that are proposed, checked, and then made whole or not at all.
//!
//! A [`Patch`] is put together while the model is only read: new constants and nodes, then which values
//! they replace, which inputs they are connected to, and which nodes go. [`Patch::apply`] checks that
//!
//! * everything it speaks of is still there, and visible where it is used;
//! * a replacement has the type of what it replaces, as far as both are known;
//! * nothing that is still used is removed;
//! * an execution order exists, which is found by moving nodes where needed;
//! * graph outputs keep their names;
//!
//! and then makes the change. A refused patch leaves the model as it was.
//!
//! ```
//! # use optix_ir::{text, patch::Patch};
//! # let mut model = text::parse(r#"<opset_import: ["" : 18]>
//! #     g (float[N] x) => (float[N] y) { a = Neg (x)  b = Neg (a)  y = Relu (b) }"#).unwrap();
//! # let nodes = model.node_list(model.main());
//! // -(-x) is x.
//! let (inner, outer) = (nodes[0], nodes[1]);
//! let x = model.node(inner).input(0).unwrap();
//! let minus_minus_x = model.node(outer).output(0).unwrap();
//! let mut patch = Patch::new("double-negation");
//! patch.replace(minus_minus_x, x);
//! patch.remove(outer);
//! patch.remove_if_dead(inner);
//! let applied = patch.apply(&mut model).unwrap();
//! assert_eq!(applied.removed.len(), 2);
//! ```

mod apply;
mod plan;
#[cfg(test)]
mod tests;

use crate::ids::{GraphId, NodeId, ValueId};
use crate::model::Model;
use crate::node::{AttributeValue, Node};
use crate::tensor::Tensor;
use crate::types::Type;

/// Something a patch can connect to: a value of the model, or one the patch makes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operand {
    /// A value of the model. In inputs of new nodes it means the value as it was: replacements by this
    /// patch do not touch it there, so that a value can be replaced by something computed from it.
    Existing(ValueId),
    /// A value this patch makes; see [`Applied::value`].
    New(NewValue),
    /// An optional input left out.
    Omitted,
}

/// A value that a patch makes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NewValue(u32);

impl NewValue {
    fn index(self) -> usize {
        self.0 as usize
    }
}

impl From<ValueId> for Operand {
    fn from(value: ValueId) -> Operand {
        Operand::Existing(value)
    }
}

impl From<Option<ValueId>> for Operand {
    fn from(value: Option<ValueId>) -> Operand {
        value.map_or(Operand::Omitted, Operand::Existing)
    }
}

impl From<NewValue> for Operand {
    fn from(value: NewValue) -> Operand {
        Operand::New(value)
    }
}

impl From<Option<NewValue>> for Operand {
    fn from(value: Option<NewValue>) -> Operand {
        value.map_or(Operand::Omitted, Operand::New)
    }
}

/// Inputs of a new node: a tuple of up to five things, an array or a vector of one kind of thing.
pub trait IntoOperands {
    /// The inputs in order.
    fn into_operands(self) -> Vec<Operand>;
}

impl<T: Into<Operand>> IntoOperands for Vec<T> {
    fn into_operands(self) -> Vec<Operand> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<T: Into<Operand>, const N: usize> IntoOperands for [T; N] {
    fn into_operands(self) -> Vec<Operand> {
        self.into_iter().map(Into::into).collect()
    }
}

macro_rules! operand_tuples {
    ($($($name:ident)+;)+) => {$(
        impl<$($name: Into<Operand>),+> IntoOperands for ($($name,)+) {
            #[expect(non_snake_case, reason = "one binding for each type parameter")]
            fn into_operands(self) -> Vec<Operand> {
                let ($($name,)+) = self;
                vec![$($name.into()),+]
            }
        }
    )+};
}
operand_tuples! { A; A B; A B C; A B C D; A B C D E; }

/// A value to be made: an output of a new node, or a constant.
#[derive(Clone, Debug)]
struct Made {
    hint: String,
    ty: Option<Type>,
    constant: Option<Tensor>,
}

/// A node to be made.
#[derive(Clone, Debug)]
struct NewNode {
    /// All but inputs and outputs.
    node: Node,
    inputs: Vec<Operand>,
    outputs: Vec<Option<NewValue>>,
}

/// A proposed change; see the [module](self)'s documentation.
#[derive(Clone, Debug)]
pub struct Patch {
    label: String,
    values: Vec<Made>,
    nodes: Vec<NewNode>,
    replacements: Vec<(ValueId, Operand)>,
    inputs: Vec<(NodeId, usize, Operand)>,
    attributes: Vec<(NodeId, String, Option<AttributeValue>)>,
    removals: Vec<(NodeId, bool)>,
    graph: Option<GraphId>,
    may_insert_identity: bool,
}

impl Patch {
    /// An empty patch; the label says what it does, in the words of reports: `fold-batch-norm`.
    pub fn new(label: impl Into<String>) -> Patch {
        Patch {
            label: label.into(),
            values: Vec::new(),
            nodes: Vec::new(),
            replacements: Vec::new(),
            inputs: Vec::new(),
            attributes: Vec::new(),
            removals: Vec::new(),
            graph: None,
            may_insert_identity: false,
        }
    }

    /// What it does.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
            && self.nodes.is_empty()
            && self.replacements.is_empty()
            && self.inputs.is_empty()
            && self.attributes.is_empty()
            && self.removals.is_empty()
    }

    /// Says which graph new nodes go into. Needed only where nothing else says it: by default it is the
    /// graph of the first value replaced, else of the first node whose input changes, else the main graph.
    pub fn in_graph(&mut self, graph: GraphId) -> &mut Patch {
        self.graph = Some(graph);
        self
    }

    /// Allows an `Identity` where a graph output could not keep its name otherwise.
    pub fn allow_identity(&mut self) -> &mut Patch {
        self.may_insert_identity = true;
        self
    }

    fn make(&mut self, hint: &str, ty: Option<Type>, constant: Option<Tensor>) -> NewValue {
        self.values.push(Made { hint: hint.into(), ty, constant });
        NewValue(u32::try_from(self.values.len() - 1).expect("a patch makes fewer than 2^32 values"))
    }

    /// A new constant; its name is made from `hint`.
    pub fn constant(&mut self, hint: &str, tensor: Tensor) -> NewValue {
        self.make(hint, Some(Type::of(&tensor)), Some(tensor))
    }

    /// A new node of the standard operator set; finish it with [`Draft::output`]. Nodes come in execution
    /// order.
    pub fn node(&mut self, op_type: &str, inputs: impl IntoOperands) -> Draft<'_> {
        self.draft(Node::new(op_type, []), inputs)
    }

    /// A new node with the operator, attributes, name and documentation of another one, which may be of
    /// the model: `patch.node_like(model.node(conv), (x, w))`. Nodes that hold subgraphs are refused when
    /// the patch is applied.
    pub fn node_like(&mut self, node: &Node, inputs: impl IntoOperands) -> Draft<'_> {
        let bare = Node {
            domain: node.domain.clone(),
            op_type: node.op_type.clone(),
            overload: node.overload.clone(),
            name: node.name.clone(),
            attributes: node.attributes.clone(),
            doc_string: node.doc_string.clone(),
            metadata: node.metadata.clone(),
            ..Node::default()
        };
        self.draft(bare, inputs)
    }

    fn draft(&mut self, node: Node, inputs: impl IntoOperands) -> Draft<'_> {
        let mut inputs = inputs.into_operands();
        while inputs.last() == Some(&Operand::Omitted) {
            inputs.pop();
        }
        Draft { patch: self, node: NewNode { node, inputs, outputs: Vec::new() }, types: Vec::new() }
    }

    /// Puts `new` in the place of `old` everywhere but in the patch's own new nodes. Where `old` is a graph
    /// output, the two swap names.
    pub fn replace(&mut self, old: ValueId, new: impl Into<Operand>) -> &mut Patch {
        self.replacements.push((old, new.into()));
        self
    }

    /// Connects one input of a node of the model.
    pub fn set_input(&mut self, node: NodeId, slot: usize, new: impl Into<Operand>) -> &mut Patch {
        self.inputs.push((node, slot, new.into()));
        self
    }

    /// Sets an attribute of a node of the model.
    pub fn set_attribute(
        &mut self,
        node: NodeId,
        name: &str,
        value: impl Into<AttributeValue>,
    ) -> &mut Patch {
        self.attributes.push((node, name.into(), Some(value.into())));
        self
    }

    /// Removes an attribute of a node of the model.
    pub fn remove_attribute(&mut self, node: NodeId, name: &str) -> &mut Patch {
        self.attributes.push((node, name.into(), None));
        self
    }

    /// Removes a node, which nothing may use any more once the replacements are made.
    ///
    /// Constants (initializers and `Constant` nodes) that only removed nodes used go with them.
    pub fn remove(&mut self, node: NodeId) -> &mut Patch {
        self.removals.push((node, true));
        self
    }

    /// Removes a node if nothing uses it once the replacements are made, and leaves it otherwise.
    pub fn remove_if_dead(&mut self, node: NodeId) -> &mut Patch {
        self.removals.push((node, false));
        self
    }

    /// Checks the patch against a model and makes the change.
    ///
    /// # Errors
    /// When a check fails; the model is untouched then.
    pub fn apply(self, model: &mut Model) -> Result<Applied, PatchError> {
        let plan = plan::plan(&self, model)?;
        Ok(apply::apply(self, plan, model))
    }

    /// As [`Patch::apply`], checks only.
    ///
    /// # Errors
    /// What `apply` would return.
    pub fn check(&self, model: &Model) -> Result<(), PatchError> {
        plan::plan(self, model).map(drop)
    }
}

/// A new node that is being described; [`Draft::output`] or [`Draft::outputs`] puts it into the patch.
#[must_use = "finish the node with `.output(name)`"]
#[derive(Debug)]
pub struct Draft<'p> {
    patch: &'p mut Patch,
    node: NewNode,
    types: Vec<Type>,
}

impl Draft<'_> {
    /// Sets an attribute, in place of one of that name.
    pub fn attr(mut self, name: &str, value: impl Into<AttributeValue>) -> Self {
        self.node.node.set_attribute(name, value);
        self
    }

    /// Takes an attribute away (one copied by [`Patch::node_like`]).
    pub fn without(mut self, name: &str) -> Self {
        self.node.node.remove_attribute(name);
        self
    }

    /// Names the node.
    pub fn named(mut self, name: &str) -> Self {
        self.node.node.name = name.into();
        self
    }

    /// Puts the node into another operator set.
    pub fn in_domain(mut self, domain: &str) -> Self {
        self.node.node.domain = domain.into();
        self
    }

    /// The type of the next output, when it is known; call it once for each output in order. A replacement
    /// without one takes over the type of what it replaces.
    pub fn ty(mut self, ty: Type) -> Self {
        self.types.push(ty);
        self
    }

    /// Finishes a node with one output, whose name is made from `hint`.
    pub fn output(self, hint: &str) -> NewValue {
        self.outputs([hint])[0]
    }

    /// Finishes a node with several outputs.
    pub fn outputs<const N: usize>(mut self, hints: [&str; N]) -> [NewValue; N] {
        let mut types = self.types.into_iter();
        let made = hints.map(|hint| self.patch.make(hint, types.next(), None));
        self.node.outputs = made.iter().copied().map(Some).collect();
        self.patch.nodes.push(self.node);
        made
    }
}

/// What a patch did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// The label of the patch.
    pub label: String,
    /// The new nodes in the order they were described, `Identity` nodes that were needed last.
    pub nodes: Vec<NodeId>,
    /// The nodes that are gone, constants that went with them included.
    pub removed: Vec<NodeId>,
    values: Vec<ValueId>,
}

impl Applied {
    /// What became of a value the patch made.
    ///
    /// # Panics
    /// When another patch made it.
    pub fn value(&self, made: NewValue) -> ValueId {
        self.values[made.index()]
    }
}

/// Why a patch was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatchError {
    /// A node, value or graph it speaks of is gone.
    #[error("patch `{label}`: {what} is not in the model any more; make patches from the model as it is")]
    Stale {
        /// The patch.
        label: String,
        /// What is gone.
        what: String,
    },
    /// A value would be used where it cannot be seen.
    #[error("patch `{label}`: `{value}` belongs to another graph and cannot be used in `{graph}`")]
    NotVisible {
        /// The patch.
        label: String,
        /// The value.
        value: String,
        /// Name of the graph that was to use it.
        graph: String,
    },
    /// A replacement is of another type.
    #[error("patch `{label}`: `{old}` is {old_type} and cannot be replaced by `{new}`, which is {new_type}")]
    Type {
        /// The patch.
        label: String,
        /// The value to be replaced.
        old: String,
        /// Its type.
        old_type: String,
        /// What was to replace it.
        new: String,
        /// The type of that.
        new_type: String,
    },
    /// A node was to be removed that is still used.
    #[error("patch `{label}`: node {node} cannot be removed, its output `{value}` is still used")]
    StillUsed {
        /// The patch.
        label: String,
        /// The node.
        node: String,
        /// The output.
        value: String,
    },
    /// A graph output cannot keep its name.
    #[error(
        "patch `{label}`: the graph output `{old}` cannot be `{new}`, which must keep its own name; allow an \
         `Identity`"
    )]
    InterfaceName {
        /// The patch.
        label: String,
        /// The graph output.
        old: String,
        /// What was to replace it.
        new: String,
    },
    /// There is no execution order after the change.
    #[error("patch `{label}`: a node would depend on its own output: {nodes}")]
    Cycle {
        /// The patch.
        label: String,
        /// Nodes that wait for each other.
        nodes: String,
    },
    /// The patch contradicts itself.
    #[error("patch `{label}`: {what}")]
    Inconsistent {
        /// The patch.
        label: String,
        /// How.
        what: String,
    },
}
