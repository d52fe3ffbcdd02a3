//! Normalization of rows, written out as exporters do: layer normalization
//! (`(x - mean) / sqrt(mean((x - mean)^2) + e)`) and root-mean-square normalization
//! (`x / sqrt(mean(x^2) + e)`), over the last axis.
//!
//! The sums are those of the reduction kernels, in their order, so that the result is theirs to the bit.

use optix_ir::DType;

use super::find::Terrain;
use crate::kernels::job::Job;
use crate::kernels::softmax::{sum, sum_of};
use crate::kernels::{Fast, floats_or_decline, parallel};
use crate::math::simd::vectorized;
use crate::plan::Slot;
use crate::step::Step;

/// A normalization among the steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Norm {
    /// What is normalized.
    pub input: Slot,
    /// Whether the mean is taken off first.
    pub centred: bool,
    /// What is added to the variance.
    pub epsilon: f32,
}

/// The normalization that begins with step `first`, and its steps in order, the last one that whose result
/// is the normalization's.
pub(crate) fn find(
    first: usize,
    terrain: &Terrain<'_>,
    readers: &[Vec<usize>],
) -> Option<(Norm, Vec<usize>)> {
    let steps = terrain.steps;
    let step = |number: usize| &steps[number];
    let output = |number: usize| super::find::output(step(number));
    // The one reader of a step's result, which nobody else sees.
    let follower = |number: usize| -> Option<usize> {
        let slot = output(number).filter(|&slot| !(terrain.kept)(slot))?;
        match readers[slot][..] {
            [reader] => Some(reader),
            _ => None,
        }
    };
    let (centred, input, centre, square, divided) = if is(step(first), "ReduceMean") {
        let input = step(first).inputs.first().copied().flatten()?;
        let centre = follower(first)?;
        if !is(step(centre), "Sub") || operands(step(centre))? != (input, output(first)?) {
            return None;
        }
        let slot = output(centre).filter(|&slot| !(terrain.kept)(slot))?;
        let &[one, other] = &readers[slot][..] else { return None };
        (true, input, Some(centre), one, Some((slot, other)))
    } else {
        (false, step(first).inputs.first().copied().flatten()?, None, first, None)
    };
    let value = divided.map_or(input, |(slot, _)| slot);
    if !squares(step(square), value, terrain) {
        return None;
    }
    let mean = follower(square)?;
    let sum = follower(mean)?;
    let root = follower(sum)?;
    let last = follower(root)?;
    let whole = is(step(mean), "ReduceMean")
        && over_last_axis(step(mean), terrain)
        && (!centred || over_last_axis(step(first), terrain))
        && is(step(sum), "Add")
        && is(step(root), "Sqrt")
        && is(step(last), "Div")
        && operands(step(last)) == Some((value, output(root)?))
        && divided.is_none_or(|(_, other)| other == last);
    if !whole {
        return None;
    }
    let (left, right) = operands(step(sum))?;
    let added = if Some(left) == output(mean) { right } else { left };
    let epsilon = (terrain.constants)(added).filter(|tensor| tensor.len() == 1 && tensor.rank() <= 1)?;
    let epsilon = crate::kernels::floats(epsilon)?[0];
    let members = [Some(first), centre, (square != first).then_some(square)];
    let mut members: Vec<usize> = members.into_iter().flatten().collect();
    members.extend([mean, sum, root, last]);
    members.is_sorted().then_some((Norm { input, centred, epsilon }, members))
}

fn is(step: &Step, op_type: &str) -> bool {
    step.node.domain().is_empty()
        && step.node.op_type == op_type
        && step.opset >= 7
        && step.outputs.len() == 1
}

fn operands(step: &Step) -> Option<(Slot, Slot)> {
    match step.inputs[..] {
        [Some(left), Some(right)] => Some((left, right)),
        _ => None,
    }
}

/// Whether a step squares a value.
fn squares(step: &Step, value: Slot, terrain: &Terrain<'_>) -> bool {
    let Some((left, right)) = operands(step) else { return false };
    let constant = || (terrain.constants)(right).filter(|tensor| tensor.dtype() == DType::F32);
    left == value
        && (is(step, "Mul") && right == value
            || is(step, "Pow") && constant().is_some_and(|two| two.rank() <= 1 && two.single() == Some(2.0)))
}

/// Whether a reduction is over the last axis, which it keeps. An axis counted from the front cannot be
/// told without the rank.
fn over_last_axis(step: &Step, terrain: &Terrain<'_>) -> bool {
    if step.node.int("keepdims").unwrap_or(1) == 0 {
        return false;
    }
    let listed = match (step.node.ints("axes"), step.inputs.get(1).copied().flatten()) {
        (Some(axes), _) => Some(axes.to_vec()),
        (None, Some(slot)) => (terrain.constants)(slot).and_then(|axes| axes.to_i64s().ok()),
        (None, None) => None,
    };
    listed.as_deref() == Some(&[-1])
}

impl Norm {
    /// Normalizes the rows of the job's first input.
    ///
    /// # Errors
    /// Those of a kernel.
    pub(crate) fn run(&self, call: &Job<'_>) -> Fast {
        let input = call.input(0)?;
        let Some(&length) = input.shape().last() else { return Ok(None) };
        if input.is_empty() {
            return Ok(None);
        }
        let elements = floats_or_decline!(input);
        let chain = call.chain(input.shape());
        let mut output = call.scratch(elements.len());
        parallel::rows(&mut output, length, 4, |row, part| {
            let source = &elements[row * length..][..length];
            vectorized(
                #[inline(always)]
                || {
                    let count = length as f32;
                    let mean = if self.centred { sum(source) / count } else { 0.0 };
                    let centre = |x: f32| if self.centred { x - mean } else { x };
                    let variance = sum_of(source, |x| centre(x) * centre(x)) / count;
                    let root = (variance + self.epsilon).sqrt();
                    for (value, &x) in part.iter_mut().zip(source) {
                        *value = centre(x) / root;
                    }
                },
            );
            if let Some(chain) = &chain {
                chain.apply(row * length, part);
            }
        });
        call.one(input.shape().to_vec(), output)
    }
}
