//! Operators that hold subgraphs: `If`, `Loop`, `Scan`, `SequenceMap`.

use crate::dtype::DType;
use crate::ids::{GraphId, NodeId};
use crate::infer::dims::{self, Fault, Outcome, wrong};
use crate::infer::fact::Fact;
use crate::infer::walk::{Frame, MAX_DEPTH, Walker};
use crate::node::{AttributeValue, Node};
use crate::types::{Dim, Type};

/// A body is walked again until the types of what goes round no longer change, but not in loops nested
/// deeper than this: each level would multiply the work.
const MAX_REPEATED: usize = 3;

pub(super) fn is_control(op_type: &str) -> bool {
    matches!(op_type, "If" | "Loop" | "Scan" | "SequenceMap")
}

pub(super) fn infer(
    walker: &mut Walker<'_>,
    id: NodeId,
    node: &Node,
    depth: usize,
    frame: Option<&Frame<'_>>,
    opset: i64,
) -> Outcome<Vec<Fact>> {
    if depth >= MAX_DEPTH {
        return Err(Fault::TooLarge(format!("graphs are nested more than {MAX_DEPTH} deep")));
    }
    let mut control = Control { walker, id, node, depth, frame };
    match node.op_type.as_str() {
        "If" => control.branches(),
        "Loop" => control.repeat(),
        "Scan" if opset >= 9 => control.scan(),
        "SequenceMap" => control.sequence_map(),
        _ => {
            // The first form of Scan, with a batch axis of its own: the body is looked at all the same.
            for graph in node.subgraphs() {
                control.body(graph, &[])?;
            }
            Ok(Vec::new())
        }
    }
}

struct Control<'w, 'a, 'f> {
    walker: &'w mut Walker<'a>,
    id: NodeId,
    node: &'f Node,
    depth: usize,
    frame: Option<&'f Frame<'f>>,
}

impl Control<'_, '_, '_> {
    fn subgraph(&self, name: &str) -> Outcome<GraphId> {
        match self.node.attribute(name) {
            Some(AttributeValue::Graph(graph)) => Ok(*graph),
            _ => wrong(format!("attribute `{name}` with a graph is missing")),
        }
    }

    fn input(&self, slot: usize) -> Fact {
        self.node.input(slot).map_or_else(Fact::unknown, |value| self.walker.facts[value.index()].clone())
    }

    fn inputs_from(&self, start: usize) -> Vec<Fact> {
        (start..self.node.inputs().len()).map(|slot| self.input(slot)).collect()
    }

    /// Infers a body on facts of its inputs; inputs beyond these have only their declared type.
    fn body(&mut self, graph: GraphId, inputs: &[Fact]) -> Outcome<Vec<Fact>> {
        let model = self.walker.model;
        let infos = model.graph(graph).inputs();
        for (index, info) in infos.iter().enumerate() {
            let fact = inputs.get(index).cloned().unwrap_or_default();
            self.walker.define(Some(self.id), info.value, fact);
        }
        self.walker.graph(graph, self.depth + 1, self.frame);
        let outputs = model.graph(graph).outputs();
        Ok(outputs.iter().map(|info| self.walker.facts[info.value.index()].clone()).collect())
    }

    /// The same, when there must be as many inputs and at least so many outputs.
    fn checked_body(&mut self, graph: GraphId, inputs: &[Fact], outputs: usize) -> Outcome<Vec<Fact>> {
        let body = self.walker.model.graph(graph);
        let (takes, gives) = (body.inputs().len(), body.outputs().len());
        if takes != inputs.len() {
            return wrong(format!("the body takes {takes} inputs, but {} are passed to it", inputs.len()));
        }
        if gives < outputs {
            return wrong(format!("the body gives {gives} outputs, but {outputs} are needed"));
        }
        self.body(graph, inputs)
    }

    fn branches(&mut self) -> Outcome<Vec<Fact>> {
        let (yes, no) = (self.subgraph("then_branch")?, self.subgraph("else_branch")?);
        let count = self.node.outputs().len();
        let taken = match self.input(0).known_integers().as_deref() {
            Some(&[condition]) => Some(condition != 0),
            _ => None,
        };
        let yes = self.branch(yes, count, taken)?;
        let no = self.branch(no, count, taken.map(|taken| !taken))?;
        Ok(match taken {
            Some(true) => yes,
            Some(false) => no,
            None => yes.iter().zip(&no).map(|(yes, no)| yes.join(no)).collect(),
        })
    }

    /// A branch that is taken, not taken, or may be.
    fn branch(&mut self, graph: GraphId, outputs: usize, taken: Option<bool>) -> Outcome<Vec<Fact>> {
        let before = self.walker.problems.len();
        let facts = self.checked_body(graph, &[], outputs)?;
        match taken {
            Some(true) => {}
            // What never runs cannot go wrong.
            Some(false) => self.walker.problems.truncate(before),
            None => self.walker.problems[before..].iter_mut().for_each(|problem| problem.certain = false),
        }
        Ok(facts)
    }

    fn repeat(&mut self) -> Outcome<Vec<Fact>> {
        let body = self.subgraph("body")?;
        let initial: Vec<Fact> = self.inputs_from(2).iter().map(Fact::without_contents).collect();
        let mut carried = initial;
        let scalar = |dtype| Fact::tensor(Some(dtype), Some(Vec::new()));
        let last_attempt = 2;
        let mut attempt = if self.depth < MAX_REPEATED { 0 } else { last_attempt };
        loop {
            if attempt == last_attempt {
                // Whatever the shapes become, this covers it.
                for fact in &mut carried {
                    *fact = Fact { ty: fact.ty.take().map(without_shape), ..Fact::default() };
                }
            }
            let mut inputs = vec![scalar(DType::I64), scalar(DType::Bool)];
            inputs.extend(carried.iter().cloned());
            let problems = self.walker.problems.len();
            let outputs = self.checked_body(body, &inputs, 1 + carried.len())?;
            let next: Vec<Fact> = carried
                .iter()
                .zip(&outputs[1..])
                .map(|(before, after)| before.join(after).without_contents())
                .collect();
            let settled = next == carried;
            carried = next;
            if settled || attempt == last_attempt {
                let scanned = outputs[1 + carried.len()..].iter().map(|fact| stacked(fact, 0, Dim::Unknown));
                let scanned: Outcome<Vec<Fact>> = scanned.collect();
                carried.extend(scanned?);
                return Ok(carried);
            }
            // That walk's assumption did not hold: nor does what it complained of.
            self.walker.problems.truncate(problems);
            attempt += 1;
        }
    }

    fn scan(&mut self) -> Outcome<Vec<Fact>> {
        let body = self.subgraph("body")?;
        let scans = self.node.int("num_scan_inputs").and_then(|count| usize::try_from(count).ok());
        let given = self.inputs_from(0);
        let Some(states) = scans.and_then(|scans| given.len().checked_sub(scans)) else {
            return wrong("attribute `num_scan_inputs` is missing or more than there are inputs");
        };
        let axis_of = |name: &str, index: usize, rank: usize| {
            let axis = self.node.ints(name).and_then(|axes| axes.get(index)).copied().unwrap_or(0);
            dims::axis(axis, rank)
        };
        let mut length = Dim::Unknown;
        let mut inputs: Vec<Fact> = given[..states].iter().map(Fact::without_contents).collect();
        for (index, fact) in given[states..].iter().enumerate() {
            let shape = match fact.shape() {
                Some(shape) => {
                    let axis = axis_of("scan_input_axes", index, shape.len())?;
                    let mut shape = shape.clone();
                    length = dims::same(&length, &shape.remove(axis), "lengths of the scanned inputs")?;
                    Some(shape)
                }
                None => None,
            };
            inputs.push(Fact::tensor(fact.dtype(), shape));
        }
        let outputs = self.checked_body(body, &inputs, states)?;
        let mut results: Vec<Fact> = inputs[..states]
            .iter()
            .zip(&outputs)
            .map(|(before, after)| before.join(after).without_contents())
            .collect();
        for (index, fact) in outputs[states..].iter().enumerate() {
            let axis = match fact.shape() {
                Some(shape) => {
                    let axis = self.node.ints("scan_output_axes").and_then(|axes| axes.get(index)).copied();
                    dims::axis(axis.unwrap_or(0), shape.len() + 1)?
                }
                None => 0,
            };
            results.push(stacked(fact, axis, length.clone())?);
        }
        Ok(results)
    }

    fn sequence_map(&mut self) -> Outcome<Vec<Fact>> {
        let body = self.subgraph("body")?;
        let inputs: Vec<Fact> = self
            .inputs_from(0)
            .into_iter()
            .map(|fact| match fact.ty {
                Some(Type::Sequence(element)) => Fact::of_type(*element),
                _ => fact,
            })
            .collect();
        let outputs = self.checked_body(body, &inputs, self.node.outputs().len())?;
        Ok(outputs
            .into_iter()
            .map(|fact| Fact { ty: fact.ty.map(|ty| Type::Sequence(Box::new(ty))), ..Fact::default() })
            .collect())
    }
}

/// Results of all turns in one tensor.
fn stacked(fact: &Fact, axis: usize, length: Dim) -> Outcome<Fact> {
    let shape = fact.shape().map(|shape| {
        let mut shape = shape.clone();
        shape.insert(axis.min(shape.len()), length);
        shape
    });
    Ok(Fact::tensor(fact.dtype(), shape))
}

fn without_shape(ty: Type) -> Type {
    match ty {
        Type::Tensor(mut tensor) => {
            tensor.shape = None;
            Type::Tensor(tensor)
        }
        Type::Sequence(element) => Type::Sequence(Box::new(without_shape(*element))),
        Type::Optional(element) => Type::Optional(Box::new(without_shape(*element))),
        other => other,
    }
}
