//! Removing nodes that give back their input.

use optix_ir::{DType, Model, NodeId, ValueId};
use optix_pipeline::{Cx, Family, Named, Pass, PassError, Promises, Requires};
use schemars::JsonSchema;
use serde::Deserialize;

/// Removes nodes that give back their input unchanged: Identity, Dropout at inference, Cast to the type
/// it has, Reshape and Expand to the shape it has, Transpose in the order it has, Pad by nothing, Concat
/// of one, Slice of everything.
///
/// A node between an input and an output of the model stays: both keep their names.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[2, 3] x) => (float[2, 3] y, float[2, 3] same)
/// {
///     a = Identity (x)
///     b = Transpose <perm = [0, 1]> (a)
///     y = Relu (b)
///     same = Identity (x)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[2, 3] x) => (float[2, 3] y, float[2, 3] same)
/// {
///     y = Relu (x)
///     same = Identity (x)
/// }
/// ```
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct EliminateIdentity {}

impl Named for EliminateIdentity {
    const NAME: &'static str = "eliminate-identity";
    const FAMILY: Family = Family::Clean;
}

impl Pass for EliminateIdentity {
    fn requires(&self) -> Requires {
        Requires { inferred_types: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises::CLEAN
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let order: Vec<NodeId> = model.walk().collect();
        for id in order {
            let Some(input) = identity_of(model, id) else { continue };
            let Some(output) = model.node(id).output(0) else { continue };
            // A constant that takes over an output's name would turn the output into an initializer.
            let constant = model.value(input).initializer().is_some()
                && model.value(output).uses().iter().any(|used| matches!(used, optix_ir::Use::Output(..)));
            if constant || model.check_replacement(output, input).is_err() {
                cx.skip(model, id, "it joins two names of the model's interface");
                continue;
            }
            if !cx.may_edit("remove-identity") {
                return Ok(());
            }
            model.replace_value(output, input)?;
            cx.count(&format!("{} removed", model.node(id).op_type), 1);
            model.remove_node(id)?;
        }
        Ok(())
    }
}

/// The input that a node gives back unchanged.
fn identity_of(model: &Model, id: NodeId) -> Option<ValueId> {
    let node = model.node(id);
    if !node.domain().is_empty() {
        return None;
    }
    let input = node.input(0)?;
    let output = node.output(0)?;
    let ty = |value: ValueId| model.value(value).ty.as_ref();
    let same_fixed_shape = || {
        let (before, after) = (ty(input)?.fixed_shape()?, ty(output)?.fixed_shape()?);
        Some(before == after)
    };
    let ints = |slot: usize| model.constant(node.input(slot)?)?.to_i64s().ok();
    let others_unused =
        node.outputs().iter().skip(1).flatten().all(|&output| model.value(output).uses().is_empty());
    let same = match node.op_type.as_str() {
        "Identity" => true,
        "Dropout" => {
            let training = match node.input(2) {
                None => false,
                Some(flag) => model.constant(flag)?.bools().ok()?.first() != Some(&false),
            };
            !training && others_unused
        }
        "Cast" => DType::from_onnx(i32::try_from(node.int("to")?).ok()?)? == ty(input)?.dtype()?,
        "Reshape" => {
            let rank = ty(input)?.shape()?.len();
            // All dimensions copied (zeros), or a fixed shape that stays.
            let copies = || Some(node.int("allowzero").unwrap_or(0) == 0 && ints(1)? == vec![0; rank]);
            same_fixed_shape().unwrap_or(false) || copies().unwrap_or(false)
        }
        "Expand" => same_fixed_shape()?,
        "Flatten" => ty(input)?.shape()?.len() == 2 && node.int("axis").unwrap_or(1) == 1,
        "Transpose" => node.ints("perm")?.iter().enumerate().all(|(index, &axis)| axis == index as i64),
        "Pad" => {
            let pads = match node.ints("pads") {
                Some(pads) => pads.to_vec(),
                None => ints(1)?,
            };
            pads.iter().all(|&pad| pad == 0)
        }
        "Concat" => node.inputs().len() == 1,
        "Slice" if node.inputs().len() >= 3 => {
            let steps = if node.input(4).is_some() { ints(4)? } else { vec![1] };
            steps.iter().all(|&step| step == 1) && same_fixed_shape()?
        }
        _ => false,
    };
    same.then_some(input)
}
