//! The onnxruntime engine: a shared library that is looked for when it is asked for, and never needed.
//!
//! The library is handed the bytes that `optix_io` writes, so what runs is what a user would deploy.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use optix_ir::{Model, ModelBuilder, Tensor, ValueId, ValueInfo};
use optix_ops::Datum;
use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{OutputSelector, RunOptions, SessionInputs};

use crate::engine::{Engine, LoadOptions, Session, Visit};
use crate::error::RuntimeError;
use crate::guard::guarded;
use crate::ort_errors::explained;
use crate::ort_tensors::{feed, fetch};
use crate::profile::Times;
use crate::profile::library::{Overhead, Profile};

/// Name of the engine.
pub(crate) const NAME: &str = "onnxruntime";

/// Minor version of the oldest library that works.
const OLDEST: u32 = ort::MINOR_VERSION;

/// Weights of so many bytes go to the library in a file of their own.
const SPREAD: u64 = 4 << 20;

/// The library this process has loaded; there can be only one.
static LOADED: OnceLock<Result<Library, String>> = OnceLock::new();

#[derive(Clone, Debug)]
struct Library {
    path: PathBuf,
    version: String,
    environment: Environment,
}

/// Microsoft's onnxruntime on the processor.
#[derive(Clone, Debug)]
pub struct OnnxRuntime {
    library: Library,
}

impl OnnxRuntime {
    /// Loads the library: `given`, or the first of `ORT_DYLIB_PATH`, the system's library folders and the
    /// wheels of installed Pythons. A process keeps the first one it has loaded.
    ///
    /// # Errors
    /// Why there is none that can be used, and where was looked.
    pub fn find(given: Option<&Path>) -> Result<OnnxRuntime, String> {
        let library = LOADED.get_or_init(|| {
            let candidates = match given.map(Path::to_owned).or_else(named_by_environment) {
                Some(path) => vec![path],
                None => candidates(),
            };
            let mut refused = Vec::new();
            for path in &candidates {
                match load(path) {
                    Ok(library) => return Ok(library),
                    Err(what) => refused.push(format!("{}: {what}", path.display())),
                }
            }
            Err(match refused.is_empty() {
                true => format!(
                    "no libonnxruntime was found in {} folders (`optix engines --json` lists them): give its \
                     path with --ort-lib or ORT_DYLIB_PATH, or `pip install onnxruntime`",
                    folders().len()
                ),
                false => refused.join("; "),
            })
        });
        library.clone().map(|library| OnnxRuntime { library })
    }

    /// Where the library is looked for: the one file that is named, or else these folders.
    pub fn looked_in(given: Option<&Path>) -> Vec<PathBuf> {
        match given.map(Path::to_owned).or_else(named_by_environment) {
            Some(path) => vec![path],
            None => folders(),
        }
    }

    /// The shared library.
    pub fn path(&self) -> &Path {
        &self.library.path
    }
}

fn named_by_environment() -> Option<PathBuf> {
    std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn load(path: &Path) -> Result<Library, String> {
    if !path.is_file() {
        return Err("there is no such file".into());
    }
    let path = path.canonicalize().map_err(|error| error.to_string())?;
    check_format(&path)?;
    // The binding panics on libraries it cannot use.
    let environment = guarded(|| {
        let builder = ort::init_from(&path).map_err(|error| match error {
            LoadDynamicError::Dlopen { error, .. } => format!("it cannot be loaded: {error}"),
            LoadDynamicError::MissingApi { .. } => "it is no onnxruntime: it has no OrtGetApiBase".to_owned(),
            LoadDynamicError::BadVersion { version_str, .. } => {
                format!("it is onnxruntime {version_str}, and at least 1.{OLDEST} is needed")
            }
            other => other.to_string(),
        })?;
        builder.with_name("optix").with_telemetry(false).build().map_err(|error| error.to_string())
    });
    let environment = environment.and_then(|result| result)?;
    Ok(Library { version: version(&path), path, environment })
}

/// Machines that shared libraries are made for, by `e_machine` of the ELF header
/// (<https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html>).
const MACHINES: &[(u16, &str)] = &[
    (3, "x86"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
    (22, "s390x"),
    (21, "powerpc64"),
];

/// Says what is wrong with a file in words that the loader has not: no library at all, or one for another
/// machine. Only files in the format of Linux are looked into.
fn check_format(path: &Path) -> Result<(), String> {
    use std::io::Read;

    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    let mut header = [0u8; 20];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut header))
        .map_err(|error| format!("it is no shared library: {error}"))?;
    if &header[..4] != b"\x7fELF" {
        return Err("it is no shared library of Linux (an ELF file)".into());
    }
    let machine = u16::from_le_bytes([header[18], header[19]]);
    let name = MACHINES.iter().find(|(code, _)| *code == machine).map_or("another machine", |(_, name)| name);
    if name == std::env::consts::ARCH {
        return Ok(());
    }
    Err(format!("it is built for {name}, this machine is {}: use one built for this", std::env::consts::ARCH))
}

/// The version in the library's file name, or in the folder of metadata beside a wheel's.
fn version(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let of_name = name.split_once(".so.").map(|(_, version)| version.to_owned());
    if let Some(version) = of_name.filter(|version| version.contains('.')) {
        return version;
    }
    let packages = path.ancestors().nth(3);
    let found = packages.and_then(|packages| std::fs::read_dir(packages).ok()).and_then(|entries| {
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.into_iter().find_map(|name| {
            let version = name.strip_prefix("onnxruntime-")?.strip_suffix(".dist-info")?;
            Some(version.to_owned())
        })
    });
    found.unwrap_or_else(|| "of an unknown version".into())
}

/// The folders that are looked in, in order.
fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    if let Some(paths) = std::env::var_os("LD_LIBRARY_PATH") {
        folders.extend(std::env::split_paths(&paths));
    }
    for folder in [
        "/usr/local/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ] {
        folders.push(folder.into());
    }
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(std::env::var_os).map(PathBuf::from).collect();
    if let Some(home) = std::env::var_os("HOME") {
        prefixes.push(Path::new(&home).join(".local"));
    }
    if let Some(paths) = std::env::var_os("PATH") {
        let bins = std::env::split_paths(&paths).filter(|bin| bin.join("python3").exists());
        // The interpreter may be a link into the place where it is installed.
        for bin in bins {
            let real = bin.join("python3").canonicalize().ok();
            prefixes.extend(bin.parent().map(Path::to_owned));
            prefixes
                .extend(real.as_deref().and_then(Path::parent).and_then(Path::parent).map(Path::to_owned));
        }
    }
    for prefix in prefixes {
        for entry in std::fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("python3") {
                for packages in ["site-packages", "dist-packages"] {
                    folders.push(entry.path().join(packages).join("onnxruntime/capi"));
                }
            }
        }
    }
    folders.retain(|folder| !folder.as_os_str().is_empty());
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// Libraries in the usual places, in the order they are tried.
fn candidates() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for folder in folders() {
        let mut here: Vec<PathBuf> = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("libonnxruntime.so") || name == "libonnxruntime.dylib"
            })
            .collect();
        here.sort();
        for path in here {
            if !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        format!("onnxruntime {}", self.library.version)
    }

    fn device(&self) -> String {
        format!("on the processor, {}", self.library.path.display())
    }

    fn has_integer_kernels(&self) -> bool {
        true
    }

    fn keeps_spinning(&self) -> bool {
        true
    }

    fn load(&self, model: &Model, options: &LoadOptions) -> Result<Box<dyn Session>, RuntimeError> {
        let graph = model.graph(model.main());
        let inputs: Vec<(ValueId, String)> = graph
            .inputs()
            .iter()
            .map(|info| (info.value, model.value(info.value).name().to_owned()))
            .collect();
        let required =
            inputs.iter().filter(|(value, _)| model.value(*value).initializer().is_none()).cloned().collect();
        let mut session = OrtSession {
            environment: self.library.environment.clone(),
            model: model.clone(),
            threads: options.threads,
            inputs,
            required,
            loaded: None,
            profiled: None,
        };
        // What the library refuses is refused now, not in the first run.
        let outputs: Vec<ValueId> = graph.outputs().iter().map(|info| info.value).collect();
        session.prepare(&outputs)?;
        Ok(Box::new(session))
    }
}

/// A model in the library, for certain wanted values.
struct Loaded {
    wanted: Vec<ValueId>,
    session: ort::session::Session,
}

struct OrtSession {
    environment: Environment,
    model: Model,
    threads: usize,
    inputs: Vec<(ValueId, String)>,
    required: Vec<(ValueId, String)>,
    loaded: Option<Loaded>,
    profiled: Option<Profiled>,
}

/// A second session of the same model, which writes a profile.
struct Profiled {
    loaded: Loaded,
    /// Where the profile goes.
    folder: tempfile::TempDir,
    /// The model as it was handed over: every node has a name.
    model: Model,
    /// Seconds of each run.
    runs: Vec<f64>,
}

/// Profiled runs whose figures do not count: the first one allocates.
const WARM_UP: usize = 1;

pub(crate) fn refused(what: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::Refused { engine: NAME.into(), what: what.to_string() }
}

impl OrtSession {
    /// The model, and a session of it that gives the wanted values: the last one where it does.
    fn prepare(&mut self, wanted: &[ValueId]) -> Result<(&Model, &mut ort::session::Session), RuntimeError> {
        let fits = |loaded: &Loaded| wanted.iter().all(|value| loaded.wanted.contains(value));
        let loaded = match self.loaded.take().filter(fits) {
            Some(loaded) => loaded,
            None => {
                Loaded { session: self.open(&self.with_outputs(wanted)?, None)?, wanted: wanted.to_vec() }
            }
        };
        Ok((&self.model, &mut self.loaded.insert(loaded).session))
    }

    /// The model with all wanted values among its outputs.
    fn with_outputs(&self, wanted: &[ValueId]) -> Result<Model, RuntimeError> {
        let mut model = self.model.clone();
        let main = model.main();
        for &value in wanted {
            let is_output = model.graph(main).outputs().iter().any(|info| info.value == value);
            // Inputs and constants are known without running anything.
            if !is_output && model.value(value).producer().is_some() {
                if model.value(value).graph() != main {
                    return Err(RuntimeError::UnknownValue(model.value(value).name().to_owned()));
                }
                let ty = model.value(value).ty.clone();
                model.add_output(main, ValueInfo::new(value, ty));
            }
        }
        Ok(model)
    }

    /// A session of a model; with a path, one that writes a profile there.
    fn open(&self, model: &Model, profile: Option<&Path>) -> Result<ort::session::Session, RuntimeError> {
        let mut builder = ort::session::Session::builder(&self.environment)
            .and_then(|builder| {
                let builder = builder
                    .with_optimization_level(GraphOptimizationLevel::All)?
                    .with_intra_threads(self.threads)?
                    .with_log_level(ort::logging::LogLevel::Fatal)?;
                Ok(match profile {
                    Some(path) => builder.with_profiling(path)?,
                    None => builder,
                })
            })
            .map_err(refused)?;
        let failed = |error: ort::Error| explained(NAME, &self.model, &error.to_string());
        // Weights in a file of their own are mapped by the library; within the model they would be in memory
        // up to three times while it loads.
        if model.tensor_bytes() >= SPREAD
            && let Ok(directory) = tempfile::tempdir()
            && let Ok(path) = optix_io::spread(model, directory.path())
        {
            return builder.commit_from_file(path).map_err(failed);
        }
        let bytes = optix_io::onnx_bytes(model).map_err(refused)?;
        builder.commit_from_memory(&bytes).map_err(failed)
    }

    /// The feeds as the library takes them, by name.
    fn named<'f>(&self, feeds: &'f [(ValueId, Tensor)]) -> Result<SessionInputs<'f, 'f, 0>, RuntimeError> {
        let mut named = Vec::with_capacity(feeds.len());
        for (value, tensor) in feeds {
            let Some((_, name)) = self.inputs.iter().find(|(input, _)| input == value) else {
                let what = "is not an input of the model".into();
                return Err(RuntimeError::Feed { input: format!("{value:?}"), what });
            };
            named.push((name.clone().into(), feed(name, tensor)?));
        }
        for (value, name) in &self.required {
            if !feeds.iter().any(|(fed, _)| fed == value) {
                return Err(RuntimeError::Feed { input: name.clone(), what: "is not fed".into() });
            }
        }
        Ok(SessionInputs::ValueMap(named))
    }

    /// Opens the session that writes a profile.
    fn profiled(&self, wanted: &[ValueId]) -> Result<Profiled, RuntimeError> {
        let mut model = self.with_outputs(wanted)?;
        // By its name a kernel is found again.
        let nameless: Vec<_> = model.walk().filter(|&id| model.node(id).name.is_empty()).collect();
        for id in nameless {
            let label = model.describe(id);
            model.node_mut(id).name = label;
        }
        let no_folder =
            |error| RuntimeError::Environment(format!("no temporary folder for the profile: {error}"));
        let folder = tempfile::tempdir().map_err(no_folder)?;
        let session = self.open(&model, Some(&folder.path().join("profile")))?;
        Ok(Profiled { loaded: Loaded { wanted: wanted.to_vec(), session }, folder, model, runs: Vec::new() })
    }

    /// What share of the time that profiling adds for a kernel falls inside the duration it reports, found
    /// on a chain of kernels with next to nothing to do.
    fn share_inside(&self) -> Result<f64, RuntimeError> {
        const LENGTH: usize = 64;
        const RUNS: usize = 40;
        let name = |index: usize| if index == 0 { "x".to_owned() } else { format!("v{index}") };
        let mut builder = ModelBuilder::new(17).input("x", "float[1]");
        for index in 0..LENGTH {
            let op = if index % 2 == 0 { "Sin" } else { "Exp" };
            builder = builder.node(op, [name(index).as_str()], [name(index + 1).as_str()]);
        }
        let model = builder.output(&name(LENGTH), "float[1]").build();
        let graph = model.graph(model.main());
        let inputs = vec![(graph.inputs()[0].value, "x".to_owned())];
        let wanted: Vec<ValueId> = graph.outputs().iter().map(|info| info.value).collect();
        let feeds = [(inputs[0].0, Tensor::from_vec(vec![1], vec![0.5f32]))];
        let mut session = OrtSession {
            environment: self.environment.clone(),
            model: model.clone(),
            threads: 1,
            required: inputs.clone(),
            inputs,
            loaded: None,
            profiled: None,
        };
        let mut plain = Vec::new();
        for _ in 0..RUNS {
            let start = Instant::now();
            session.execute(&feeds, &wanted)?;
            plain.push(start.elapsed().as_secs_f64());
            session.run_timed(&feeds, &wanted)?;
        }
        let plain = median(&mut plain);
        let Some((profile, _, mut runs)) = session.take_profile()? else { return Ok(0.5) };
        let added = (median(&mut runs) - plain).max(0.0) / LENGTH as f64;
        let reported = profile.typical().map_or(0.0, |(duration, _)| duration);
        let inside = reported - plain / LENGTH as f64;
        Ok(if added > 0.0 { (inside / added).clamp(0.0, 1.0) } else { 0.5 })
    }

    /// Ends profiling; what was written, the model that it is about, and the seconds of the runs.
    fn take_profile(&mut self) -> Result<Option<(Profile, Model, Vec<f64>)>, RuntimeError> {
        let Some(mut profiled) = self.profiled.take() else { return Ok(None) };
        let path = profiled.loaded.session.end_profiling().map_err(refused)?;
        let unreadable = |what: String| RuntimeError::Environment(format!("profile of {NAME}: {what}"));
        let text = std::fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
        drop(profiled.folder);
        Ok(Some((Profile::parse(&text).map_err(unreadable)?, profiled.model, profiled.runs)))
    }
}

/// The value in the middle; the upper one of two.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl Session for OrtSession {
    fn run_with(
        &mut self,
        feeds: &[(ValueId, Tensor)],
        wanted: &[ValueId],
        visit: Visit<'_>,
    ) -> Result<(), RuntimeError> {
        let name_of = |model: &Model, value: ValueId| model.value(value).name().to_owned();
        let named = self.named(feeds)?;
        // Inputs and constants are known here; only what nodes compute comes from the library.
        let mut computed = Vec::new();
        for &value in wanted {
            let held = feeds.iter().find(|(fed, _)| *fed == value).map(|(_, tensor)| tensor);
            match held.or_else(|| self.model.value(value).tensor()) {
                Some(tensor) => visit(value, tensor)?,
                None => computed.push((value, name_of(&self.model, value))),
            }
        }
        // Only what is wanted is fetched: the library need not compute the rest.
        let selected = computed.iter().fold(OutputSelector::no_default(), |all, (_, name)| all.with(name));
        let options = RunOptions::new().map_err(refused)?.with_outputs(selected);
        let (model, session) = self.prepare(wanted)?;
        let outputs = session
            .run_with_options(named, &options)
            .map_err(|error| explained(NAME, model, &error.to_string()))?;
        for (value, name) in computed {
            let missing = || RuntimeError::UnknownValue(name.clone());
            visit(value, &fetch(&name, outputs.get(&name).ok_or_else(missing)?)?)?;
        }
        Ok(())
    }

    fn run_data(
        &mut self,
        feeds: &[(ValueId, Datum)],
        wanted: &[ValueId],
    ) -> Result<Vec<Datum>, RuntimeError> {
        let mut tensors = Vec::with_capacity(feeds.len());
        for (value, datum) in feeds {
            let tensor = datum.as_tensor().ok_or_else(|| RuntimeError::Feed {
                input: self.model.value(*value).name().to_owned(),
                what: format!("{} cannot be handed to {NAME}", datum.kind()),
            })?;
            tensors.push((*value, tensor.clone()));
        }
        Ok(self.run(&tensors, wanted)?.into_iter().map(Datum::Tensor).collect())
    }

    fn execute(&mut self, feeds: &[(ValueId, Tensor)], wanted: &[ValueId]) -> Result<(), RuntimeError> {
        let named = self.named(feeds)?;
        let (_, session) = self.prepare(wanted)?;
        drop(session.run(named).map_err(refused)?);
        Ok(())
    }

    fn run_timed(&mut self, feeds: &[(ValueId, Tensor)], wanted: &[ValueId]) -> Result<(), RuntimeError> {
        let named = self.named(feeds)?;
        let profiled = match self.profiled.take().filter(|profiled| profiled.loaded.wanted == wanted) {
            Some(profiled) => profiled,
            None => self.profiled(wanted)?,
        };
        let profiled = self.profiled.insert(profiled);
        let start = Instant::now();
        drop(profiled.loaded.session.run(named).map_err(refused)?);
        profiled.runs.push(start.elapsed().as_secs_f64());
        Ok(())
    }

    fn take_times(&mut self, plain: f64) -> Result<Times, RuntimeError> {
        let nothing = || RuntimeError::Environment("nothing was timed".into());
        let (profile, model, runs) = self.take_profile()?.ok_or_else(nothing)?;
        let runs = runs.get(WARM_UP..).unwrap_or_default().to_vec();
        let kernels = profile.typical().map_or(1.0, |(_, each)| each.max(1.0));
        let added = (median(&mut runs.clone()) - plain).max(0.0) / kernels;
        let inside = added * self.share_inside()?;
        let mut times = profile.times(&model, WARM_UP, Overhead { inside, around: added - inside });
        times.runs = runs;
        times.constants = Some(model.tensor_bytes());
        Ok(times)
    }

    fn required_inputs(&self) -> &[(ValueId, String)] {
        &self.required
    }
}
