//! Computing ahead what does not depend on the input.

use optix_base::Budget;
use optix_ir::{Model, NodeId, Tensor, ValueId};
use optix_pipeline::{Cx, Family, Named, Pass, PassError, Promises, Requires};
use schemars::JsonSchema;
use serde::Deserialize;

/// Computes nodes whose inputs are all constant, with the reference kernels, and turns Constant nodes into
/// initializers. Shape and Size of values with a known shape count as constant.
///
/// What would make the file larger is left alone: a small file that expands into large tensors stays
/// small. Quantizers of weights stay too, folding them would undo the quantization.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// scaled (float[2, 3] x) => (float[2, 3] y)
/// <float a = {2}>
/// {
///     b = Constant <value = float {0.5}> ()
///     c = Mul (a, b)
///     y = Mul (x, c)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// scaled (float[2, 3] x) => (float[2, 3] y)
/// <float c = {1}>
/// {
///     y = Mul (x, c)
/// }
/// ```
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct FoldConstants {
    /// Fold a node that makes more bytes than it reads only up to so many bytes.
    pub max_growth: u64,
}

impl Default for FoldConstants {
    fn default() -> Self {
        FoldConstants { max_growth: 4096 }
    }
}

impl Named for FoldConstants {
    const NAME: &'static str = "fold-constants";
    const FAMILY: Family = Family::Clean;
}

/// Operators that are never folded: they mark how constants are stored.
const KEPT: &[&str] = &["QuantizeLinear", "DequantizeLinear"];

impl Pass for FoldConstants {
    fn requires(&self) -> Requires {
        Requires { inferred_types: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises::CLEAN
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let mut budget = Budget::new(cx.limits());
        // Callers see inner graphs of functions as they were: shapes differ from call to call.
        let order: Vec<NodeId> = model.walk().collect();
        let mut replaced: Vec<ValueId> = Vec::new();
        for (index, &id) in order.iter().enumerate() {
            if index % 1024 == 0 {
                cx.progress("folding constants", index as u64, order.len() as u64)?;
            }
            let node = model.node(id);
            if !super::is_pure(model, node)
                || node.subgraphs().next().is_some()
                || KEPT.contains(&node.op_type.as_str())
            {
                continue;
            }
            let Some(outputs) = self.evaluate(model, id, &mut budget, cx) else { continue };
            let counter = if model.node(id).is("Constant") {
                "Constant nodes turned into initializers"
            } else {
                "nodes folded"
            };
            let results: Vec<(ValueId, Tensor)> = model
                .node(id)
                .outputs()
                .iter()
                .zip(outputs)
                .filter_map(|(value, t)| Some(((*value)?, t)))
                .collect();
            // The output of the model stays computed by a node.
            let is_output = |value: ValueId| {
                model.value(value).uses().iter().any(|used| matches!(used, optix_ir::Use::Output(..)))
            };
            if results.iter().any(|(value, _)| is_output(*value)) {
                cx.skip(model, id, "its result is an output of a graph");
                continue;
            }
            if !cx.may_edit("fold") {
                break;
            }
            let inputs: Vec<ValueId> = model.node(id).inputs().iter().flatten().copied().collect();
            let graph = model.node(id).graph();
            let mut named = Vec::new();
            for (value, tensor) in results {
                let name = model.value(value).name().to_owned();
                let constant = model.add_constant(graph, &name, tensor);
                model.replace_value(value, constant)?;
                named.push((constant, name));
            }
            model.remove_node(id)?;
            for (constant, name) in named {
                // Free again, unless another graph has the name too.
                let _ = model.rename_value(constant, &name);
            }
            replaced.extend(inputs);
            cx.count(counter, 1);
        }
        crate::quantize::drop_unused(model, replaced);
        Ok(())
    }
}

impl FoldConstants {
    /// The outputs of a node that can be folded.
    fn evaluate(
        &self,
        model: &Model,
        id: NodeId,
        budget: &mut Budget,
        cx: &mut Cx<'_>,
    ) -> Option<Vec<Tensor>> {
        let node = model.node(id);
        if let Some(tensor) = static_shape(model, id) {
            return Some(vec![tensor]);
        }
        let mut inputs: Vec<Option<&Tensor>> = Vec::with_capacity(node.inputs().len());
        for input in node.inputs() {
            inputs.push(match input {
                None => None,
                Some(input) => Some(model.constant(*input)?),
            });
        }
        let is_constant = node.is("Constant");
        if node.inputs().is_empty() && !is_constant {
            return None;
        }
        if restores_a_weight(model, id) {
            cx.skip(model, id, "it turns a weight back that is stored in fewer bits");
            return None;
        }
        let read: u64 = inputs.iter().flatten().map(|tensor| tensor.bytes().len() as u64).sum();
        let expected: Option<u64> = node
            .outputs()
            .iter()
            .flatten()
            .map(|&value| {
                let ty = model.value(value).ty.as_ref()?;
                let count = optix_ir::element_count(&ty.fixed_shape()?)?;
                ty.dtype()?.byte_len(count).map(|bytes| bytes as u64)
            })
            .sum();
        let allowed = read.max(self.max_growth);
        if !is_constant && expected.is_some_and(|bytes| bytes > allowed) {
            cx.skip(
                model,
                id,
                format!("its result would take {} bytes more", expected.unwrap_or(0).saturating_sub(read)),
            );
            return None;
        }
        let outputs = match node.tensor("value") {
            Some(value) if is_constant => vec![value.clone()],
            _ => {
                let opset = model.opset_of(id).unwrap_or(i64::MAX);
                match optix_ops::evaluate_limited(node, opset, &inputs, allowed.max(1 << 16)) {
                    Ok(outputs) => outputs,
                    Err(error) => {
                        cx.skip(model, id, error.to_string());
                        return None;
                    }
                }
            }
        };
        let made: u64 = outputs.iter().map(|tensor| tensor.bytes().len() as u64).sum();
        if !is_constant && made > allowed {
            cx.skip(model, id, format!("its result would take {} bytes more", made - read));
            return None;
        }
        let complete = outputs.len() >= node.outputs().len()
            || node.outputs()[outputs.len()..].iter().all(Option::is_none);
        if !is_constant && let Err(error) = budget.fold(made) {
            cx.skip(model, id, error.to_string());
            return None;
        }
        complete.then_some(outputs)
    }
}

/// Elements from which on a constant is a weight that somebody has made small.
const WEIGHT: usize = 64;

/// Whether a node makes a constant of more bits out of one of fewer: folding it would undo what
/// quantization or a smaller float type has saved.
fn restores_a_weight(model: &Model, id: NodeId) -> bool {
    let node = model.node(id);
    let bits = |value: Option<ValueId>| {
        let tensor = model.constant(value?)?;
        (tensor.len() >= WEIGHT).then(|| tensor.dtype().bits())
    };
    let wide = node.output(0).and_then(|value| model.value(value).ty.as_ref()?.dtype());
    node.is("Cast") && bits(node.input(0)).is_some_and(|bits| bits < wide.map_or(32, |wide| wide.bits()))
}

/// The result of Shape or Size on a value whose shape is known ahead.
fn static_shape(model: &Model, id: NodeId) -> Option<Tensor> {
    let node = model.node(id);
    if !node.is("Shape") && !node.is("Size") {
        return None;
    }
    let shape = model.value(node.input(0)?).ty.as_ref()?.fixed_shape()?;
    if node.is("Size") {
        return Some(Tensor::scalar(i64::try_from(optix_ir::element_count(&shape)?).ok()?));
    }
    let rank = shape.len() as i64;
    let clamp = |axis: i64| (if axis < 0 { axis + rank } else { axis }).clamp(0, rank) as usize;
    let (start, end) = (clamp(node.int("start").unwrap_or(0)), clamp(node.int("end").unwrap_or(rank)));
    let dims: Vec<i64> = shape.get(start..end.max(start))?.iter().map(|&dim| dim as i64).collect();
    Some(Tensor::from_i64s(&dims))
}
