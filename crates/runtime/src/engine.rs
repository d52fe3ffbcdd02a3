//! What an engine is: it loads models into sessions, which run.

use std::collections::HashMap;

use optix_ir::{Model, Tensor, ValueId};
use optix_ops::Datum;

use crate::device::Placement;
use crate::error::RuntimeError;
use crate::profile::Times;

/// How to load a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Threads that kernels may use; 0 for as many as the machine has. Results do not depend on it.
    pub threads: usize,
    /// Bytes that constants folded at load time may take in all; what does not fit is computed in every
    /// run instead.
    pub fold_limit: usize,
    /// Whether chains of elementwise operators may run inside the kernel before them. Results do not
    /// depend on it, only time does; unset to compare.
    pub fuse: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { threads: 0, fold_limit: 256 << 20, fuse: true }
    }
}

/// Something that runs models.
pub trait Engine: Send + Sync {
    /// Its name, as `--engine` takes it.
    fn name(&self) -> &'static str;

    /// Its version.
    fn version(&self) -> String;

    /// What it computes on, for people: instruction set or device.
    fn device(&self) -> String;

    /// Whether its kernels of quantized models compute with integers. Where they do not, a model with
    /// QuantizeLinear and DequantizeLinear is emulated in floats: its results count, its time does not.
    fn has_integer_kernels(&self) -> bool {
        false
    }

    /// Whether threads of a session go on turning for a while after a run, waiting for the next one: another
    /// session is then timed only once they rest.
    fn keeps_spinning(&self) -> bool {
        false
    }

    /// Plans a model: kernels chosen, constants folded and packed.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] with every node there is no kernel for.
    fn load(&self, model: &Model, options: &LoadOptions) -> Result<Box<dyn Session>, RuntimeError>;
}

/// Looks at a value as soon as it is computed; see [`Session::run_with`].
pub type Visit<'a> = &'a mut dyn FnMut(ValueId, &Tensor) -> Result<(), RuntimeError>;

/// The wanted values of a run, in the order asked for.
pub(crate) fn collect(
    wanted: &[ValueId],
    run: impl FnOnce(Visit<'_>) -> Result<(), RuntimeError>,
) -> Result<Vec<Tensor>, RuntimeError> {
    let mut found: Vec<Option<Tensor>> = vec![None; wanted.len()];
    run(&mut |value, tensor| {
        for (place, _) in found.iter_mut().zip(wanted).filter(|(_, wanted)| **wanted == value) {
            *place = Some(tensor.clone());
        }
        Ok(())
    })?;
    let missing = || RuntimeError::Environment("the engine did not compute a wanted value".into());
    found.into_iter().map(|tensor| tensor.ok_or_else(missing)).collect()
}

/// A loaded model.
pub trait Session: Send {
    /// Runs the model and shows `visit` each wanted value once, in execution order, as soon as it is
    /// computed. A value is freed after its last use, so nothing is kept for the visitor's sake. Wanted
    /// may be any values of the main graph: inputs and constants too. Only what they need is computed.
    ///
    /// `feeds` are the model's inputs, by value; inputs with a default may be left out.
    ///
    /// # Errors
    /// When feeds do not fit, a node refuses, or `visit` fails (its error is handed through).
    fn run_with(
        &mut self,
        feeds: &[(ValueId, Tensor)],
        wanted: &[ValueId],
        visit: Visit<'_>,
    ) -> Result<(), RuntimeError>;

    /// Runs the model and returns the wanted values, in the order asked for.
    ///
    /// # Errors
    /// As [`Session::run_with`].
    fn run(&mut self, feeds: &[(ValueId, Tensor)], wanted: &[ValueId]) -> Result<Vec<Tensor>, RuntimeError> {
        collect(wanted, |visit| self.run_with(feeds, wanted, visit))
    }

    /// Runs the model on values of any type and returns the wanted ones, in the order asked for.
    ///
    /// # Errors
    /// As [`Session::run_with`].
    fn run_data(
        &mut self,
        feeds: &[(ValueId, Datum)],
        wanted: &[ValueId],
    ) -> Result<Vec<Datum>, RuntimeError>;

    /// Computes the wanted values and drops them: what is timed. Nothing is copied for a caller.
    ///
    /// # Errors
    /// As [`Session::run_with`].
    fn execute(&mut self, feeds: &[(ValueId, Tensor)], wanted: &[ValueId]) -> Result<(), RuntimeError> {
        self.run_with(feeds, wanted, &mut |_, _| Ok(()))
    }

    /// The same with a clock around every step; [`Session::take_times`] tells what it saw.
    ///
    /// # Errors
    /// As [`Session::run_with`], and when the engine has no such clock.
    fn run_timed(&mut self, feeds: &[(ValueId, Tensor)], wanted: &[ValueId]) -> Result<(), RuntimeError> {
        let _ = (feeds, wanted);
        Err(RuntimeError::Environment("this engine does not time its nodes".into()))
    }

    /// What the timed runs so far tell, forgotten by this call. `plain` is the median of the seconds that
    /// [`Session::execute`] takes on the same feeds: by it, an engine whose clock is costly knows what to
    /// take off.
    ///
    /// # Errors
    /// When nothing was timed, or what an engine wrote about it cannot be read.
    fn take_times(&mut self, plain: f64) -> Result<Times, RuntimeError> {
        let _ = plain;
        Err(RuntimeError::Environment("nothing was timed".into()))
    }

    /// Most bytes that feeds and computed values will take at once in a run for the wanted values, by the
    /// sizes of values that [`value_bytes`](crate::value_bytes) finds. `None` where a size is missing and
    /// with control flow, and for engines that do not tell how they use memory.
    ///
    /// # Errors
    /// When the model does not have the wanted values.
    fn predicted_peak(
        &mut self,
        sizes: &HashMap<ValueId, u64>,
        wanted: &[ValueId],
    ) -> Result<Option<u64>, RuntimeError> {
        let _ = (sizes, wanted);
        Ok(None)
    }

    /// Another session on the same loaded model, for another thread: it runs on that thread alone. `None`
    /// where the engine cannot share a loaded model.
    fn fork(&self) -> Option<Box<dyn Session>> {
        None
    }

    /// The inputs that must be fed (no default), with their names, in the model's order.
    fn required_inputs(&self) -> &[(ValueId, String)];

    /// Where the nodes of all runs so far were computed; `None` for engines without a device beside the
    /// host.
    fn placement(&self) -> Option<Placement> {
        None
    }
}
