//! Fewer weights: passes that set weights to zero, and those that make layers smaller.

mod channels;
mod factorize;
mod fitting;
mod layers;
mod low_rank;
mod mask;
mod prune_channels;
mod prune_layers;
mod prune_magnitude;
mod prune_sparsegpt;
mod prune_wanda;
mod shares;
mod timed;

pub use factorize::Factorize;
pub use mask::Pattern;
pub use prune_channels::PruneChannels;
pub use prune_layers::PruneLayers;
pub use prune_magnitude::{PruneMagnitude, Scope};
pub use prune_sparsegpt::PruneSparsegpt;
pub use prune_wanda::PruneWanda;
pub use shares::Shares;
