//! Steps that belong together.

use serde::Deserialize;

use super::{Channel, Mel, MelLog, MelPad, Mode, Order, Size, Step, Tokenize};

/// What well-known models were trained on; docs/data.md lists the steps of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// torchvision's classifiers: shorter edge 256, middle of 224, ImageNet's means and deviations, channels first.
    ImagenetTorch,
    /// TensorFlow's: 224 x 224, -1 to 1, channels last.
    ImagenetTf,
    /// MobileNets of Hugging Face: shorter edge 256, middle of 224, -1 to 1, channels first.
    Mobilenet,
    /// CLIP: shorter edge 224 by a cubic, the middle, CLIP's means and deviations, channels first.
    Clip,
    /// MNIST: 0 to 1, then its mean and deviation, channels first.
    Mnist,
    /// Sentence transformers such as all-MiniLM-L6-v2: the tokens of `tokenizer.json`, at most 256, filled up
    /// to the longest of a batch.
    Minilm,
    /// Whisper: 16 kHz, 30 seconds, 80 mel bands.
    Whisper,
}

/// Bytes to 0 to 1.
const BYTE: f64 = 1.0 / 255.0;

fn normalize(mean: &[f64], std: &[f64]) -> Step {
    Step::Normalize { mean: mean.to_vec(), std: std.to_vec(), axis: None }
}

fn resize(size: Size, mode: Mode) -> Step {
    Step::Resize { size, mode, antialias: true, keep_aspect: None }
}

impl Preset {
    /// The steps it stands for.
    pub fn steps(self) -> Vec<Step> {
        let rgb = Step::Channel(Channel::Rgb);
        let (float, byte, first) = (Step::ToFloat {}, Step::Scale(BYTE), Step::Layout(Order::Nchw));
        match self {
            Preset::ImagenetTorch => vec![
                rgb,
                resize(Size::One(256), Mode::Bilinear),
                Step::CenterCrop(Size::One(224)),
                float,
                byte,
                normalize(&[0.485, 0.456, 0.406], &[0.229, 0.224, 0.225]),
                first,
            ],
            Preset::ImagenetTf => vec![
                rgb,
                resize(Size::Two([224, 224]), Mode::Bilinear),
                float,
                Step::Scale(1.0 / 127.5),
                normalize(&[1.0], &[1.0]),
            ],
            Preset::Mobilenet => vec![
                rgb,
                resize(Size::One(256), Mode::Bilinear),
                Step::CenterCrop(Size::One(224)),
                float,
                byte,
                normalize(&[0.5], &[0.5]),
                first,
            ],
            Preset::Clip => vec![
                rgb,
                resize(Size::One(224), Mode::Bicubic),
                Step::CenterCrop(Size::One(224)),
                float,
                byte,
                normalize(&[0.48145466, 0.4578275, 0.40821073], &[0.26862954, 0.26130258, 0.27577711]),
                first,
            ],
            Preset::Whisper => vec![
                Step::Mono {},
                Step::Resample { rate: 16_000, from: None },
                Step::PadOrTrim { length: 480_000, axis: 0, value: 0.0 },
                Step::Mel(Mel {
                    n_fft: 400,
                    hop: 160,
                    n_mels: 80,
                    pad: MelPad::Reflect,
                    drop_last: true,
                    log: MelLog::Whisper,
                    ..Mel::default()
                }),
            ],
            Preset::Minilm => vec![Step::Tokenize(Tokenize { max_length: Some(256), ..Tokenize::default() })],
            Preset::Mnist => vec![float, byte, normalize(&[0.1307], &[0.3081]), first],
        }
    }
}
