//! A model as the choice of types sees it: who makes and who reads every float32 value.
//!
//! A *unit* is what takes one type as a whole: a node; a value that `If`, `Loop` or `Scan` hand in or out of
//! their bodies together with all that must have its type; an input or output of the model when those may
//! change their type. Whoever is no unit reads and makes float32 for good.

use std::collections::BTreeMap;

use optix_ir::{DType, Function, GraphId, Model, NodeId, Type, Use, ValueId};

use super::operators;
use super::weights::constant;

/// What takes one type as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    /// A node.
    Node(NodeId),
    /// A value that a node with subgraphs hands through.
    Tie(NodeId),
    /// An input or output of the model.
    Interface,
}

/// Who makes a float32 value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// Something that stays float32.
    Fixed,
    /// A unit.
    Unit(usize),
    /// A constant: it is in whatever type it is read in.
    Constant,
}

/// Units, and who makes and reads every float32 value.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// All units, nodes in execution order.
    pub units: Vec<Unit>,
    /// The float32 values, in order of their making, and who makes them.
    pub sources: BTreeMap<ValueId, Source>,
    /// Nodes with float32 inputs or outputs that are no units, each with the reason.
    pub left: Vec<(NodeId, String)>,
    nodes: BTreeMap<NodeId, usize>,
    slots: BTreeMap<(NodeId, u32), usize>,
    outputs: BTreeMap<(GraphId, u32), usize>,
}

/// Whether a value is a dense float32 tensor.
pub(super) fn is_float(model: &Model, value: ValueId) -> bool {
    model.value(value).ty.as_ref().and_then(Type::dtype) == Some(DType::F32)
}

/// Whether a value's type is a dense tensor of known element type.
fn is_known(model: &Model, value: ValueId) -> bool {
    model.value(value).ty.as_ref().and_then(Type::dtype).is_some()
}

/// Whether a type has float32 in it.
fn holds_float(ty: &Type) -> bool {
    match ty {
        Type::Tensor(tensor) | Type::SparseTensor(tensor) => tensor.dtype == Some(DType::F32),
        Type::Sequence(inner) | Type::Optional(inner) | Type::Map(_, inner) => holds_float(inner),
        Type::Opaque { .. } => false,
    }
}

impl Flow {
    /// Reads a model whose types are inferred. `keep_io`: inputs and outputs stay float32.
    pub(super) fn of(model: &Model, keep_io: bool) -> Flow {
        let mut flow = Flow::default();
        let functions: Vec<GraphId> =
            model.functions.iter().map(|function: &Function| function.graph).collect();
        let in_function = |graph: GraphId| functions.iter().any(|&body| model.is_within(graph, body));
        let mut graphs = BTreeMap::new();
        for value in model.values().filter(|&value| is_float(model, value)) {
            let graph = model.value(value).graph();
            if !*graphs.entry(graph).or_insert_with(|| in_function(graph)) {
                let is_constant = constant(model, value).is_some();
                flow.sources.insert(value, if is_constant { Source::Constant } else { Source::Fixed });
            }
        }
        if !keep_io {
            let main = model.graph(model.main());
            for info in main.inputs() {
                if flow.sources.get(&info.value) == Some(&Source::Fixed) {
                    let unit = flow.unit(Unit::Interface);
                    flow.sources.insert(info.value, Source::Unit(unit));
                }
            }
            for (index, info) in main.outputs().iter().enumerate() {
                if flow.sources.contains_key(&info.value) {
                    let unit = flow.unit(Unit::Interface);
                    flow.outputs.insert((model.main(), index as u32), unit);
                }
            }
        }
        for id in model.walk() {
            flow.node(model, id);
        }
        flow
    }

    fn unit(&mut self, unit: Unit) -> usize {
        self.units.push(unit);
        self.units.len() - 1
    }

    fn node(&mut self, model: &Model, id: NodeId) {
        let node = model.node(id);
        let values = || node.inputs().iter().chain(node.outputs()).flatten().copied();
        let concerned = values().any(|value| model.value(value).ty.as_ref().is_some_and(holds_float));
        if node.is("Constant") || !concerned {
            return;
        }
        let reason = if model.function_of(node).is_some() {
            "it calls a function of the model, whose body stays float32".to_owned()
        } else if !node.domain().is_empty() {
            format!("what types {}.{} takes is not known", node.domain(), node.op_type)
        } else if node.subgraphs().next().is_some() {
            match self.control(model, id) {
                Ok(()) => return,
                Err(reason) => reason,
            }
        } else if let Some(value) = values().find(|&value| !is_known(model, value)) {
            let name = model.value(value).name();
            match &model.value(value).ty {
                None => format!("the type of `{name}` is not known"),
                Some(ty) => format!("`{name}` is {ty}, and only dense tensors are converted"),
            }
        } else {
            let unit = self.unit(Unit::Node(id));
            self.nodes.insert(id, unit);
            for (slot, &output) in node.outputs().iter().enumerate() {
                let Some(output) = output else { continue };
                if !operators::is_fixed_output(&node.op_type, slot) && self.sources.contains_key(&output) {
                    self.sources.insert(output, Source::Unit(unit));
                }
            }
            return;
        };
        self.left.push((id, reason));
    }

    /// Ties of a node with subgraphs.
    fn control(&mut self, model: &Model, id: NodeId) -> Result<(), String> {
        let node = model.node(id);
        let bodies: Vec<GraphId> = node.subgraphs().collect();
        // For each tie: input slots of the node, inputs and outputs of the bodies, outputs of the node.
        struct Parts {
            slot: Option<usize>,
            body_input: Option<usize>,
            body_output: Option<usize>,
            output: Option<usize>,
        }
        let mut ties = Vec::new();
        match (node.op_type.as_str(), bodies.as_slice()) {
            ("If", [_, _]) => {
                for output in 0..node.outputs().len() {
                    ties.push(Parts {
                        slot: None,
                        body_input: None,
                        body_output: Some(output),
                        output: Some(output),
                    });
                }
            }
            ("Loop", [_]) => {
                let carried = node.inputs().len().saturating_sub(2);
                for index in 0..node.outputs().len().max(carried) {
                    let carried = index < carried;
                    ties.push(Parts {
                        slot: carried.then_some(index + 2),
                        body_input: carried.then_some(index + 2),
                        body_output: Some(index + 1),
                        output: Some(index),
                    });
                }
            }
            ("Scan", [_]) if model.opset_of(id).is_some_and(|version| version >= 9) => {
                let scanned = node.int("num_scan_inputs").and_then(|count| usize::try_from(count).ok());
                let scanned = scanned.filter(|&count| count <= node.inputs().len());
                let states = node.inputs().len() - scanned.ok_or("its `num_scan_inputs` is wrong")?;
                for index in 0..node.inputs().len() {
                    let is_state = (index < states).then_some(index);
                    ties.push(Parts {
                        slot: Some(index),
                        body_input: Some(index),
                        body_output: is_state,
                        output: is_state,
                    });
                }
                for index in states..node.outputs().len() {
                    ties.push(Parts {
                        slot: None,
                        body_input: None,
                        body_output: Some(index),
                        output: Some(index),
                    });
                }
            }
            _ => return Err(format!("the subgraphs of {} are not followed", node.op_type)),
        }
        for tie in ties {
            let body_values = bodies.iter().flat_map(|&body| {
                let graph = model.graph(body);
                let input = tie.body_input.map(|index| graph.inputs().get(index).map(|info| info.value));
                let output = tie.body_output.map(|index| graph.outputs().get(index).map(|info| info.value));
                input.into_iter().chain(output)
            });
            let own = [tie.slot.map(|slot| node.input(slot)), tie.output.map(|output| node.output(output))];
            // An output that nobody names has no type and no say.
            let own = own.into_iter().flatten().filter(Option::is_some);
            if !body_values
                .chain(own)
                .all(|value| value.is_some_and(|value| self.sources.contains_key(&value)))
            {
                continue;
            }
            let unit = self.unit(Unit::Tie(id));
            if let Some(slot) = tie.slot {
                self.slots.insert((id, slot as u32), unit);
            }
            if let Some(output) = tie.output.and_then(|output| node.output(output)) {
                self.sources.insert(output, Source::Unit(unit));
            }
            for &body in &bodies {
                if let Some(input) = tie.body_input {
                    self.sources.insert(model.graph(body).inputs()[input].value, Source::Unit(unit));
                }
                if let Some(output) = tie.body_output {
                    self.outputs.insert((body, output as u32), unit);
                }
            }
        }
        Ok(())
    }

    /// The unit that reads a float32 value there; `None` for readers that stay float32.
    pub(super) fn reader(&self, model: &Model, used: Use) -> Option<usize> {
        match used {
            Use::Output(graph, index) => self.outputs.get(&(graph, index)).copied(),
            Use::Node(node, slot) => match self.nodes.get(&node) {
                Some(&unit) => {
                    let version = model.opset_of(node).unwrap_or(i64::MAX);
                    let fixed = operators::is_fixed_input(&model.node(node).op_type, version, slot as usize);
                    (!fixed).then_some(unit)
                }
                None => self.slots.get(&(node, slot)).copied(),
            },
        }
    }

    /// The float32 constants.
    pub(super) fn constants(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.sources.iter().filter(|(_, source)| **source == Source::Constant).map(|(&value, _)| value)
    }
}
