//! A command line taken apart, and a program's output cut into samples wherever it arrives.

use optix_base::escape_for_terminal;

use super::npy;

/// Splits a command line into words as a shell would, without being one: blanks separate, quotes and
/// backslashes keep together.
pub(crate) fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None::<char>);
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), character) if character == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let next = characters.next().ok_or("it ends in a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (None, character) if character.is_whitespace() => words.extend(word.take()),
            (_, character) => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err("a quotation mark is not closed".to_owned());
    }
    words.extend(word);
    if words.is_empty() { Err("the command is empty".to_owned()) } else { Ok(words) }
}

/// How the output is cut into samples, and how far it has been.
pub(super) enum Framer {
    Start(Vec<u8>),
    Lines {
        count: u64,
        is_blank: bool,
    },
    /// `head` gathers a header, then `left` bytes of elements follow.
    Arrays {
        head: Vec<u8>,
        left: u64,
        at: u64,
        frames: Vec<(u64, u64)>,
    },
}

impl Framer {
    /// Takes what was printed next.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        if let Framer::Start(start) = self {
            start.extend_from_slice(bytes);
            let text = start.trim_ascii_start();
            let kind = match text {
                [] => return Ok(()),
                [b'{', ..] => Framer::Lines { count: 0, is_blank: true },
                _ if start.starts_with(npy::MAGIC) => {
                    Framer::Arrays { head: Vec::new(), left: 0, at: 0, frames: Vec::new() }
                }
                _ if npy::MAGIC.starts_with(start) => return Ok(()),
                other => {
                    let shown = String::from_utf8_lossy(other.get(..40).unwrap_or(other)).into_owned();
                    return Err(format!(
                        "it prints `{}`, which is neither JSON lines nor npy arrays",
                        escape_for_terminal(&shown)
                    ));
                }
            };
            let start = std::mem::take(start);
            *self = kind;
            return self.feed(&start);
        }
        match self {
            Framer::Start(_) => Ok(()),
            Framer::Lines { count, is_blank } => {
                for &byte in bytes {
                    if byte == b'\n' {
                        *count = count.saturating_add(u64::from(!*is_blank));
                        *is_blank = true;
                    } else if !byte.is_ascii_whitespace() {
                        *is_blank = false;
                    }
                }
                Ok(())
            }
            Framer::Arrays { head, left, at, frames } => {
                while !bytes.is_empty() {
                    if *left > 0 {
                        let step = (bytes.len() as u64).min(*left);
                        bytes = bytes.get(usize::try_from(step).unwrap_or(0)..).unwrap_or_default();
                        *left = left.saturating_sub(step);
                        continue;
                    }
                    // Headers are short and rare: a byte at a time will do.
                    let Some((&byte, rest)) = bytes.split_first() else { break };
                    bytes = rest;
                    head.push(byte);
                    let number = frames.len();
                    let layout =
                        npy::peek(head).map_err(|what| format!("array {number} (from 0): {what}"))?;
                    if let Some(layout) = layout {
                        let length = layout.bytes().ok_or_else(|| {
                            format!("array {number} (from 0): shape {:?} is beyond any memory", layout.shape)
                        })?;
                        let whole = length.saturating_add(head.len() as u64);
                        frames.push((*at, whole));
                        *at = at.saturating_add(whole);
                        *left = length;
                        head.clear();
                    }
                }
                Ok(())
            }
        }
    }

    /// Complete samples so far, of so many arrays each.
    pub(super) fn samples(&self, arrays: u64) -> u64 {
        match self {
            Framer::Start(_) => 0,
            Framer::Lines { count, .. } => *count,
            Framer::Arrays { left, head, frames, .. } => {
                let open = u64::from(*left > 0 || !head.is_empty());
                (frames.len() as u64).saturating_sub(open).checked_div(arrays).unwrap_or(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_becomes_words() {
        let of = |line: &str| words(line).unwrap();
        assert_eq!(of("python load.py --n 3"), ["python", "load.py", "--n", "3"]);
        assert_eq!(of("a 'b c' \"d \\\" e\" f\\ g ''"), ["a", "b c", "d \" e", "f g", ""]);
        for bad in ["", "  ", "a 'b", "a \\"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn output_is_cut_wherever_it_arrives() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n";
        let mut frame = b"\x93NUMPY\x01\0".to_vec();
        frame.extend_from_slice(&(header.len() as u16).to_le_bytes());
        frame.extend_from_slice(header.as_bytes());
        frame.extend_from_slice(&[0; 12]);
        let arrays = frame.repeat(4);
        let lines = b" {\"a\": 1}\n\n{\"a\": 2}\n{\"a\": 3}\n{\"a\": 4}\n";
        for (output, size) in [(arrays.as_slice(), 1), (&arrays, 7), (&arrays, 1000), (lines, 1), (lines, 9)]
        {
            let mut framer = Framer::Start(Vec::new());
            output.chunks(size).for_each(|chunk| framer.feed(chunk).unwrap());
            assert_eq!(framer.samples(1), 4);
            assert_eq!(framer.samples(2), if matches!(framer, Framer::Arrays { .. }) { 2 } else { 4 });
        }
        assert!(Framer::Start(Vec::new()).feed(b"hello").is_err());
    }
}
