//! How an activation is smoothed, as a decision: what a lock holds of it.

use std::collections::BTreeSet;

use optix_ir::{Model, NodeId, ValueId};
use optix_pipeline::PackedFloats;
use serde::{Deserialize, Serialize};

use super::split::{self, Widening};

/// Copies of one channel that a lock may ask for.
const MOST_COPIES: u32 = 1 << 12;

/// What is decided about a group, as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) enum Decision {
    /// It stays as it is, for this reason.
    Left(String),
    /// It is smoothed.
    Smoothed(Smoothing),
}

/// How a group is smoothed, as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Smoothing {
    /// Words for the ledger: before the place of the division and behind it.
    pub(super) said: [String; 2],
    /// What the activation is divided by, one a channel.
    pub(super) divisors: PackedFloats,
    /// Channels with more than one copy, each with the number of copies.
    pub(super) copies: Vec<(usize, u32)>,
}

/// How a group is treated.
pub(super) struct Treatment {
    /// What the activation is divided by, one a channel.
    pub(super) divisors: Vec<f32>,
    /// Copies of each channel.
    pub(super) copies: Vec<u32>,
    /// Where channels get copies.
    pub(super) widening: Option<Widening>,
}

impl Smoothing {
    /// The treatment; what is the matter when it fits no group.
    ///
    /// `value` is the activation, `channels` how many it has along its last axis, `readers` who smooth it.
    pub(super) fn treatment(
        &self,
        model: &Model,
        value: ValueId,
        channels: usize,
        readers: &BTreeSet<NodeId>,
    ) -> Result<Treatment, String> {
        let divisors = self.divisors.0.clone();
        if divisors.len() != channels || divisors.iter().any(|by| !(by.is_normal() && *by > 0.0)) {
            return Err(format!("{} channels are not divided by as many positive numbers", channels));
        }
        let mut copies = vec![1u32; channels];
        for &(channel, number) in &self.copies {
            match copies.get_mut(channel) {
                Some(copies) if (2..=MOST_COPIES).contains(&number) => *copies = number,
                _ => return Err(format!("{number} copies of channel {channel}")),
            }
        }
        let widening = match self.copies.is_empty() {
            true => None,
            false => Some(split::trace(model, value, channels, readers)?),
        };
        Ok(Treatment { divisors, copies, widening })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_no_group_is_refused() {
        let mut model = Model::new();
        let value = model.add_value(model.main(), "x");
        let smoothing = |divisors: &[f32], copies: &[(usize, u32)]| Smoothing {
            said: [String::new(), String::new()],
            divisors: PackedFloats(divisors.to_vec()),
            copies: copies.to_vec(),
        };
        let tried =
            |smoothing: Smoothing| smoothing.treatment(&model, value, 2, &BTreeSet::new()).map(|_| ());
        assert_eq!(tried(smoothing(&[0.5, 2.0], &[])), Ok(()));
        for wrong in [
            smoothing(&[0.5], &[]),
            smoothing(&[0.5, 0.0], &[]),
            smoothing(&[0.5, -1.0], &[]),
            smoothing(&[0.5, f32::NAN], &[]),
            smoothing(&[0.5, f32::INFINITY], &[]),
            smoothing(&[0.5, 2.0], &[(2, 2)]),
            smoothing(&[0.5, 2.0], &[(0, 1)]),
            smoothing(&[0.5, 2.0], &[(0, u32::MAX)]),
        ] {
            assert!(tried(wrong.clone()).is_err(), "{wrong:?}");
        }
    }
}
