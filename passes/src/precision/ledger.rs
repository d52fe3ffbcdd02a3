//! What is said of every node.

use optix_ir::{NodeId, ValueId};
use optix_pipeline::naming::node_and_op;
use optix_pipeline::{Cx, Layer};

use super::graph::{Source, Unit};
use super::operators;
use super::plan::{Fate, Plan, Problem};

/// Bytes of the constants a node reads, before and after.
fn bytes(problem: &Problem<'_>, plan: &Plan, id: NodeId) -> (u64, u64) {
    let (mut before, mut after) = (0, 0);
    for value in problem.model.node(id).inputs().iter().flatten() {
        if let (Some(rounded), Some(Source::Constant)) =
            (problem.weights.get(*value), problem.flow.sources.get(value))
        {
            let small = rounded.tensor.bytes().len() as u64;
            before += 2 * small;
            after += match plan.constant(problem, *value) {
                Fate::Low | Fate::Stored => small,
                Fate::Kept | Fate::Cast | Fate::Copied => 2 * small,
            };
        }
    }
    (before, after)
}

/// The signal-to-noise ratio of all constants of a node that are rounded.
fn weight_sqnr(problem: &Problem<'_>, plan: &Plan, id: NodeId) -> Option<f64> {
    let rounded = |value: &ValueId| {
        let fate = plan.constant(problem, *value);
        problem.weights.get(*value).filter(|_| fate != Fate::Kept)?.sqnr_db
    };
    problem.model.node(id).inputs().iter().flatten().filter_map(rounded).reduce(f64::min)
}

/// Rows of the ledger and reasons of the nodes that stay, and how many of the rest onnxruntime's CPU
/// provider computes in float16 itself.
pub(super) fn record(problem: &Problem<'_>, plan: &Plan, cx: &mut Cx<'_>) {
    let (model, low) = (problem.model, problem.weights.low);
    let (mut converted, mut native) = (0, 0);
    for (id, reason) in &problem.flow.left {
        cx.skip(model, *id, reason.clone());
        let (node, op) = node_and_op(model, *id);
        cx.layer(Layer {
            node,
            op,
            action: "float32".to_owned(),
            reason: Some(reason.clone()),
            ..Layer::default()
        });
    }
    for (unit, what) in problem.flow.units.iter().enumerate() {
        let Unit::Node(id) = *what else { continue };
        let (node, op) = node_and_op(model, id);
        let (before, after) = bytes(problem, plan, id);
        let is_stored = after < before;
        let action = if plan.low[unit] {
            converted += 1;
            native +=
                u64::from(low == optix_ir::DType::F16 && operators::is_native_half(&model.node(id).op_type));
            low.name().to_owned()
        } else if is_stored {
            format!("float32, weights {low}")
        } else {
            "float32".to_owned()
        };
        let mut reason = plan.reasons[unit].clone();
        if let (None, Some(note)) = (&reason, beneath(problem, plan, id)) {
            reason = Some(note);
        }
        if !plan.low[unit] {
            cx.skip(model, id, reason.clone().unwrap_or_default());
        }
        let range = model.node(id).output(0).and_then(|output| problem.bounds.seen(output)?.range);
        let weight_sqnr_db = weight_sqnr(problem, plan, id);
        cx.layer(Layer {
            node,
            op,
            action,
            reason,
            bytes_before: before,
            bytes_after: after,
            weight_sqnr_db,
            range,
            ..Layer::default()
        });
    }
    cx.count(&format!("nodes in {low}"), converted);
    if low == optix_ir::DType::F16 && converted > 0 {
        cx.count("of these with a float16 kernel in onnxruntime's CPU provider", native);
    }
}

/// What is lost in a constant that is converted all the same.
fn beneath(problem: &Problem<'_>, plan: &Plan, id: NodeId) -> Option<String> {
    problem.model.node(id).inputs().iter().flatten().find_map(|value| {
        let rounded = problem.weights.get(*value)?;
        let is_rounded = plan.constant(problem, *value) != Fate::Kept;
        let name = problem.model.value(*value).name();
        let low = problem.weights.low;
        if rounded.clamped && is_rounded {
            return Some(format!("{} elements of `{name}` are clamped to {low}'s range", rounded.over));
        }
        (rounded.under > 0 && is_rounded)
            .then(|| format!("{} elements of `{name}` are beneath {low}'s least number: too small to matter beside the others", rounded.under))
    })
}
