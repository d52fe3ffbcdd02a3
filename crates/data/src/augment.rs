//! Changes of pictures, for whoever learns from them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A change that leaves a picture what it is; made anew, by chance, every time the picture is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Augmentation {
    /// Left and right exchanged, half of the time.
    Flip,
    /// Moved by up to a sixteenth of its height and width, at least one pixel; the edge is repeated.
    Shift,
    /// A part of it, from three quarters of its height and width on, stretched to the whole (bilinear).
    Crop,
    /// Contrast by a factor from 0.8 to 1.25, and brighter or darker by up to a tenth of the contrast.
    Light,
}
