//! From a model to a flat list of steps: kernels resolved, constants folded and prepared.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use optix_ir::{AttributeValue, DType, GraphId, Initializer, Model, Node, NodeId, Tensor, Type, ValueId};
use optix_ops::Call;

use crate::control::{Body, Control};
use crate::device::{self, RtValue};
use crate::engine::LoadOptions;
use crate::error::{RuntimeError, Unsupported};
use crate::fuse::{Terrain, arrange};
use crate::guard::guarded;
use crate::kernels::{self, Make, Setup};
use crate::math::threads;
use crate::profile::NodeFacts;
use crate::step::{Chosen, Step};

/// Where a value lives in a run: an index into its table of values.
pub(crate) type Slot = usize;

/// A model ready to run.
pub(crate) struct Plan {
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// Graph inputs.
    pub inputs: Vec<Input>,
    /// Constants: initializers and folded values, in slot order.
    pub constants: Vec<(Slot, RtValue)>,
    /// The slot of every value of the main graph.
    slots: HashMap<ValueId, Slot>,
    /// Number of slots.
    pub slot_count: usize,
    /// Nodes computed when the plan was made.
    pub folded: Vec<NodeFacts>,
}

/// An input of the model.
pub(crate) struct Input {
    pub slot: Slot,
    pub value: ValueId,
    pub name: String,
    pub ty: Option<Type>,
    /// Whether an initializer gives a default.
    pub has_default: bool,
}

/// Operators whose result is not a function of their inputs: never folded.
const RANDOM: &[&str] = &[
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
];

/// Most nodes of a plan, local functions expanded: beyond that a file is hostile.
const MOST_STEPS: usize = 4 << 20;

/// Deepest nesting of bodies and calls.
const DEEPEST: usize = 64;

#[cfg(test)]
mod tests;

impl Plan {
    /// Plans the main graph of a model for the host.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] with every node that cannot be run.
    pub(crate) fn new(
        model: &Model,
        options: &LoadOptions,
        engine: &str,
        pool: Option<&rayon::ThreadPool>,
    ) -> Result<Plan, RuntimeError> {
        let graph = model.graph(model.main());
        let mut builder = Builder {
            model,
            pool,
            slots: HashMap::new(),
            constants: Vec::new(),
            defaults: Vec::new(),
            unsupported: Vec::new(),
            budget: options.fold_limit,
            steps_left: MOST_STEPS,
            fuse: options.fuse,
            scopes: 0,
            folded: Vec::new(),
        };
        let mut inputs = Vec::new();
        for input in graph.inputs() {
            let value = model.value(input.value);
            inputs.push(Input {
                slot: builder.slot(0, input.value),
                value: input.value,
                name: value.name().to_owned(),
                ty: input.ty.clone(),
                has_default: value.initializer().is_some(),
            });
        }
        let steps = builder.steps(model.main(), &Scope { number: 0, call: None, depth: 0 });
        if !builder.unsupported.is_empty() {
            return Err(RuntimeError::Unsupported { engine: engine.into(), nodes: builder.unsupported });
        }
        let slot_count = builder.slots.len();
        let mut constants: Vec<(Slot, RtValue)> = builder
            .constants
            .into_iter()
            .enumerate()
            .filter_map(|(slot, tensor)| Some((slot, tensor?)))
            .chain(builder.defaults)
            .map(|(slot, tensor)| (slot, RtValue::constant(tensor)))
            .collect();
        constants.sort_by_key(|(slot, _)| *slot);
        let main = |value: ValueId| model.value(value).graph() == model.main();
        let slots = builder.slots.into_iter().filter(|((scope, value), _)| *scope == 0 && main(*value));
        let slots = slots.map(|((_, value), slot)| (value, slot)).collect();
        Ok(Plan { steps, inputs, constants, slots, slot_count, folded: builder.folded })
    }

    /// The slot of a value.
    pub(crate) fn slot(&self, value: ValueId) -> Option<Slot> {
        self.slots.get(&value).copied()
    }
}

struct Builder<'a> {
    model: &'a Model,
    pool: Option<&'a rayon::ThreadPool>,
    /// Of each value in each scope.
    slots: HashMap<(usize, ValueId), Slot>,
    /// By slot.
    constants: Vec<Option<Tensor>>,
    /// Defaults of inputs: constants of the run, but nothing may be folded from them.
    defaults: Vec<(Slot, Tensor)>,
    unsupported: Vec<Unsupported>,
    /// Bytes that folded constants may still take.
    budget: usize,
    /// Steps that may still be planned.
    steps_left: usize,
    /// Whether bodies are arranged with chains.
    fuse: bool,
    /// Number of the last scope.
    scopes: usize,
    /// Nodes computed already.
    folded: Vec<NodeFacts>,
}

/// Where nodes are planned: the main graph and what is within it, or one call of a local function. The
/// values of each call have slots of their own.
#[derive(Clone, Copy)]
struct Scope<'a> {
    number: usize,
    /// The calling node, whose attributes the function's nodes may refer to.
    call: Option<&'a Node>,
    /// How deep bodies and calls are nested.
    depth: usize,
}

impl Builder<'_> {
    fn slot(&mut self, scope: usize, value: ValueId) -> Slot {
        let next = self.slots.len();
        *self.slots.entry((scope, value)).or_insert(next)
    }

    /// The steps of a graph; what can be folded becomes constant.
    fn steps(&mut self, graph: GraphId, scope: &Scope<'_>) -> Vec<Step> {
        let model = self.model;
        for &id in model.graph(graph).initializers() {
            let slot = self.slot(scope.number, id);
            let value = model.value(id);
            match value.initializer() {
                Some(Initializer::Dense(stored)) if value.is_input() => {
                    self.defaults.push((slot, aligned(&stored.tensor)));
                }
                Some(Initializer::Dense(stored)) => self.set_constant(slot, aligned(&stored.tensor)),
                Some(Initializer::Sparse(_)) => self.unsupported.push(Unsupported {
                    node: format!("initializer `{}`", value.name()),
                    reason: "sparse tensors are not run".into(),
                }),
                None => {}
            }
        }
        let mut steps = Vec::new();
        for id in model.nodes_of(graph) {
            let Some(step) = self.step(id, scope) else { continue };
            if let Some(outputs) = self.fold(&step) {
                for (output, tensor) in step.outputs.iter().zip(outputs) {
                    if let Some((slot, _)) = output {
                        self.set_constant(*slot, tensor);
                    }
                }
                self.folded.push(step.facts());
            } else {
                steps.push(step);
            }
        }
        steps
    }

    /// The body that a graph makes, and the slots of graphs around it that it reads.
    fn body(&mut self, graph: GraphId, scope: &Scope<'_>) -> (Body, Vec<Slot>) {
        let model = self.model;
        let values = |infos: &[optix_ir::ValueInfo]| infos.iter().map(|info| info.value).collect::<Vec<_>>();
        let inputs: Vec<Slot> = values(model.graph(graph).inputs())
            .into_iter()
            .map(|value| self.slot(scope.number, value))
            .collect();
        let steps = self.steps(graph, scope);
        let outputs: Vec<Slot> = values(model.graph(graph).outputs())
            .into_iter()
            .map(|value| self.slot(scope.number, value))
            .collect();
        let mut own = vec![false; self.slots.len()];
        let made = steps.iter().flat_map(|step| step.outputs.iter().flatten().map(|(slot, _)| *slot));
        made.chain(inputs.iter().copied()).for_each(|slot| own[slot] = true);
        let outside = |slot: &Slot| !own[*slot] && self.constant(*slot).is_none();
        let mut captures: Vec<Slot> =
            steps.iter().flat_map(Step::reads).chain(outputs.iter().copied()).filter(outside).collect();
        captures.sort_unstable();
        captures.dedup();
        outputs.iter().for_each(|&slot| own[slot] = false);
        let route = arrange(&Terrain {
            steps: &steps,
            active: None,
            kept: &|slot| outputs.contains(&slot),
            own: &|slot| own[slot],
            constants: &|slot| self.constant(slot),
            cuts: &BTreeSet::new(),
            slot_count: self.slots.len(),
            fuse: self.fuse,
        });
        let types = optix_ops::output_types(model, graph);
        (Body { steps, route, inputs, outputs, types }, captures)
    }

    /// The bodies of a control-flow operator or a call, and what they capture; nothing for other nodes.
    fn control(
        &mut self,
        node: &Node,
        inputs: &[Option<Slot>],
        scope: &Scope<'_>,
    ) -> Result<Option<(Control, Vec<Slot>)>, String> {
        let deeper = Scope { depth: scope.depth + 1, ..*scope };
        let function = self.model.function_of(node).map(|function| function.graph);
        if function.is_none() && node.subgraphs().next().is_none() {
            return Ok(None);
        }
        if deeper.depth > DEEPEST {
            return Err(format!("bodies and calls are nested more than {DEEPEST} deep"));
        }
        if let Some(graph) = function {
            self.scopes += 1;
            let (body, _) = self.body(graph, &Scope { number: self.scopes, call: Some(node), ..deeper });
            return Ok(Some((Control::Call(body), Vec::new())));
        }
        let graph = |name: &str| match node.attribute(name) {
            Some(AttributeValue::Graph(graph)) => Ok(*graph),
            _ => Err(format!("it has no graph `{name}`")),
        };
        let kind: fn(Body) -> Control = match node.op_type.as_str() {
            _ if !node.domain().is_empty() => return Ok(None),
            "If" => {
                let known = inputs.first().copied().flatten().and_then(|slot| self.constant(slot));
                let known = known.and_then(|tensor| tensor.bools().ok()?.first().copied());
                let mut branch = |name: &str, taken: bool| -> Result<(Option<Body>, Vec<Slot>), String> {
                    if known.is_some_and(|known| known != taken) {
                        return Ok((None, Vec::new()));
                    }
                    let (body, captures) = self.body(graph(name)?, &deeper);
                    Ok((Some(body), captures))
                };
                let (then, mut captures) = branch("then_branch", true)?;
                let (otherwise, more) = branch("else_branch", false)?;
                captures.extend(more);
                return Ok(Some((Control::If { then, otherwise }, captures)));
            }
            "Loop" => Control::Loop,
            "Scan" => Control::Scan,
            "SequenceMap" => Control::Map,
            _ => return Ok(None),
        };
        let (body, captures) = self.body(graph("body")?, &deeper);
        Ok(Some((kind(body), captures)))
    }

    fn set_constant(&mut self, slot: Slot, tensor: Tensor) {
        if self.constants.len() <= slot {
            self.constants.resize(slot + 1, None);
        }
        self.constants[slot] = Some(tensor);
    }

    fn constant(&self, slot: Slot) -> Option<&Tensor> {
        self.constants.get(slot)?.as_ref()
    }

    /// Resolves the kernels of a node; notes why when there are none.
    fn step(&mut self, id: NodeId, scope: &Scope<'_>) -> Option<Step> {
        let model = self.model;
        let node = optix_ops::with_bindings(model, model.node(id), scope.call).into_owned();
        let label = model.describe(id);
        let inputs: Vec<Option<Slot>> =
            node.inputs().iter().map(|input| input.map(|value| self.slot(scope.number, value))).collect();
        let outputs = node.outputs().iter();
        let outputs =
            outputs.map(|output| output.map(|value| (self.slot(scope.number, value), value))).collect();
        let refuse = |builder: &mut Builder<'_>, reason: String| {
            builder.unsupported.push(Unsupported { node: label.clone(), reason });
            None
        };
        match self.steps_left.checked_sub(1) {
            Some(left) => self.steps_left = left,
            // Said once: every further node would say it again.
            None if self.unsupported.is_empty() => {
                return refuse(self, format!("its functions expand to more than {MOST_STEPS} nodes"));
            }
            None => return None,
        }
        let Some(opset) = model.opset_of(id) else {
            return refuse(self, format!("the model does not import the operator set `{}`", node.domain()));
        };
        let (control, captures) = match self.control(&node, &inputs, scope) {
            Ok(Some((control, captures))) => (Some(Box::new(control)), captures),
            Ok(None) => (None, Vec::new()),
            Err(reason) => return refuse(self, reason),
        };
        let reference = optix_ops::find(node.domain(), &node.op_type).filter(|spec| spec.since <= opset);
        let datum = optix_ops::find_datum(node.domain(), &node.op_type, opset);
        let fast = kernels::find(node.domain(), &node.op_type, opset);
        if control.is_none() && reference.is_none() && fast.is_none() && datum.is_none() {
            let domain = if node.domain().is_empty() { String::new() } else { format!("{}.", node.domain()) };
            return refuse(self, format!("no kernel for {domain}{} of operator set {opset}", node.op_type));
        }
        let fast = fast.and_then(|spec| match spec.make {
            Make::Plain(run) => Some(Chosen::Plain(run)),
            Make::Prepared(make) => {
                let constants: Vec<Option<&Tensor>> =
                    inputs.iter().map(|slot| slot.and_then(|slot| self.constant(slot))).collect();
                make(&Setup { node: &node, opset, constants: &constants }).map(Chosen::Prepared)
            }
        });
        let device = device::kernels::find(node.domain(), &node.op_type, opset);
        Some(Step {
            node,
            opset,
            label,
            inputs,
            outputs,
            control,
            captures,
            fast,
            reference: reference.map(|spec| spec.run),
            datum,
            device,
            ran: Default::default(),
        })
    }

    /// The outputs of a step whose inputs are all constant, when they fit the budget. A step that fails is
    /// left for the run, which reports it where it matters.
    fn fold(&mut self, step: &Step) -> Option<Vec<Tensor>> {
        let only_datum = step.reference.is_none() && step.fast.is_none();
        if step.control.is_some() || only_datum || RANDOM.contains(&step.node.op_type.as_str()) {
            return None;
        }
        let mut inputs = Vec::with_capacity(step.inputs.len());
        for slot in &step.inputs {
            match slot {
                None => inputs.push(None),
                Some(slot) => inputs.push(Some(self.constant(*slot)?)),
            }
        }
        // What makes much from little (a shape, say) would only cost memory.
        let limit =
            self.budget.min(16 * inputs.iter().flatten().map(|t| t.bytes().len()).sum::<usize>() + (1 << 20));
        let call = Call { limit: limit as u64, ..Call::new(&step.node, step.opset, &inputs) };
        if step.node.op_type == "ConstantOfShape"
            || step.node.op_type == "Expand"
            || step.node.op_type == "Tile"
        {
            let run = step.reference?;
            let outputs = guarded(|| threads::serially(|| run(&call))).ok()?.ok()?;
            return take(outputs, limit, &mut self.budget);
        }
        // What is folded stays: its memory is not that of a run.
        let (outputs, _) = step.run_on_host(&inputs, self.pool, &Default::default(), None).ok()?;
        take(outputs, limit, &mut self.budget)
    }
}

fn take(outputs: Vec<Tensor>, limit: usize, budget: &mut usize) -> Option<Vec<Tensor>> {
    let bytes: usize = outputs.iter().map(|tensor| tensor.bytes().len()).sum();
    if bytes > limit {
        return None;
    }
    *budget -= bytes;
    Some(outputs)
}

/// The tensor with a payload that can be read in place: kernels would otherwise copy it in every run.
pub(crate) fn aligned(tensor: &Tensor) -> Tensor {
    let width = match tensor.dtype() {
        DType::String => return tensor.clone(),
        dtype => (dtype.bits() / 8).clamp(1, 8),
    };
    if (tensor.bytes().as_ptr() as usize).is_multiple_of(width) {
        return tensor.clone();
    }
    // Allocations of this size are aligned for every element type.
    let words: Vec<u64> = bytemuck::pod_collect_to_vec(tensor.bytes());
    let bytes = Bytes::from_owner(Words(words)).slice(..tensor.bytes().len());
    Tensor::new(tensor.dtype(), tensor.shape(), bytes).unwrap_or_else(|_| tensor.clone())
}

struct Words(Vec<u64>);

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}
