//! Values of a run, each with the number of the batch that it belongs to.

use std::cell::Cell;

use optix_ir::{Model, Tensor, ValueId};
use optix_pipeline::{Batch, Batches, Cx, OracleError, PassError};

/// Looks at a value of the batch with that number, from 0.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(usize, ValueId, &Tensor) -> Result<(), OracleError>;

/// Runs a model over batches as [`Cx::observe_batches`] does, of which `total` are to come, and shows `visit`
/// every wanted value with the number of its batch.
///
/// # Errors
/// As [`Cx::observe_batches`].
pub(crate) fn observe(
    (what, total): (&str, usize),
    model: &Model,
    wanted: &[ValueId],
    batches: &mut dyn Iterator<Item = Batch>,
    cx: &mut Cx<'_>,
    visit: Visit<'_>,
) -> Result<(), PassError> {
    // Values of a batch are shown before the next one is asked for.
    let given = Cell::new(0usize);
    let counted: Batches<'_> = &mut batches.map(|batch| {
        given.set(given.get() + 1);
        Ok(batch)
    });
    cx.observe_batches(what, total as u64, model, wanted, counted, &mut |value, tensor| {
        visit(given.get() - 1, value, tensor)
    })?;
    Ok(())
}
