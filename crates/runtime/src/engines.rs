//! The engines of this crate: our kernels on the processor, and burn's backends.

use optix_ir::Model;

use crate::device::Device;
use crate::engine::{Engine, LoadOptions, Session};
use crate::error::RuntimeError;
use crate::math::simd;
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
        Ok(Box::new(PlanSession::new(plan, pool, None)))
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
        let plan = Plan::new(model, options, self.name, pool.as_ref())?;
        Ok(Box::new(PlanSession::new(plan, pool, Some(self.device.clone()))))
    }
}

/// Every engine of this build, the default first.
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
