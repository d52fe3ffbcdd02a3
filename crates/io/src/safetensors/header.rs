//! The header of a safetensors file: JSON that says what lies where.
//!
//! Layout (safetensors 0.8): 8 bytes, little-endian, with the header's length; the header, a JSON object,
//! spaces at its end; the elements of all tensors, one behind the other without holes, to the end of the
//! file. Beyond what the format's own library checks, a name given twice is an error here: which of two
//! weights is meant must not depend on the reader.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use optix_base::{Budget, BudgetError, ByteRange};
use optix_ir::{DType, element_count};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};

/// Most bytes a header may have: what the format's own library allows.
const MOST_BYTES: u64 = 100_000_000;

/// The key of a file's free-form strings.
const METADATA: &str = "__metadata__";

/// A tensor in a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Where its elements are, from the start of the file.
    pub range: Range<usize>,
}

/// What a header says.
#[derive(Debug, Default)]
pub(super) struct Header {
    /// Free-form strings, in the file's order.
    pub metadata: Vec<(String, String)>,
    /// Tensors in the order of their elements.
    pub entries: Vec<Entry>,
}

/// What is wrong: where, and what.
#[derive(Debug)]
pub(super) enum Wrong {
    Content(String, String),
    Budget(BudgetError),
}

fn wrong<T>(place: impl Into<String>, what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Content(place.into(), what.into()))
}

/// Element types by the names of the format. Packed ones but float4 are in no ONNX model and refused.
const TYPES: &[(&str, DType)] = &[
    ("BOOL", DType::Bool),
    ("U8", DType::U8),
    ("I8", DType::I8),
    ("F8_E5M2", DType::F8E5M2),
    ("F8_E4M3", DType::F8E4M3FN),
    ("F8_E5M2FNUZ", DType::F8E5M2FNUZ),
    ("F8_E4M3FNUZ", DType::F8E4M3FNUZ),
    ("F8_E8M0", DType::F8E8M0),
    ("F4", DType::F4E2M1),
    ("I16", DType::I16),
    ("U16", DType::U16),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("I32", DType::I32),
    ("U32", DType::U32),
    ("F32", DType::F32),
    ("C64", DType::Complex64),
    ("F64", DType::F64),
    ("I64", DType::I64),
    ("U64", DType::U64),
];

/// The format's name of an element type, if it has one.
pub(super) fn type_name(dtype: DType) -> Option<&'static str> {
    TYPES.iter().find(|(_, known)| *known == dtype).map(|(name, _)| *name)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Strings by name, no name twice.
pub(super) struct Strings(pub Vec<(String, String)>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Strings, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Strings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let (mut pairs, mut seen) = (Vec::new(), HashSet::new());
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!(
                            "{} is there twice",
                            crate::error::quoted(&key)
                        )));
                    }
                    pairs.push((key, value));
                }
                Ok(Strings(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Reads the object, taking from a budget as it goes: a header can hold a million names.
struct Entries<'b> {
    budget: &'b mut Budget,
    exceeded: &'b mut Option<BudgetError>,
}

type Raw = (Vec<(String, String)>, Vec<(String, RawEntry)>);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = Raw;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let (mut metadata, mut entries, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        while let Some(name) = map.next_key::<String>()? {
            if let Err(error) = self.budget.tensor().and_then(|()| self.budget.name(&name)) {
                *self.exceeded = Some(error);
                return Err(A::Error::custom("too much"));
            }
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("{} is there twice", crate::error::quoted(&name))));
            }
            if name == METADATA {
                metadata = map.next_value::<Strings>()?.0;
            } else {
                entries.push((name, map.next_value::<RawEntry>()?));
            }
        }
        Ok((metadata, entries))
    }
}

/// Reads the header of a file.
pub(super) fn parse(content: &[u8], budget: &mut Budget) -> Result<Header, Wrong> {
    let available = content.len() as u64;
    let Some(length) = content.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return wrong("header", format!("the file has {available} bytes, fewer than the 8 of its length"));
    };
    if length > MOST_BYTES {
        return wrong("header", format!("its length is given as {length}, the format allows {MOST_BYTES}"));
    }
    let Ok(range) = ByteRange::new(8, length, available) else {
        return wrong(
            "header",
            format!("its length is given as {length}, but the file has {available} bytes: is it cut off?"),
        );
    };
    let text = content.get(range.range()).unwrap_or_default();
    if text.first() != Some(&b'{') {
        return wrong("header", "it is no JSON object");
    }
    let mut exceeded = None;
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = Entries { budget, exceeded: &mut exceeded }.deserialize(&mut reader);
    let read = read.and_then(|raw| reader.end().map(|()| raw));
    let (metadata, raw) = match (read, exceeded) {
        (_, Some(error)) => return Err(Wrong::Budget(error)),
        (Err(error), None) => return wrong("header", error.to_string()),
        (Ok(raw), None) => raw,
    };
    let start = range.end();
    let data = available.saturating_sub(start);
    let mut entries = Vec::with_capacity(raw.len());
    for (name, entry) in raw {
        let place = || format!("tensor {}", crate::error::quoted(&name));
        let Some((_, dtype)) = TYPES.iter().find(|(known, _)| *known == entry.dtype) else {
            let known: Vec<&str> = TYPES.iter().map(|(known, _)| *known).collect();
            let shown = crate::error::quoted(&entry.dtype);
            return wrong(place(), format!("element type {shown} is not one of {}", known.join(", ")));
        };
        let shape: Option<Vec<usize>> = entry.shape.iter().map(|&size| usize::try_from(size).ok()).collect();
        let bytes = shape.as_deref().and_then(element_count).and_then(|count| dtype.byte_len(count));
        let (Some(shape), Some(bytes)) = (shape, bytes) else {
            return wrong(place(), format!("shape {:?} is larger than memory", entry.shape));
        };
        let (first, end) = entry.data_offsets;
        let Some(length) = end.checked_sub(first).filter(|_| end <= data) else {
            return wrong(
                place(),
                format!("offsets {first} to {end} do not lie in the {data} bytes of data"),
            );
        };
        let count = element_count(&shape).unwrap_or(0);
        let odd = dtype.bits() < 8 && !count.saturating_mul(dtype.bits()).is_multiple_of(8);
        if length != bytes as u64 || odd {
            let type_name = &entry.dtype;
            return wrong(
                place(),
                format!("{type_name}{shape:?} takes {bytes} bytes, its offsets span {length}"),
            );
        }
        let place_in_file =
            first.checked_add(start).and_then(|at| ByteRange::new(at, length, available).ok());
        let Some(range) = place_in_file else { return wrong(place(), "its offsets overflow") };
        entries.push(Entry { name, dtype: *dtype, shape, range: range.range() });
    }
    // Empty tensors may share a place with others: they come first.
    entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
    let mut at = usize::try_from(start).unwrap_or(usize::MAX);
    for entry in &entries {
        if entry.range.start != at {
            let relation = if entry.range.start < at { "overlaps what is" } else { "leaves a hole" };
            return wrong(
                format!("tensor {}", crate::error::quoted(&entry.name)),
                format!("it {relation} before it"),
            );
        }
        at = entry.range.end;
    }
    if at as u64 != available {
        return wrong(
            "data",
            format!("{} bytes behind the last tensor belong to none", available.saturating_sub(at as u64)),
        );
    }
    Ok(Header { metadata, entries })
}

/// A tensor to be written: name, type, shape, bytes.
pub(super) struct Planned<'t> {
    pub name: &'t str,
    pub dtype: DType,
    pub shape: &'t [usize],
    pub bytes: u64,
}

/// The first bytes of a file: length and header. `None` when it would be longer than the format allows.
/// Every tensor has a type with a name.
pub(super) fn print(metadata: &[(String, String)], tensors: &[Planned<'_>]) -> Option<Vec<u8>> {
    let mut text = String::from("{");
    let quote = |name: &str| serde_json::Value::from(name).to_string();
    if !metadata.is_empty() {
        let pairs: Vec<String> =
            metadata.iter().map(|(key, value)| format!("{}:{}", quote(key), quote(value))).collect();
        text.push_str(&format!("\"{METADATA}\":{{{}}}", pairs.join(",")));
    }
    let mut at = 0u64;
    for tensor in tensors {
        if text.len() > 1 {
            text.push(',');
        }
        let end = at.checked_add(tensor.bytes)?;
        let sizes: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        text.push_str(&format!(
            "{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{at},{end}]}}",
            quote(tensor.name),
            type_name(tensor.dtype)?,
            sizes.join(",")
        ));
        at = end;
    }
    text.push('}');
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let length = text.len() as u64;
    if length > MOST_BYTES {
        return None;
    }
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    Some(bytes)
}
