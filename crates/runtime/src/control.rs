//! Control flow and calls of local functions in a plan.
//!
//! All values of a run, those of bodies too, live in one table: a body reads what it captures where it is.
//! When and on what bodies run is decided by `optix_ops`; here they are run.

use optix_ir::Type;
use optix_ops::{Datum, DatumCall, OpError, run_loop, run_map, run_scan};

use crate::device::RtValue;
use crate::error::RuntimeError;
use crate::fuse::{Item, Route};
use crate::plan::Slot;
use crate::step::{Place, Step};

/// The graph of a control-flow operator or a local function, ready to run.
pub(crate) struct Body {
    pub steps: Vec<Step>,
    pub route: Route,
    pub inputs: Vec<Slot>,
    pub outputs: Vec<Slot>,
    /// Declared types of the outputs.
    pub types: Vec<Option<Type>>,
}

/// What a step with bodies does. A branch that is never taken is missing.
pub(crate) enum Control {
    If { then: Option<Body>, otherwise: Option<Body> },
    Loop(Body),
    Scan(Body),
    Map(Body),
    Call(Body),
}

/// The values of a run, by slot.
pub(crate) type Values = [Option<RtValue>];

/// Looks at a step's output as soon as it is computed.
pub(crate) type Watch<'a> = &'a mut dyn FnMut(&Step, Slot, &RtValue) -> Result<(), RuntimeError>;

/// Runs steps along a route, frees what is not needed any more.
pub(crate) fn walk(
    steps: &[Step],
    route: &Route,
    values: &mut Values,
    place: Place<'_>,
    watch: Watch<'_>,
) -> Result<(), RuntimeError> {
    for (number, (item, frees)) in route.items.iter().zip(&route.frees).enumerate() {
        if let Some(recorder) = place.recorder {
            recorder.enter();
        }
        let (last, outputs) = match item {
            Item::Step(number) => (&steps[*number], steps[*number].run_in(values, place)?),
            Item::Group(group) => (group.last(steps), vec![(group.output, group.run(steps, values, place)?)]),
        };
        if let Some(recorder) = place.recorder {
            recorder
                .leave(number, item, steps, values, &outputs, place.device.map(|place| &place.device))
                .map_err(RuntimeError::Environment)?;
        }
        for (slot, value) in outputs {
            watch(last, slot, &value)?;
            values[slot] = Some(value);
        }
        if let Some(recorder) = place.recorder {
            recorder.account(values);
        }
        for &slot in frees {
            values[slot] = None;
        }
    }
    Ok(())
}

/// An error of the operator, or of a node inside one of its bodies, which is named already.
enum Nested {
    Own(OpError),
    Inner(RuntimeError),
}

impl From<OpError> for Nested {
    fn from(error: OpError) -> Nested {
        Nested::Own(error)
    }
}

impl Body {
    fn run(
        &self,
        inputs: impl IntoIterator<Item = Option<RtValue>>,
        values: &mut Values,
        place: Place<'_>,
    ) -> Result<Vec<RtValue>, RuntimeError> {
        for (&slot, value) in self.inputs.iter().zip(inputs) {
            values[slot] = value;
        }
        walk(&self.steps, &self.route, values, place, &mut |_, _, _| Ok(()))?;
        let missing = || RuntimeError::Environment("a body did not compute one of its outputs".into());
        let outputs = self.outputs.iter().map(|&slot| values[slot].clone().ok_or_else(missing)).collect();
        // What goes out is held by who reads it; it is not kept here until the next run.
        for step in &self.steps {
            for (slot, _) in step.outputs.iter().flatten() {
                values[*slot] = None;
            }
        }
        for &slot in &self.inputs {
            values[slot] = None;
        }
        outputs
    }

    fn run_data(
        &self,
        inputs: Vec<Datum>,
        values: &mut Values,
        place: Place<'_>,
    ) -> Result<Vec<Datum>, Nested> {
        let inputs = inputs.into_iter().map(|datum| Some(RtValue::from(datum)));
        let outputs = self.run(inputs, values, place).map_err(Nested::Inner)?;
        outputs.iter().map(|value| value.to_datum().map_err(Nested::Own)).collect()
    }
}

impl Step {
    /// Runs the step on the values of a run; its results with their slots.
    pub(crate) fn run_in(
        &self,
        values: &mut Values,
        place: Place<'_>,
    ) -> Result<Vec<(Slot, RtValue)>, RuntimeError> {
        let outputs = match &self.control {
            Some(control) => self.run_control(control, values, place)?,
            None => {
                let inputs: Vec<Option<&RtValue>> =
                    self.inputs.iter().map(|slot| slot.and_then(|slot| values[slot].as_ref())).collect();
                self.run(&inputs, place)?
            }
        };
        let slots = self.outputs.iter().zip(outputs);
        Ok(slots.filter_map(|(output, value)| Some(((*output)?.0, value))).collect())
    }

    fn run_control(
        &self,
        control: &Control,
        values: &mut Values,
        place: Place<'_>,
    ) -> Result<Vec<RtValue>, RuntimeError> {
        let named = |error: Nested| match error {
            Nested::Inner(error) => error,
            Nested::Own(source) => RuntimeError::Node { node: self.label.clone(), source },
        };
        if let Control::Call(body) = control {
            let inputs: Vec<Option<RtValue>> =
                self.inputs.iter().map(|slot| slot.and_then(|slot| values[slot].clone())).collect();
            return body.run(inputs, values, place);
        }
        let mut inputs: Vec<Option<Datum>> = Vec::with_capacity(self.inputs.len());
        for slot in &self.inputs {
            let value = slot.and_then(|slot| values[slot].as_ref());
            inputs.push(value.map(RtValue::to_datum).transpose().map_err(|error| named(error.into()))?);
        }
        let inputs: Vec<Option<&Datum>> = inputs.iter().map(Option::as_ref).collect();
        let call = DatumCall { node: &self.node, opset: self.opset, inputs: &inputs };
        let outputs = match control {
            Control::If { then, otherwise } => {
                let wanted = call.truth(0).map_err(|error| named(error.into()))?;
                let body = if wanted { then } else { otherwise };
                let missing = || named(call.invalid("it has no graph for this branch").into());
                return body.as_ref().ok_or_else(missing)?.run([], values, place);
            }
            Control::Loop(body) => {
                run_loop(&call, &body.types, &mut |inputs| body.run_data(inputs, values, place))
            }
            Control::Scan(body) => {
                run_scan(&call, &body.types, &mut |inputs| body.run_data(inputs, values, place))
            }
            Control::Map(body) => {
                run_map(&call, body.outputs.len(), &mut |inputs| body.run_data(inputs, values, place))
            }
            Control::Call(_) => Ok(Vec::new()),
        };
        Ok(outputs.map_err(named)?.into_iter().map(RtValue::from).collect())
    }
}
