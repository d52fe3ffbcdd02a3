//! numpy's `.npy` arrays (format versions 1.0 to 3.0, NEP 1): the header and what it allows.
//!
//! The header is a Python dictionary. It is read as the small grammar it is, never evaluated; objects
//! (pickles) are refused.

use optix_base::Limits;
use optix_ir::DType;

use super::array::{ArrayStream, Layout, Stored};
use crate::error::DataError;
use crate::input::Stream;

/// What such files start with.
pub(crate) const MAGIC: &[u8] = b"\x93NUMPY";

/// Greatest header taken seriously: numpy itself stops at 10,000 bytes.
const MAX_HEADER: u64 = 64 << 10;

/// Greatest rank numpy makes.
const MAX_RANK: usize = 64;

/// Whether the first axis counts samples or the array is one sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Axis {
    Samples,
    None,
}

/// Reads the header and gives the stream of samples. `size` is the number of bytes that header and
/// elements take together, when it is known.
pub(crate) fn open(
    mut stream: Stream,
    size: Option<u64>,
    axis: Axis,
    limits: &Limits,
) -> Result<ArrayStream, DataError> {
    let start = stream.read_exactly(8, "header")?;
    let Some(version) = start.strip_prefix(MAGIC) else {
        return Err(stream.invalid("", "it is not an npy array: its first bytes are not \\x93NUMPY"));
    };
    let (length_bytes, version) = match version {
        [1, 0] => (2, 1),
        [major @ (2 | 3), 0] => (4, *major),
        other => {
            let what = format!("npy version {other:?} is not known; versions 1.0, 2.0 and 3.0 are read");
            return Err(stream.invalid("header", what));
        }
    };
    let length = stream.read_exactly(length_bytes, "header")?;
    let length = length.iter().rev().fold(0u64, |sum, &byte| sum.wrapping_shl(8) | u64::from(byte));
    if length > MAX_HEADER {
        let what = format!("a header of {length} bytes is more than the {MAX_HEADER} an array can need");
        return Err(stream.invalid("header", what));
    }
    let header = stream.read_exactly(length, "header")?;
    // Versions 1 and 2 are Latin-1, version 3 UTF-8; everything meaningful is ASCII.
    let text = if version == 3 { String::from_utf8_lossy(&header).into_owned() } else { latin1(&header) };
    let layout = parse(&text).map_err(|what| stream.invalid("header", what))?;
    let Some(bytes) = layout.bytes() else {
        return Err(stream.invalid("header", format!("shape {:?} is beyond any memory", layout.shape)));
    };
    let before = length.saturating_add(8).saturating_add(length_bytes);
    if let Some(size) = size
        && bytes.checked_add(before) != Some(size)
    {
        let found = size.saturating_sub(before);
        let what = format!("shape {:?} takes {bytes} bytes, but there are {found}", layout.shape);
        return Err(stream.invalid("", what));
    }
    match axis {
        Axis::Samples => ArrayStream::samples(stream, layout, limits),
        Axis::None => ArrayStream::one_sample(stream, layout, limits),
    }
}

/// The layout that the header at the start of `bytes` tells of; `None` while it is incomplete.
pub(crate) fn peek(bytes: &[u8]) -> Result<Option<Layout>, String> {
    let is_start = |magic: &[u8]| bytes.starts_with(magic) || magic.starts_with(bytes);
    if !is_start(MAGIC) {
        return Err("its first bytes are not \\x93NUMPY".to_owned());
    }
    let (length, start) = match bytes.get(6..) {
        Some([1, 0, a, b, ..]) => (u64::from(u16::from_le_bytes([*a, *b])), 10usize),
        Some([2 | 3, 0, a, b, c, d, ..]) => (u64::from(u32::from_le_bytes([*a, *b, *c, *d])), 12),
        Some([1..=3, 0, ..] | [1..=3] | []) | None => return Ok(None),
        Some(_) => return Err("versions 1.0, 2.0 and 3.0 of npy are read".to_owned()),
    };
    if length > MAX_HEADER {
        return Err(format!("a header of {length} bytes is more than the {MAX_HEADER} an array can need"));
    }
    let header = bytes.get(start..).unwrap_or_default();
    if (header.len() as u64) < length { Ok(None) } else { parse(&latin1(header)).map(Some) }
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// Parses the header's dictionary.
pub(crate) fn parse(text: &str) -> Result<Layout, String> {
    let mut input = Input { rest: text.trim() };
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    input.expect('{')?;
    while !input.accept('}') {
        let key = input.string()?;
        input.expect(':')?;
        let twice = match key {
            "descr" => descr.replace(stored(input.description()?)?).is_some(),
            "fortran_order" => fortran.replace(input.boolean()?).is_some(),
            "shape" => shape.replace(input.tuple()?).is_some(),
            other => return Err(format!("the key '{other}' does not belong there")),
        };
        if twice {
            return Err(format!("the key '{key}' stands there twice"));
        }
        if !input.accept(',') {
            input.expect('}')?;
            break;
        }
    }
    if !input.rest.trim().is_empty() {
        return Err("text follows the dictionary".to_owned());
    }
    match (descr, fortran, shape) {
        (Some((stored, big_endian)), Some(fortran), Some(shape)) => {
            Ok(Layout { stored, big_endian, fortran, shape })
        }
        _ => Err("one of the keys 'descr', 'fortran_order' and 'shape' is missing".to_owned()),
    }
}

/// Element type and whether it is big-endian, from numpy's description such as `<f4`.
fn stored(description: &str) -> Result<(Stored, bool), String> {
    let mut characters = description.chars();
    let order = characters.next();
    let big_endian = match order {
        Some('<' | '|' | '=') => false,
        Some('>') => true,
        _ => return Err(unreadable(description)),
    };
    let kind = characters.next();
    if kind == Some('O') {
        return Err(
            "the array holds Python objects (a pickle), which are never read: save numbers".to_owned()
        );
    }
    let width: usize = characters.as_str().parse().map_err(|_| unreadable(description))?;
    use DType::*;
    let stored = match (kind, width) {
        (Some('f'), 2) => Stored::Plain(F16),
        (Some('f'), 4) => Stored::Plain(F32),
        (Some('f'), 8) => Stored::Plain(F64),
        (Some('i'), 1) => Stored::Plain(I8),
        (Some('i'), 2) => Stored::Plain(I16),
        (Some('i'), 4) => Stored::Plain(I32),
        (Some('i'), 8) => Stored::Plain(I64),
        (Some('u'), 1) => Stored::Plain(U8),
        (Some('u'), 2) => Stored::Plain(U16),
        (Some('u'), 4) => Stored::Plain(U32),
        (Some('u'), 8) => Stored::Plain(U64),
        (Some('b'), 1) => Stored::Plain(Bool),
        (Some('c'), 8) => Stored::Plain(Complex64),
        (Some('c'), 16) => Stored::Plain(Complex128),
        // Width 0 would make elements out of nothing.
        (Some('S' | 'a'), 1..=1_048_576) => Stored::Bytes(width),
        (Some('U'), 1..=1_048_576) => Stored::Unicode(width),
        _ => return Err(unreadable(description)),
    };
    Ok((stored, big_endian))
}

fn unreadable(description: &str) -> String {
    format!(
        "elements of type '{description}' cannot be read; convert them, for instance with .astype('float32')"
    )
}

/// The header's text, being read.
struct Input<'a> {
    rest: &'a str,
}

impl<'a> Input<'a> {
    fn accept(&mut self, wanted: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.accept(wanted) { Ok(()) } else { Err(self.complain(&format!("`{wanted}`"))) }
    }

    fn complain(&self, wanted: &str) -> String {
        let start: String = self.rest.chars().take(24).collect();
        format!("{wanted} is expected where it says `{start}`")
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.accept('\'') {
            '\''
        } else if self.accept('"') {
            '"'
        } else {
            return Err(self.complain("a string"));
        };
        match self.rest.split_once(quote) {
            // An escape could hide a quote; numpy writes none for the types read here.
            Some((text, rest)) if !text.contains('\\') => {
                self.rest = rest;
                Ok(text)
            }
            _ => Err(self.complain("a plain string")),
        }
    }

    fn description(&mut self) -> Result<&'a str, String> {
        if self.rest.trim_start().starts_with('[') {
            return Err(
                "the array has named fields (a structured type); save each field as its own array".into()
            );
        }
        self.string()
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.rest = self.rest.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.complain("True or False"))
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        self.expect('(')?;
        let mut values = Vec::new();
        while !self.accept(')') {
            self.rest = self.rest.trim_start();
            let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (digits, rest) = self.rest.split_at(end);
            let value = digits.parse().map_err(|_| self.complain("a dimension"))?;
            values.push(value);
            if values.len() > MAX_RANK {
                return Err(format!("the array has more than {MAX_RANK} dimensions"));
            }
            // Python 2 wrote long integers with an L.
            self.rest = rest.strip_prefix('L').unwrap_or(rest);
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_numpy_writes() {
        let cases = [
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   \n",
                Stored::Plain(DType::F32),
                vec![3, 4],
            ),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (5,), }", Stored::Plain(DType::U8), vec![5]),
            ("{\"shape\": (), \"descr\": \"<U3\", \"fortran_order\": False}", Stored::Unicode(3), vec![]),
            ("{'descr': '|S2', 'fortran_order': False, 'shape': (5L, 2L)}", Stored::Bytes(2), vec![5, 2]),
        ];
        for (text, stored, shape) in cases {
            assert_eq!(
                parse(text).unwrap(),
                Layout { stored, big_endian: false, fortran: false, shape },
                "{text}"
            );
        }
        let big = parse("{'descr': '>i8', 'fortran_order': True, 'shape': (2, 3)}").unwrap();
        assert!(big.big_endian && big.fortran);
    }

    #[test]
    fn headers_that_are_refused() {
        let with = |descr: &str, shape: &str| {
            format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}")
        };
        let cases = [
            (String::new(), "`{` is expected"),
            ("__import__('os').system('true')".into(), "`{` is expected"),
            (with("__import__('os')", "(1,)"), "a string is expected"),
            (with("'|O'", "(1,)"), "pickle"),
            (with("[('a', '<f4')]", "(1,)"), "named fields"),
            (with("'<f3'", "(1,)"), "'<f3' cannot be read"),
            (with("'f4'", "(1,)"), "cannot be read"),
            (with("'<U0'", "(1,)"), "cannot be read"),
            (with("'|V2'", "(1,)"), "cannot be read"),
            (with("'<f4'", "(-1,)"), "a dimension is expected"),
            (with("'<f4'", "(1.5,)"), "`)` is expected"),
            (with("'<f4'", "(99999999999999999999,)"), "a dimension is expected"),
            (with("'<f4'", "((1,),)"), "a dimension is expected"),
            (with("'<f4'", "(1"), "`)` is expected"),
            (with("'<f4'", "[1]"), "`(` is expected"),
            (with("'<f4'", &format!("({})", "1,".repeat(100))), "more than 64"),
            ("{'descr': '<f4', 'descr': '<f4'}".into(), "twice"),
            ("{'descr': '<f4', 'evil': 1}".into(), "does not belong"),
            ("{'descr': '<f4', 'shape': ()}".into(), "is missing"),
            ("{'descr': '<f4', 'fortran_order': 0, 'shape': ()}".into(), "True or False"),
            (with("'<f4'", "()") + "; evil()", "text follows"),
        ];
        for (text, expected) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
