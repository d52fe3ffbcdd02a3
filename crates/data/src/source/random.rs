//! Numbers drawn at random, in the shapes that a model takes: for latency, and for nothing else.

use std::sync::Arc;

use optix_ir::{DType, Dim, Tensor, element_count};

use super::{Opened, Sample, Settings, Source};
use crate::dataset::InputSpec;
use crate::error::DataError;
use crate::spec::did_you_mean;
use crate::steps::cast;

/// Samples, when the user says nothing.
const COUNT: u64 = 64;

/// Integers lie below this, when the user says nothing: they are mostly masks and tokens.
const BELOW: i64 = 2;

/// How values are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spread {
    /// Around 0 with a deviation of 1.
    Normal,
    /// From 0 to 1.
    Uniform,
}

#[derive(Debug)]
struct Random {
    settings: Settings,
    spread: Spread,
    inputs: Arc<[Drawn]>,
    count: u64,
}

#[derive(Debug)]
struct Drawn {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
}

/// Draws for the inputs of a model; without one, for `dtype` and `shape` of the source.
pub(crate) fn open(settings: Settings, inputs: Option<&[InputSpec]>) -> Result<Arc<dyn Opened>, DataError> {
    let spec = &settings.spec;
    let fail = |what: String| DataError::invalid(&spec.path, "", what);
    let spread = match spec.path.to_str() {
        Some("normal" | "") => Spread::Normal,
        Some("uniform") => Spread::Uniform,
        other => {
            let name = other.unwrap_or("?");
            let hint = did_you_mean(name, ["normal", "uniform"]);
            return Err(fail(format!("random data are `normal` or `uniform`{hint}")));
        }
    };
    let options = &spec.options;
    if options.below.is_some_and(|below| below < 1) {
        return Err(fail("`below` is at least 1: integers are drawn from 0 on".to_owned()));
    }
    let mut drawn = Vec::new();
    match (&options.shape, inputs) {
        (Some(shape), Some([input])) => {
            drawn.push(Drawn {
                name: input.name.clone(),
                dtype: options.dtype.map_or(input.dtype, |dtype| dtype.0),
                shape: shape.clone(),
            });
        }
        (Some(_), Some(inputs)) => {
            return Err(fail(format!(
                "`shape` is for a model with one input, this one has {}: `dims` gives open dimensions their sizes",
                inputs.len()
            )));
        }
        (Some(shape), None) => {
            let dtype = options.dtype.map_or(DType::F32, |dtype| dtype.0);
            drawn.push(Drawn { name: String::new(), dtype, shape: shape.clone() });
        }
        (None, Some(inputs)) => {
            for input in inputs {
                let shape = shape_of(input, options).map_err(fail)?;
                drawn.push(Drawn { name: input.name.clone(), dtype: input.dtype, shape });
            }
        }
        (None, None) => {}
    }
    for input in &drawn {
        let bytes = element_count(&input.shape).and_then(|count| count.checked_mul(8));
        if bytes.is_none_or(|bytes| bytes as u64 > settings.limits.sample_bytes) {
            return Err(DataError::limit(
                &spec.path,
                "one sample",
                "sample-bytes",
                settings.limits.sample_bytes,
            ));
        }
    }
    let most = spec.take.or(spec.sample).map_or(COUNT, |count| count.saturating_add(spec.skip));
    let count = options.count.unwrap_or(most);
    Ok(Arc::new(Random { spread, inputs: drawn.into(), count, settings }))
}

/// The shape of a sample: open dimensions are the batch where they come first, else need a size.
fn shape_of(input: &InputSpec, options: &super::SourceOptions) -> Result<Vec<usize>, String> {
    let dims = match input.shape.split_first() {
        Some((first, rest)) if first.fixed().is_none() => rest,
        _ => input.shape.as_slice(),
    };
    let size = |(at, dim): (usize, &Dim)| {
        match dim {
        Dim::Fixed(size) => Ok(*size),
        Dim::Symbol(name) => options.dims.get(&**name).copied().ok_or_else(|| {
            let hint = did_you_mean(name, options.dims.keys().map(String::as_str));
            format!(
                "input `{}` has a dimension `{name}` that needs a size{hint}: add `dims = {{ {name} = 128 }}` to \
                 [source], or `?dims.{name}=128` on the command line",
                input.name
            )
        }),
        Dim::Unknown => Err(format!(
            "axis {at} of input `{}` has neither size nor name: give `shape`, or name the dimension in the model",
            input.name
        )),
    }
    };
    dims.iter().enumerate().map(size).collect()
}

impl Opened for Random {
    fn stream(&self) -> Result<Box<dyn Source>, DataError> {
        let names = self.inputs.iter().map(|input| input.name.clone()).collect();
        let options = &self.settings.spec.options;
        Ok(Box::new(Draws {
            names,
            inputs: Arc::clone(&self.inputs),
            spread: self.spread,
            seed: self.settings.spec.seed,
            below: options.below.unwrap_or(BELOW),
            count: self.count,
            at: 0,
            path: self.settings.spec.path.clone(),
        }))
    }
}

struct Draws {
    names: Vec<String>,
    inputs: Arc<[Drawn]>,
    spread: Spread,
    seed: u64,
    below: i64,
    count: u64,
    at: u64,
    path: std::path::PathBuf,
}

impl Draws {
    /// Every sample has a stream of its own, so that it does not depend on the ones before it.
    fn draw(&self, input: &Drawn) -> Result<Tensor, String> {
        let mut random = blake3::Hasher::new_derive_key("optix: random samples")
            .update(&self.seed.to_le_bytes())
            .update(&self.at.to_le_bytes())
            .update(input.name.as_bytes())
            .finalize_xof();
        // 0 to 1, both left out.
        let mut share = || {
            let mut bytes = [0; 8];
            random.fill(&mut bytes);
            ((u64::from_le_bytes(bytes) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let count = element_count(&input.shape).unwrap_or(0);
        if input.dtype.is_float() {
            let mut value = || match self.spread {
                Spread::Uniform => share() as f32,
                // Box and Muller; one of the pair is enough.
                Spread::Normal => {
                    ((-2.0 * share().ln()).sqrt() * (std::f64::consts::TAU * share()).cos()) as f32
                }
            };
            let values: Vec<f32> = (0..count).map(|_| value()).collect();
            return cast(&Tensor::from_vec(input.shape.clone(), values), input.dtype);
        }
        let below = self.below as f64;
        let values: Vec<i64> =
            (0..count).map(|_| ((share() * below) as i64).min(self.below.saturating_sub(1))).collect();
        cast(&Tensor::from_vec(input.shape.clone(), values), input.dtype)
    }
}

impl Source for Draws {
    fn arrays(&self) -> &[String] {
        &self.names
    }

    fn count(&self) -> u64 {
        self.count
    }

    fn next(&mut self) -> Result<Sample, DataError> {
        let draw = |input: &Drawn| {
            let fail = |what: String| {
                DataError::invalid(
                    &self.path,
                    "",
                    format!("input `{}`: {what}: random data cannot be drawn", input.name),
                )
            };
            self.draw(input).map_err(fail)
        };
        let tensors = self.inputs.iter().map(draw).collect::<Result<_, _>>()?;
        self.at = self.at.saturating_add(1);
        Ok(Sample { tensors, ..Sample::default() })
    }

    fn skip(&mut self, count: u64) -> Result<(), DataError> {
        self.at = self.at.saturating_add(count);
        Ok(())
    }
}
