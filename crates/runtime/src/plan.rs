//! From a model to a flat list of steps: kernels resolved, constants folded and prepared.

use std::collections::HashMap;

use bytes::Bytes;
use optix_ir::{DType, Initializer, Model, Node, NodeId, Tensor, Type, ValueId};
use optix_ops::{Call, Kernel, OpError};

use crate::device::{self, Device, DeviceCall, DeviceKernel, RtValue};
use crate::engine::LoadOptions;
use crate::error::{RuntimeError, Unsupported};
use crate::guard::guarded;
use crate::kernels::{self, Fast, Make, Prepared, Setup};
use crate::math::threads;

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

/// One node, ready to run.
pub(crate) struct Step {
    /// The node, for its operator and attributes.
    pub node: Node,
    /// Version of its operator set.
    pub opset: i64,
    /// How to speak of it.
    pub label: String,
    pub inputs: Vec<Option<Slot>>,
    pub outputs: Vec<Option<(Slot, ValueId)>>,
    fast: Option<Chosen>,
    reference: Option<Kernel>,
    device: Option<DeviceKernel>,
}

/// Where and with what steps are run.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Threads for host kernels; the calling one alone when missing.
    pub pool: Option<&'a rayon::ThreadPool>,
    /// The device, when there is one beside the host.
    pub device: Option<&'a Device>,
}

/// The fast kernel of a step.
enum Chosen {
    Plain(fn(&Call<'_>) -> Fast),
    Prepared(Box<dyn Prepared>),
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

impl Step {
    /// Computes the step: the fast kernel, and the reference where there is none or it declines.
    pub(crate) fn compute(&self, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
        let call = Call::new(&self.node, self.opset, inputs);
        let fast = match &self.fast {
            Some(Chosen::Plain(run)) => run(&call)?,
            Some(Chosen::Prepared(kernel)) => kernel.run(&call)?,
            None => None,
        };
        match (fast, self.reference) {
            (Some(outputs), _) => Ok(outputs),
            (None, Some(run)) => run(&call),
            (None, None) => Err(call.unsupported("this combination of types, shapes and attributes")),
        }
    }

    /// The same on this thread or in a pool, with panics turned into errors.
    pub(crate) fn run_on_host(
        &self,
        inputs: &[Option<&Tensor>],
        pool: Option<&rayon::ThreadPool>,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        /// Bytes of input below which handing a kernel to the pool costs more than it saves.
        const SMALL: usize = 96 << 10;
        let bytes: usize = inputs.iter().flatten().map(|tensor| tensor.bytes().len()).sum();
        let pool = pool.filter(|_| bytes >= SMALL);
        let result = guarded(|| match pool {
            Some(pool) => pool.install(|| self.compute(inputs)),
            None => threads::serially(|| self.compute(inputs)),
        });
        self.name_errors(result)
    }

    fn name_errors<T>(&self, result: Result<Result<T, OpError>, String>) -> Result<T, RuntimeError> {
        match result {
            Ok(Ok(outputs)) => Ok(outputs),
            Ok(Err(source)) => Err(RuntimeError::Node { node: self.label.clone(), source }),
            Err(what) => Err(RuntimeError::Internal { node: self.label.clone(), what }),
        }
    }

    /// A result of this step on the host.
    pub(crate) fn to_host(&self, value: &RtValue) -> Result<Tensor, RuntimeError> {
        self.name_errors(guarded(|| value.to_host()))
    }

    /// Runs the step: on the device where there is one and it has a kernel for this form, else on the
    /// host.
    pub(crate) fn run(
        &self,
        inputs: &[Option<&RtValue>],
        place: Place<'_>,
    ) -> Result<Vec<RtValue>, RuntimeError> {
        if let (Some(device), Some(kernel)) = (place.device, self.device) {
            let call = DeviceCall { node: &self.node, inputs, device };
            if let Some(output) = self.name_errors(guarded(|| Ok(kernel(&call))))? {
                return Ok(vec![RtValue::Device(output)]);
            }
        }
        let mut downloaded: Vec<Option<Tensor>> = Vec::new();
        if inputs.iter().flatten().any(|value| value.host().is_none()) {
            for input in inputs {
                let tensor = self.name_errors(guarded(|| input.map(RtValue::to_host).transpose()))?;
                downloaded.push(tensor);
            }
        }
        let tensors: Vec<Option<&Tensor>> = match downloaded.is_empty() {
            true => inputs.iter().map(|input| input.and_then(RtValue::host)).collect(),
            false => downloaded.iter().map(Option::as_ref).collect(),
        };
        let outputs = self.run_on_host(&tensors, place.pool)?;
        Ok(outputs.into_iter().map(RtValue::Host).collect())
    }
}

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
        let mut builder = Builder { slots: HashMap::new(), constants: Vec::new(), unsupported: Vec::new() };
        let mut inputs = Vec::new();
        for input in graph.inputs() {
            let value = model.value(input.value);
            inputs.push(Input {
                slot: builder.slot(input.value),
                value: input.value,
                name: value.name().to_owned(),
                ty: input.ty.clone(),
                has_default: value.initializer().is_some(),
            });
        }
        // Defaults of inputs are constants of the run, but nothing may be folded from them.
        let mut defaults = Vec::new();
        for &id in graph.initializers() {
            let slot = builder.slot(id);
            let value = model.value(id);
            match value.initializer() {
                Some(Initializer::Dense(stored)) if value.is_input() => {
                    defaults.push((slot, aligned(&stored.tensor)));
                }
                Some(Initializer::Dense(stored)) => builder.set_constant(slot, aligned(&stored.tensor)),
                Some(Initializer::Sparse(_)) => builder.unsupported.push(Unsupported {
                    node: format!("initializer `{}`", value.name()),
                    reason: "sparse tensors are not run".into(),
                }),
                None => {}
            }
        }
        let mut steps = Vec::new();
        let mut budget = options.fold_limit;
        for id in model.nodes_of(model.main()) {
            let Some(step) = builder.step(model, id) else { continue };
            if let Some(outputs) = builder.fold(&step, pool, &mut budget) {
                for (output, tensor) in step.outputs.iter().zip(outputs) {
                    if let Some((slot, _)) = output {
                        builder.set_constant(*slot, tensor);
                    }
                }
            } else {
                steps.push(step);
            }
        }
        if !builder.unsupported.is_empty() {
            return Err(RuntimeError::Unsupported { engine: engine.into(), nodes: builder.unsupported });
        }
        let slot_count = builder.slots.len();
        let mut constants: Vec<(Slot, RtValue)> = builder
            .constants
            .into_iter()
            .enumerate()
            .filter_map(|(slot, tensor)| Some((slot, tensor?)))
            .chain(defaults)
            .map(|(slot, tensor)| (slot, RtValue::constant(tensor)))
            .collect();
        constants.sort_by_key(|(slot, _)| *slot);
        Ok(Plan { steps, inputs, constants, slots: builder.slots, slot_count })
    }

    /// The slot of a value.
    pub(crate) fn slot(&self, value: ValueId) -> Option<Slot> {
        self.slots.get(&value).copied()
    }
}

struct Builder {
    slots: HashMap<ValueId, Slot>,
    /// By slot.
    constants: Vec<Option<Tensor>>,
    unsupported: Vec<Unsupported>,
}

impl Builder {
    fn slot(&mut self, value: ValueId) -> Slot {
        let next = self.slots.len();
        *self.slots.entry(value).or_insert(next)
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
    fn step(&mut self, model: &Model, id: NodeId) -> Option<Step> {
        let node = model.node(id);
        let label = model.describe(id);
        let inputs: Vec<Option<Slot>> =
            node.inputs().iter().map(|input| input.map(|value| self.slot(value))).collect();
        let outputs =
            node.outputs().iter().map(|output| output.map(|value| (self.slot(value), value))).collect();
        let refuse = |builder: &mut Builder, reason: String| {
            builder.unsupported.push(Unsupported { node: label.clone(), reason });
            None
        };
        let Some(opset) = model.opset_of(id) else {
            return refuse(self, format!("the model does not import the operator set `{}`", node.domain()));
        };
        if model.function_of(node).is_some() {
            return refuse(self, "calls of the model's own functions are not run; inline them first".into());
        }
        if node.subgraphs().next().is_some() {
            return refuse(self, "operators with subgraphs are not run".into());
        }
        let reference = optix_ops::find(node.domain(), &node.op_type).filter(|spec| spec.since <= opset);
        let fast = kernels::find(node.domain(), &node.op_type, opset);
        if reference.is_none() && fast.is_none() {
            let domain = if node.domain().is_empty() { String::new() } else { format!("{}.", node.domain()) };
            return refuse(self, format!("no kernel for {domain}{} of operator set {opset}", node.op_type));
        }
        let fast = fast.and_then(|spec| match spec.make {
            Make::Plain(run) => Some(Chosen::Plain(run)),
            Make::Prepared(make) => {
                let constants: Vec<Option<&Tensor>> =
                    inputs.iter().map(|slot| slot.and_then(|slot| self.constant(slot))).collect();
                make(&Setup { node, opset, constants: &constants }).map(Chosen::Prepared)
            }
        });
        Some(Step {
            node: node.clone(),
            opset,
            label,
            inputs,
            outputs,
            fast,
            reference: reference.map(|spec| spec.run),
            device: device::kernels::find(node.domain(), &node.op_type, opset),
        })
    }

    /// The outputs of a step whose inputs are all constant, when they fit the budget. A step that fails is
    /// left for the run, which reports it where it matters.
    fn fold(&self, step: &Step, pool: Option<&rayon::ThreadPool>, budget: &mut usize) -> Option<Vec<Tensor>> {
        if RANDOM.contains(&step.node.op_type.as_str()) {
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
            (*budget).min(16 * inputs.iter().flatten().map(|t| t.bytes().len()).sum::<usize>() + (1 << 20));
        let call = Call { limit: limit as u64, ..Call::new(&step.node, step.opset, &inputs) };
        if step.node.op_type == "ConstantOfShape"
            || step.node.op_type == "Expand"
            || step.node.op_type == "Tile"
        {
            let run = step.reference?;
            let outputs = guarded(|| threads::serially(|| run(&call))).ok()?.ok()?;
            return take(outputs, limit, budget);
        }
        take(step.run_on_host(&inputs, pool).ok()?, limit, budget)
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
