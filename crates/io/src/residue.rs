//! What a file said beside what the IR models, kept as the message it came in with everything taken out
//! that the IR holds: unknown fields, parts nobody looks into, empty texts that were present, types in an
//! unusual form.
//!
//! Writing starts from that message and puts back what the IR holds now. So an untouched thing comes out
//! as it went in, and a changed one keeps what the change did not concern.

use buffa::Message;
use bytes::Bytes;
use optix_ir::Carry;

use crate::proto;

/// The first byte of what ONNX objects carry.
const ONNX: u8 = 0x10;
/// Set when the field of an attribute's value was absent and the value is its default.
pub(crate) const VALUE_ABSENT: u8 = 0x01;
/// Set when an attribute did not state its type.
pub(crate) const TYPE_ABSENT: u8 = 0x02;

/// Packs what is left of a message.
pub(crate) fn carry<M: Message>(rest: &M, flags: u8) -> Carry {
    let bytes = proto::encode_small(rest);
    if bytes.is_empty() && flags == 0 {
        return Carry::default();
    }
    let mut carried = Vec::with_capacity(bytes.len().saturating_add(1));
    carried.push(ONNX | flags);
    carried.extend_from_slice(&bytes);
    Carry::new(Bytes::from(carried))
}

/// The message that [`carry`] packed and its flags; an empty one for a thing that did not come from an
/// ONNX file.
pub(crate) fn restore<M: Message>(carry: &Carry) -> (M, u8) {
    let restored = carry
        .bytes()
        .split_first()
        .filter(|(first, _)| *first & 0xF0 == ONNX)
        .and_then(|(first, rest)| Some((proto::decode_small(rest)?, first & 0x0F)));
    restored.unwrap_or_default()
}

/// Takes a text out of a message; an empty one that was present stays.
pub(crate) fn take_text(field: &mut Option<String>) -> String {
    match field {
        Some(text) if !text.is_empty() => std::mem::take(field).unwrap_or_default(),
        _ => String::new(),
    }
}

/// Puts a text back; see [`take_text`].
pub(crate) fn put_text(field: &mut Option<String>, text: &str) {
    if !text.is_empty() {
        *field = Some(text.to_owned());
    } else if field.as_deref().is_some_and(|held| !held.is_empty()) {
        *field = None;
    }
}

/// Takes a number out of a message; a zero that was present stays.
pub(crate) fn take_number(field: &mut Option<i64>) -> i64 {
    match *field {
        Some(number) if number != 0 => {
            *field = None;
            number
        }
        _ => 0,
    }
}

/// Puts a number back; see [`take_number`].
pub(crate) fn put_number(field: &mut Option<i64>, number: i64) {
    if number != 0 {
        *field = Some(number);
    }
}
