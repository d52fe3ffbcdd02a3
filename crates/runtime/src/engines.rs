//! The engines of this crate: our kernels on the processor, and burn's backends.

use std::path::Path;

use optix_ir::Model;

use crate::device::Device;
use crate::engine::{Engine, LoadOptions, Session};
use crate::error::RuntimeError;
use crate::math::simd;
use crate::onnxruntime::OnnxRuntime;
use crate::plan::Plan;
use crate::session::PlanSession;

/// The embedded engine: our kernels on the processor, `optix_ops` for what they do not cover.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

impl Engine for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn version(&self) -> String {
        format!("optix {}", env!("CARGO_PKG_VERSION"))
    }

    fn device(&self) -> String {
        format!("{} lanes of 32-bit floats", simd::lanes())
    }

    fn load(&self, model: &Model, options: &LoadOptions) -> Result<Box<dyn Session>, RuntimeError> {
        let pool = pool(options.threads)?;
        let plan = Plan::new(model, options, self.name(), pool.as_ref())?;
        Ok(Box::new(PlanSession::new(plan, pool, None, options.fuse)))
    }
}

/// A backend of burn, chosen at run time. What burn's primitives do not express runs on the host.
#[derive(Clone, Debug)]
pub struct Burn {
    name: &'static str,
    device: Device,
}

impl Burn {
    /// burn's processor backend.
    pub fn flex() -> Burn {
        Burn { name: "flex", device: Device::Flex(Default::default()) }
    }

    /// The ndarray backend.
    #[cfg(feature = "ndarray")]
    pub fn ndarray() -> Burn {
        Burn { name: "ndarray", device: Device::NdArray(Default::default()) }
    }

    /// The WebGPU backend on the default adapter.
    #[cfg(feature = "wgpu")]
    pub fn wgpu() -> Burn {
        Burn { name: "wgpu", device: Device::Wgpu(Default::default()) }
    }

    /// The CUDA backend on the first card.
    #[cfg(feature = "cuda")]
    pub fn cuda() -> Burn {
        Burn { name: "cuda", device: Device::Cuda(Default::default()) }
    }
}

impl Engine for Burn {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> String {
        "burn 0.21.0".into()
    }

    fn device(&self) -> String {
        format!("{:?}", self.device)
    }

    fn load(&self, model: &Model, options: &LoadOptions) -> Result<Box<dyn Session>, RuntimeError> {
        let pool = pool(options.threads)?;
        // Chains run on the host: here they would take values off the device.
        let options = LoadOptions { fuse: false, ..options.clone() };
        let plan = Plan::new(model, &options, self.name, pool.as_ref())?;
        Ok(Box::new(PlanSession::new(plan, pool, Some(self.device.clone()), false)))
    }
}

/// Every embedded engine of this build, the default first.
pub fn engines() -> Vec<Box<dyn Engine>> {
    vec![
        Box::new(Cpu),
        Box::new(Burn::flex()),
        #[cfg(feature = "ndarray")]
        Box::new(Burn::ndarray()),
        #[cfg(feature = "wgpu")]
        Box::new(Burn::wgpu()),
        #[cfg(feature = "cuda")]
        Box::new(Burn::cuda()),
    ]
}

/// Engines that this build could have had: their name and the cargo feature of the same name.
const OPTIONAL: &[(&str, bool)] = &[
    ("ndarray", cfg!(feature = "ndarray")),
    ("wgpu", cfg!(feature = "wgpu")),
    ("cuda", cfg!(feature = "cuda")),
];

/// What is known of an engine without running anything.
pub struct Found {
    /// Its name, as `--engine` takes it.
    pub name: &'static str,
    /// The engine, or why it cannot be used.
    pub engine: Result<Box<dyn Engine>, String>,
}

/// Every engine there is, usable here or not, the default first. `ort_lib` is the library that
/// [`OnnxRuntime::find`] is given.
pub fn all_engines(ort_lib: Option<&Path>) -> Vec<Found> {
    let mut found: Vec<Found> =
        engines().into_iter().map(|engine| Found { name: engine.name(), engine: Ok(engine) }).collect();
    let library = OnnxRuntime::find(ort_lib).map(|engine| Box::new(engine) as Box<dyn Engine>);
    found.push(Found { name: "onnxruntime", engine: library });
    for (name, _) in OPTIONAL.iter().filter(|(_, built_in)| !built_in) {
        let why = format!("not built in: build optix with `--features {name}`");
        found.push(Found { name, engine: Err(why) });
    }
    found
}

/// The engine of that name; onnxruntime's library is looked for only when it is the one asked for. `None`
/// for a name that no engine has.
pub fn engine(name: &str, ort_lib: Option<&Path>) -> Option<Result<Box<dyn Engine>, String>> {
    if name == "onnxruntime" {
        return Some(OnnxRuntime::find(ort_lib).map(|engine| Box::new(engine) as Box<dyn Engine>));
    }
    if let Some(engine) = engines().into_iter().find(|engine| engine.name() == name) {
        return Some(Ok(engine));
    }
    let (name, _) = OPTIONAL.iter().find(|(known, _)| *known == name)?;
    Some(Err(format!("this build has no engine `{name}`: build optix with `--features {name}`")))
}

/// The names of all engines, the default first.
pub fn engine_names() -> Vec<&'static str> {
    let mut names: Vec<&'static str> = engines().iter().map(|engine| engine.name()).collect();
    names.push("onnxruntime");
    names.extend(OPTIONAL.iter().filter(|(_, built_in)| !built_in).map(|(name, _)| *name));
    names
}

/// The threads of a session; none when one is enough.
fn pool(threads: usize) -> Result<Option<rayon::ThreadPool>, RuntimeError> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    if threads == 1 {
        return Ok(None);
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("optix-{index}"))
        .build()
        .map_err(|error| RuntimeError::Environment(format!("cannot start {threads} threads: {error}")))?;
    Ok(Some(pool))
}
