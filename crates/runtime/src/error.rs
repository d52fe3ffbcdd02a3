//! Why an engine did not load or run a model.

use optix_ops::OpError;
use optix_pipeline::Case;

/// A node that an engine cannot run, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The node: its name and operator, or operator and first output.
    pub node: String,
    /// The reason.
    pub reason: String,
}

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.node, self.reason)
    }
}

fn list(nodes: &[Unsupported]) -> String {
    nodes.iter().map(Unsupported::to_string).collect::<Vec<_>>().join("; ")
}

/// Why an engine did not load or run a model.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Some nodes cannot be run: all of them, so that one attempt tells the whole story.
    #[error("engine {engine} cannot run {} of the model's nodes: {}", nodes.len(), list(nodes))]
    Unsupported {
        /// The engine.
        engine: String,
        /// The nodes, in execution order.
        nodes: Vec<Unsupported>,
    },
    /// The feeds do not fit the model's inputs.
    #[error("input `{input}`: {what}")]
    Feed {
        /// The input's name.
        input: String,
        /// What is wrong, and what is expected.
        what: String,
    },
    /// A value was asked for that the loaded plan does not compute.
    #[error("value `{0}` is not computed by the main graph of this model")]
    UnknownValue(String),
    /// An engine that is a library of its own refused a model or a run; what it says is its own.
    #[error("{engine} refuses: {what}")]
    Refused {
        /// The engine.
        engine: String,
        /// What it says.
        what: String,
    },
    /// A sequence or optional value where a tensor was asked for.
    #[error("the value of {node} is {kind}, not a tensor")]
    NotATensor {
        /// The node that computes it.
        node: String,
        /// What it is.
        kind: &'static str,
    },
    /// A node refused its inputs.
    #[error("node {node}: {source}")]
    Node {
        /// The node.
        node: String,
        /// What it says.
        source: OpError,
    },
    /// A kernel or a library under it panicked: an error of ours, not of the model.
    #[error("internal error in node {node}: {what}")]
    Internal {
        /// The node.
        node: String,
        /// What the panic said.
        what: String,
        /// The node on its own, where it can be cut out.
        case: Option<Box<Case>>,
    },
    /// There is no memory for a node's values, on the device or beside it.
    #[error(
        "node {node}: memory ran out: {what}; feed fewer samples at once, smaller inputs, or use `--engine cpu`"
    )]
    OutOfMemory {
        /// The node.
        node: String,
        /// What was asked for, as far as that is known.
        what: String,
    },
    /// The machine is at fault: threads, memory, a device.
    #[error("{0}")]
    Environment(String),
    /// A visitor asked to stop; the reason is its own.
    #[error("stopped: {0}")]
    Stopped(String),
}
