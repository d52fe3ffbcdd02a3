//! What engines find on this machine: the processor, and devices beside it.

/// Something an engine computes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name, as the driver has it.
    pub name: String,
    /// What it is: `processor`, `discrete GPU`, `integrated GPU`, `software`.
    pub kind: String,
    /// What it is reached through, such as `Vulkan` or `CUDA 12.4`; empty for the processor.
    pub api: String,
    /// The driver and its version; empty when there is none or it does not say.
    pub driver: String,
    /// Bytes of memory, where that is known.
    pub memory: Option<u64>,
    /// Bytes of the largest tensor, where there is such a limit.
    pub largest_tensor: Option<u64>,
}

/// The processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its name, as it calls itself; empty where that is not known.
    pub processor: String,
    /// Threads that this process may use.
    pub threads: usize,
    /// Bytes of memory; of the control group when that is less.
    pub memory: Option<u64>,
    /// Instruction sets that kernels look for, in the order of their age: those it has.
    pub instruction_sets: Vec<&'static str>,
}

impl Machine {
    /// Asks the machine.
    pub fn detect() -> Machine {
        Machine {
            processor: processor(),
            threads: crate::engines::thread_count(0),
            memory: memory(),
            instruction_sets: instruction_sets(),
        }
    }

    /// The processor as a device.
    pub fn device(&self) -> DeviceInfo {
        DeviceInfo {
            name: self.processor.clone(),
            kind: "processor".into(),
            memory: self.memory,
            ..DeviceInfo::default()
        }
    }
}

/// The value of the first line `key : value` of a file.
fn field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn processor() -> String {
    field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn memory() -> Option<u64> {
    let kilobytes = field("/proc/meminfo", "MemTotal")?;
    let all = kilobytes.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)?;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|limit| limit.trim().parse::<u64>().ok());
    Some(limit.map_or(all, |limit| limit.min(all)))
}

/// Names of the instruction sets for which a macro says yes.
macro_rules! detected {
    ($detect:ident: $($name:tt),*) => {
        [$(($name, std::arch::$detect!($name))),*]
            .into_iter()
            .filter(|(_, there)| *there)
            .map(|(name, _)| name)
            .collect()
    };
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    detected!(is_x86_feature_detected: "sse4.2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw",
              "avx512vl", "avx512vnni", "avx512bf16", "avx512fp16")
}

#[cfg(target_arch = "aarch64")]
fn instruction_sets() -> Vec<&'static str> {
    detected!(is_aarch64_feature_detected: "neon", "dotprod", "fp16", "i8mm", "bf16", "sve")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instruction_sets() -> Vec<&'static str> {
    Vec::new()
}

/// Adapters that wgpu reaches through the interface that the engine uses.
///
/// # Errors
/// Why there is none, and what may help.
#[cfg(feature = "wgpu")]
pub(crate) fn adapters() -> Result<Vec<DeviceInfo>, String> {
    use std::sync::OnceLock;

    use crate::guard::guarded;
    use wgpu::{Backends, DeviceType, Instance, InstanceDescriptor};

    /// Kept for as long as the process runs: with the last instance the driver's library would be unloaded, and a
    /// thread that had used it could not end any more (seen with NVIDIA's: its clean-up code was gone).
    static INSTANCE: OnceLock<Instance> = OnceLock::new();

    // What burn uses by itself.
    let backends = if cfg!(target_os = "macos") {
        Backends::METAL
    } else if cfg!(target_os = "windows") {
        Backends::DX12 | Backends::VULKAN
    } else {
        Backends::VULKAN
    };
    let found = guarded(|| {
        let instance = INSTANCE.get_or_init(|| {
            Instance::new(InstanceDescriptor { backends, ..InstanceDescriptor::new_without_display_handle() })
        });
        burn::tensor::read_sync(instance.enumerate_adapters(backends))
    })?;
    let describe = |adapter: &wgpu::Adapter| {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        DeviceInfo {
            name: info.name,
            kind: match info.device_type {
                DeviceType::DiscreteGpu => "discrete GPU",
                DeviceType::IntegratedGpu => "integrated GPU",
                DeviceType::VirtualGpu => "virtual GPU",
                DeviceType::Cpu => "software",
                DeviceType::Other => "unknown",
            }
            .into(),
            api: format!("{:?}", info.backend),
            driver: [info.driver, info.driver_info].join(" ").trim().to_owned(),
            memory: None,
            largest_tensor: Some(limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)),
        }
    };
    let devices: Vec<DeviceInfo> = found.iter().map(describe).collect();
    if devices.is_empty() {
        return Err(format!(
            "there is no adapter that {backends:?} reaches: install a driver (mesa-vulkan-drivers has one that \
             computes on the processor), or name its manifest in VK_DRIVER_FILES"
        ));
    }
    Ok(devices)
}

/// NVIDIA's devices.
///
/// # Errors
/// Why there is none, and what may help.
#[cfg(feature = "cuda")]
pub(crate) fn cuda_devices() -> Result<Vec<DeviceInfo>, String> {
    use crate::guard::guarded;
    use cudarc::driver::CudaContext;

    let shown = |error: cudarc::driver::DriverError| format!("the CUDA driver answers: {error}");
    // The binding panics when there is no library to load.
    let count = guarded(CudaContext::device_count)
        .map_err(|_| {
            "libcuda was not found: install NVIDIA's driver, or name its folder in LD_LIBRARY_PATH".to_owned()
        })?
        .map_err(shown)?;
    if count < 1 {
        return Err("the CUDA driver finds no device".into());
    }
    if let Some(missing) = missing_toolkit() {
        return Err(missing);
    }
    (0..count.unsigned_abs() as usize)
        .map(|ordinal| {
            let device = guarded(|| {
                let context = CudaContext::new(ordinal)?;
                let (major, minor) = context.compute_capability()?;
                Ok(DeviceInfo {
                    name: context.name()?,
                    kind: "discrete GPU".into(),
                    api: format!("CUDA, compute capability {major}.{minor}"),
                    driver: driver_version().map_or(String::new(), |version| format!("NVIDIA {version}")),
                    memory: Some(context.total_mem()? as u64),
                    largest_tensor: None,
                })
            });
            device?.map_err(shown)
        })
        .collect()
}

/// The version of NVIDIA's kernel module, which it says among other words.
#[cfg(feature = "cuda")]
fn driver_version() -> Option<String> {
    let said = field("/proc/driver/nvidia/version", "NVRM version")?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    said.split_whitespace().find(is_version).map(str::to_owned)
}

/// Kernels are compiled when they are first used: by NVIDIA's run-time compiler, against its headers.
#[cfg(feature = "cuda")]
fn missing_toolkit() -> Option<String> {
    use std::path::Path;

    let home = std::env::var("CUDA_PATH").unwrap_or_else(|_| {
        let usual = ["/usr/local/cuda", "/opt/cuda", "/usr"];
        let there = |home: &&&str| Path::new(home).join("include/cuda_runtime.h").exists();
        (*usual.iter().find(there).unwrap_or(&"/usr/local/cuda")).to_owned()
    });
    let header = Path::new(&home).join("include/cuda_runtime.h");
    if !header.exists() {
        return Some(format!(
            "{} was not found: install the CUDA toolkit, or name its folder in CUDA_PATH",
            header.display()
        ));
    }
    let source = "extern \"C\" __global__ void nothing() {}";
    match crate::guard::guarded(|| cudarc::nvrtc::compile_ptx(source)) {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!("the run-time compiler of CUDA answers: {error:?}")),
        Err(_) => Some(
            "libnvrtc was not found: install the CUDA toolkit, or name its folder in LD_LIBRARY_PATH"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let machine = Machine::detect();
        assert!(machine.threads >= 1);
        assert!(!machine.processor.is_empty());
        assert!(machine.memory.is_none_or(|bytes| bytes > 1 << 20));
        assert_eq!(machine.device().kind, "processor");
        // Whatever has the newer set has the older one.
        let has = |name: &str| machine.instruction_sets.contains(&name);
        assert!(!has("avx2") || has("avx"));
    }
}
