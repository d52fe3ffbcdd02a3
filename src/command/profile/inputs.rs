//! What a profile feeds: random numbers of the sizes asked for, or the first samples of a data set.

use std::collections::BTreeSet;

use anyhow::bail;
use optix_base::escape_for_terminal;
use optix_data::InputSpec;
use optix_ir::{DType, Dim, Model, Tensor, ValueId};
use optix_pipeline::check::random_tensor;
use optix_pipeline::profile::InputFacts;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::super::setup;
use optix::cli::{Global, Profile};

/// Most elements of an input: more is a slip of the finger.
const MOST: usize = 1 << 30;

/// Feeds of a model, and what a report says of them.
#[derive(Clone)]
pub struct Feeds {
    /// By value.
    pub feeds: Vec<(ValueId, Tensor)>,
    /// For the report.
    pub facts: Vec<InputFacts>,
    /// Samples in a run, where there is such an axis.
    pub batch: Option<u64>,
    /// `random`, or the path of the data.
    pub data: String,
}

/// `NAME=NUMBER` of a flag.
struct Setting<N> {
    flag: &'static str,
    name: String,
    value: N,
}

fn settings<N: std::str::FromStr>(
    flag: &'static str,
    given: &[String],
    form: &str,
) -> anyhow::Result<Vec<Setting<N>>> {
    given
        .iter()
        .map(|text| {
            let parsed = text.rsplit_once('=').and_then(|(name, value)| Some((name, value.parse().ok()?)));
            match parsed {
                Some((name, value)) if !name.is_empty() => Ok(Setting { flag, name: name.to_owned(), value }),
                _ => bail!("{flag} {}: the form is {form}", escape_for_terminal(text)),
            }
        })
        .collect()
}

/// The sizes and fillings that the flags name, and which of them some model had a use for.
pub struct Wanted {
    dims: Vec<Setting<usize>>,
    fills: Vec<Setting<f64>>,
    used: BTreeSet<(&'static str, String)>,
    /// What could have been named, for errors.
    known: BTreeSet<(&'static str, String)>,
}

impl Wanted {
    /// Reads the flags.
    pub fn new(options: &Profile) -> anyhow::Result<Wanted> {
        let dims = settings("--dim", &options.dim, "NAME=SIZE or INPUT:AXIS=SIZE, with a whole number")?;
        let fills = settings("--fill", &options.fill, "INPUT=NUMBER")?;
        if options.batch == Some(0) {
            bail!("--batch 0: a run needs a sample at least");
        }
        Ok(Wanted { dims, fills, used: BTreeSet::new(), known: BTreeSet::new() })
    }

    fn size(&mut self, name: &str) -> Option<usize> {
        self.known.insert(("--dim", name.to_owned()));
        let found = self.dims.iter().find(|dim| dim.name == name)?;
        self.used.insert((found.flag, found.name.clone()));
        Some(found.value)
    }

    fn fill(&mut self, name: &str) -> Option<f64> {
        self.known.insert(("--fill", name.to_owned()));
        let found = self.fills.iter().find(|fill| fill.name == name)?;
        self.used.insert((found.flag, found.name.clone()));
        Some(found.value)
    }

    /// Complains of flags that no model had a use for.
    pub fn check_all_used(&self) -> anyhow::Result<()> {
        let dims = self.dims.iter().map(|dim| (dim.flag, &dim.name));
        let fills = self.fills.iter().map(|fill| (fill.flag, &fill.name));
        for (flag, name) in dims.chain(fills) {
            if self.used.contains(&(flag, name.clone())) {
                continue;
            }
            let known: Vec<&str> =
                self.known.iter().filter(|(of, _)| *of == flag).map(|(_, known)| known.as_str()).collect();
            let hint = optix_pipeline::did_you_mean(name, known.iter().copied());
            let what = if flag == "--dim" { "free dimension" } else { "input" };
            let there = match known.is_empty() {
                true => format!("it has no {what}"),
                false => format!("it has: {}", escape_for_terminal(&known.join(", "))),
            };
            bail!("{flag} {}: the model has no such {what}{hint} ({there})", escape_for_terminal(name));
        }
        Ok(())
    }

    /// The feeds of a model.
    pub fn feeds(
        &mut self,
        global: &Global,
        options: &Profile,
        model: &Model,
        batch: Option<usize>,
    ) -> anyhow::Result<Feeds> {
        let specs = setup::inputs(model)?;
        match &options.data {
            Some(path) => from_data(global, path, model, &specs, batch),
            None => self.random(model, &specs, batch, global.seed.unwrap_or(0)),
        }
    }

    fn random(
        &mut self,
        model: &Model,
        specs: &[InputSpec],
        batch: Option<usize>,
        seed: u64,
    ) -> anyhow::Result<Feeds> {
        let shapes = self.shapes(specs, batch)?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut feeds = Vec::new();
        let mut facts = Vec::new();
        for (spec, shape) in specs.iter().zip(shapes) {
            let name = escape_for_terminal(&spec.name).into_owned();
            let Some(count) = optix_ir::element_count(&shape).filter(|&count| count <= MOST) else {
                bail!("input `{name}` would have shape {shape:?}: more than {MOST} elements are too many");
            };
            let fill = self.fill(&spec.name);
            let tensor = match fill {
                Some(value) => filled(spec.dtype, shape.clone(), count, value)
                    .ok_or_else(|| format!("--fill {name}={value}: not a value of {}", spec.dtype)),
                None => random_tensor(spec.dtype, shape.clone(), count, &mut random).ok_or_else(|| {
                    format!("input `{name}` has {} elements: feed it with --data", spec.dtype)
                }),
            };
            let tensor = tensor.map_err(anyhow::Error::msg)?;
            facts.push(InputFacts {
                name: spec.name.clone(),
                dtype: spec.dtype.name().to_owned(),
                shape: shape.iter().map(|&size| size as u64).collect(),
                values: fill.map_or_else(|| "random".to_owned(), |value| format!("filled with {value}")),
            });
            feeds.push((value_of(model, &spec.name)?, tensor));
        }
        let batch = batch_of(specs, &facts);
        Ok(Feeds { feeds, facts, batch, data: "random".to_owned() })
    }

    /// A size for every dimension, or one error that names all that are missing.
    fn shapes(&mut self, specs: &[InputSpec], batch: Option<usize>) -> anyhow::Result<Vec<Vec<usize>>> {
        // Symbols that stand first somewhere are the batch wherever they stand.
        let mut batch_symbols = BTreeSet::new();
        let mut is_free = false;
        for spec in specs {
            match spec.shape.first() {
                Some(Dim::Symbol(name)) => {
                    batch_symbols.insert(name.to_string());
                    is_free = true;
                }
                Some(Dim::Unknown) => is_free = true,
                _ => {}
            }
        }
        if let (Some(batch), false) = (batch, is_free) {
            let fixed = specs.iter().find_map(|spec| spec.shape.first()?.fixed());
            if fixed != Some(batch) {
                let why = match fixed {
                    Some(size) => format!("the model's first axis is fixed at {size}"),
                    None => "the model's inputs have no axes".to_owned(),
                };
                bail!("--batch {batch}: {why}");
            }
        }
        let mut shapes = Vec::new();
        let mut missing: Vec<String> = Vec::new();
        for spec in specs {
            let mut shape = Vec::new();
            for (axis, dim) in spec.shape.iter().enumerate() {
                if let Dim::Fixed(size) = dim {
                    shape.push(*size);
                    continue;
                }
                let place = format!("{}:{axis}", spec.name);
                let by_name = match dim {
                    Dim::Symbol(name) => self.size(name),
                    _ => None,
                };
                let is_batch =
                    axis == 0 || matches!(dim, Dim::Symbol(name) if batch_symbols.contains(&**name));
                let size = match self.size(&place).or(by_name) {
                    Some(size) => Some(size),
                    None if is_batch => Some(batch.unwrap_or(1)),
                    None => None,
                };
                match (size, dim) {
                    (Some(size), _) => shape.push(size),
                    (None, Dim::Symbol(name)) => missing.push(name.to_string()),
                    (None, _) => missing.push(place),
                }
            }
            shapes.push(shape);
        }
        missing.sort();
        missing.dedup();
        if !missing.is_empty() {
            let declared: Vec<String> = specs
                .iter()
                .map(|spec| {
                    let dims: Vec<String> = spec.shape.iter().map(ToString::to_string).collect();
                    format!("`{}` {}[{}]", spec.name, spec.dtype, dims.join(", "))
                })
                .collect();
            let flags: Vec<String> = missing.iter().map(|name| format!("--dim {name}=SIZE")).collect();
            bail!(
                "the model's inputs are {}: give a size with {} (the first axis is `--batch`), or data with --data",
                escape_for_terminal(&declared.join(", ")),
                escape_for_terminal(&flags.join(" "))
            );
        }
        Ok(shapes)
    }
}

fn value_of(model: &Model, name: &str) -> anyhow::Result<ValueId> {
    let inputs = model.graph(model.main()).inputs();
    let found = inputs.iter().map(|info| info.value).find(|&value| model.value(value).name() == name);
    found.ok_or_else(|| anyhow::anyhow!("the model has no input `{}`", escape_for_terminal(name)))
}

/// Samples in a run: the size of the first axis of the first input that has axes beside it.
fn batch_of(specs: &[InputSpec], facts: &[InputFacts]) -> Option<u64> {
    let mut both = specs.iter().zip(facts);
    both.find(|(spec, _)| spec.shape.len() > 1).and_then(|(_, facts)| facts.shape.first().copied())
}

fn filled(dtype: DType, shape: Vec<usize>, count: usize, value: f64) -> Option<Tensor> {
    macro_rules! whole {
        ($rust:ty) => {{
            let element = value as $rust;
            (element as f64 == value).then(|| Tensor::from_vec(shape, vec![element; count]))
        }};
    }
    match dtype {
        DType::F32 => Some(Tensor::from_vec(shape, vec![value as f32; count])),
        DType::F64 => Some(Tensor::from_vec(shape, vec![value; count])),
        DType::I64 => whole!(i64),
        DType::I32 => whole!(i32),
        DType::I16 => whole!(i16),
        DType::I8 => whole!(i8),
        DType::U64 => whole!(u64),
        DType::U32 => whole!(u32),
        DType::U16 => whole!(u16),
        DType::U8 => whole!(u8),
        DType::Bool if value == 0.0 || value == 1.0 => {
            Some(Tensor::from_bools(shape, &vec![value == 1.0; count]))
        }
        _ => None,
    }
}

fn from_data(
    global: &Global,
    path: &std::path::Path,
    model: &Model,
    specs: &[InputSpec],
    batch: Option<usize>,
) -> anyhow::Result<Feeds> {
    let dataset = setup::dataset(global, path, None)?;
    let bound = dataset.bind(specs, batch.unwrap_or(1))?;
    let Some(first) = bound.batches()?.next().transpose()? else {
        bail!("{}: there are no samples", path.display());
    };
    if let Some(batch) = batch.filter(|&batch| batch != first.count) {
        bail!("--batch {batch}: {} gives {} samples at a time for this model", path.display(), first.count);
    }
    let mut feeds = Vec::new();
    let mut facts = Vec::new();
    for (name, tensor) in &first.feeds {
        facts.push(InputFacts {
            name: name.clone(),
            dtype: tensor.dtype().name().to_owned(),
            shape: tensor.shape().iter().map(|&size| size as u64).collect(),
            values: "data".to_owned(),
        });
        feeds.push((value_of(model, name)?, tensor.clone()));
    }
    Ok(Feeds { feeds, facts, batch: Some(first.count as u64), data: path.display().to_string() })
}
