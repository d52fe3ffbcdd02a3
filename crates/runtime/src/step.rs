//! One node of a plan: its kernels, and how they are run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use optix_ir::{Node, Tensor, ValueId};
use optix_ops::{Call, Datum, DatumCall, DatumKernel, Kernel, OpError};

use crate::case::case;
use crate::control::Control;
use crate::device::kernels::Run;
use crate::device::{self, DeviceCall, DevicePlace, RtValue};
use crate::error::RuntimeError;
use crate::guard::{guarded, out_of_memory};
use crate::kernels::buffers::Buffers;
use crate::kernels::job::{Applied, Chain, Job};
use crate::kernels::{Fast, Prepared};
use crate::math::threads;
use crate::plan::Slot;
use crate::profile::recorder::Recorder;
use crate::profile::{NodeFacts, Ran};

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
    /// What it does when it has bodies.
    pub control: Option<Box<Control>>,
    /// Slots of graphs around it that its bodies read.
    pub captures: Vec<Slot>,
    pub fast: Option<Chosen>,
    pub reference: Option<Kernel>,
    pub datum: Option<DatumKernel>,
    pub device: Option<Run>,
    /// What computed it last: the number of a [`Ran`].
    pub ran: AtomicU8,
}

/// Where and with what steps are run.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Threads for host kernels; the calling one alone when missing.
    pub pool: Option<&'a rayon::ThreadPool>,
    /// The device, when there is one beside the host.
    pub device: Option<&'a DevicePlace>,
    /// Where host kernels' results get their memory.
    pub buffers: &'a Arc<Buffers>,
    /// Who times the steps, in a timed run.
    pub recorder: Option<&'a Recorder>,
}

/// The fast kernel of a step.
pub(crate) enum Chosen {
    Plain(fn(&Job<'_>) -> Fast),
    Prepared(Box<dyn Prepared>),
}

impl Step {
    /// Every slot it reads: its inputs, and what its bodies capture.
    pub(crate) fn reads(&self) -> impl Iterator<Item = Slot> {
        self.inputs.iter().flatten().chain(&self.captures).copied()
    }

    /// What computed the step when it was last run.
    pub(crate) fn ran(&self) -> Ran {
        if self.control.is_some() {
            return Ran::Body;
        }
        let last = self.ran.load(Ordering::Relaxed);
        [Ran::Fast, Ran::Device].into_iter().find(|ran| *ran as u8 == last).unwrap_or(Ran::Reference)
    }

    /// The node that it computes.
    pub(crate) fn facts(&self) -> NodeFacts {
        let name = if self.node.name.is_empty() { self.label.clone() } else { self.node.name.clone() };
        let (op_type, domain) = (self.node.op_type.clone(), self.node.domain().to_owned());
        NodeFacts { name, op_type, domain }
    }

    fn note(&self, ran: Ran) {
        self.ran.store(ran as u8, Ordering::Relaxed);
    }

    /// Computes the step on values that are not all tensors.
    fn run_datum(&self, inputs: &[Option<&RtValue>], run: DatumKernel) -> Result<Vec<RtValue>, RuntimeError> {
        let outputs = guarded(|| {
            let inputs: Vec<Option<Datum>> = inputs
                .iter()
                .map(|input| input.map(RtValue::to_datum).transpose())
                .collect::<Result<_, _>>()?;
            let inputs: Vec<Option<&Datum>> = inputs.iter().map(Option::as_ref).collect();
            run(&DatumCall { node: &self.node, opset: self.opset, inputs: &inputs })
        });
        Ok(self.name_errors(outputs)?.into_iter().map(RtValue::from).collect())
    }

    /// Whether there is more than the reference kernel.
    pub(crate) fn has_fast_kernel(&self) -> bool {
        self.fast.is_some()
    }

    /// Computes the step: the fast kernel, and the reference where there is none or it declines. Says what
    /// became of the chain.
    fn compute(
        &self,
        inputs: &[Option<&Tensor>],
        buffers: &Arc<Buffers>,
        chain: Option<Chain<'_>>,
    ) -> Result<(Vec<Tensor>, Applied), OpError> {
        let call = Call::new(&self.node, self.opset, inputs);
        let job = Job::new(call, buffers, chain);
        let fast = match &self.fast {
            Some(Chosen::Plain(run)) => run(&job)?,
            Some(Chosen::Prepared(kernel)) => kernel.run(&job)?,
            None => None,
        };
        self.note(if fast.is_some() { Ran::Fast } else { Ran::Reference });
        match (fast, self.reference) {
            (Some(outputs), _) => Ok((outputs, job.applied())),
            (None, Some(run)) => Ok((run(&call)?, Applied::No)),
            (None, None) => Err(call.unsupported("this combination of types, shapes and attributes")),
        }
    }

    /// The same on this thread or in a pool, with panics turned into errors.
    pub(crate) fn run_on_host(
        &self,
        inputs: &[Option<&Tensor>],
        pool: Option<&rayon::ThreadPool>,
        buffers: &Arc<Buffers>,
        chain: Option<Chain<'_>>,
    ) -> Result<(Vec<Tensor>, Applied), RuntimeError> {
        self.place(inputs, pool, || self.compute(inputs, buffers, chain))
    }

    /// Runs another kernel in the step's name: its one result, and what became of the chain; nothing when
    /// it declines or an input is missing.
    pub(crate) fn run_kernel(
        &self,
        inputs: &[Option<&Tensor>],
        pool: Option<&rayon::ThreadPool>,
        buffers: &Arc<Buffers>,
        chain: Option<Chain<'_>>,
        kernel: &(dyn Fn(&Job<'_>) -> Fast + Sync),
    ) -> Result<Option<(Tensor, Applied)>, RuntimeError> {
        if inputs.iter().any(Option::is_none) {
            return Ok(None);
        }
        self.place(inputs, pool, || {
            let job = Job::new(Call::new(&self.node, self.opset, inputs), buffers, chain);
            let outputs = kernel(&job)?.unwrap_or_default();
            self.note(Ran::Fast);
            Ok(outputs.into_iter().next().map(|output| (output, job.applied())))
        })
    }

    /// Runs a kernel on this thread or in a pool, with panics turned into errors.
    fn place<T: Send>(
        &self,
        inputs: &[Option<&Tensor>],
        pool: Option<&rayon::ThreadPool>,
        kernel: impl FnOnce() -> Result<T, OpError> + Send,
    ) -> Result<T, RuntimeError> {
        /// Bytes of input below which handing a kernel to the pool costs more than it saves.
        const SMALL: usize = 96 << 10;
        let bytes: usize = inputs.iter().flatten().map(|tensor| tensor.bytes().len()).sum();
        let pool = pool.filter(|_| bytes >= SMALL);
        let result = guarded(|| match pool {
            Some(pool) => pool.install(kernel),
            None => threads::serially(kernel),
        });
        self.name_errors(result).map_err(|error| match error {
            RuntimeError::Internal { node, what, case: None } => {
                let inputs: Vec<Option<Tensor>> = inputs.iter().map(|input| input.cloned()).collect();
                let case = case(&self.node, self.opset, &inputs).map(Box::new);
                RuntimeError::Internal { node, what, case }
            }
            error => error,
        })
    }

    fn name_errors<T>(&self, result: Result<Result<T, OpError>, String>) -> Result<T, RuntimeError> {
        match result {
            Ok(Ok(outputs)) => Ok(outputs),
            Ok(Err(source)) => {
                let short = match &source {
                    OpError::NoMemory { .. } => Some(source.to_string()),
                    OpError::Invalid { op, what } if op == device::TRANSFER => out_of_memory(what),
                    _ => None,
                };
                let node = self.label.clone();
                Err(match short {
                    Some(what) => RuntimeError::OutOfMemory { node, what },
                    None => RuntimeError::Node { node, source },
                })
            }
            Err(panic) => {
                let node = self.label.clone();
                Err(match out_of_memory(&panic) {
                    Some(what) => RuntimeError::OutOfMemory { node, what },
                    None => RuntimeError::Internal { node, what: panic, case: None },
                })
            }
        }
    }

    /// A result of this step on the host.
    pub(crate) fn to_host(&self, value: &RtValue) -> Result<Tensor, RuntimeError> {
        self.name_errors(guarded(|| value.to_host()))
    }

    /// What the device makes of the step; `None` when it has no kernel for this form.
    fn run_on_device(
        &self,
        inputs: &[Option<&RtValue>],
        place: &DevicePlace,
    ) -> Result<Option<Vec<device::OnDevice>>, RuntimeError> {
        let Some(kernel) = self.device else { return Ok(None) };
        let call = DeviceCall { node: &self.node, opset: self.opset, inputs, place };
        self.name_errors(guarded(|| Ok(kernel.run(&call))))
    }

    /// Runs the step: on the device where there is one and it has a kernel for this form, else on the
    /// host.
    pub(crate) fn run(
        &self,
        inputs: &[Option<&RtValue>],
        place: Place<'_>,
    ) -> Result<Vec<RtValue>, RuntimeError> {
        let no_tensors = inputs.iter().flatten().any(|value| matches!(value, RtValue::Datum(_)));
        if let Some(run) = self.datum.filter(|_| no_tensors || self.reference.is_none()) {
            self.note(Ran::Reference);
            return self.run_datum(inputs, run);
        }
        if let Some(device) = place.device {
            if let Some(outputs) = self.run_on_device(inputs, device)? {
                self.note(Ran::Device);
                device.tally.on_device(&self.node.op_type);
                return Ok(outputs.into_iter().map(RtValue::Device).collect());
            }
            device.tally.on_host(&self.node.op_type);
        }
        let mut downloaded: Vec<Option<Tensor>> = Vec::new();
        if inputs.iter().flatten().any(|value| value.host().is_none()) {
            for input in inputs {
                let tensor = self.name_errors(guarded(|| input.map(RtValue::to_host).transpose()))?;
                if let (Some(device), Some(RtValue::Device(_)), Some(tensor)) = (place.device, input, &tensor)
                {
                    device.tally.downloaded(tensor.bytes().len());
                }
                downloaded.push(tensor);
            }
        }
        let tensors: Vec<Option<&Tensor>> = match downloaded.is_empty() {
            true => inputs.iter().map(|input| input.and_then(RtValue::host)).collect(),
            false => downloaded.iter().map(Option::as_ref).collect(),
        };
        let (outputs, _) = self.run_on_host(&tensors, place.pool, place.buffers, None)?;
        Ok(outputs.into_iter().map(RtValue::Host).collect())
    }
}
