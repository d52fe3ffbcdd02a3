//! 16-bit floating-point numbers in the place of float32.

use optix_ir::{DType, Model};
use optix_pipeline::{Cx, Family, Interface, Named, Numerics, Pass, PassError, Promises, Requires, Topology};
use schemars::JsonSchema;
use serde::Deserialize;

use super::bounds::Bounds;
use super::graph::{Flow, Unit};
use super::plan::{Kept, Level, Problem};
use super::weights::Weights;
use super::{ledger, rewrite, search};
use crate::decided::chosen_nodes;
use crate::names::{check_operators, check_patterns_of};

/// A 16-bit floating-point type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FloatType {
    /// IEEE binary16: 11 bits of precision, up to 65504.
    #[default]
    Float16,
    /// The upper half of float32: 8 bits of precision, the range of float32.
    Bfloat16,
}

impl FloatType {
    fn dtype(self) -> DType {
        match self {
            FloatType::Float16 => DType::F16,
            FloatType::Bfloat16 => DType::BF16,
        }
    }
}

/// Converts float32 weights and computations to 16-bit floats: half the bytes.
///
/// Inputs and outputs stay float32 (`keep-io`), with one cast each. A node stays float32 when the operator
/// set does not give it the 16-bit type, when a constant of it does not fit (beyond 65504, or so small that
/// rounding leaves nothing), and when it is at risk: sums of many elements, squares, exponentials, angles,
/// integers carried in floats, and everything made with a constant beyond the range. Its weights are stored
/// in 16 bits all the same where they fit. Between float32 nodes, what may be either type is chosen so that the
/// casts are as few as possible; all readers of a value share one.
///
/// With calibration data (`--calib`) only nodes whose observed values are at risk stay float32, and the
/// outputs are measured against the float model: when one is not finite or below `min-sqnr-db`, the least set of
/// nodes that mends it is searched for and stays float32 too. The search runs a float32 emulation of the
/// converted model that rounds where it rounds.
///
/// With `weights-only`, every node computes in float32 and only the weights are stored in 16 bits. For
/// onnxruntime's CPU provider, which computes most operators in float32 anyway, that gives the same file size
/// without casts at run time.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[N, 2] x) => (float[N, 2] y)
/// <float[2, 2] w = {1, 0.5, -0.25, 3}, float[2] b = {0.1, 70000}>
/// {
///     a = MatMul (x, w)
///     c = Relu (a)
///     d = MatMul (c, w)
///     [bias] y = Add (d, b)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[N, 2] x) => (float[N, 2] y)
/// <float16[2, 2] w = {1.0, 0.5, -0.25, 3.0}, float[2] b = {0.1, 70000}>
/// {
///     x_f16 = Cast <to = 10> (x)
///     a = MatMul (x_f16, w)
///     c = Relu (a)
///     d = MatMul (c, w)
///     d_f32 = Cast <to = 1> (d)
///     [bias] y = Add (d_f32, b)
/// }
/// ```
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ConvertPrecision {
    /// The 16-bit type.
    #[serde(rename = "type")]
    pub float_type: FloatType,
    /// Let inputs and outputs of the model stay float32.
    pub keep_io: bool,
    /// Convert what is stored and nothing that is computed.
    pub weights_only: bool,
    /// Leave nodes that are at risk in float32. Without it only the types, the weights and the lists decide.
    pub keep_fragile: bool,
    /// Let weights beyond the range of the type become its greatest number, instead of leaving the node in
    /// float32.
    pub clamp_weights: bool,
    /// Convert only these nodes: names, with `*` for any run of characters.
    pub include: Vec<String>,
    /// Convert only nodes with these operators.
    pub include_operators: Vec<String>,
    /// Leave these nodes alone, weights included: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
    /// Leave nodes with these operators alone, weights included.
    pub exclude_operators: Vec<String>,
    /// With calibration data: least signal-to-noise ratio in dB that every output must keep against the
    /// float model.
    pub min_sqnr_db: f64,
    /// With calibration data: samples on which outputs are measured.
    pub search_samples: u64,
    /// With calibration data: most models that the search may try.
    pub search_trials: u64,
    /// With calibration data: values may become so many times as large as seen before they reach the end of
    /// the range.
    pub headroom: f64,
    /// Reductions of more elements than this stay float32.
    pub max_depth: u64,
}

impl Default for ConvertPrecision {
    fn default() -> Self {
        ConvertPrecision {
            float_type: FloatType::default(),
            keep_io: true,
            weights_only: false,
            keep_fragile: true,
            clamp_weights: false,
            include: Vec::new(),
            include_operators: Vec::new(),
            exclude: Vec::new(),
            exclude_operators: Vec::new(),
            min_sqnr_db: 40.0,
            search_samples: 16,
            search_trials: 64,
            headroom: 2.0,
            max_depth: 512,
        }
    }
}

impl Named for ConvertPrecision {
    const NAME: &'static str = "convert-precision";
    const FAMILY: Family = Family::Precision;
}

impl ConvertPrecision {
    fn check(&self, model: &Model) -> Result<(), PassError> {
        check_patterns_of(model, "include", &self.include)?;
        check_patterns_of(model, "exclude", &self.exclude)?;
        check_operators(model, "include-operators", &self.include_operators)?;
        check_operators(model, "exclude-operators", &self.exclude_operators)?;
        if !self.headroom.is_finite() || self.headroom < 1.0 {
            return Err(PassError::Options(format!(
                "`headroom` is {}: it must be at least 1",
                self.headroom
            )));
        }
        if !self.min_sqnr_db.is_finite() {
            return Err(PassError::Options("`min-sqnr-db` must be a number".to_owned()));
        }
        let version = model.opset_version(model.main(), "").unwrap_or(i64::MAX);
        if self.float_type == FloatType::Bfloat16 && version < 13 {
            return Err(PassError::Options(format!(
                "bfloat16 needs operator set 13 and the model is written in {version}: put a step `convert-opset` before it"
            )));
        }
        Ok(())
    }

    /// The nodes that stay float32 because outputs were measured.
    fn searched(&self, problem: &Problem<'_>, with_data: bool, cx: &mut Cx<'_>) -> Result<Kept, PassError> {
        let mut found = Kept::new();
        let nodes = chosen_nodes(problem.model, "kept", cx, |cx| {
            if with_data {
                found = search::search(problem, cx)?;
            }
            Ok(found.iter().map(|(&id, (_, reason))| (id, reason.clone())).collect())
        })?;
        // One search keeps all of them alike.
        let is_whole = found.values().any(|(level, _)| *level == Level::Whole);
        let is_whole = cx.decide("kept-whole", |_| Ok(is_whole))?;
        let level = if is_whole { Level::Whole } else { Level::Computes };
        Ok(nodes.into_iter().map(|(id, reason)| (id, (level, reason))).collect())
    }
}

impl Pass for ConvertPrecision {
    fn requires(&self) -> Requires {
        Requires { calibration: false, inferred_types: true, opset: 6 }
    }

    fn promises(&self) -> Promises {
        let interface = if self.keep_io { Interface::Kept } else { Interface::Retyped };
        Promises { numerics: Numerics::Lossy, interface, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        self.check(model)?;
        let low = self.float_type.dtype();
        let flow = Flow::of(model, self.keep_io);
        if flow.sources.is_empty() {
            return Err(PassError::NothingToDo("the model has no float32 values".to_owned()));
        }
        cx.progress("rounding weights", 0, 0)?;
        let weights = Weights::round(model, flow.constants(), low, self.clamp_weights);
        let depth = self.max_depth as f64;
        let mut bounds = Bounds::of(model, &flow, &weights, self.headroom, depth);
        let with_data = cx.has_calibration();
        let fragile = chosen_nodes(model, "fragile", cx, |cx| {
            if with_data && !self.weights_only {
                let samples = bounds.observe(model, &flow, cx)?;
                cx.count("calibration samples", samples);
            }
            let nodes = flow.units.iter().filter_map(|unit| match unit {
                Unit::Node(id) if self.keep_fragile => Some((*id, bounds.danger(model, *id)?)),
                _ => None,
            });
            Ok(nodes.collect())
        })?;
        let original = model.clone();
        let problem = Problem {
            model: &original,
            flow: &flow,
            weights: &weights,
            bounds: &bounds,
            fragile: &fragile,
            options: self,
        };
        let mut kept = self.searched(&problem, with_data, cx)?;
        let mut plan = problem.solve(&kept);
        // One edit a node, so that a run that stops after so many of them stops between nodes.
        let mut refused = false;
        let converted = plan.converted(&flow).into_iter().map(|id| (id, "convert-node"));
        let stored = plan.stored(&problem).into_iter().map(|id| (id, "store-weights"));
        for (id, label) in converted.chain(stored) {
            if !cx.may_edit(label) {
                refused = true;
                kept.insert(id, (Level::Whole, "stopped before it".to_owned()));
            }
        }
        if refused {
            plan = problem.solve(&kept);
        }
        let done = rewrite::rewrite(model, &problem, &plan)?;
        ledger::record(&problem, &plan, cx);
        cx.count("casts added", done.casts);
        cx.count("casts removed", done.casts_removed);
        cx.count(&format!("constants in {low}"), done.constants);
        if done.constants == 0 && plan.converted(&flow).is_empty() {
            cx.warn("no node of this model could be converted: the reasons are listed");
        }
        Ok(())
    }
}
