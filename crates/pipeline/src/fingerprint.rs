//! A model's identity.

use optix_ir::Model;

/// BLAKE3 over the model as ONNX: equal for models with the same graph, names and weights.
///
/// # Errors
/// When the model cannot be written as ONNX.
pub fn fingerprint(model: &Model) -> Result<[u8; 32], optix_io::IoError> {
    let mut hasher = blake3::Hasher::new();
    for segment in optix_io::onnx_segments(model)? {
        hasher.update(&segment);
    }
    Ok(*hasher.finalize().as_bytes())
}

/// BLAKE3 over parts of which each counts with its length.
pub fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}
