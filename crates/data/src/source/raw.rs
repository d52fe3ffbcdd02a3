//! Numbers without a header, sample after sample: `dtype` and `shape` say what they are.

use optix_ir::element_count;

use super::array::{ArrayStream, Layout, Stored};
use super::{Settings, Single, Source};
use crate::error::DataError;
use crate::input::Stream;

/// Opens a file, plain or gzip.
pub(crate) fn open(settings: &Settings) -> Result<Box<dyn Source>, DataError> {
    let spec = &settings.spec;
    let path = &spec.path;
    let (Some(dtype), Some(shape)) = (spec.options.dtype, &spec.options.shape) else {
        let what = "raw data need `dtype` and `shape` (of one sample) in [source], such as dtype = \"float32\", \
                    shape = [3, 224, 224]";
        return Err(DataError::invalid(path, "", what));
    };
    let dtype = dtype.0;
    let (mut stream, size) = Stream::open(path, &settings.limits)?;
    let one = element_count(shape).and_then(|count| dtype.byte_len(count)).filter(|_| !dtype.is_packed());
    let Some(one) = one.filter(|&one| one > 0).map(|one| one as u64) else {
        let what = format!("samples of {dtype} and shape {shape:?} have no size that can be read");
        return Err(DataError::invalid(path, "", what));
    };
    if one > settings.limits.sample_bytes {
        return Err(DataError::limit(path, "one sample", "sample-bytes", settings.limits.sample_bytes));
    }
    let size = match size {
        Some(size) => size,
        // Compressed: only reading tells.
        None => {
            let mut size = 0u64;
            loop {
                let got = stream.read_up_to(1 << 20)?.len() as u64;
                if got == 0 {
                    break size;
                }
                size = size.saturating_add(got);
            }
        }
    };
    let rest = size.checked_rem(one).unwrap_or(0);
    if rest != 0 {
        let what = format!(
            "{size} bytes are no whole number of samples: one of {dtype} and shape {shape:?} takes {one}; {rest} are \
             left. Check `dtype` and `shape`"
        );
        return Err(DataError::invalid(path, "", what));
    }
    let count = usize::try_from(size.checked_div(one).unwrap_or(0)).unwrap_or(usize::MAX);
    let shape = std::iter::once(count).chain(shape.iter().copied()).collect();
    let layout = Layout { stored: Stored::Plain(dtype), big_endian: false, fortran: false, shape };
    let (stream, _) = Stream::open(path, &settings.limits)?;
    Single::boxed(path, ArrayStream::samples(stream, layout, &settings.limits)?, None)
}
