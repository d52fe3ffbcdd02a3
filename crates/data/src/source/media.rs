//! One file that is one sample: an image, a sound, an array. What it is shows in its first bytes.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use image::error::ImageError;
use image::{ColorType, ImageDecoder, ImageFormat, ImageReader};
use optix_base::Limits;
use optix_ir::{DType, Tensor};

use super::{Facts, npy, wav};
use crate::error::DataError;
use crate::input::{Stream, open_plain, read_at_most};

/// Reads a file, whatever of these it is.
pub(crate) fn read(path: &Path, limits: &Limits) -> Result<(Tensor, Facts), DataError> {
    let (file, length) = open_plain(path)?;
    if length > limits.sample_bytes {
        return Err(DataError::limit(path, "one file", "sample-bytes", limits.sample_bytes));
    }
    let bytes = read_at_most(file, limits.sample_bytes).map_err(|error| DataError::read(path, error))?;
    if bytes.is_empty() {
        return Err(DataError::invalid(path, "", "the file is empty"));
    }
    // Decoders are others' work: a panic of theirs is a complaint about the file.
    let guard = |decode: &mut dyn FnMut() -> Result<(Tensor, Facts), DataError>| {
        catch_unwind(AssertUnwindSafe(decode))
            .unwrap_or_else(|_| Err(DataError::invalid(path, "", "the file is damaged: decoding it fails")))
    };
    if wav::is_wav(&bytes) {
        return guard(&mut || wav::decode(path, &bytes, limits));
    }
    if bytes.starts_with(npy::MAGIC) {
        let size = bytes.len() as u64;
        let stream = Stream::new(path, "", Cursor::new(bytes), None, limits);
        let mut array = npy::open(stream, Some(size), npy::Axis::None, limits)?;
        let tensor = array.next()?;
        array.finish()?;
        return Ok((tensor, Facts::default()));
    }
    guard(&mut || decode_image(path, &bytes, limits))
}

/// Decodes an image into height x width (one channel) or height x width x channels, as many channels and
/// bits as the file has; of moving images the first one.
fn decode_image(path: &Path, bytes: &[u8], limits: &Limits) -> Result<(Tensor, Facts), DataError> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|error| DataError::read(path, error))?;
    let format = reader.format();
    let known = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::WebP];
    if format.is_none_or(|format| !known.contains(&format)) {
        let found = format.map_or_else(
            || "its first bytes are of no image format that is known".to_owned(),
            |format| format!("it is a {format:?} image"),
        );
        let what = format!(
            "{found}: png, jpeg, bmp, gif, webp, wav and npy files are read; convert it or take it out"
        );
        return Err(DataError::invalid(path, "", what));
    }
    let broken = |error: ImageError| match error {
        ImageError::IoError(error) => {
            DataError::invalid(path, "", format!("the image is damaged or incomplete ({error})"))
        }
        other => DataError::invalid(path, "", format!("the image is damaged or incomplete ({other})")),
    };
    let mut bounds = image::Limits::default();
    bounds.max_alloc = Some(limits.sample_bytes);
    reader.limits(bounds);
    if format == Some(ImageFormat::Jpeg) {
        // Decoders fill what is missing with grey.
        jpeg_is_whole(bytes).map_err(|what| DataError::invalid(path, "", what))?;
    }
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width).saturating_mul(u64::from(height));
    if pixels > limits.image_pixels {
        let what = format!("an image of {width} x {height} pixels");
        return Err(DataError::limit(path, &what, "image-pixels", limits.image_pixels));
    }
    let total = decoder.total_bytes();
    // Four bytes a pixel are usual; nothing larger is made of a small file.
    if total > limits.sample_bytes.min(limits.image_pixels.saturating_mul(4)) {
        return Err(DataError::limit(path, "one image", "sample-bytes", limits.sample_bytes));
    }
    let color = decoder.color_type();
    let orientation = decoder.orientation().map_or(1, image::metadata::Orientation::to_exif);
    let mut pixels = vec![0; usize::try_from(total).unwrap_or(0)];
    decoder.read_image(&mut pixels).map_err(broken)?;
    let dtype = match color {
        ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8 => DType::U8,
        ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => DType::U16,
        _ => {
            let what = format!("its pixels are {color:?}; 8 and 16 bits a channel are read");
            return Err(DataError::invalid(path, "", what));
        }
    };
    if dtype == DType::U16 {
        // The decoder gives the machine's order.
        for pair in pixels.chunks_exact_mut(2) {
            if let [a, b] = *pair {
                pair.copy_from_slice(&u16::from_ne_bytes([a, b]).to_le_bytes());
            }
        }
    }
    let size = |edge: u32| usize::try_from(edge).unwrap_or(0);
    let mut shape = vec![size(height), size(width)];
    if color.channel_count() > 1 {
        shape.push(usize::from(color.channel_count()));
    }
    let tensor = Tensor::new(dtype, shape, Bytes::from(pixels))
        .map_err(|error| DataError::invalid(path, "", error.to_string()))?;
    Ok((tensor, Facts { orientation, ..Facts::default() }))
}

/// Walks the segments of a JPEG file up to its end marker.
fn jpeg_is_whole(bytes: &[u8]) -> Result<(), String> {
    let end = || "the image is incomplete: the file ends before its JPEG data do; copy it again".to_owned();
    let mut at = 2usize;
    loop {
        // A marker: any number of FF, then its code.
        let rest = bytes.get(at..).ok_or_else(end)?;
        let start = rest.iter().position(|&byte| byte == 0xff).ok_or_else(end)?;
        let code = rest.get(start..).ok_or_else(end)?;
        let fill = code.iter().position(|&byte| byte != 0xff).ok_or_else(end)?;
        at = at.saturating_add(start).saturating_add(fill);
        let code = *bytes.get(at).ok_or_else(end)?;
        at = at.saturating_add(1);
        match code {
            0xd9 => return Ok(()),
            // Data that look like a marker, restarts, and the start of the image have no length.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            _ => {
                let length = bytes.get(at..at.saturating_add(2)).ok_or_else(end)?;
                let length =
                    length.iter().fold(0usize, |sum, &byte| sum.saturating_mul(256) | usize::from(byte));
                // Behind the header of a scan its data follow, in which the search above goes on.
                at = at.saturating_add(length.max(2));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_without_its_end_is_incomplete() {
        // Start, a segment that holds an end marker, a scan with stuffed data and a restart, the end.
        let whole = [
            &[0xff, 0xd8, 0xff, 0xe1, 0, 4, 0xff, 0xd9][..],
            &[0xff, 0xda, 0, 3, 0, 1, 2, 0xff, 0, 7, 0xff, 0xd0, 9],
            &[0xff, 0xd9],
        ]
        .concat();
        assert_eq!(jpeg_is_whole(&whole), Ok(()));
        for length in 2..whole.len() {
            assert!(jpeg_is_whole(&whole[..length]).is_err(), "{length}");
        }
    }
}
