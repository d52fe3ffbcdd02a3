//! Strings: StringConcat, StringNormalizer, StringSplit and RegexFullMatch.
//!
//! <https://onnx.ai/onnx/operators/onnx__StringConcat.html>,
//! <https://onnx.ai/onnx/operators/onnx__StringNormalizer.html>,
//! <https://onnx.ai/onnx/operators/onnx__StringSplit.html>,
//! <https://onnx.ai/onnx/operators/onnx__RegexFullMatch.html>

use std::collections::HashSet;

use optix_ir::{AttributeValue, DType, Tensor};
use regex::bytes::Regex;

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{broadcast_strides, common_shape, places, product};

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("StringConcat", 20, concat),
    KernelSpec::onnx("StringNormalizer", 10, normalize),
    KernelSpec::onnx("StringSplit", 20, split),
    KernelSpec::onnx("RegexFullMatch", 20, full_match),
];

/// Input `slot` as text.
fn texts<'a>(call: &Call<'a>, slot: usize) -> Result<Vec<&'a str>, OpError> {
    let strings = call.input(slot)?.strings().map_err(|error| call.tensor_error(error))?;
    let text = |bytes: &'a [u8]| {
        std::str::from_utf8(bytes).map_err(|_| call.invalid(format!("input {slot} is not UTF-8")))
    };
    strings.into_iter().map(text).collect()
}

/// Checks the size of a string tensor before it is made.
fn check_strings(call: &Call<'_>, shape: &[usize], bytes: usize) -> Result<(), OpError> {
    // A reference takes 16 bytes, a stored string 4 beside its own.
    call.check_size(DType::Complex128, shape)?;
    call.check_size(DType::U8, &[bytes])
}

fn concat(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let strings = |tensor: &'_ Tensor| -> Result<Vec<Vec<u8>>, OpError> {
        let strings = tensor.strings().map_err(|error| call.tensor_error(error))?;
        Ok(strings.into_iter().map(<[u8]>::to_vec).collect())
    };
    let shape = common_shape(call, a.shape(), b.shape())?;
    check_strings(call, &shape, 0)?;
    let (first, second) = (strings(a)?, strings(b)?);
    let (steps_a, steps_b) =
        (broadcast_strides(call, a.shape(), &shape)?, broadcast_strides(call, b.shape(), &shape)?);
    let pairs = || places(&shape, 0, &steps_a).zip(places(&shape, 0, &steps_b));
    let bytes = pairs().fold(0usize, |sum, (at_a, at_b)| {
        sum.saturating_add(first[at_a].len()).saturating_add(second[at_b].len())
    });
    check_strings(call, &shape, bytes)?;
    let joined: Vec<Vec<u8>> =
        pairs().map(|(at_a, at_b)| [first[at_a].as_slice(), &second[at_b]].concat()).collect();
    Ok(vec![Tensor::from_strings(shape, &joined)])
}

fn normalize(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    if !matches!(x.shape(), [_] | [1, _]) {
        return Err(call.invalid(format!("shape {:?} is neither [C] nor [1, C]", x.shape())));
    }
    let sensitive = call.node.int("is_case_sensitive").unwrap_or(0) != 0;
    let fold = |text: &str| if sensitive { text.to_owned() } else { text.to_lowercase() };
    let stop_words: HashSet<String> = match call.node.attribute("stopwords") {
        Some(AttributeValue::Strings(words)) => {
            let word = |word: &bytes::Bytes| {
                let text = std::str::from_utf8(word);
                text.map(fold).map_err(|_| call.invalid("a stop word is not UTF-8"))
            };
            words.iter().map(word).collect::<Result<_, _>>()?
        }
        _ => HashSet::new(),
    };
    let change: fn(&str) -> String = match call.node.string("case_change_action").unwrap_or("NONE") {
        "NONE" => str::to_owned,
        "LOWER" => str::to_lowercase,
        "UPPER" => str::to_uppercase,
        other => return Err(call.invalid(format!("there is no case_change_action `{other}`"))),
    };
    let mut kept: Vec<String> =
        texts(call, 0)?.into_iter().filter(|text| !stop_words.contains(&fold(text))).map(change).collect();
    if kept.is_empty() {
        kept.push(String::new());
    }
    let mut shape = x.shape().to_vec();
    shape[x.rank() - 1] = kept.len();
    Ok(vec![Tensor::from_strings(shape, &kept)])
}

/// Parts of a text between runs of whitespace, at most so many splits.
fn words<'a>(call: &Call<'_>, text: &'a str, most: usize) -> Result<Vec<&'a str>, OpError> {
    // What else is whitespace depends on whom one asks.
    let blank = |c: char| matches!(c, ' ' | '\t' | '\n' | '\u{b}' | '\u{c}' | '\r');
    if text.chars().any(|c| (c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)) && !blank(c)) {
        return Err(call.unsupported("whitespace beyond ASCII"));
    }
    let (mut parts, mut rest) = (Vec::new(), text.trim_start_matches(blank));
    while !rest.is_empty() {
        if parts.len() >= most {
            if rest.ends_with(blank) {
                // The standard says it is removed, its reference keeps it.
                return Err(call.unsupported("whitespace behind the last split"));
            }
            parts.push(rest);
            break;
        }
        let (part, behind) = rest.split_at(rest.find(blank).unwrap_or(rest.len()));
        parts.push(part);
        rest = behind.trim_start_matches(blank);
    }
    Ok(parts)
}

fn split(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let delimiter = call.node.string("delimiter").unwrap_or("");
    let most =
        call.node.int("maxsplit").map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
    let mut all: Vec<Vec<&str>> = Vec::with_capacity(x.len());
    for text in texts(call, 0)? {
        all.push(match delimiter {
            "" => words(call, text, most)?,
            delimiter => text.splitn(most.saturating_add(1), delimiter).collect(),
        });
    }
    let widest = all.iter().map(Vec::len).max().unwrap_or(0);
    let mut shape = x.shape().to_vec();
    shape.push(widest);
    check_strings(call, &shape, product(&shape).saturating_mul(4))?;
    let counts: Vec<i64> = all.iter().map(|parts| parts.len() as i64).collect();
    let padded: Vec<&str> = all
        .iter()
        .flat_map(|parts| parts.iter().copied().chain(std::iter::repeat_n("", widest - parts.len())))
        .collect();
    Ok(vec![Tensor::from_strings(shape, &padded), Tensor::from_vec(x.shape().to_vec(), counts)])
}

/// A pattern of RE2 as one of the crate `regex`, which is near to it but not the same. `None` where they
/// may differ in a way that is not worth following.
fn translated(pattern: &str) -> Option<String> {
    let mut result = String::new();
    let mut characters = pattern.chars().peekable();
    let mut in_class = false;
    // Where case is ignored, more letters than those of \w would match.
    let mut ignores_case = false;
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next()? {
                // Classes of Perl are of ASCII there.
                'd' => result.push_str("[0-9]"),
                'D' => result.push_str("[^0-9]"),
                's' => result.push_str(r"[\t\n\f\r ]"),
                'S' => result.push_str(r"[^\t\n\f\r ]"),
                'w' | 'W' if ignores_case => return None,
                'w' => result.push_str("[0-9A-Za-z_]"),
                'W' => result.push_str("[^0-9A-Za-z_]"),
                'b' | 'B' if in_class => return None,
                'b' => result.push_str(r"(?-u:\b)"),
                'B' => result.push_str(r"(?-u:\B)"),
                // Ends of words there, letters here.
                escaped @ ('<' | '>') => result.push(escaped),
                'Q' | 'E' | 'C' | 'u' | 'U' => return None,
                other => result.extend(['\\', other]),
            },
            '(' if !in_class && characters.peek() == Some(&'?') => {
                let rest: String = characters.clone().skip(1).take_while(|c| !"):<P".contains(*c)).collect();
                if !rest.chars().all(|flag| "imsU-".contains(flag)) {
                    return None;
                }
                ignores_case |= rest.contains('i');
                result.push('(');
            }
            '[' if !in_class => {
                in_class = true;
                result.push('[');
                if characters.next_if_eq(&'^').is_some() {
                    result.push('^');
                }
                if characters.next_if_eq(&']').is_some() {
                    result.push_str(r"\]");
                }
            }
            '[' if characters.peek() == Some(&':') => {
                // [:alpha:] and the like
                result.push('[');
                loop {
                    let next = characters.next()?;
                    result.push(next);
                    if next == ']' {
                        break;
                    }
                }
            }
            // Operations on sets there, characters here.
            '[' | '&' | '~' if in_class => result.extend(['\\', character]),
            '-' if in_class && characters.peek() == Some(&'-') => return None,
            ']' if in_class => {
                in_class = false;
                result.push(']');
            }
            '{' if !in_class
                && !result.ends_with(r"\p")
                && !result.ends_with(r"\P")
                && !result.ends_with(r"\x") =>
            {
                // What is no number of repetitions stands for itself there.
                let rest: String = characters.clone().take_while(|c| *c != '}').collect();
                if !rest.starts_with(|c: char| c.is_ascii_digit())
                    || !rest.chars().all(|c| c.is_ascii_digit() || c == ',')
                {
                    return None;
                }
                result.push('{');
            }
            other => result.push(other),
        }
    }
    Some(result)
}

fn full_match(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let pattern = call.node.string("pattern").ok_or_else(|| call.invalid("`pattern` is missing"))?;
    let refused = || call.unsupported(format!("the pattern `{pattern}`"));
    let inner = translated(pattern).ok_or_else(refused)?;
    // The pattern must be one on its own, not only within the parentheses.
    Regex::new(&inner).map_err(|_| refused())?;
    let whole = Regex::new(&format!(r"\A(?:{inner})\z")).map_err(|_| refused())?;
    let bits: Vec<bool> = texts(call, 0)?.into_iter().map(|text| whole.is_match(text.as_bytes())).collect();
    Ok(vec![Tensor::from_bools(x.shape().to_vec(), &bits)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn matches(pattern: &str, text: &str) -> Option<bool> {
        let node = Node::new("RegexFullMatch", []).with("pattern", pattern);
        let x = Tensor::from_strings(vec![1], &[text]);
        match full_match(&Call::new(&node, 20, &[Some(&x)])) {
            Ok(outputs) => Some(outputs[0].bools().unwrap()[0]),
            Err(OpError::Unsupported { .. }) => None,
            Err(error) => panic!("{pattern}: {error}"),
        }
    }

    #[test]
    fn patterns_are_those_of_re2() {
        // As onnxruntime, which uses RE2, answers.
        for (pattern, text, expected) in [
            (r"\d{3}-\w+", "123-ab", true),
            (r"\d{3}-\w+", "123-é", false),
            (r"\d+", "١٢٣", false),
            ("a|ab", "ab", true),
            ("[[:alpha:]]+", "ab1", false),
            ("(?i)ä+", "ÄÄ", true),
            ("[^a-c]*", "\n", true),
            (".", "\n", false),
            (".", "é", true),
            (r"\bfoo\b.*", "foo bar", true),
            (r"\(?\d+\)?", "(12)", true),
            (r"\p{Lu}\pL*", "Éa", true),
            ("a$", "a\n", false),
            ("[]a]+", "]a", true),
            ("[a[&&b]+", "a[&b", true),
            (r"\<", "<", true),
        ] {
            assert_eq!(matches(pattern, text), Some(expected), "{pattern} {text:?}");
        }
        for pattern in ["(", "a)|(b", r"\1", "a{,2}", r"\Qa\E", "(?x)a", "[a--b]", r"(?i)\w", r"\"] {
            assert_eq!(matches(pattern, "a"), None, "{pattern}");
        }
        // In linear time.
        assert_eq!(matches("(a*)*b", &"a".repeat(20_000)), Some(false));
    }

    #[test]
    fn texts_are_split_as_by_the_standard() {
        let run = |text: &str, delimiter: &str, most: Option<i64>| {
            let mut node = Node::new("StringSplit", []).with("delimiter", delimiter);
            if let Some(most) = most {
                node = node.with("maxsplit", most);
            }
            let x = Tensor::from_strings(vec![1], &[text]);
            split(&Call::new(&node, 20, &[Some(&x)])).ok().map(|outputs| {
                let parts = outputs[0].strings().unwrap();
                parts.into_iter().map(|part| String::from_utf8(part.to_vec()).unwrap()).collect::<Vec<_>>()
            })
        };
        assert_eq!(run(" a  b\tc ", "", None).unwrap(), ["a", "b", "c"]);
        assert_eq!(run(" a b  c", "", Some(1)).unwrap(), ["a", "b  c"]);
        assert_eq!(run(" a b", "", Some(0)).unwrap(), ["a b"]);
        assert_eq!(run("a,,b,", ",", Some(1)).unwrap(), ["a", ",b,"]);
        assert_eq!(run("a,,b,", ",", Some(-1)).unwrap(), ["a", "", "b", ""]);
        assert_eq!(run("  ", "", None).unwrap(), [""; 0]);
        assert_eq!(run("a b c ", "", Some(1)), None);
        assert_eq!(run("a\u{a0}b", "", None), None);
    }

    #[test]
    fn joined_strings_may_be_too_many() {
        let node = Node::new("StringConcat", []);
        let strings = |shape: Vec<usize>| Tensor::from_strings(shape.clone(), &vec!["x"; product(&shape)]);
        let (a, b) = (strings(vec![1 << 15, 1]), strings(vec![1, 1 << 15]));
        assert!(matches!(
            concat(&Call::new(&node, 20, &[Some(&a), Some(&b)])),
            Err(OpError::TooLarge { .. })
        ));
    }
}
