//! Channels that are taken out of a graph, with everything that depends on them.

mod cost;
mod cut;
mod groups;
mod movements;
mod places;
mod recover;
mod relations;
mod rescale;
mod select;
mod shapes;
mod taylor;
#[cfg(test)]
mod tests;
mod worth;

pub(super) use cost::{Costs, Measure, Sizes, count, fed, has_unknown_sizes, sizes};
pub(super) use cut::cut;
pub(super) use groups::{Group, Kept, all_channels, find, row_axis};
pub(super) use places::{Held, Places};
pub(super) use recover::{Found, Layer, layers, put, recover};
pub(super) use relations::relate;
pub(super) use rescale::{Scaled, can_be_scaled, fits_scaled, put_scaled, rescale};
pub(super) use select::{Choice, counts, select, step};
pub(super) use taylor::by_gradients;
pub(super) use worth::{Curve, MadeUp, Norm, Reader, by_readers, by_weights, middle, readers};
