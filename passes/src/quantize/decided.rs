//! Quantizers of activations as decisions: what a lock holds of them.

use std::collections::BTreeMap;

use optix_ir::{Model, ValueId};
use optix_pipeline::{Cx, DecisionError, PassError};
use serde::{Deserialize, Serialize};

use super::affine::Affine;
use super::placement::Placement;

/// A quantizer as it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    scale: f32,
    zero_point: i32,
    low: i32,
    high: i32,
}

impl From<&Affine> for Recorded {
    fn from(affine: &Affine) -> Recorded {
        let &Affine { scale, zero_point, low, high } = affine;
        Recorded { scale, zero_point, low, high }
    }
}

impl Recorded {
    /// The quantizer; what is the matter when it is none.
    fn affine(self) -> Result<Affine, String> {
        let Recorded { scale, zero_point, low, high } = self;
        if !(scale.is_normal() && scale > 0.0) {
            return Err(format!("scale {scale} is not positive and finite"));
        }
        // The greatest are those of 16 bits and of float8e5m2, 57,344 on either side of 0.
        let most = i32::from(u16::MAX);
        let has_range = low < high && low >= -most && high <= most;
        if !has_range || !(low..=high).contains(&zero_point) {
            return Err(format!("zero point {zero_point} and integers {low} to {high} make no quantizer"));
        }
        Ok(Affine { scale, zero_point, low, high })
    }
}

/// The quantizer of every value that gets one: what `choose` finds out from data, recorded as `range/VALUE`; or
/// what a lock says.
pub(super) fn quantizers(
    model: &Model,
    placement: &Placement,
    cx: &mut Cx<'_>,
    choose: impl FnOnce(&mut Cx<'_>) -> Result<BTreeMap<ValueId, Affine>, PassError>,
) -> Result<BTreeMap<ValueId, Affine>, PassError> {
    let values: Vec<ValueId> = placement.quantized.iter().map(|(value, _)| *value).collect();
    let names: Vec<String> = values.iter().map(|&value| model.value(value).name().to_owned()).collect();
    let recorded = cx.decide_each("range", &names, |cx| {
        let chosen = choose(cx)?;
        Ok(values.iter().filter_map(|value| chosen.get(value)).map(Recorded::from).collect())
    })?;
    let mut quantizers = BTreeMap::new();
    for ((value, name), recorded) in values.into_iter().zip(names).zip(recorded) {
        let unusable = |what| DecisionError::Unusable { key: format!("range/{name}"), what };
        quantizers.insert(value, recorded.affine().map_err(unusable)?);
    }
    Ok(quantizers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::DType;

    #[test]
    fn quantizers_read_back_and_what_is_none_is_refused() {
        for dtype in [DType::U8, DType::I8, DType::U16, DType::I16, DType::F8E4M3FN, DType::F8E5M2] {
            for (min, max) in [(-1.0, 3.0), (0.0, 6.0), (-0.1, 0.3), (0.0, 0.0)] {
                let affine = Affine::asymmetric(min, max, dtype);
                assert_eq!(Recorded::from(&affine).affine(), Ok(affine));
            }
        }
        let good = Recorded { scale: 0.1, zero_point: 3, low: 0, high: 255 };
        for wrong in [
            Recorded { scale: 0.0, ..good },
            Recorded { scale: -1.0, ..good },
            Recorded { scale: f32::INFINITY, ..good },
            Recorded { zero_point: -1, ..good },
            Recorded { zero_point: 256, ..good },
            Recorded { low: 255, high: 0, ..good },
            Recorded { low: i32::MIN, high: i32::MAX, ..good },
        ] {
            assert!(wrong.affine().is_err(), "{wrong:?}");
        }
    }
}
