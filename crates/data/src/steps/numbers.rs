//! Steps on numbers: to floats, normalize, cast.

use half::{bf16, f16};
use optix_ir::{DType, Tensor};

use super::state::State;

impl State<'_> {
    pub(super) fn normalize(&mut self, mean: &[f64], std: &[f64], axis: Option<usize>) -> Result<(), String> {
        let pairs: Vec<(f32, f32)> =
            mean.iter().zip(std).map(|(&mean, &std)| (mean as f32, std as f32)).collect();
        if let [(mean, std)] = pairs.as_slice() {
            self.floats()?.iter_mut().for_each(|value| *value = (*value - mean) / std);
            return Ok(());
        }
        let shape = self.value.shape().to_vec();
        let standard =
            if self.channels_first { Some(0) } else { shape.len().checked_sub(1).filter(|&last| last >= 2) };
        let axis = axis.or(standard);
        let size = axis.and_then(|axis| shape.get(axis)).copied();
        let Some(axis) = axis.filter(|_| size == Some(pairs.len())) else {
            return Err(format!(
                "{} means need an axis of that many channels; the sample has shape {shape:?}{} (`axis = N` names it)",
                pairs.len(),
                axis.map_or_else(String::new, |axis| format!(" and its channels are taken from axis {axis}"))
            ));
        };
        let inner = shape.iter().skip(axis.saturating_add(1)).product::<usize>().max(1);
        let values = self.floats()?;
        for (row, (mean, std)) in values.chunks_mut(inner).zip(pairs.iter().cycle()) {
            row.iter_mut().for_each(|value| *value = (*value - mean) / std);
        }
        Ok(())
    }
}

/// Numbers of any type as floats.
pub(super) fn to_f32s(tensor: &Tensor) -> Result<Vec<f32>, String> {
    match tensor.dtype() {
        DType::F32 => {
            tensor.to_slice::<f32>().map(|values| values.into_owned()).map_err(|error| error.to_string())
        }
        DType::U8 => Ok(tensor.bytes().iter().map(|&byte| f32::from(byte)).collect()),
        _ => match tensor.to_f64s() {
            Ok(values) => Ok(values.into_iter().map(|value| value as f32).collect()),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// Converts to another type; see [`super::Step::Cast`].
pub(crate) fn cast(tensor: &Tensor, dtype: DType) -> Result<Tensor, String> {
    if tensor.dtype() == dtype {
        return Ok(tensor.clone());
    }
    let shape = tensor.shape().to_vec();
    let numbers = || tensor.to_f64s().map_err(|error| error.to_string());
    macro_rules! integers {
        ($rust:ty) => {{
            let outside = |value: String| format!("{value} does not fit {dtype}");
            let values: Result<Vec<$rust>, String> = match tensor.to_i64s() {
                Ok(values) => values
                    .into_iter()
                    .map(|value| <$rust>::try_from(value).map_err(|_| outside(value.to_string())))
                    .collect(),
                Err(_) => numbers()?
                    .into_iter()
                    .map(|value| {
                        let whole = value.trunc();
                        let fits = whole >= <$rust>::MIN as f64 && whole < <$rust>::MAX as f64 + 1.0;
                        if fits { Ok(whole as $rust) } else { Err(outside(value.to_string())) }
                    })
                    .collect(),
            };
            Tensor::from_vec(shape, values?)
        }};
    }
    Ok(match dtype {
        DType::F32 => Tensor::from_vec(shape, to_f32s(tensor)?),
        DType::F64 => Tensor::from_vec(shape, numbers()?),
        DType::F16 => Tensor::from_vec(shape, numbers()?.into_iter().map(f16::from_f64).collect::<Vec<_>>()),
        DType::BF16 => {
            Tensor::from_vec(shape, numbers()?.into_iter().map(bf16::from_f64).collect::<Vec<_>>())
        }
        DType::I8 => integers!(i8),
        DType::I16 => integers!(i16),
        DType::I32 => integers!(i32),
        DType::I64 => integers!(i64),
        DType::U8 => integers!(u8),
        DType::U16 => integers!(u16),
        DType::U32 => integers!(u32),
        DType::U64 => integers!(u64),
        DType::Bool => {
            let bits: Vec<bool> = numbers()?.into_iter().map(|value| value != 0.0).collect();
            Tensor::from_bools(shape, &bits)
        }
        other => return Err(format!("data cannot be converted to {other}")),
    })
}
