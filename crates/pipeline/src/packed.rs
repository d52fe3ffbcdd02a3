//! Large decisions in little text: numbers and bits as base64 (RFC 4648, section 4), exact to the bit.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Many f32 numbers, NaN and infinities included: the base64 of their bytes, little-endian.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedFloats(pub Vec<f32>);

/// Many yes-or-no decisions, such as which weights are rounded up: their number, a colon, and the base64 of
/// their bits, eight a byte, the first in the lowest bit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedBits(pub Vec<bool>);

impl Serialize for PackedFloats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|number| number.to_le_bytes()).collect();
        serializer.serialize_str(&encode(&bytes))
    }
}

impl<'de> Deserialize<'de> for PackedFloats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PackedFloats, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = decode(&text).ok_or_else(|| D::Error::custom("it is not base64"))?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(D::Error::custom(format!("{} bytes are no whole number of f32", bytes.len())));
        }
        Ok(PackedFloats(numbers.iter().map(|&number| f32::from_le_bytes(number)).collect()))
    }
}

impl Serialize for PackedBits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let byte = |bits: &[bool]| bits.iter().rev().fold(0u8, |byte, &bit| (byte << 1) | u8::from(bit));
        let bytes: Vec<u8> = self.0.chunks(8).map(byte).collect();
        serializer.serialize_str(&format!("{}:{}", self.0.len(), encode(&bytes)))
    }
}

impl<'de> Deserialize<'de> for PackedBits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PackedBits, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parts =
            text.split_once(':').and_then(|(count, packed)| Some((count.parse().ok()?, decode(packed)?)));
        let (count, bytes): (usize, Vec<u8>) =
            parts.ok_or_else(|| D::Error::custom("it is not a number, a colon and base64"))?;
        let mut bits: Vec<bool> =
            bytes.iter().flat_map(|byte| (0..8).map(move |bit| (byte >> bit) & 1 == 1)).collect();
        if bytes.len() != count.div_ceil(8) || bits.iter().skip(count).any(|&bit| bit) {
            return Err(D::Error::custom(format!("{} bytes do not hold {count} bits", bytes.len())));
        }
        bits.truncate(count);
        Ok(PackedBits(bits))
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let joined = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            // A group of n bytes fills n + 1 characters.
            if place <= group.len() {
                text.push(char::from(ALPHABET[(joined >> (18 - 6 * place)) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// The bytes; `None` for what [`encode`] never writes: other characters, missing padding, bits left over.
fn decode(text: &str) -> Option<Vec<u8>> {
    let (groups, rest) = text.as_bytes().as_chunks::<4>();
    if !rest.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(groups.len() * 3);
    for (index, group) in groups.iter().enumerate() {
        let padding = group.iter().rev().take_while(|&&character| character == b'=').count();
        if padding > 2 || (padding > 0 && index + 1 < groups.len()) {
            return None;
        }
        let mut joined = 0u32;
        for &character in &group[..4 - padding] {
            joined = joined << 6 | u32::from(value(character)?);
        }
        joined <<= 6 * padding;
        let [_, decoded @ ..] = joined.to_be_bytes();
        let (kept, spare) = decoded.split_at(3 - padding);
        if spare.iter().any(|&byte| byte != 0) {
            return None;
        }
        bytes.extend(kept);
    }
    Some(bytes)
}

fn value(character: u8) -> Option<u8> {
    Some(match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_the_standard() {
        // RFC 4648, section 10.
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in vectors {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()));
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
        for wrong in
            ["Z", "Zg", "Zg=", "Zh==", "Zm9=", "Zg==Zg==", "=", "====", "Z===", "Zm9\n", "Zm-v", "é=="]
        {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn floats_keep_every_bit() {
        let numbers = [0.0, -0.0, 1.5, f32::MIN_POSITIVE, 1e-45, f32::INFINITY, f32::from_bits(0x7fc0_1234)];
        let text = serde_json::to_string(&PackedFloats(numbers.to_vec())).unwrap();
        let read: PackedFloats = serde_json::from_str(&text).unwrap();
        assert!(read.0.iter().zip(numbers).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_eq!(read.0.len(), numbers.len());
        for wrong in [r#""AAAA""#, r#""AAAAAA=""#, "[1]", r#""x""#] {
            assert!(serde_json::from_str::<PackedFloats>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bits_keep_their_number() {
        for count in [0, 1, 7, 8, 9, 64, 1001] {
            let bits = PackedBits((0..count).map(|index| index % 3 == 1).collect());
            let text = serde_json::to_string(&bits).unwrap();
            assert!(text.len() < count / 5 + 16, "{text}");
            assert_eq!(serde_json::from_str::<PackedBits>(&text).unwrap(), bits);
        }
        let wrong = [
            "\"8:\"",
            "\"7:/w==\"",
            "\"9:AA==\"",
            "\"-1:AA==\"",
            "\"AA==\"",
            "\"1\"",
            "3",
            "\"99999999999999999999:\"",
        ];
        for wrong in wrong {
            assert!(serde_json::from_str::<PackedBits>(wrong).is_err(), "{wrong}");
        }
    }
}
