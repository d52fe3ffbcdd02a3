//! Preprocessing: what is done to a sample before it is fed. One file a family of steps.

mod audio;
mod image;
mod mel;
mod numbers;
mod preset;
mod resize;
mod shape;
mod state;
#[cfg(test)]
mod tests;
mod tokenize;

use optix_ir::{DType, Tensor};
use serde::Deserialize;

pub use self::image::{Channel, Place};
pub use self::mel::{Mel, MelLog, MelNorm, MelPad, MelScale};
pub(crate) use self::numbers::cast;
pub use self::preset::Preset;
pub use self::resize::Mode;
pub(crate) use self::state::{Chain, ChainError, Given, StepError, Tokenizers};
pub use self::tokenize::{Padding, Side, TokenOutput, Tokenize};

/// One step. A sample is taken as height x width or height x width x channels, as image files are, until
/// a `layout` step says otherwise.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Step {
    /// Turns an image upright as its EXIF orientation says. Only as the first step of an image file.
    ExifOrientation {},
    /// Another set of channels: `"rgb"`, `"bgr"` or `"gray"`. Transparency is dropped, grey is repeated,
    /// colour becomes grey by ITU-R 601-2 luma as in Pillow.
    Channel(Channel),
    /// Another size, as Pillow and torchvision do it.
    #[serde(rename_all = "kebab-case")]
    Resize {
        /// `[height, width]`, or one number for the shorter edge.
        size: Size,
        /// How pixels are mixed.
        #[serde(default)]
        mode: Mode,
        /// Whether a smaller image mixes all pixels it covers, as Pillow does; without it, only those next
        /// to each place, as OpenCV does and torchvision with `antialias=False`.
        #[serde(default = "yes")]
        antialias: bool,
        /// Keep the ratio of the edges: with one number the usual, with two the image is fitted into them.
        keep_aspect: Option<bool>,
    },
    /// Cuts out the middle, `[height, width]` or one number for both; a smaller image gets a rim of zeros,
    /// as in torchvision.
    CenterCrop(Size),
    /// Cuts out a part.
    Crop {
        /// First row.
        top: usize,
        /// First column.
        left: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// Fills an image up to `[height, width]`; a larger one stays.
    Pad {
        /// The size.
        size: Size,
        /// What the rim is filled with.
        #[serde(default)]
        value: f64,
        /// Where the image goes.
        #[serde(default)]
        place: Place,
    },
    /// Makes an axis exactly so long: cuts the end off, or fills it up.
    PadOrTrim {
        /// The length.
        length: usize,
        /// The axis.
        #[serde(default)]
        axis: usize,
        /// What is filled in.
        #[serde(default)]
        value: f64,
    },
    /// The mean of the channels of a sound.
    Mono {},
    /// Another number of samples a second: what `scipy.signal.resample_poly` gives.
    Resample {
        /// Samples a second.
        rate: u32,
        /// Samples a second so far, where the data do not tell.
        from: Option<u32>,
    },
    /// Overlapping frames of a sound, frames x length; what is left at the end is cut off.
    Frame {
        /// Samples of a frame.
        length: usize,
        /// Samples from one frame to the next.
        hop: usize,
    },
    /// A spectrogram on the mel scale, bands x frames.
    Mel(Mel),
    /// Cepstral coefficients of a mel spectrogram in decibels: the cosine transform of its bands.
    Mfcc {
        /// Number of coefficients.
        count: usize,
    },
    /// Numbers of any type to 32-bit floats, the values unchanged.
    ToFloat {},
    /// Multiplies by a number. Needs floats.
    Scale(f64),
    /// `(x - mean) / std`, with one mean and deviation for all elements or one for each channel. Needs floats.
    Normalize {
        /// Means.
        mean: Vec<f64>,
        /// Standard deviations, as many.
        std: Vec<f64>,
        /// The axis of the channels in the sample, when it is not where the layout puts it.
        axis: Option<usize>,
    },
    /// Moves the channels: `"nchw"` to the front, `"nhwc"` to the end. A sample of height x width gets an
    /// axis for its one channel.
    Layout(Order),
    /// Converts to another type, rounding toward zero where the new type has no fractions; a number that
    /// does not fit is an error.
    Cast(TypeName),
    /// Another shape with the same number of elements; one -1 stands for what is left.
    Reshape(Vec<i64>),
    /// Puts in an axis of size 1.
    Unsqueeze(usize),
    /// Text to the tokens of a `tokenizer.json`. As the first step; a table `[input]` that begins with it
    /// serves all inputs of a model.
    Tokenize(Tokenize),
    /// Steps that belong together, by a name.
    Preset(Preset),
}

fn yes() -> bool {
    true
}

/// One number for both edges, or height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a size is one number or [height, width]")]
pub enum Size {
    /// One number.
    One(usize),
    /// Height and width.
    Two([usize; 2]),
}

/// Longest edge that a step may make.
const MAX_EDGE: usize = 1 << 16;

/// Most elements that a step may make of a sample.
pub(crate) const MAX_ELEMENTS: usize = 1 << 28;

impl Size {
    /// Height and width.
    pub fn both(self) -> (usize, usize) {
        match self {
            Size::One(edge) => (edge, edge),
            Size::Two([height, width]) => (height, width),
        }
    }

    fn check(self, name: &str) -> Result<(), String> {
        let (height, width) = self.both();
        let bounds = 1..=MAX_EDGE;
        if !bounds.contains(&height)
            || !bounds.contains(&width)
            || height.saturating_mul(width) > MAX_ELEMENTS / 4
        {
            return Err(format!(
                "`{name}` to {height} x {width}: an edge is 1 to {MAX_EDGE} pixels, an image 67 million"
            ));
        }
        Ok(())
    }
}

/// Where the channels of images are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Channels, height, width.
    Nchw,
    /// Height, width, channels.
    Nhwc,
}

/// An element type by ONNX's or numpy's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct TypeName(pub DType);

/// Types that data can be converted to, by the names they go by.
const TYPES: [(&str, DType); 16] = [
    ("float32", DType::F32),
    ("float", DType::F32),
    ("float64", DType::F64),
    ("double", DType::F64),
    ("float16", DType::F16),
    ("bfloat16", DType::BF16),
    ("int8", DType::I8),
    ("int16", DType::I16),
    ("int32", DType::I32),
    ("int64", DType::I64),
    ("uint8", DType::U8),
    ("uint16", DType::U16),
    ("uint32", DType::U32),
    ("uint64", DType::U64),
    ("bool", DType::Bool),
    ("boolean", DType::Bool),
];

impl TryFrom<String> for TypeName {
    type Error = String;

    fn try_from(name: String) -> Result<TypeName, String> {
        let known = TYPES.iter().find(|(known, _)| *known == name);
        known.map(|(_, dtype)| TypeName(*dtype)).ok_or_else(|| {
            let names = || TYPES.iter().map(|(name, _)| *name);
            let hint = crate::spec::did_you_mean(&name, names());
            let list: Vec<&str> = names().collect();
            format!("`{name}` is not a type to convert to{hint} (the types: {})", list.join(", "))
        })
    }
}

impl Step {
    /// Its name in `data.toml`.
    pub fn name(&self) -> &'static str {
        match self {
            Step::ExifOrientation {} => "exif-orientation",
            Step::Channel(_) => "channel",
            Step::Resize { .. } => "resize",
            Step::CenterCrop(_) => "center-crop",
            Step::Crop { .. } => "crop",
            Step::Pad { .. } => "pad",
            Step::PadOrTrim { .. } => "pad-or-trim",
            Step::Mono {} => "mono",
            Step::Resample { .. } => "resample",
            Step::Frame { .. } => "frame",
            Step::Mel(_) => "mel",
            Step::Mfcc { .. } => "mfcc",
            Step::ToFloat {} => "to-float",
            Step::Scale(_) => "scale",
            Step::Normalize { .. } => "normalize",
            Step::Layout(_) => "layout",
            Step::Cast(_) => "cast",
            Step::Reshape(_) => "reshape",
            Step::Unsqueeze(_) => "unsqueeze",
            Step::Tokenize(_) => "tokenize",
            Step::Preset(_) => "preset",
        }
    }

    /// The steps a preset is short for; any other step as it is.
    pub fn expanded(self) -> Vec<Step> {
        match self {
            Step::Preset(preset) => preset.steps(),
            step => vec![step],
        }
    }

    /// With the paths in it relative to a directory.
    pub(crate) fn relative_to(self, base: &std::path::Path) -> Step {
        match self {
            Step::Tokenize(options) => {
                let file = base.join(&options.file);
                Step::Tokenize(Tokenize { file, ..options })
            }
            step => step,
        }
    }

    /// Whether the options make sense, whatever the sample.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Step::Resize { size, .. } | Step::Pad { size, .. } | Step::CenterCrop(size) => {
                size.check(self.name())
            }
            Step::Crop { height, width, .. } => Size::Two([*height, *width]).check("crop"),
            Step::PadOrTrim { length, .. } if *length == 0 || *length > MAX_ELEMENTS => {
                Err(format!("`pad-or-trim` to a length of {length}: it is 1 to {MAX_ELEMENTS}"))
            }
            Step::Tokenize(options) => options.check(),
            Step::Mel(options) => options.check(),
            Step::Frame { length, hop } if *length == 0 || *hop == 0 => {
                Err("`length` and `hop` of a frame are at least 1".to_owned())
            }
            Step::Scale(factor) if !factor.is_finite() => Err(format!("a scale of {factor} leaves no data")),
            Step::Normalize { mean, std, .. } => {
                if mean.is_empty() || mean.len() != std.len() {
                    return Err(format!(
                        "`normalize` needs as many means as deviations: {} and {} are given",
                        mean.len(),
                        std.len()
                    ));
                }
                match std.iter().chain(mean).find(|value| !value.is_finite()) {
                    Some(value) => Err(format!("`normalize` with {value}")),
                    None if std.contains(&0.0) => {
                        Err("`normalize` with a deviation of 0 divides by it".to_owned())
                    }
                    None => Ok(()),
                }
            }
            Step::Reshape(shape) => {
                let open = shape.iter().filter(|&&dim| dim == -1).count();
                if open > 1 || shape.iter().any(|&dim| dim < -1) {
                    return Err("`reshape` takes sizes and at most one -1".to_owned());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Applies steps to a sample of one array.
///
/// # Errors
/// With the step and why it does not fit the sample.
pub fn apply_steps(steps: &[Step], sample: Tensor) -> Result<Tensor, String> {
    let steps: Vec<Step> = steps.iter().cloned().flat_map(Step::expanded).collect();
    let chain = Chain::new(&steps, "", &mut Tokenizers::default(), &optix_base::Limits::default());
    let chain = chain.map_err(|error| error.to_string())?;
    let sample = crate::source::Sample { tensors: vec![sample], ..Default::default() };
    chain
        .apply(&Given { names: &[String::new()], sample: &sample, array: 0 })
        .map_err(|error| error.to_string())
}
