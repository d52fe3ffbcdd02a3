//! Payloads of tensors: `raw_data`, and the typed fields each element type has.

use bytes::Bytes;
use optix_ir::{DType, Tensor};

use crate::proto::TensorProto;

use super::types::MAX_RANK;

/// Which of the typed fields holds an element type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Floats,
    Ints32,
    Strings,
    Ints64,
    Doubles,
    Uints64,
}

impl Field {
    fn of(dtype: DType) -> Field {
        use DType::*;
        match dtype {
            F32 | Complex64 => Field::Floats,
            F64 | Complex128 => Field::Doubles,
            I64 => Field::Ints64,
            U32 | U64 => Field::Uints64,
            String => Field::Strings,
            _ => Field::Ints32,
        }
    }

    /// The fields of a message that hold something, with their names.
    fn used(proto: &TensorProto) -> Vec<(Field, &'static str)> {
        [
            (proto.float_data.is_empty(), Field::Floats, "float_data"),
            (proto.int32_data.is_empty(), Field::Ints32, "int32_data"),
            (proto.string_data.is_empty(), Field::Strings, "string_data"),
            (proto.int64_data.is_empty(), Field::Ints64, "int64_data"),
            (proto.double_data.is_empty(), Field::Doubles, "double_data"),
            (proto.uint64_data.is_empty(), Field::Uints64, "uint64_data"),
        ]
        .into_iter()
        .filter(|(empty, ..)| !empty)
        .map(|(_, field, name)| (field, name))
        .collect()
    }
}

/// Element type and dimensions of a message, checked.
pub(super) fn header(proto: &mut TensorProto) -> Result<(DType, Vec<usize>), String> {
    if proto.segment.is_some() {
        return Err("it is one segment of a tensor, which nothing ever wrote; join the segments".into());
    }
    let dtype = match proto.data_type.take().unwrap_or(0) {
        0 => return Err("it has no element type".into()),
        code => DType::from_onnx(code)
            .ok_or_else(|| format!("element type {code} is none that ONNX 1.23 defines"))?,
    };
    Ok((dtype, dims(std::mem::take(&mut proto.dims))?))
}

/// Dimensions, checked.
pub(super) fn dims(dims: Vec<i64>) -> Result<Vec<usize>, String> {
    if dims.len() > MAX_RANK {
        return Err(format!("{} dimensions; at most {MAX_RANK} are supported", dims.len()));
    }
    dims.into_iter()
        .map(|dim| usize::try_from(dim).map_err(|_| format!("its shape has the size {dim}")))
        .collect()
}

/// Takes the payload out of a message; whether it was in `raw_data`.
pub(super) fn take_payload(
    proto: &mut TensorProto,
    dtype: DType,
    shape: Vec<usize>,
) -> Result<(Tensor, bool), String> {
    let used = Field::used(proto);
    if let Some((_, name)) = used.iter().find(|(field, _)| *field != Field::of(dtype)) {
        return Err(format!("it is a {dtype} tensor with data in `{name}`"));
    }
    if used.is_empty() && proto.raw_data.is_some() && dtype != DType::String {
        let raw = proto.raw_data.take().unwrap_or_default();
        check_bools(dtype, &raw)?;
        return Ok((Tensor::new(dtype, shape, raw).map_err(|error| error.to_string())?, true));
    }
    if proto.raw_data.as_ref().is_some_and(|raw| !raw.is_empty()) {
        return Err(if dtype == DType::String {
            "strings cannot be in `raw_data`".into()
        } else {
            "it has data in `raw_data` and in a typed field".into()
        });
    }
    let payload = take_typed(proto, dtype)?;
    let tensor = Tensor::new(dtype, shape, payload).map_err(|error| error.to_string())?;
    Ok((tensor, false))
}

/// Checks that bools are 0 or 1: anything else means different things to different engines.
pub(super) fn check_bools(dtype: DType, payload: &[u8]) -> Result<(), String> {
    match payload.iter().find(|&&byte| byte > 1) {
        Some(byte) if dtype == DType::Bool => Err(format!("a bool has the value {byte}")),
        _ => Ok(()),
    }
}

/// Takes the data of the typed field of `dtype` as a payload.
fn take_typed(proto: &mut TensorProto, dtype: DType) -> Result<Bytes, String> {
    use DType::*;
    let ints = std::mem::take(&mut proto.int32_data);
    macro_rules! narrow {
        ($rust:ty) => {
            collect(ints.into_iter().map(|value| {
                <$rust>::try_from(value)
                    .map(|value| value.to_le_bytes())
                    .map_err(|_| format!("`int32_data` has {value}, which is no {dtype}"))
            }))
        };
    }
    match dtype {
        F32 | Complex64 => {
            collect(std::mem::take(&mut proto.float_data).into_iter().map(|value| Ok(value.to_le_bytes())))
        }
        F64 | Complex128 => {
            collect(std::mem::take(&mut proto.double_data).into_iter().map(|value| Ok(value.to_le_bytes())))
        }
        I64 => {
            collect(std::mem::take(&mut proto.int64_data).into_iter().map(|value| Ok(value.to_le_bytes())))
        }
        U64 => {
            collect(std::mem::take(&mut proto.uint64_data).into_iter().map(|value| Ok(value.to_le_bytes())))
        }
        U32 => collect(std::mem::take(&mut proto.uint64_data).into_iter().map(|value| {
            u32::try_from(value)
                .map(u32::to_le_bytes)
                .map_err(|_| format!("`uint64_data` has {value}, which is no uint32"))
        })),
        String => {
            let mut payload = Vec::new();
            for text in std::mem::take(&mut proto.string_data) {
                let length = u32::try_from(text.len()).map_err(|_| "a string of 4 GiB or more")?;
                payload.extend_from_slice(&length.to_le_bytes());
                payload.extend_from_slice(&text);
            }
            Ok(payload.into())
        }
        I32 => collect(ints.into_iter().map(|value| Ok(value.to_le_bytes()))),
        I16 => narrow!(i16),
        U16 | F16 | BF16 => narrow!(u16),
        I8 => narrow!(i8),
        Bool => {
            let payload: Bytes = narrow!(u8)?;
            check_bools(dtype, &payload)?;
            Ok(payload)
        }
        // One number a byte of the packed payload, not one an element.
        _ => narrow!(u8),
    }
}

fn collect<const N: usize>(values: impl Iterator<Item = Result<[u8; N], String>>) -> Result<Bytes, String> {
    let mut payload = Vec::with_capacity(values.size_hint().0.saturating_mul(N));
    for value in values {
        payload.extend_from_slice(&value?);
    }
    Ok(payload.into())
}

/// Puts a payload into the typed field of its element type.
pub(super) fn put_typed(proto: &mut TensorProto, tensor: &Tensor) {
    use DType::*;
    let payload = tensor.bytes();
    macro_rules! wide {
        ($rust:ty) => {
            numbers(payload, <$rust>::from_le_bytes)
        };
    }
    match tensor.dtype() {
        F32 | Complex64 => proto.float_data = wide!(f32).collect(),
        F64 | Complex128 => proto.double_data = wide!(f64).collect(),
        I64 => proto.int64_data = wide!(i64).collect(),
        U64 => proto.uint64_data = wide!(u64).collect(),
        U32 => proto.uint64_data = wide!(u32).map(u64::from).collect(),
        String => {
            let strings = tensor.strings().unwrap_or_default();
            proto.string_data = strings.into_iter().map(Bytes::copy_from_slice).collect();
        }
        I32 => proto.int32_data = wide!(i32).collect(),
        I16 => proto.int32_data = wide!(i16).map(i32::from).collect(),
        U16 | F16 | BF16 => proto.int32_data = wide!(u16).map(i32::from).collect(),
        I8 => proto.int32_data = wide!(i8).map(i32::from).collect(),
        _ => proto.int32_data = payload.iter().map(|&byte| i32::from(byte)).collect(),
    }
}

fn numbers<const N: usize, T>(payload: &[u8], read: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    payload.as_chunks::<N>().0.iter().map(move |chunk| read(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_fields_round_trip_for_every_type() {
        for &dtype in DType::ALL {
            let tensor = if dtype == DType::String {
                Tensor::from_strings(vec![3], &["a", "", "longer"])
            } else {
                let bytes = dtype.byte_len(3).unwrap();
                let high = if dtype == DType::Bool { 2 } else { 251 };
                let payload: Vec<u8> = (0..bytes).map(|i| (i * 37 % high) as u8).collect();
                Tensor::new(dtype, vec![3], payload.into()).unwrap()
            };
            let mut proto = TensorProto::default();
            put_typed(&mut proto, &tensor);
            let (read, raw) = take_payload(&mut proto, dtype, vec![3]).unwrap();
            assert!(!raw);
            assert_eq!(read.bytes(), tensor.bytes(), "{dtype}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (dtype, value) in [
            (DType::I8, 128),
            (DType::U8, -1),
            (DType::U8, 256),
            (DType::Bool, 2),
            (DType::F16, 65536),
            (DType::I4, 256),
            (DType::I16, 40_000),
        ] {
            let mut proto = TensorProto { int32_data: vec![value], ..Default::default() };
            assert!(take_payload(&mut proto, dtype, vec![1]).is_err(), "{dtype} {value}");
        }
        let mut proto = TensorProto { uint64_data: vec![1 << 32], ..Default::default() };
        assert!(take_payload(&mut proto, DType::U32, vec![1]).is_err());
    }
}
