//! Arrays whose first axis counts samples, read one sample at a time.

use bytes::Bytes;
use optix_base::Limits;
use optix_ir::{DType, Tensor, element_count};

use crate::error::DataError;
use crate::input::Stream;

/// What the elements of a stored array are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stored {
    /// Numbers that the IR has a type for.
    Plain(DType),
    /// Strings of so many bytes, filled up with NUL (numpy's `S`).
    Bytes(usize),
    /// Strings of so many UTF-32 code points, filled up with NUL (numpy's `U`).
    Unicode(usize),
}

impl Stored {
    /// Bytes an element takes in the file.
    fn size(self) -> Option<usize> {
        match self {
            Stored::Plain(dtype) => dtype.byte_len(1),
            Stored::Bytes(length) => Some(length),
            Stored::Unicode(length) => length.checked_mul(4),
        }
    }

    /// Bytes whose order is reversed in a big-endian file.
    fn unit(self) -> usize {
        match self {
            Stored::Plain(DType::Complex64) => 4,
            Stored::Plain(DType::Complex128) => 8,
            Stored::Plain(dtype) => dtype.byte_len(1).unwrap_or(1),
            Stored::Bytes(_) => 1,
            Stored::Unicode(_) => 4,
        }
    }
}

/// What a header says about an array.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub(crate) stored: Stored,
    pub(crate) big_endian: bool,
    /// First index fastest.
    pub(crate) fortran: bool,
    pub(crate) shape: Vec<usize>,
}

impl Layout {
    /// Bytes of all elements; `None` on overflow.
    pub(crate) fn bytes(&self) -> Option<u64> {
        let bytes = element_count(&self.shape)?.checked_mul(self.stored.size()?)?;
        u64::try_from(bytes).ok()
    }
}

/// An array being read.
#[derive(Debug)]
pub(crate) struct ArrayStream {
    stream: Stream,
    layout: Layout,
    sample_shape: Vec<usize>,
    sample_bytes: usize,
    count: u64,
    at: u64,
    /// The whole array in row-major order, when the file has it the other way round.
    reordered: Option<Bytes>,
}

impl ArrayStream {
    /// An array of samples whose elements follow in `stream`.
    pub(crate) fn samples(stream: Stream, layout: Layout, limits: &Limits) -> Result<ArrayStream, DataError> {
        let Some((&count, sample_shape)) = layout.shape.split_first() else {
            return Err(stream.invalid("", "it is a single number; the first axis must count the samples"));
        };
        let sample_shape = sample_shape.to_vec();
        Self::with_shape(stream, layout, sample_shape, count as u64, limits)
    }

    /// An array that is one sample as a whole.
    pub(crate) fn one_sample(
        stream: Stream,
        layout: Layout,
        limits: &Limits,
    ) -> Result<ArrayStream, DataError> {
        let sample_shape = layout.shape.clone();
        Self::with_shape(stream, layout, sample_shape, 1, limits)
    }

    fn with_shape(
        stream: Stream,
        layout: Layout,
        sample_shape: Vec<usize>,
        count: u64,
        limits: &Limits,
    ) -> Result<ArrayStream, DataError> {
        let size = layout.stored.size();
        let bytes = element_count(&sample_shape).zip(size).and_then(|(count, size)| count.checked_mul(size));
        // The whole must be countable too, or offsets overflow later.
        let (Some(sample_bytes), Some(total)) = (bytes, layout.bytes()) else {
            return Err(stream.invalid("", format!("shape {:?} is beyond any memory", layout.shape)));
        };
        if sample_bytes as u64 > limits.sample_bytes {
            return Err(DataError::limit(stream.path(), "one sample", "sample-bytes", limits.sample_bytes));
        }
        if sample_bytes == 0 && count > 0 {
            return Err(stream.invalid("", format!("shape {:?}: the samples have no elements", layout.shape)));
        }
        if layout.fortran && layout.shape.len() > 1 && total > limits.sample_bytes {
            let what =
                "an array in Fortran order, which must be read whole (save it with np.ascontiguousarray)";
            return Err(DataError::limit(stream.path(), what, "sample-bytes", limits.sample_bytes));
        }
        Ok(ArrayStream { stream, layout, sample_shape, sample_bytes, count, at: 0, reordered: None })
    }

    /// Number of samples.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The next sample. Not called more often than there are samples.
    pub(crate) fn next(&mut self) -> Result<Tensor, DataError> {
        let place = format!("sample {}", self.at);
        if self.layout.fortran && self.layout.shape.len() > 1 && self.reordered.is_none() {
            self.reordered = Some(self.read_fortran()?);
        }
        let bytes = match &self.reordered {
            None => {
                let mut bytes = self.stream.read_exactly(self.sample_bytes as u64, &place)?;
                if self.layout.big_endian {
                    bytes.chunks_exact_mut(self.layout.stored.unit()).for_each(<[u8]>::reverse);
                }
                Bytes::from(bytes)
            }
            Some(all) => {
                let start = usize::try_from(self.at).ok().and_then(|at| at.checked_mul(self.sample_bytes));
                let range = start.and_then(|start| Some(start..start.checked_add(self.sample_bytes)?));
                match range.filter(|range| range.end <= all.len()) {
                    Some(range) => all.slice(range),
                    None => return Err(self.stream.invalid(&place, "there is no such sample")),
                }
            }
        };
        self.at = self.at.saturating_add(1);
        self.tensor(bytes).map_err(|what| self.stream.invalid(&place, what))
    }

    fn tensor(&self, bytes: Bytes) -> Result<Tensor, String> {
        let shape = self.sample_shape.clone();
        match self.layout.stored {
            Stored::Plain(dtype) => Tensor::new(dtype, shape, bytes).map_err(|error| error.to_string()),
            Stored::Bytes(length) => {
                let trim = |text: &[u8]| {
                    let end =
                        text.iter().rposition(|&byte| byte != 0).map_or(0, |last| last.saturating_add(1));
                    text.get(..end).unwrap_or_default().to_vec()
                };
                let texts: Vec<Vec<u8>> = bytes.chunks_exact(length.max(1)).map(trim).collect();
                Ok(Tensor::from_strings(shape, &texts))
            }
            Stored::Unicode(length) => {
                let text = |units: &[u8]| -> Option<String> {
                    let code = |unit: &[u8]| char::from_u32(u32::from_le_bytes(unit.try_into().ok()?));
                    let text: Option<String> = units.chunks_exact(4).map(code).collect();
                    text.map(|text| text.trim_end_matches('\0').to_owned())
                };
                let width = length.saturating_mul(4).max(1);
                let texts: Option<Vec<String>> = bytes.chunks_exact(width).map(text).collect();
                let texts = texts.ok_or("a string has a number in it that is no Unicode character")?;
                Ok(Tensor::from_strings(shape, &texts))
            }
        }
    }

    /// Passes over samples.
    pub(crate) fn skip(&mut self, count: u64) -> Result<(), DataError> {
        let place = format!("sample {}", self.at);
        if !self.layout.fortran || self.layout.shape.len() <= 1 {
            self.stream.discard(count.saturating_mul(self.sample_bytes as u64), &place)?;
        }
        self.at = self.at.saturating_add(count);
        Ok(())
    }

    /// Checks that nothing follows the last sample, and the checksum of a compressed stream.
    pub(crate) fn finish(&mut self) -> Result<(), DataError> {
        self.stream.expect_end()
    }

    /// Reads everything and turns it into little-endian row-major order.
    fn read_fortran(&mut self) -> Result<Bytes, DataError> {
        let total = self.layout.bytes().unwrap_or(u64::MAX);
        let mut bytes = self.stream.read_exactly(total, "")?;
        if self.layout.big_endian {
            bytes.chunks_exact_mut(self.layout.stored.unit()).for_each(<[u8]>::reverse);
        }
        let size = self.layout.stored.size().unwrap_or(1);
        let shape = &self.layout.shape;
        let mut strides = Vec::with_capacity(shape.len());
        let mut stride = size;
        for &dim in shape {
            strides.push(stride);
            stride = stride.saturating_mul(dim);
        }
        let mut result = Vec::with_capacity(bytes.len());
        let mut index = vec![0usize; shape.len()];
        let mut offset = 0usize;
        while result.len() < bytes.len() {
            let end = offset.saturating_add(size);
            result.extend_from_slice(bytes.get(offset..end).unwrap_or_default());
            // Counts up, last axis fastest; `offset` follows.
            for ((place, &dim), &stride) in index.iter_mut().zip(shape).zip(&strides).rev() {
                *place = place.saturating_add(1);
                offset = offset.saturating_add(stride);
                if *place < dim {
                    break;
                }
                offset = offset.saturating_sub(stride.saturating_mul(dim));
                *place = 0;
            }
        }
        Ok(result.into())
    }
}
