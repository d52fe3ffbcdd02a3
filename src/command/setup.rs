//! What several commands start with: models, data, engines.

use std::cell::RefCell;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use optix_base::{CancelToken, ErrorClass, Limits, escape_for_terminal};
use optix_data::{Augmentation, Batch, DataError, Dataset, Digest, InputSpec, OpenOptions};
use optix_io::{ExternalData, LoadOptions, Loaded, SaveOptions};
use optix_ir::{AttributeValue, Model, Type, ValueId};
use optix_pipeline::{Calibration, OracleError, Scratch};
use optix_runtime::{Engine, EngineDeployment, EngineOracle, Lane};

use super::scratch::ScratchFile;
use crate::exit::{Classed, Helped};
use crate::screen;
use optix::cli::Global;

/// Samples fed together, where the model allows it: enough to keep kernels busy, little to keep in memory.
pub const BATCH: usize = 16;

/// The limits of the run.
pub fn limits(global: &Global) -> anyhow::Result<Limits> {
    Limits::default().parse(&global.limits).context("--limits")
}

/// Threads that an engine may use.
pub fn threads(global: &Global) -> u64 {
    match global.threads {
        0 => std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64),
        threads => threads as u64,
    }
}

/// Loads a model.
pub fn load(global: &Global, path: &Path) -> anyhow::Result<Loaded> {
    let options = LoadOptions { map: !global.no_mmap, limits: limits(global)? };
    Ok(optix_io::load(path, &options)?)
}

/// Weights named in warnings; the rest is counted.
const NAMED: usize = 20;

/// How a model made from another one is written.
pub fn save_options(
    loaded: &Loaded,
    target: &Path,
    in_place: bool,
    external_data: bool,
) -> anyhow::Result<SaveOptions> {
    Ok(SaveOptions {
        inputs: loaded.sources.clone(),
        in_place,
        external_data: if external_data { ExternalData::Always } else { ExternalData::Auto },
        format: Some(optix_io::output_format(target, loaded.format)?),
    })
}

/// One warning for every weight with values that are NaN or infinite: legal, and hardly ever meant.
pub fn non_finite(model: &Model) -> Vec<String> {
    let constants = model.values().filter_map(|value| {
        let value = model.value(value);
        Some((value.name(), value.tensor()?))
    });
    let attributes = model.walk().flat_map(|node| {
        let node = model.node(node);
        node.attributes.iter().filter_map(|attribute| match &attribute.value {
            AttributeValue::Tensor(stored) => Some((node.name.as_str(), &stored.tensor)),
            _ => None,
        })
    });
    let mut warnings = Vec::new();
    let mut more = 0u64;
    for (name, tensor) in constants.chain(attributes) {
        let (nan, infinite) = optix_io::non_finite(tensor);
        if nan + infinite == 0 {
            continue;
        }
        if warnings.len() < NAMED {
            let shown: String = name.chars().take(100).collect();
            let of = tensor.len();
            warnings.push(format!("weight `{shown}`: {nan} NaN and {infinite} infinite values of {of}"));
        } else {
            more += 1;
        }
    }
    if more > 0 {
        warnings.push(format!("{more} more weights have NaN or infinite values"));
    }
    warnings
}

/// The bytes of a file that is read whole: a recipe, a lock. `kind` is what messages call it.
pub fn read_whole(path: &Path, kind: &str, most: u64) -> anyhow::Result<Vec<u8>> {
    let name = escape_for_terminal(&path.to_string_lossy()).into_owned();
    let read = || format!("cannot read {kind} {name}; check the path");
    let metadata = std::fs::metadata(path).with_context(read)?;
    // Before it is opened: a pipe would wait for somebody to write, a device may never end.
    if metadata.is_dir() {
        bail!("{kind} {name}: it is a directory; name a file in it");
    }
    if !metadata.is_file() {
        bail!("{kind} {name}: it is a pipe or device, not a file; save what it gives to a file first");
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
        .with_context(read)?;
    if bytes.len() as u64 > most {
        bail!("{kind} {name}: more than {most} bytes are too many for a {kind}");
    }
    Ok(bytes)
}

/// The engine of the run.
pub fn engine(global: &Global) -> anyhow::Result<EngineOracle> {
    oracle_named(global, global.engine.as_deref().unwrap_or("cpu"))
}

/// The engine of that name, as passes and evaluations ask it.
pub fn oracle_named(global: &Global, name: &str) -> anyhow::Result<EngineOracle> {
    let engine = engine_named(global, name)?;
    let options = optix_runtime::LoadOptions { threads: global.threads, ..Default::default() };
    Ok(EngineOracle::new(engine, options))
}

/// The engine that the written model is meant for: the one that is named, or onnxruntime where it is found.
pub fn deployment(global: &Global, name: Option<&str>) -> anyhow::Result<Option<EngineDeployment>> {
    let engine = match name {
        Some("none") => return Ok(None),
        Some(name) => engine_named(global, name)?,
        None => match optix_runtime::engine("onnxruntime", global.ort_lib.as_deref()) {
            Some(Ok(engine)) => engine,
            _ => return Ok(None),
        },
    };
    let options = optix_runtime::LoadOptions { threads: global.threads, ..Default::default() };
    Ok(Some(EngineDeployment::new(engine, options)))
}

/// Says what of the runs a user should know: nodes that ran beside the device, batches that did not fit.
pub fn remarks(global: &Global, oracle: &EngineOracle) {
    note_all(global, oracle.remarks());
}

/// The same of lanes.
pub fn lane_remarks(global: &Global, lanes: &[Lane<'_>]) {
    note_all(global, lanes.iter().flat_map(Lane::remarks));
}

fn note_all(global: &Global, remarks: impl IntoIterator<Item = String>) {
    if !global.quiet {
        remarks.into_iter().for_each(|remark| screen::note(&format!("note: {remark}")));
    }
}

/// The engine of that name.
pub fn engine_named(global: &Global, name: &str) -> anyhow::Result<Box<dyn Engine>> {
    match optix_runtime::engine(name, global.ort_lib.as_deref()) {
        Some(Ok(engine)) => Ok(engine),
        Some(Err(why)) => {
            let what = format!("engine `{name}` cannot be used: {why}");
            Err(Classed(ErrorClass::Environment, what).into())
        }
        None => {
            let names = optix_runtime::engine_names();
            let hint = optix_pipeline::did_you_mean(name, names.iter().copied());
            let what = format!("there is no engine `{name}`{hint} (there are: {})", names.join(", "));
            Err(Classed(ErrorClass::Environment, what).into())
        }
    }
}

/// A model on the engine of the run. Where that engine has no kernels for it, the error says which engine has.
pub fn lane<'m>(
    global: &Global,
    oracle: &EngineOracle,
    model: &'m Model,
    wanted: Vec<ValueId>,
) -> anyhow::Result<Lane<'m>> {
    oracle.lane(model, wanted).map_err(|error| {
        let OracleError::Unsupported { engine, .. } = &error else { return error.into() };
        let others = optix_runtime::all_engines(global.ort_lib.as_deref());
        let options = optix_runtime::LoadOptions { threads: 1, ..Default::default() };
        let able: Vec<&str> = others
            .iter()
            .filter(|other| other.name != engine)
            .filter(|other| other.engine.as_ref().is_ok_and(|other| other.load(model, &options).is_ok()))
            .map(|other| other.name)
            .collect();
        let help = match able.as_slice() {
            [] => "no other engine that can be used here runs it (`optix engines` lists them)".to_owned(),
            able => format!("it runs with --engine {}", able.join(" or --engine ")),
        };
        Helped { error, help }.into()
    })
}

/// Opens data.
pub fn dataset(global: &Global, path: &Path, samples: Option<u64>) -> anyhow::Result<Dataset> {
    open_dataset(global, path, samples, false)
}

/// Opens data; with `keep_going`, even where the first samples cannot be read.
pub fn open_dataset(
    global: &Global,
    path: &Path,
    samples: Option<u64>,
    keep_going: bool,
) -> anyhow::Result<Dataset> {
    let Some(text) = path.to_str() else { bail!("{}: the path of data must be UTF-8", path.display()) };
    let limits = limits(global)?;
    let options = OpenOptions { limits, take: samples, allow_commands: global.allow_commands, keep_going };
    Ok(Dataset::open(text, &options)?)
}

/// Opens data that figures come from.
pub fn real_dataset(global: &Global, path: &Path, samples: Option<u64>) -> anyhow::Result<Dataset> {
    let dataset = dataset(global, path, samples)?;
    if dataset.is_synthetic() {
        bail!(
            "{}: random data say nothing about accuracy and have no ranges worth calibrating on; give real data",
            path.display()
        );
    }
    Ok(dataset)
}

/// What a model wants to be fed.
pub fn inputs(model: &Model) -> anyhow::Result<Vec<InputSpec>> {
    let mut specs = Vec::new();
    for info in model.graph(model.main()).inputs() {
        let value = model.value(info.value);
        if value.initializer().is_some() {
            continue;
        }
        let name = escape_for_terminal(value.name()).into_owned();
        let Some(Type::Tensor(tensor)) = &value.ty else {
            bail!("input `{name}` of the model is not a dense tensor: it cannot be fed from data");
        };
        let (Some(dtype), Some(shape)) = (tensor.dtype, tensor.shape.clone()) else {
            bail!("input `{name}` of the model states no element type or rank: it cannot be fed from data");
        };
        specs.push(InputSpec { name: value.name().to_owned(), dtype, shape });
    }
    Ok(specs)
}

/// Calibration data as passes see them.
pub struct CalibrationData {
    /// The data.
    pub dataset: Dataset,
    /// The path as given.
    pub path: String,
    /// Samples run together.
    pub batch: usize,
    /// The samples of the longest pass over them so far.
    read: RefCell<Digest>,
}

impl CalibrationData {
    /// Data that nobody has read yet.
    pub fn new(dataset: Dataset, path: String) -> CalibrationData {
        CalibrationData { dataset, path, batch: BATCH, read: RefCell::default() }
    }

    /// The same data, of which these samples were read.
    pub fn having_read(self, digest: Option<Digest>) -> CalibrationData {
        CalibrationData { read: RefCell::new(digest.unwrap_or_default()), ..self }
    }

    /// Forgets which samples were read.
    pub fn forget(&self) {
        *self.read.borrow_mut() = Digest::default();
    }

    /// The samples that were read; none when no pass asked for data.
    pub fn digest(&self) -> Option<Digest> {
        Some(self.read.borrow().clone()).filter(|digest| digest.samples() > 0)
    }
}

impl Calibration for CalibrationData {
    fn describe(&self) -> String {
        self.path.clone()
    }

    fn samples(&self) -> Option<u64> {
        self.dataset.len()
    }

    fn scratch(&self) -> Result<Option<Box<dyn Scratch>>, String> {
        ScratchFile::new().map(|file| Some(Box::new(file) as Box<dyn Scratch>))
    }

    fn augment(&self) -> Vec<(Option<String>, Vec<Augmentation>)> {
        let inputs = self.dataset.spec().inputs.iter().filter(|input| !input.augment.is_empty());
        inputs.map(|input| (input.name.clone(), input.augment.clone())).collect()
    }

    fn batches<'a>(
        &'a self,
        model: &Model,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>, DataError> {
        let specs = inputs(model).map_err(|error| DataError::Metric(error.to_string()))?;
        let mut digest = Digest::default();
        let batches = self.dataset.bind(&specs, self.batch)?.batches()?;
        Ok(Box::new(batches.inspect(move |batch| {
            if let Ok(batch) = batch {
                digest.add(batch);
                let mut read = self.read.borrow_mut();
                if digest.samples() > read.samples() {
                    *read = digest.clone();
                }
            }
        })))
    }
}

/// Says why samples are run one at a time.
pub fn note_batch(global: &Global, alone: &Option<String>, batch: usize) {
    if let Some(why) = alone.as_ref().filter(|_| !global.quiet) {
        screen::note(&format!("note: samples are run {batch} at a time: {why}"));
    }
}

/// A token that the user's interrupt sets. A second interrupt ends the process at once.
pub fn cancel_on_interrupt() -> CancelToken {
    let token = CancelToken::new();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        // In this order: the first signal sets the flag, the next one finds it set.
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, token.flag());
        let _ = signal_hook::flag::register(signal, token.flag());
    }
    token
}
