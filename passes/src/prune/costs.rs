//! What models cost, for people, and the sizes that that takes.

use optix_ir::infer::infer;
use optix_ir::{Model, Type, ValueInfo};
use optix_pipeline::check::OpsEvaluator;
use optix_pipeline::{Cx, OracleError, PassError};

/// A number of operations or weights, for people.
pub(super) fn count(number: f64) -> String {
    match number {
        1e9.. => format!("{:.2} G", number / 1e9),
        1e6.. => format!("{:.2} M", number / 1e6),
        1e3.. => format!("{:.1} k", number / 1e3),
        _ => format!("{number:.0}"),
    }
}

/// Whether sizes of an input are not known.
pub(super) fn has_unknown_sizes(input: &ValueInfo) -> bool {
    input.ty.as_ref().is_none_or(|ty| ty.fixed_shape().is_none())
}

/// The model with the shapes of a calibration sample, where there is one: for what it costs.
///
/// # Errors
/// When the data cannot be read.
pub(super) fn fed(model: &Model, cx: &mut Cx<'_>) -> Result<Model, PassError> {
    let mut shaped = model.clone();
    if !cx.has_calibration() || !model.graph(model.main()).inputs().iter().any(has_unknown_sizes) {
        return Ok(shaped);
    }
    let (_, data) = cx.calibration()?;
    let first =
        data.batches(model).map_err(OracleError::from)?.next().transpose().map_err(OracleError::from)?;
    let Some(batch) = first else { return Ok(shaped) };
    let main = model.main();
    for (name, tensor) in &batch.sample(0).unwrap_or(batch).feeds {
        let inputs = model.graph(main).inputs();
        let Some(index) = inputs.iter().position(|info| model.value(info.value).name() == name) else {
            continue;
        };
        let ty = Some(Type::of(tensor));
        shaped.value_mut(inputs[index].value).ty.clone_from(&ty);
        if let Some(info) = shaped.input_info_mut(main, index) {
            info.ty = ty;
        }
    }
    infer(&mut shaped, &OpsEvaluator);
    Ok(shaped)
}
