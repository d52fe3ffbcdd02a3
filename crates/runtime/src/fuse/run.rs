//! Running a chain.

use optix_ir::Tensor;

use super::find::{Group, Root};
use super::norm::Norm;
use super::program::Source;
use crate::control::Values;
use crate::device::RtValue;
use crate::error::RuntimeError;
use crate::kernels::job::{Applied, Chain};
use crate::step::{Place, Step};

impl Group {
    /// The step whose result the group's is.
    pub(crate) fn last<'s>(&self, steps: &'s [Step]) -> &'s Step {
        &steps[self.members[self.members.len() - 1]]
    }

    /// Whether it computes a normalization in place of the nodes that write it out.
    pub(crate) fn is_norm(&self) -> bool {
        matches!(self.root, Root::Norm(_))
    }

    /// Runs the root with the chain, or the members one after the other where that cannot be.
    pub(crate) fn run(
        &self,
        steps: &[Step],
        values: &mut Values,
        place: Place<'_>,
    ) -> Result<RtValue, RuntimeError> {
        let result = match &self.root {
            Root::Step => self.run_root(&steps[self.members[0]], values, place)?,
            Root::Norm(norm) => self.run_norm(*norm, self.last(steps), values, place)?,
        };
        let mut left = &self.members[..];
        match result {
            Some((output, Applied::Yes)) => return Ok(RtValue::Host(output)),
            Some((output, applied)) => {
                if let Applied::Misfit(step) = applied {
                    self.misfit.get_or_init(|| step);
                }
                let before = self.members.len() - self.chain;
                let root = &steps[self.members[before - 1]];
                if let Some(slot) = super::find::output(root) {
                    values[slot] = Some(RtValue::Host(output));
                    left = &self.members[before..];
                }
            }
            None => {}
        }
        for &member in left {
            for (slot, value) in steps[member].run_in(values, place)? {
                values[slot] = Some(value);
            }
        }
        let missing = || RuntimeError::Environment("a chain did not compute its result".into());
        values[self.output].take().ok_or_else(missing)
    }

    /// The root's result and whether the chain is in it; nothing when not all inputs are tensors on the
    /// host.
    fn run_root(
        &self,
        root: &Step,
        values: &Values,
        place: Place<'_>,
    ) -> Result<Option<(Tensor, Applied)>, RuntimeError> {
        let mut inputs: Vec<Option<&Tensor>> = Vec::with_capacity(root.inputs.len());
        for slot in &root.inputs {
            match slot.map(|slot| values[slot].as_ref()) {
                None => inputs.push(None),
                Some(value) => match value.and_then(RtValue::host) {
                    Some(tensor) => inputs.push(Some(tensor)),
                    None => return Ok(None),
                },
            }
        }
        let tensors = self.tensors(values);
        let chain = Chain { program: &self.program, tensors: &tensors };
        let (outputs, applied) = root.run_on_host(&inputs, place.pool, place.buffers, Some(chain))?;
        Ok(outputs.into_iter().next().map(|output| (output, applied)))
    }

    /// The same with a normalization as the root; `step` is who answers for errors. Nothing when what is
    /// normalized is not a tensor of 32-bit floats on the host.
    fn run_norm(
        &self,
        norm: Norm,
        step: &Step,
        values: &Values,
        place: Place<'_>,
    ) -> Result<Option<(Tensor, Applied)>, RuntimeError> {
        let input = values[norm.input].as_ref().and_then(RtValue::host);
        let tensors = self.tensors(values);
        let chain = Chain { program: &self.program, tensors: &tensors };
        step.run_kernel(&[input], place.pool, place.buffers, Some(chain), &|job| norm.run(job))
    }

    /// The tensors that the program reads, by input.
    fn tensors<'v>(&self, values: &'v Values) -> Vec<Option<&'v Tensor>> {
        let read = |source: &Source| match source {
            Source::Slot(slot) => values[*slot].as_ref().and_then(RtValue::host),
            Source::Channels(_) => None,
        };
        self.program.inputs.iter().map(|input| read(&input.source)).collect()
    }
}
