//! Where the time of a run goes: what every step costs and how long it took.
//!
//! The embedded engines put a clock around every step of their plan ([`recorder`]); onnxruntime writes a
//! profile of its own, which [`library`] reads. What a step should cost at best follows from the sizes of
//! its tensors ([`cost`]) and from what the machine can do ([`roofline()`]).

pub(crate) mod cost;
pub(crate) mod library;
pub(crate) mod recorder;
mod roofline;

pub use roofline::{Roofline, roofline};

/// A node of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name; for a node without one, its operator and first output.
    pub name: String,
    /// Its operator.
    pub op_type: String,
    /// The domain of the operator; empty for the standard one.
    pub domain: String,
}

/// What computed a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// A reference kernel of `optix_ops` on the host.
    Reference,
    /// A kernel made for speed.
    Fast,
    /// A kernel on the device.
    Device,
    /// Bodies of control flow or of a local function, whose nodes count inside it.
    Body,
    /// A kernel of the library that the engine is.
    Library,
}

impl Ran {
    /// How tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Ran::Fast => "fast",
            Ran::Reference => "reference",
            Ran::Device => "device",
            Ran::Body => "body",
            Ran::Library => "library",
        }
    }
}

/// A step of a run: what an engine executes as one piece.
#[derive(Clone, Debug, PartialEq)]
pub struct StepFacts {
    /// The nodes that it computes: several where an engine has fused them.
    pub nodes: Vec<NodeFacts>,
    /// The operator that was executed: a node's own, or the engine's name for what it made of several.
    pub op_type: String,
    /// What computed it.
    pub ran: Ran,
    /// Types and shapes of what went in; none for inputs left out.
    pub inputs: Vec<Option<String>>,
    /// Types and shapes of what came out.
    pub outputs: Vec<String>,
    /// Arithmetic operations, a multiply-add counted as two; `None` where no formula is known.
    pub flops: Option<u64>,
    /// Bytes of the tensors that it reads.
    pub bytes_read: u64,
    /// Bytes of the tensors that it writes.
    pub bytes_written: u64,
}

/// A step and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTimes {
    /// What it is.
    pub facts: StepFacts,
    /// Seconds, one figure a timed run; 0 where a run did not reach it.
    pub seconds: Vec<f64>,
    /// When it started: seconds after the start of the run, one figure a timed run.
    pub at: Vec<f64>,
}

/// What the timed runs of a session tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// The steps, in order of execution.
    pub steps: Vec<StepTimes>,
    /// Nodes computed once, when the model was loaded.
    pub folded: Vec<NodeFacts>,
    /// Seconds of each timed run from feeds to results, the clock's own cost included.
    pub runs: Vec<f64>,
    /// Most bytes that computed values took at once.
    pub activations: Option<u64>,
    /// Bytes of the constants that runs use: weights and what was folded.
    pub constants: Option<u64>,
    /// Seconds a step that measuring was found to add and that were taken off again; 0 where the clock is
    /// as good as free.
    pub clock: f64,
}
