//! The whole range seen.

use optix_ir::DType;

use super::Observer;
use crate::quantize::affine::Affine;

impl Observer {
    /// The quantizer of the whole range seen: nothing is clipped.
    pub fn min_max(&self, dtype: DType) -> Affine {
        let (min, max) = self.range().unwrap_or((0.0, 0.0));
        Affine::asymmetric(min, max, dtype)
    }
}
