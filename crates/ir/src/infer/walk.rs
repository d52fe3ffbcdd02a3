//! The walk over graphs that applies the rules.

use std::collections::{HashMap, HashSet};

use crate::ids::{GraphId, NodeId, ValueId};
use crate::infer::call::Call;
use crate::infer::dims::{Fault, Outcome, unknowns};
use crate::infer::fact::{Fact, MAX_CONTENTS, named, refine};
use crate::infer::{Evaluator, InferReport, Problem, ProblemKind};
use crate::model::Model;
use crate::node::{AttributeValue, Function, Initializer, Node};
use crate::tensor::Tensor;
use crate::types::{Dim, Type};

/// Graphs within graphs and functions within functions.
pub(super) const MAX_DEPTH: usize = 32;
/// Nodes of function bodies, every call counted.
const MAX_FUNCTION_NODES: u64 = 1_000_000;
/// Dimensions touched, with an element of followed contents counting for many: so many for any model, and
/// so many more for each of its nodes. An ordinary node takes twenty or thirty.
const MAX_WORK: u64 = 40_000_000;
const MAX_WORK_PER_NODE: u64 = 40;
const WORK_PER_ELEMENT: usize = 32;
/// No framework goes anywhere near.
const MAX_RANK: usize = 256;
const MAX_PROBLEMS: usize = 4096;

/// Operators whose outputs are small when their inputs are, though no rule can say how small.
const SMALL_ANYWAY: &[&str] = &["NonZero", "Unique", "Compress", "NonMaxSuppression"];
/// Operators that give something else each time.
const RANDOM: &[&str] = &[
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
];

/// Where a walk is: inside which calls of functions.
pub(super) struct Frame<'f> {
    /// The attributes of the call of the function we are in, references in it resolved.
    attributes: &'f HashMap<String, AttributeValue>,
}

pub(super) struct Walker<'a> {
    pub(super) model: &'a Model,
    evaluator: &'a dyn Evaluator,
    pub(super) facts: Vec<Fact>,
    pub(super) problems: Vec<Problem>,
    without_rule: Vec<NodeId>,
    declared: Vec<Option<&'a Type>>,
    /// Second and further declarations of a value.
    declared_again: Vec<(ValueId, &'a Type)>,
    functions: HashMap<(&'a str, &'a str, &'a str), &'a Function>,
    /// Graphs of function bodies and in them, by index.
    function_graphs: HashSet<GraphId>,
    function_nodes: u64,
    work: u64,
    gave_up: bool,
}

impl<'a> Walker<'a> {
    pub(super) fn new(model: &'a Model, evaluator: &'a dyn Evaluator) -> Walker<'a> {
        let mut walker = Walker {
            model,
            evaluator,
            facts: vec![Fact::unknown(); model.value_capacity()],
            problems: Vec::new(),
            without_rule: Vec::new(),
            declared: vec![None; model.value_capacity()],
            declared_again: Vec::new(),
            functions: HashMap::new(),
            function_graphs: HashSet::new(),
            function_nodes: 0,
            work: 0,
            gave_up: false,
        };
        for graph in model.graphs() {
            let graph = model.graph(graph);
            for info in graph.inputs().iter().chain(&graph.value_infos).chain(graph.outputs()) {
                let Some(ty) = &info.ty else { continue };
                match &mut walker.declared[info.value.index()] {
                    Some(first) if *first != ty => walker.declared_again.push((info.value, ty)),
                    Some(_) => {}
                    empty => *empty = Some(ty),
                }
            }
        }
        for function in &model.functions {
            let domain = if function.domain == "ai.onnx" { "" } else { &function.domain };
            walker.functions.entry((domain, &function.name, &function.overload)).or_insert(function);
        }
        walker
    }

    pub(super) fn run(mut self) -> (Vec<Fact>, InferReport) {
        let main = self.model.main();
        let names = self.dim_names();
        let mut count = 0usize;
        for info in self.model.graph(main).inputs() {
            let declared = info.ty.clone().or_else(|| self.model.value(info.value).ty.clone());
            let ty = declared.map(|ty| open_dims(ty, &names, &mut count));
            self.facts[info.value.index()] = Fact { ty, ..Fact::default() };
        }
        self.graph(main, 0, None);
        self.finish()
    }

    /// Names of sizes that the main graph's inputs declare: fresh ones must differ from these.
    fn dim_names(&self) -> HashSet<String> {
        let inputs = self.model.graph(self.model.main()).inputs();
        let shapes = inputs.iter().filter_map(|info| info.ty.as_ref()?.shape());
        let values = self.declared.iter().flatten().filter_map(|ty| ty.shape());
        shapes
            .chain(values)
            .flatten()
            .filter_map(|dim| match dim {
                Dim::Symbol(name) => Some(name.to_string()),
                _ => None,
            })
            .collect()
    }

    fn finish(mut self) -> (Vec<Fact>, InferReport) {
        for (value, ty) in std::mem::take(&mut self.declared_again) {
            let fact = &self.facts[value.index()];
            if let Some(inferred) = fact.ty.clone()
                && !refine(&inferred, ty).1
            {
                let node = self.model.value(value).producer().map(|(node, _)| node);
                self.contradiction(node, value, ty, inferred);
            }
        }
        // A body is walked once a call: what is wrong in it is wrong once.
        let mut seen = HashSet::new();
        self.problems.retain(|problem| seen.insert((problem.node, problem.value)));
        let mut seen = HashSet::new();
        self.without_rule.retain(|&node| seen.insert(node));

        let mut report = InferReport {
            problems: self.problems,
            without_rule: self.without_rule,
            ..InferReport::default()
        };
        for value in self.model.values() {
            if self.function_graphs.contains(&self.model.value(value).graph()) {
                self.facts[value.index()] = Fact::unknown();
                continue;
            }
            report.values += 1;
            let fact = &self.facts[value.index()];
            if let (Some(_), Some(shape)) = (fact.dtype(), fact.shape()) {
                report.known += usize::from(!shape.contains(&Dim::Unknown));
                report.fixed += usize::from(shape.iter().all(|dim| dim.fixed().is_some()));
            }
        }
        (self.facts, report)
    }

    pub(super) fn problem(&mut self, node: Option<NodeId>, value: Option<ValueId>, kind: ProblemKind) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { node, value, kind, certain: true });
        }
    }

    fn contradiction(&mut self, node: Option<NodeId>, value: ValueId, declared: &Type, inferred: Type) {
        let kind = ProblemKind::Declared { declared: declared.clone(), inferred };
        self.problem(node, Some(value), kind);
    }

    /// Takes that much of the work allowed; false when it is used up.
    fn charge(&mut self, node: NodeId, work: usize) -> bool {
        self.work = self.work.saturating_add(work as u64);
        let nodes = self.model.node_capacity() as u64;
        if self.work > MAX_WORK.saturating_add(nodes.saturating_mul(MAX_WORK_PER_NODE)) && !self.gave_up {
            self.gave_up = true;
            let what = "shape inference stops here: shapes and nested graphs take too much work";
            self.problem(Some(node), None, ProblemKind::Budget(what.into()));
        }
        !self.gave_up
    }

    /// Settles what is known of a value: what was inferred, checked against what is declared.
    pub(super) fn define(&mut self, node: Option<NodeId>, value: ValueId, mut fact: Fact) {
        if let Err(fault) = bound(&mut fact) {
            self.problem(node, Some(value), fault.into());
        }
        if let Some(declared) = self.declared[value.index()] {
            match fact.ty.take() {
                None => fact.ty = Some(normal(declared.clone())),
                Some(inferred) => {
                    let (ty, agrees) = refine(&inferred, declared);
                    fact.ty = Some(ty);
                    if !agrees {
                        self.contradiction(node, value, declared, inferred);
                    }
                }
            }
        }
        self.facts[value.index()] = fact;
    }

    /// Infers a graph whose inputs have their facts already.
    pub(super) fn graph(&mut self, graph: GraphId, depth: usize, frame: Option<&Frame<'_>>) {
        if frame.is_some() {
            self.function_graphs.insert(graph);
        }
        for &value in self.model.graph(graph).initializers() {
            self.initializer(value);
        }
        let opset = self.model.opset_version(graph, "").unwrap_or(i64::MAX);
        let model = self.model;
        for node in model.nodes_of(graph) {
            if frame.is_some() {
                self.function_nodes += 1;
            }
            self.node(node, opset, depth, frame);
        }
    }

    fn initializer(&mut self, value: ValueId) {
        let held = self.model.value(value);
        let fact = match held.initializer() {
            Some(Initializer::Dense(stored)) => {
                // Files of IR version 3 had to list constants as inputs.
                if held.is_input() && self.model.ir_version >= 4 {
                    // Only a default: the declared type holds for what may come in its place.
                    match self.facts[value.index()].ty.is_some() {
                        true => return,
                        false => Fact::of_type(Type::of(&stored.tensor)),
                    }
                } else {
                    Fact::constant(&stored.tensor)
                }
            }
            Some(Initializer::Sparse(sparse)) => {
                let dims = sparse.shape.iter().map(|&size| Dim::Fixed(size)).collect();
                Fact::of_type(Type::SparseTensor(crate::types::TensorType {
                    dtype: Some(sparse.values.tensor.dtype()),
                    shape: Some(dims),
                }))
            }
            None => return,
        };
        self.define(None, value, fact);
    }

    fn node(&mut self, id: NodeId, opset: i64, depth: usize, frame: Option<&Frame<'_>>) {
        let model = self.model;
        let mut node = std::borrow::Cow::Borrowed(model.node(id));
        if let Some(frame) = frame
            && node
                .attributes
                .iter()
                .any(|attribute| matches!(attribute.value, AttributeValue::Reference(..)))
        {
            node = std::borrow::Cow::Owned(resolve(&node, frame));
        }
        let work: usize = node.inputs().iter().flatten().map(|&input| self.size(input)).sum();
        let outputs = if !self.charge(id, 8 + work) {
            Ok(None)
        } else if let Some(function) = self.function(&node) {
            self.call_function(id, &node, function, depth)
        } else if node.domain().is_empty() && super::control::is_control(&node.op_type) {
            super::control::infer(self, id, &node, depth, frame, opset).map(Some)
        } else {
            let inputs: Vec<Option<&Fact>> =
                node.inputs().iter().map(|input| Some(&self.facts[(*input)?.index()])).collect();
            let evaluator: &dyn Evaluator = match frame {
                // The evaluator looks the node up in the model, where its attributes are references.
                Some(_) => &super::NoEvaluator,
                None => self.evaluator,
            };
            apply(model, id, &node, opset, &inputs, evaluator)
        };
        let known = outputs.as_ref().is_ok_and(|outputs| outputs.is_none()) && !self.gave_up;
        if known {
            self.without_rule.push(id);
        }
        let mut outputs = match outputs {
            Ok(outputs) => outputs.unwrap_or_default(),
            Err(fault) => {
                self.problem(Some(id), None, fault.into());
                Vec::new()
            }
        };
        outputs.resize(node.outputs().len(), Fact::unknown());
        for (&value, fact) in node.outputs().iter().zip(outputs) {
            if let Some(value) = value {
                let fact = match &fact.ty {
                    // What a pass said of its own new value is better than nothing.
                    None if self.declared[value.index()].is_none() && frame.is_none() => {
                        Fact { ty: model.value(value).ty.clone(), ..fact }
                    }
                    _ => fact,
                };
                self.define(Some(id), value, fact);
            }
        }
    }

    /// How much looking at a value costs.
    fn size(&self, value: ValueId) -> usize {
        let fact = &self.facts[value.index()];
        let elements = fact.contents.as_ref().map_or(0, |contents| contents.len());
        fact.shape().map_or(0, Vec::len) + elements * WORK_PER_ELEMENT
    }

    fn function(&self, node: &Node) -> Option<&'a Function> {
        if self.functions.is_empty() {
            return None;
        }
        self.functions.get(&(node.domain(), node.op_type.as_str(), node.overload.as_str())).copied()
    }

    fn call_function(
        &mut self,
        id: NodeId,
        node: &Node,
        function: &'a Function,
        depth: usize,
    ) -> Outcome<Option<Vec<Fact>>> {
        if depth >= MAX_DEPTH {
            return Err(Fault::TooLarge(format!("functions call each other more than {MAX_DEPTH} deep")));
        }
        if self.function_nodes > MAX_FUNCTION_NODES {
            if !self.gave_up {
                self.gave_up = true;
                let what = format!(
                    "shape inference stops here: functions expand to over {MAX_FUNCTION_NODES} nodes"
                );
                self.problem(Some(id), None, ProblemKind::Budget(what));
            }
            return Ok(None);
        }
        let attributes: HashMap<String, AttributeValue> = function
            .attributes
            .iter()
            .chain(&node.attributes)
            .map(|attribute| (attribute.name.clone(), attribute.value.clone()))
            .collect();
        let given: Vec<Fact> = node
            .inputs()
            .iter()
            .map(|input| input.map_or_else(Fact::unknown, |v| self.facts[v.index()].clone()))
            .collect();
        let body = self.model.graph(function.graph);
        for (index, info) in body.inputs().iter().enumerate() {
            let fact = given.get(index).cloned().unwrap_or_default();
            self.define(None, info.value, fact);
        }
        self.graph(function.graph, depth + 1, Some(&Frame { attributes: &attributes }));
        Ok(Some(body.outputs().iter().map(|info| self.facts[info.value.index()].clone()).collect()))
    }
}

/// The node with references to the function's attributes replaced by what the call says.
fn resolve(node: &Node, frame: &Frame<'_>) -> Node {
    let mut node = node.clone();
    node.attributes.retain_mut(|attribute| {
        let AttributeValue::Reference(name, _) = &attribute.value else { return true };
        match frame.attributes.get(name) {
            Some(value) => {
                attribute.value = value.clone();
                true
            }
            None => false,
        }
    });
    node
}

/// Applies the rule of an operator, and computes the outputs where all inputs are known. `None`
/// when there is no rule.
pub(super) fn apply(
    model: &Model,
    id: NodeId,
    node: &Node,
    opset: i64,
    inputs: &[Option<&Fact>],
    evaluator: &dyn Evaluator,
) -> Outcome<Option<Vec<Fact>>> {
    let Some(rule) = super::rule(node.domain(), &node.op_type) else { return Ok(None) };
    let mut outputs = rule(&Call { node, opset, inputs })?;
    outputs.resize(node.outputs().len(), Fact::unknown());
    for fact in &mut outputs {
        bound(fact)?;
    }
    let small = |fact: &Fact| {
        let shape = fact.ty.as_ref().and_then(Type::fixed_shape);
        shape.map_or(SMALL_ANYWAY.contains(&node.op_type.as_str()), |shape| {
            crate::tensor::element_count(&shape).is_some_and(|count| count <= MAX_CONTENTS)
        })
    };
    let wanted = outputs.iter().any(|fact| fact.tensor.is_none()) && outputs.iter().all(small);
    if wanted && !inputs.is_empty() && !RANDOM.contains(&node.op_type.as_str()) {
        let tensors: Option<Vec<Option<Tensor>>> =
            inputs.iter().map(|input| input.map_or(Some(None), |fact| fact.whole().map(Some))).collect();
        if let Some(tensors) = tensors {
            let tensors: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
            for (fact, tensor) in
                outputs.iter_mut().zip(evaluator.evaluate(model, id, &tensors).unwrap_or_default())
            {
                let computed = Fact::constant(&tensor);
                let (Some(found), agrees) = (&computed.ty, fact.ty.as_ref()) else { continue };
                if agrees.is_none_or(|inferred| refine(inferred, found).1) {
                    *fact = computed;
                }
            }
        }
    }
    Ok(Some(outputs))
}

/// Takes back what is too large to be true.
fn bound(fact: &mut Fact) -> Outcome<()> {
    let Some(Type::Tensor(tensor)) = &mut fact.ty else { return Ok(()) };
    let Some(shape) = &mut tensor.shape else { return Ok(()) };
    if shape.len() > MAX_RANK {
        let what = format!("{} dimensions, of at most {MAX_RANK}", shape.len());
        tensor.shape = None;
        fact.contents = None;
        fact.tensor = None;
        return Err(Fault::TooLarge(what));
    }
    if shape.iter().any(|dim| dim.fixed() == Some(0)) {
        return Ok(());
    }
    let mut fixed = shape.iter().filter_map(Dim::fixed);
    let count = fixed.try_fold(1i64, |count, size| count.checked_mul(i64::try_from(size).ok()?));
    if count.is_none() {
        let what = format!("shape {} has more elements than can be addressed", super::dims::show(shape));
        *shape = unknowns(shape.len());
        fact.contents = None;
        return Err(Fault::TooLarge(what));
    }
    Ok(())
}

/// A declared type with its dimensions in normal form.
fn normal(ty: Type) -> Type {
    map_dims(ty, &mut |dim| named(&dim))
}

/// The same with a fresh symbol for each size left open.
fn open_dims(ty: Type, names: &HashSet<String>, count: &mut usize) -> Type {
    let mut fresh = |dim: Dim| match named(&dim) {
        Dim::Unknown => loop {
            let name = format!("unknown_{count}");
            *count += 1;
            if !names.contains(&name) {
                break Dim::symbol(&name);
            }
        },
        known => known,
    };
    match ty {
        Type::Tensor(_) => map_dims(ty, &mut fresh),
        // The elements of a sequence need not be of one size.
        other => normal(other),
    }
}

fn map_dims(ty: Type, change: &mut dyn FnMut(Dim) -> Dim) -> Type {
    match ty {
        Type::Tensor(mut tensor) => {
            tensor.shape = tensor.shape.map(|shape| shape.into_iter().map(change).collect());
            Type::Tensor(tensor)
        }
        Type::SparseTensor(mut tensor) => {
            tensor.shape = tensor.shape.map(|shape| shape.into_iter().map(change).collect());
            Type::SparseTensor(tensor)
        }
        Type::Sequence(element) => Type::Sequence(Box::new(map_dims(*element, change))),
        Type::Optional(element) => Type::Optional(Box::new(map_dims(*element, change))),
        Type::Map(key, value) => Type::Map(key, Box::new(map_dims(*value, change))),
        opaque => opaque,
    }
}
