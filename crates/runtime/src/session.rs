//! Running a plan.

use std::sync::Arc;

use optix_ir::{Tensor, ValueId};

use crate::device::{Device, RtValue, synchronize};
use crate::engine::{Session, Visit};
use crate::error::RuntimeError;
use crate::plan::{Input, Place, Plan, Slot};

/// A loaded model.
pub(crate) struct PlanSession {
    plan: Plan,
    pool: Option<rayon::ThreadPool>,
    device: Option<Device>,
    required: Vec<(ValueId, String)>,
    /// The last run's schedule: mostly the next one's too.
    schedule: Option<Arc<Schedule>>,
}

/// What a run for certain wanted values does.
struct Schedule {
    wanted: Vec<ValueId>,
    /// By slot: the wanted value there.
    visits: Vec<Option<ValueId>>,
    /// Steps that are needed.
    active: Vec<bool>,
    /// By slot: how often active steps read it.
    uses: Vec<u32>,
}

impl PlanSession {
    /// A session that runs a plan with a pool's threads, on a device where it has kernels for one.
    pub(crate) fn new(plan: Plan, pool: Option<rayon::ThreadPool>, device: Option<Device>) -> PlanSession {
        let required = plan
            .inputs
            .iter()
            .filter(|input| !input.has_default)
            .map(|input| (input.value, input.name.clone()))
            .collect();
        PlanSession { plan, pool, device, required, schedule: None }
    }

    fn schedule(&mut self, wanted: &[ValueId]) -> Result<Arc<Schedule>, RuntimeError> {
        if let Some(schedule) = self.schedule.as_ref().filter(|schedule| schedule.wanted == wanted) {
            return Ok(schedule.clone());
        }
        let plan = &self.plan;
        let mut visits = vec![None; plan.slot_count];
        let mut needed = vec![false; plan.slot_count];
        for &value in wanted {
            let slot = plan.slot(value).ok_or_else(|| RuntimeError::UnknownValue(format!("{value:?}")))?;
            visits[slot] = Some(value);
            needed[slot] = true;
        }
        let mut active = vec![false; plan.steps.len()];
        let mut uses = vec![0u32; plan.slot_count];
        for (index, step) in plan.steps.iter().enumerate().rev() {
            if step.outputs.iter().flatten().any(|(slot, _)| needed[*slot]) {
                active[index] = true;
                for &slot in step.inputs.iter().flatten() {
                    needed[slot] = true;
                    uses[slot] += 1;
                }
            }
        }
        let schedule = Arc::new(Schedule { wanted: wanted.to_vec(), visits, active, uses });
        self.schedule = Some(schedule.clone());
        Ok(schedule)
    }

    /// Checks a feed against what the model declares.
    fn check(input: &Input, tensor: &Tensor) -> Result<(), RuntimeError> {
        let complain = |what: String| Err(RuntimeError::Feed { input: input.name.clone(), what });
        let Some(ty) = input.ty.as_ref() else { return Ok(()) };
        let Some(declared) = ty.as_tensor() else {
            return complain(format!("is declared as {ty}, which this engine does not run"));
        };
        if declared.dtype.is_some_and(|dtype| dtype != tensor.dtype()) {
            return complain(format!("expects {declared}, but {} elements are fed", tensor.dtype()));
        }
        let fits = declared.shape.as_ref().is_none_or(|shape| {
            shape.len() == tensor.rank()
                && shape.iter().zip(tensor.shape()).all(|(dim, &size)| dim.admits(size))
        });
        if fits {
            Ok(())
        } else {
            complain(format!("expects {declared}, but shape {:?} is fed", tensor.shape()))
        }
    }
}

impl Session for PlanSession {
    fn run_with(
        &mut self,
        feeds: &[(ValueId, Tensor)],
        wanted: &[ValueId],
        visit: Visit<'_>,
    ) -> Result<(), RuntimeError> {
        let schedule = self.schedule(wanted)?;
        let plan = &self.plan;
        let mut values: Vec<Option<RtValue>> = vec![None; plan.slot_count];
        for (slot, value) in &plan.constants {
            values[*slot] = Some(value.clone());
        }
        for (value, tensor) in feeds {
            let input =
                plan.inputs.iter().find(|input| input.value == *value).ok_or_else(|| RuntimeError::Feed {
                    input: format!("{value:?}"),
                    what: "is not an input of the model".into(),
                })?;
            Self::check(input, tensor)?;
            values[input.slot] = Some(RtValue::Host(tensor.clone()));
        }
        let needed = |slot: Slot| schedule.uses[slot] > 0 || schedule.visits[slot].is_some();
        for input in &plan.inputs {
            if values[input.slot].is_none() && needed(input.slot) {
                let names: Vec<&str> = self.required.iter().map(|(_, name)| name.as_str()).collect();
                return Err(RuntimeError::Feed {
                    input: input.name.clone(),
                    what: format!("is not fed; the model's inputs are {}", names.join(", ")),
                });
            }
        }
        for (held, visited) in values.iter().zip(&schedule.visits) {
            if let (Some(value), Some(tensor)) = (*visited, held.as_ref().and_then(RtValue::host)) {
                visit(value, tensor)?;
            }
        }
        let place = Place { pool: self.pool.as_ref(), device: self.device.as_ref() };
        let mut uses = schedule.uses.clone();
        for (step, _) in plan.steps.iter().zip(&schedule.active).filter(|(_, active)| **active) {
            let inputs: Vec<Option<&RtValue>> =
                step.inputs.iter().map(|slot| slot.and_then(|slot| values[slot].as_ref())).collect();
            let outputs = step.run(&inputs, place)?;
            for slot in step.inputs.iter().flatten().copied() {
                uses[slot] -= 1;
                if uses[slot] == 0 {
                    values[slot] = None;
                }
            }
            for (output, value) in step.outputs.iter().zip(outputs) {
                let Some((slot, _)) = *output else { continue };
                if let Some(id) = schedule.visits[slot] {
                    visit(id, &step.to_host(&value)?)?;
                }
                if uses[slot] > 0 {
                    values[slot] = Some(value);
                }
            }
        }
        match &self.device {
            Some(device) => synchronize(device).map_err(RuntimeError::Environment),
            None => Ok(()),
        }
    }

    fn required_inputs(&self) -> &[(ValueId, String)] {
        &self.required
    }
}
