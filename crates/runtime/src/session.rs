//! Running a plan.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use optix_ir::{Tensor, Type, ValueId};
use optix_ops::Datum;

use crate::control::walk;
use crate::device::{Device, DevicePlace, Placement, RtValue, Tally, synchronize};
use crate::engine::{Session, Visit, collect};
use crate::error::RuntimeError;
use crate::fuse::{Item, Route, Terrain, arrange};
use crate::kernels::buffers::Buffers;
use crate::plan::{Input, Plan, Slot};
use crate::predict::peak;
use crate::profile::Times;
use crate::profile::recorder::Recorder;
use crate::step::{Place, Step};

/// A loaded model.
pub(crate) struct PlanSession {
    plan: Arc<Plan>,
    pool: Option<Arc<rayon::ThreadPool>>,
    device: Option<DevicePlace>,
    required: Vec<(ValueId, String)>,
    /// Schedules of runs so far: mostly one of them is the next one's too.
    schedules: Vec<Arc<Schedule>>,
    /// Memory for results, kept from run to run.
    buffers: Arc<Buffers>,
    /// Whether chains of operators are fused.
    fuse: bool,
    /// Steps that turned out not to fit a chain.
    cuts: BTreeSet<usize>,
    /// What timed runs have seen.
    recorder: Option<Recorder>,
    /// Seconds of each timed run.
    timed: Vec<f64>,
}

/// Schedules that are kept: training block by block asks for the gradients of one after the other.
const SCHEDULES: usize = 256;

/// What a run for certain wanted values does.
struct Schedule {
    wanted: Vec<ValueId>,
    /// By slot: the wanted value there.
    visits: Vec<Option<ValueId>>,
    /// By slot: whether a step that is needed reads it.
    read: Vec<bool>,
    /// What is run.
    route: Route,
}

impl PlanSession {
    /// A session that runs a plan with a pool's threads, on a device where it has kernels for one.
    /// Chains of operators are fused on the host when `fuse` is set.
    pub(crate) fn new(
        plan: Arc<Plan>,
        pool: Option<rayon::ThreadPool>,
        device: Option<Device>,
        fuse: bool,
    ) -> PlanSession {
        let fuse = fuse && device.is_none();
        let required = plan
            .inputs
            .iter()
            .filter(|input| !input.has_default)
            .map(|input| (input.value, input.name.clone()))
            .collect();
        let device = device.map(|device| DevicePlace { device, tally: Tally::default() });
        PlanSession {
            plan,
            pool: pool.map(Arc::new),
            device,
            required,
            schedules: Vec::new(),
            buffers: Arc::default(),
            fuse,
            cuts: BTreeSet::new(),
            recorder: None,
            timed: Vec::new(),
        }
    }

    fn schedule(&mut self, wanted: &[ValueId]) -> Result<Arc<Schedule>, RuntimeError> {
        if let Some(schedule) = self.schedules.iter().find(|schedule| schedule.wanted == wanted) {
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
        let mut read = vec![false; plan.slot_count];
        for (index, step) in plan.steps.iter().enumerate().rev() {
            if step.outputs.iter().flatten().any(|(slot, _)| needed[*slot]) {
                active[index] = true;
                for slot in step.reads() {
                    needed[slot] = true;
                    read[slot] = true;
                }
            }
        }
        // Constants stay: bodies read them too, and a run's reference to them costs nothing.
        let mut passing = vec![true; plan.slot_count];
        plan.constants.iter().for_each(|(slot, _)| passing[*slot] = false);
        // A default can be fed over: it is no constant here.
        let mut constants: Vec<Option<&Tensor>> = vec![None; plan.slot_count];
        for (slot, value) in &plan.constants {
            constants[*slot] = value.host();
        }
        plan.inputs.iter().for_each(|input| constants[input.slot] = None);
        let route = arrange(&Terrain {
            steps: &plan.steps,
            active: Some(&active),
            kept: &|slot| visits[slot].is_some(),
            own: &|slot| passing[slot],
            constants: &|slot| constants[slot],
            cuts: &self.cuts,
            slot_count: plan.slot_count,
            fuse: self.fuse,
        });
        let schedule = Arc::new(Schedule { wanted: wanted.to_vec(), visits, read, route });
        if self.schedules.len() == SCHEDULES {
            // The newest: whoever asks for more in turn still finds the others.
            self.schedules.pop();
        }
        self.schedules.push(schedule.clone());
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

/// Sees a wanted value: the step that computed it, if one did.
type See<'a> = &'a mut dyn FnMut(ValueId, Option<&Step>, &RtValue) -> Result<(), RuntimeError>;

impl PlanSession {
    /// Does something on a thread of the pool, where there is one: from there, each kernel reaches the other
    /// threads without waking this one up in between.
    fn in_pool<T: Send>(&mut self, body: impl FnOnce(&mut PlanSession) -> T + Send) -> T {
        match self.pool.clone() {
            Some(pool) => pool.install(|| body(self)),
            None => body(self),
        }
    }

    fn run_values(
        &mut self,
        feeds: impl IntoIterator<Item = (ValueId, RtValue)>,
        wanted: &[ValueId],
        recorder: Option<&Recorder>,
        see: See<'_>,
    ) -> Result<(), RuntimeError> {
        let schedule = self.schedule(wanted)?;
        let plan = &self.plan;
        let mut values: Vec<Option<RtValue>> = vec![None; plan.slot_count];
        for (slot, value) in &plan.constants {
            values[*slot] = Some(value.clone());
        }
        for (value, fed) in feeds {
            let input =
                plan.inputs.iter().find(|input| input.value == value).ok_or_else(|| RuntimeError::Feed {
                    input: format!("{value:?}"),
                    what: "is not an input of the model".into(),
                })?;
            match &fed {
                RtValue::Host(tensor) => Self::check(input, tensor)?,
                RtValue::Datum(datum) => Self::check_datum(input, datum)?,
                RtValue::Device(_) | RtValue::Constant(_) => {}
            }
            values[input.slot] = Some(fed);
        }
        let needed = |slot: Slot| schedule.read[slot] || schedule.visits[slot].is_some();
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
            if let (Some(value), Some(held)) = (*visited, held) {
                see(value, None, held)?;
            }
        }
        let place = Place {
            pool: self.pool.as_deref(),
            device: self.device.as_ref(),
            buffers: &self.buffers,
            recorder,
        };
        let mut watch = |step: &Step, slot: Slot, value: &RtValue| match schedule.visits[slot] {
            Some(id) => see(id, Some(step), value),
            None => Ok(()),
        };
        walk(&plan.steps, &schedule.route, &mut values, place, &mut watch)?;
        let misfits = schedule.route.items.iter().filter_map(|item| match item {
            Item::Group(group) => group.misfit.get().copied(),
            Item::Step(_) => None,
        });
        let known = self.cuts.len();
        self.cuts.extend(misfits);
        if self.cuts.len() > known {
            self.schedules.clear();
        }
        match &self.device {
            Some(place) => synchronize(&place.device).map_err(RuntimeError::Environment),
            None => Ok(()),
        }
    }

    /// Checks a fed sequence or optional value against what the model declares.
    fn check_datum(input: &Input, datum: &Datum) -> Result<(), RuntimeError> {
        let fits = match (&input.ty, datum) {
            (Some(Type::Sequence(_)), Datum::Sequence(_)) | (Some(Type::Optional(_)) | None, _) => true,
            (Some(_), _) => false,
        };
        let ty = input.ty.as_ref().map(ToString::to_string).unwrap_or_default();
        let what = || format!("expects {ty}, but {} is fed", datum.kind());
        if fits { Ok(()) } else { Err(RuntimeError::Feed { input: input.name.clone(), what: what() }) }
    }
}

/// Hands a value on to a visitor of tensors.
fn show(visit: Visit<'_>, id: ValueId, step: Option<&Step>, value: &RtValue) -> Result<(), RuntimeError> {
    match (value, step) {
        (RtValue::Datum(datum), _) => {
            let label = step.map_or_else(|| "an input".to_owned(), |step| step.label.clone());
            Err(RuntimeError::NotATensor { node: label, kind: datum.kind() })
        }
        (value, Some(step)) => visit(id, &step.to_host(value)?),
        (value, None) => value.host().map_or(Ok(()), |tensor| visit(id, tensor)),
    }
}

/// Feeds as values of a run.
fn on_host(feeds: &[(ValueId, Tensor)]) -> impl Iterator<Item = (ValueId, RtValue)> + Clone {
    feeds.iter().map(|(value, tensor)| (*value, RtValue::Host(tensor.clone())))
}

impl Session for PlanSession {
    fn run_with(
        &mut self,
        feeds: &[(ValueId, Tensor)],
        wanted: &[ValueId],
        visit: Visit<'_>,
    ) -> Result<(), RuntimeError> {
        self.run_values(on_host(feeds), wanted, None, &mut |id, step, value| show(visit, id, step, value))
    }

    fn run(&mut self, feeds: &[(ValueId, Tensor)], wanted: &[ValueId]) -> Result<Vec<Tensor>, RuntimeError> {
        self.in_pool(|session| collect(wanted, |visit| session.run_with(feeds, wanted, visit)))
    }

    fn execute(&mut self, feeds: &[(ValueId, Tensor)], wanted: &[ValueId]) -> Result<(), RuntimeError> {
        self.in_pool(|session| session.run_with(feeds, wanted, &mut |_, _| Ok(())))
    }

    fn run_data(
        &mut self,
        feeds: &[(ValueId, Datum)],
        wanted: &[ValueId],
    ) -> Result<Vec<Datum>, RuntimeError> {
        let mut found: Vec<Option<Datum>> = vec![None; wanted.len()];
        let feeds = feeds.iter().map(|(value, datum)| (*value, RtValue::from(datum.clone())));
        self.run_values(feeds, wanted, None, &mut |id, step, value| {
            let datum = value.to_datum().map_err(|source| RuntimeError::Node {
                node: step.map_or_else(|| "an input".to_owned(), |step| step.label.clone()),
                source,
            })?;
            for (place, _) in found.iter_mut().zip(wanted).filter(|(_, wanted)| **wanted == id) {
                *place = Some(datum.clone());
            }
            Ok(())
        })?;
        let missing = || RuntimeError::Environment("the engine did not compute a wanted value".into());
        found.into_iter().map(|datum| datum.ok_or_else(missing)).collect()
    }

    fn run_timed(&mut self, feeds: &[(ValueId, Tensor)], wanted: &[ValueId]) -> Result<(), RuntimeError> {
        /// Schedules that may turn out not to fit before one does.
        const TRIES: usize = 8;
        self.in_pool(|session| {
            let mut recorder = session.recorder.take().unwrap_or_default();
            for _ in 0..TRIES {
                // Steps are known by their place in the schedule, which must be the one of the timed runs.
                if recorder.has_accounts() && !session.schedules.is_empty() {
                    break;
                }
                recorder = Recorder::default();
                session.timed.clear();
                recorder.start();
                session.run_values(on_host(feeds), wanted, Some(&recorder), &mut |_, _, _| Ok(()))?;
            }
            let start = Instant::now();
            recorder.start();
            session.run_values(on_host(feeds), wanted, Some(&recorder), &mut |_, _, _| Ok(()))?;
            session.timed.push(start.elapsed().as_secs_f64());
            session.recorder = Some(recorder);
            Ok(())
        })
    }

    fn take_times(&mut self, _plain: f64) -> Result<Times, RuntimeError> {
        let nothing = || RuntimeError::Environment("nothing was timed".into());
        let (steps, peak) = self.recorder.take().ok_or_else(nothing)?.into_times();
        let constants = self.plan.constants.iter().filter_map(|(_, value)| value.host());
        Ok(Times {
            steps,
            folded: self.plan.folded.clone(),
            runs: std::mem::take(&mut self.timed),
            activations: Some(peak),
            constants: Some(constants.map(|tensor| tensor.bytes().len() as u64).sum()),
            clock: 0.0,
        })
    }

    fn predicted_peak(
        &mut self,
        sizes: &HashMap<ValueId, u64>,
        wanted: &[ValueId],
    ) -> Result<Option<u64>, RuntimeError> {
        if self.device.is_some() {
            return Ok(None);
        }
        let schedule = self.schedule(wanted)?;
        let sizes: HashMap<Slot, u64> =
            sizes.iter().filter_map(|(value, bytes)| Some((self.plan.slot(*value)?, *bytes))).collect();
        let feeds: Vec<Slot> =
            self.plan.inputs.iter().map(|input| input.slot).filter(|slot| sizes.contains_key(slot)).collect();
        Ok(peak(&self.plan.steps, &schedule.route, &feeds, &|slot| sizes.get(&slot).copied()))
    }

    fn fork(&self) -> Option<Box<dyn Session>> {
        // A device has threads of its own.
        self.device.is_none().then(|| {
            let own = PlanSession::new(self.plan.clone(), None, None, self.fuse);
            Box::new(PlanSession { cuts: self.cuts.clone(), ..own }) as Box<dyn Session>
        })
    }

    fn required_inputs(&self) -> &[(ValueId, String)] {
        &self.required
    }

    fn placement(&self) -> Option<Placement> {
        self.device.as_ref().map(|place| place.tally.placement())
    }
}
