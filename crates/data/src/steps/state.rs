//! A sample on its way through the steps.

use std::sync::Arc;

use optix_base::Limits;
use optix_ir::{DType, Tensor};

use super::numbers::to_f32s;
use super::shape::resolve;
use super::tokenize::Loaded;
use super::{Padding, Side, Step, TokenOutput, Tokenize};
use crate::error::DataError;
use crate::source::{Facts, Sample};
use crate::spec::did_you_mean;

/// Steps made ready for many samples of one input.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    steps: Vec<Step>,
    tokens: Option<(Arc<Loaded>, TokenOutput)>,
}

/// Tokenizers that have been read, for the inputs that share one.
#[derive(Debug, Default)]
pub(crate) struct Tokenizers(Vec<Arc<Loaded>>);

impl Tokenizers {
    fn get(&mut self, options: &Tokenize, limits: &Limits) -> Result<Arc<Loaded>, DataError> {
        let same = |known: &&Arc<Loaded>| {
            known.path() == options.file && *known.options() == Tokenize { output: None, ..options.clone() }
        };
        if let Some(known) = self.0.iter().find(same) {
            return Ok(Arc::clone(known));
        }
        let loaded = Arc::new(Loaded::open(&Tokenize { output: None, ..options.clone() }, limits)?);
        self.0.push(Arc::clone(&loaded));
        Ok(loaded)
    }
}

/// What steps start from: one array of a sample, and the others where a step wants two.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) names: &'a [String],
    pub(crate) sample: &'a Sample,
    pub(crate) array: usize,
}

/// A step that does not fit a sample.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("step {} (`{name}`): {what}", .index.saturating_add(1))]
pub(crate) struct StepError {
    /// Which one, from 0.
    pub(crate) index: usize,
    name: &'static str,
    what: String,
}

/// What is wrong with steps whatever the sample.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// A step.
    #[error(transparent)]
    Step(StepError),
    /// A file that a step needs.
    #[error(transparent)]
    File(DataError),
}

impl Chain {
    /// Steps without presets, for the input of this name.
    pub(crate) fn new(
        steps: &[Step],
        input: &str,
        known: &mut Tokenizers,
        limits: &Limits,
    ) -> Result<Chain, ChainError> {
        let mut tokens = None;
        for (index, step) in steps.iter().enumerate() {
            let fail = |what: String| ChainError::Step(StepError { index, name: step.name(), what });
            if let Step::Tokenize(options) = step {
                if index > 0 {
                    return Err(fail("it must be the first step: it takes the text as it stands".to_owned()));
                }
                let output = options.output_for(input).map_err(fail)?;
                tokens = Some((known.get(options, limits).map_err(ChainError::File)?, output));
            }
        }
        Ok(Chain { steps: steps.to_vec(), tokens })
    }

    /// What samples of different lengths are filled up with, and on which side, to be fed together.
    pub(crate) fn fill(&self) -> Option<(i64, Side)> {
        let (loaded, output) = self.tokens.as_ref()?;
        let longest = loaded.options().padding == Padding::Longest;
        longest.then(|| (loaded.fill(*output), loaded.side()))
    }

    /// The array with the second text.
    pub(crate) fn pair(&self) -> Option<&str> {
        self.tokens.as_ref()?.0.options().pair.as_deref()
    }

    fn tokenize(&self, given: &Given<'_>) -> Result<Tensor, String> {
        let Some((loaded, output)) = &self.tokens else { return Err("it is not ready".to_owned()) };
        let text = |index: usize| match given.sample.tensors.get(index).map(Tensor::strings) {
            Some(Ok(texts)) => match texts.as_slice() {
                [one] => std::str::from_utf8(one).map_err(|_| "the text is not UTF-8".to_owned()),
                many => Err(format!("one text a sample is needed, here are {}", many.len())),
            },
            _ => Err("it needs text, and these are numbers: is `from` the right array?".to_owned()),
        };
        let pair = match self.pair() {
            None => None,
            Some(name) => match given.names.iter().position(|known| known == name) {
                Some(index) => Some(text(index)?),
                None => {
                    let hint = did_you_mean(name, given.names.iter().map(String::as_str));
                    let list = given.names.join(", ");
                    return Err(format!(
                        "the data have no array `{name}` for `pair`{hint} (they have: {list})"
                    ));
                }
            },
        };
        loaded.output(text(given.array)?, pair, *output)
    }

    /// The steps.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Applies them to a sample.
    pub(crate) fn apply(&self, given: &Given<'_>) -> Result<Tensor, StepError> {
        let first = given.sample.tensors.get(given.array).cloned();
        let mut state = State {
            value: first.map_or_else(|| Value::Floats(vec![0], Vec::new()), Value::Tensor),
            channels_first: false,
            facts: &given.sample.facts,
            rate: given.sample.facts.rate,
            is_first: true,
        };
        for (index, step) in self.steps.iter().enumerate() {
            let applied = match step {
                Step::Tokenize(_) => self.tokenize(given).map(|tensor| state.value = Value::Tensor(tensor)),
                step => state.apply(step),
            };
            applied.map_err(|what| StepError { index, name: step.name(), what })?;
            state.is_first = false;
        }
        Ok(state.value.into_tensor())
    }
}

/// Floats stay a vector between steps, so that a chain of them copies nothing.
pub(super) enum Value {
    Tensor(Tensor),
    Floats(Vec<usize>, Vec<f32>),
}

impl Value {
    /// Elements that were moved as bytes.
    pub(super) fn of_bytes(dtype: DType, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Value, String> {
        Tensor::new(dtype, shape, bytes.into()).map(Value::Tensor).map_err(|error| error.to_string())
    }

    pub(super) fn shape(&self) -> &[usize] {
        match self {
            Value::Tensor(tensor) => tensor.shape(),
            Value::Floats(shape, _) => shape,
        }
    }

    pub(super) fn into_tensor(self) -> Tensor {
        match self {
            Value::Tensor(tensor) => tensor,
            Value::Floats(shape, values) => Tensor::from_vec(shape, values),
        }
    }
}

pub(super) struct State<'a> {
    pub(super) value: Value,
    pub(super) channels_first: bool,
    pub(super) facts: &'a Facts,
    /// Sounds: samples a second.
    pub(super) rate: Option<u32>,
    pub(super) is_first: bool,
}

impl State<'_> {
    pub(super) fn take(&mut self) -> Value {
        std::mem::replace(&mut self.value, Value::Floats(vec![0], Vec::new()))
    }

    fn apply(&mut self, step: &Step) -> Result<(), String> {
        if let Value::Tensor(tensor) = &self.value
            && tensor.dtype() == DType::String
            && !matches!(step, Step::Reshape(_) | Step::Unsqueeze(_))
        {
            return Err("it needs numbers, and this is text: `tokenize` makes numbers of it".to_owned());
        }
        match step {
            Step::ExifOrientation {} => self.exif_orientation()?,
            Step::Channel(channel) => self.channel(*channel)?,
            Step::Resize { size, mode, antialias, keep_aspect } => {
                self.resize(*size, *mode, *antialias, *keep_aspect)?;
            }
            Step::CenterCrop(size) => self.center_crop(*size)?,
            Step::Crop { top, left, height, width } => self.crop((*top, *left), (*height, *width))?,
            Step::Pad { size, value, place } => self.pad(*size, *value, *place)?,
            Step::PadOrTrim { length, axis, value } => self.pad_or_trim(*length, *axis, *value)?,
            Step::Mono {} => self.mono()?,
            Step::Resample { rate, from } => self.resample(*rate, *from)?,
            Step::Frame { length, hop } => self.frame(*length, *hop)?,
            Step::Mel(options) => self.mel(options)?,
            Step::Mfcc { count } => self.mfcc(*count)?,
            Step::ToFloat {} => {
                if let Value::Tensor(tensor) = &self.value {
                    self.value = Value::Floats(tensor.shape().to_vec(), to_f32s(tensor)?);
                }
            }
            Step::Scale(factor) => {
                let factor = *factor as f32;
                self.floats()?.iter_mut().for_each(|value| *value *= factor);
            }
            Step::Normalize { mean, std, axis } => self.normalize(mean, std, *axis)?,
            Step::Layout(order) => self.layout(*order)?,
            Step::Cast(dtype) => {
                let tensor = self.take().into_tensor();
                self.value = Value::Tensor(super::numbers::cast(&tensor, dtype.0)?);
            }
            Step::Reshape(shape) => {
                let shape = resolve(shape, self.value.shape())?;
                self.set_shape(shape)?;
            }
            Step::Unsqueeze(axis) => {
                let mut shape = self.value.shape().to_vec();
                if *axis > shape.len() {
                    return Err(format!("there is no axis {axis} in a sample of shape {shape:?}"));
                }
                shape.insert(*axis, 1);
                self.set_shape(shape)?;
            }
            Step::Tokenize(_) | Step::Preset(_) => return Err("presets are taken apart before".to_owned()),
        }
        Ok(())
    }

    pub(super) fn set_shape(&mut self, shape: Vec<usize>) -> Result<(), String> {
        self.value = match self.take() {
            Value::Tensor(tensor) => {
                Value::Tensor(tensor.reshaped(shape).map_err(|error| error.to_string())?)
            }
            Value::Floats(_, values) => Value::Floats(shape, values),
        };
        Ok(())
    }

    pub(super) fn floats(&mut self) -> Result<&mut Vec<f32>, String> {
        if let Value::Tensor(tensor) = &self.value {
            if tensor.dtype() != DType::F32 {
                let dtype = tensor.dtype();
                return Err(format!(
                    "it needs float elements, these are {dtype}: put `{{ to-float = {{}} }}` before it"
                ));
            }
            let values = tensor.to_slice::<f32>().map_err(|error| error.to_string())?.into_owned();
            self.value = Value::Floats(tensor.shape().to_vec(), values);
        }
        match &mut self.value {
            Value::Floats(_, values) => Ok(values),
            Value::Tensor(_) => Err("it needs float elements".to_owned()),
        }
    }
}
