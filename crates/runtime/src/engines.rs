//! The engines of this crate: our kernels on the processor, and burn's backends.

use std::path::{Path, PathBuf};

use optix_ir::Model;

use crate::device::Device;
use crate::engine::{Engine, LoadOptions, Session};
use crate::error::RuntimeError;
use crate::machine::{DeviceInfo, Machine};
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
        Ok(Box::new(PlanSession::new(plan.into(), pool, None, options.fuse)))
    }
}

/// A backend of burn, chosen at run time. What burn's primitives do not express runs on the host.
#[derive(Clone, Debug)]
pub struct Burn {
    name: &'static str,
    device: Device,
    /// The device, for people.
    shown: String,
}

/// The first of some devices in a few words.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn shown(devices: &[DeviceInfo]) -> String {
    devices.first().map(|device| format!("{}, {}", device.name, device.api)).unwrap_or_default()
}

impl Burn {
    /// burn's processor backend.
    pub fn flex() -> Burn {
        Burn { name: "flex", device: Device::Flex(Default::default()), shown: "processor".into() }
    }

    /// The ndarray backend.
    #[cfg(feature = "ndarray")]
    pub fn ndarray() -> Burn {
        Burn { name: "ndarray", device: Device::NdArray(Default::default()), shown: "processor".into() }
    }

    /// The WebGPU backend on the first adapter.
    ///
    /// # Errors
    /// Why there is none.
    #[cfg(feature = "wgpu")]
    pub fn wgpu() -> Result<Burn, String> {
        let adapters = crate::machine::adapters()?;
        Ok(Burn { name: "wgpu", device: Device::Wgpu(Default::default()), shown: shown(&adapters) })
    }

    /// The CUDA backend on the first card.
    ///
    /// # Errors
    /// Why there is none, or what of CUDA is missing.
    #[cfg(feature = "cuda")]
    pub fn cuda() -> Result<Burn, String> {
        let devices = crate::machine::cuda_devices()?;
        Ok(Burn { name: "cuda", device: Device::Cuda(Default::default()), shown: shown(&devices) })
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
        self.shown.clone()
    }

    fn load(&self, model: &Model, options: &LoadOptions) -> Result<Box<dyn Session>, RuntimeError> {
        let pool = pool(options.threads)?;
        // Chains run on the host: here they would take values off the device.
        let options = LoadOptions { fuse: false, ..options.clone() };
        let plan = Plan::new(model, &options, self.name, pool.as_ref())?;
        Ok(Box::new(PlanSession::new(plan.into(), pool, Some(self.device.clone()), false)))
    }
}

/// Every embedded engine of this build that can be used here, the default first.
pub fn engines() -> Vec<Box<dyn Engine>> {
    EMBEDDED.iter().filter_map(|name| embedded(name).ok()).collect()
}

/// Engines that are compiled in, or could be; the default first.
const EMBEDDED: &[&str] = &["cpu", "flex", "ndarray", "wgpu", "cuda"];

/// An embedded engine, or why it cannot be used.
fn embedded(name: &str) -> Result<Box<dyn Engine>, String> {
    match name {
        "cpu" => Ok(Box::new(Cpu)),
        "flex" => Ok(Box::new(Burn::flex())),
        #[cfg(feature = "ndarray")]
        "ndarray" => Ok(Box::new(Burn::ndarray())),
        #[cfg(feature = "wgpu")]
        "wgpu" => Burn::wgpu().map(|engine| Box::new(engine) as Box<dyn Engine>),
        #[cfg(feature = "cuda")]
        "cuda" => Burn::cuda().map(|engine| Box::new(engine) as Box<dyn Engine>),
        _ => Err(format!("not built in: build optix with `--features {name}`")),
    }
}

/// What is known of an engine without running anything.
pub struct Found {
    /// Its name, as `--engine` takes it.
    pub name: &'static str,
    /// The cargo feature that builds it in, when there is one.
    pub feature: Option<&'static str>,
    /// Whether it is built in.
    pub built_in: bool,
    /// The engine, or why it cannot be used.
    pub engine: Result<Box<dyn Engine>, String>,
    /// What it can compute on; the first is what it uses.
    pub devices: Vec<DeviceInfo>,
    /// The shared library it is, when it is one.
    pub library: Option<PathBuf>,
    /// Where a shared library was looked for.
    pub looked_in: Vec<PathBuf>,
}

/// Every engine there is, usable here or not, the default first. `ort_lib` is the library that
/// [`OnnxRuntime::find`] is given.
pub fn all_engines(ort_lib: Option<&Path>) -> Vec<Found> {
    let processor = Machine::detect().device();
    let mut found: Vec<Found> = EMBEDDED
        .iter()
        .map(|name| Found {
            name,
            feature: OPTIONAL.iter().map(|(feature, _)| *feature).find(|feature| feature == name),
            built_in: !OPTIONAL.contains(&(name, false)),
            engine: embedded(name),
            devices: match *name {
                "cpu" | "flex" | "ndarray" => vec![processor.clone()],
                #[cfg(feature = "wgpu")]
                "wgpu" => crate::machine::adapters().unwrap_or_default(),
                #[cfg(feature = "cuda")]
                "cuda" => crate::machine::cuda_devices().unwrap_or_default(),
                _ => Vec::new(),
            },
            library: None,
            looked_in: Vec::new(),
        })
        .collect();
    let library = OnnxRuntime::find(ort_lib);
    let usable = library.is_ok();
    // Behind the engines of the default build.
    let place = found.iter().position(|found| found.name == "wgpu").unwrap_or(found.len());
    found.insert(
        place,
        Found {
            name: "onnxruntime",
            feature: None,
            built_in: true,
            library: library.as_ref().ok().map(|engine| engine.path().to_owned()),
            engine: library.map(|engine| Box::new(engine) as Box<dyn Engine>),
            devices: if usable { vec![processor] } else { Vec::new() },
            looked_in: OnnxRuntime::looked_in(ort_lib),
        },
    );
    found
}

/// Engines of cargo features, and whether they are built in.
const OPTIONAL: &[(&str, bool)] = &[
    ("ndarray", cfg!(feature = "ndarray")),
    ("wgpu", cfg!(feature = "wgpu")),
    ("cuda", cfg!(feature = "cuda")),
];

/// The engine of that name; onnxruntime's library is looked for only when it is the one asked for. `None`
/// for a name that no engine has.
pub fn engine(name: &str, ort_lib: Option<&Path>) -> Option<Result<Box<dyn Engine>, String>> {
    if name == "onnxruntime" {
        return Some(OnnxRuntime::find(ort_lib).map(|engine| Box::new(engine) as Box<dyn Engine>));
    }
    EMBEDDED.contains(&name).then(|| embedded(name))
}

/// The names of all engines, the default first.
pub fn engine_names() -> Vec<&'static str> {
    let mut names = EMBEDDED.to_vec();
    names.insert(2, "onnxruntime");
    names
}

/// The threads that a number of them means: 0 is as many as this process may use.
pub(crate) fn thread_count(asked: usize) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        asked => asked,
    }
}

/// So many threads of their own.
pub(crate) fn own_threads(threads: usize) -> Result<rayon::ThreadPool, RuntimeError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("optix-{index}"))
        .build()
        .map_err(|error| RuntimeError::Environment(format!("cannot start {threads} threads: {error}")))
}

/// The threads of a session; none when one is enough.
fn pool(threads: usize) -> Result<Option<rayon::ThreadPool>, RuntimeError> {
    match thread_count(threads) {
        1 => Ok(None),
        threads => own_threads(threads).map(Some),
    }
}
