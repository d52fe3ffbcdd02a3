//! Which format a file is in, told from its content: names lie.

use std::path::Path;

use crate::error::IoError;
use crate::load::Format;

/// Bytes looked at to tell text from binary.
const LOOK: usize = 512;

/// What some other formats start with, at which offset, and what to say of them.
const OTHERS: &[(usize, &[u8], &str)] = &[
    (
        0,
        b"PK\x03\x04",
        "a zip archive (a PyTorch .pt file is one); export the model to ONNX or its weights to safetensors",
    ),
    (0, b"\x80\x02", PICKLE),
    (0, b"\x80\x03", PICKLE),
    (0, b"\x80\x04", PICKLE),
    (0, b"\x80\x05", PICKLE),
    (0, b"GGUF", "a GGUF file, which is not supported yet"),
    (0, b"\x89HDF\r\n", "an HDF5 file (Keras); export the model to ONNX"),
    (0, b"\x1f\x8b", "compressed with gzip; decompress it first"),
    (0, b"BZh", "compressed with bzip2; decompress it first"),
    (0, b"\xfd7zXZ\0", "compressed with xz; decompress it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it first"),
    (0, b"\x93NUMPY", "a NumPy array, not a model"),
    (0, b"\x7fELF", "a program, not a model"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model itself; fetch it with `git lfs pull`"),
    (4, b"ORTM", "in onnxruntime's own .ort format; use the ONNX file it was made from"),
    (4, b"TFL3", "a TensorFlow Lite model; convert it to ONNX"),
];
const PICKLE: &str =
    "a Python pickle, which can run code when it is loaded; convert the weights to safetensors";

/// Tells the format.
///
/// # Errors
/// When it is a known one that holds no model we read; the message names it.
pub(crate) fn sniff(content: &[u8], path: &Path) -> Result<Format, IoError> {
    let refuse =
        |what: &str| Err(IoError::NotAModel { path: path.to_owned(), what: format!("this is {what}") });
    if content.is_empty() {
        return Err(IoError::NotAModel { path: path.to_owned(), what: "the file is empty".into() });
    }
    if let [_, _, _, _, _, 0, 0, 0, b'{', ..] = content {
        return Ok(Format::Safetensors);
    }
    for (offset, magic, what) in OTHERS {
        if content.get(*offset..).is_some_and(|rest| rest.starts_with(magic)) {
            return refuse(what);
        }
    }
    let head = content.get(..LOOK.min(content.len())).unwrap_or_default();
    if let Some(text) = as_text(head) {
        return refuse(of_text(text));
    }
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return Ok(Format::Safetensors);
    }
    Ok(Format::Onnx)
}

/// The start of a file as text, when it is printable text.
fn as_text(head: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // Cut within a character is still text.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(head.get(..error.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    let printable = |character: char| !character.is_control() || matches!(character, '\n' | '\r' | '\t');
    // The shortest encodings are printable by chance; no text file is that short.
    (text.len() >= 4 && text.trim_start_matches('\u{feff}').chars().all(printable)).then_some(text)
}

fn of_text(text: &str) -> &'static str {
    let start = text.trim_start_matches('\u{feff}').trim_start();
    let lower = start.get(..start.len().min(64)).unwrap_or(start).to_lowercase();
    if lower.starts_with("<!doctype") || lower.starts_with("<html") {
        "a web page: the download went wrong"
    } else if lower.starts_with("<?xml") {
        "an XML file, not a model"
    } else if text.contains("ir_version") {
        "a model in text form; write it as a binary ONNX file first"
    } else if start.starts_with('{') || start.starts_with('[') {
        "JSON, not a model; for a Hugging Face model name its directory"
    } else {
        "a text file, not a model"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_apart() {
        let told = |content: &[u8], name: &str| match sniff(content, Path::new(name)) {
            Ok(format) => format!("{format:?}"),
            Err(error) => error.to_string(),
        };
        for (content, expected) in [
            (b"".as_slice(), "empty"),
            (b"\x08\x07\x12\x04test", "Onnx"),
            (b"\x20\0\0\0\0\0\0\0{\"a\":", "Safetensors"),
            (b"PK\x03\x04abcd", "zip"),
            (b"\x80\x02}q", "pickle"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"{\"architectures\": []}", "JSON"),
            (b"\xef\xbb\xbf{\"a\": 1}", "JSON"),
            (b"<!DOCTYPE html><html>", "web page"),
            (b"<\n  ir_version: 8\n>", "text form"),
            (b"ir_version: 8\ngraph {\n", "text form"),
            (b"hello, world", "text file"),
            (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
            (b"\x1c\0\0\0TFL3", "Lite"),
        ] {
            let told = told(content, "model.onnx");
            assert!(told.contains(expected), "{content:?}: {told}");
        }
        assert_eq!(told(b"\xff\xff\xff\xff\xff\xff\xff\xff", "x.safetensors"), "Safetensors");
    }
}
