//! Writing types and tensors of the text form.

use super::is_plain;
use super::print::Printer;
use crate::dtype::DType;
use crate::node::{StoredSparse, StoredTensor};
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, Type};

impl Printer<'_> {
    pub(super) fn ty(&mut self, ty: &Type) {
        match ty {
            Type::Tensor(tensor) => self.tensor_type(tensor),
            Type::SparseTensor(tensor) => {
                self.put("sparse_tensor(");
                self.tensor_type(tensor);
                self.put(")");
            }
            Type::Sequence(element) | Type::Optional(element) => {
                self.put(if matches!(ty, Type::Sequence(_)) { "seq(" } else { "optional(" });
                self.ty(element);
                self.put(")");
            }
            Type::Map(key, value) => {
                self.show(format_args!("map({key}, "));
                self.ty(value);
                self.put(")");
            }
            Type::Opaque { domain, name } => {
                self.put("opaque(");
                if !domain.is_empty() {
                    self.path(domain);
                    self.put(", ");
                }
                if !name.is_empty() || !domain.is_empty() {
                    self.path(name);
                }
                self.put(")");
            }
        }
    }

    /// A name that may have parts separated by points.
    pub(super) fn path(&mut self, path: &str) {
        if path.split('.').all(is_plain) { self.put(path) } else { self.quoted(path) }
    }

    fn tensor_type(&mut self, ty: &TensorType) {
        self.put(ty.dtype.map_or("undefined", DType::name));
        match &ty.shape {
            None => self.put("[]"),
            Some(shape) if shape.is_empty() => {}
            Some(shape) => {
                self.put("[");
                self.separated(shape, |printer, dim| match dim {
                    Dim::Symbol(name) => printer.name(name),
                    other => printer.show(other),
                });
                self.put("]");
            }
        }
    }

    pub(super) fn shape(&mut self, dtype: DType, shape: &[usize]) {
        self.put(dtype.name());
        if !shape.is_empty() {
            self.put("[");
            self.separated(shape, |printer, dim| printer.show(dim));
            self.put("]");
        }
    }

    /// `{elements}`
    pub(super) fn elements(&mut self, tensor: &Tensor) {
        self.put("{");
        if tensor.len() > self.options.max_elements || !self.all_elements(tensor) {
            self.abridged(tensor);
        }
        self.put("}");
    }

    /// False, with nothing printed, when the tensor cannot be written in this syntax.
    fn all_elements(&mut self, tensor: &Tensor) -> bool {
        use DType::*;
        macro_rules! floats {
            ($rust:ty) => {
                match tensor.to_slice::<$rust>() {
                    Ok(data) => self.separated(data.iter(), |printer, number| printer.number(*number)),
                    Err(_) => return false,
                }
            };
        }
        macro_rules! patterns {
            ($rust:ty) => {
                match tensor.to_slice::<$rust>() {
                    Ok(data) => self.separated(data.iter(), |printer, number| printer.show(number.to_bits())),
                    Err(_) => return false,
                }
            };
        }
        macro_rules! pairs {
            ($rust:ty) => {
                match tensor.to_slice::<[$rust; 2]>() {
                    Ok(data) => {
                        self.separated(data.iter().flatten(), |printer, number| printer.number(*number));
                    }
                    Err(_) => return false,
                }
            };
        }
        match tensor.dtype() {
            F32 => floats!(f32),
            F64 => floats!(f64),
            F16 => patterns!(half::f16),
            BF16 => patterns!(half::bf16),
            Complex64 => pairs!(f32),
            Complex128 => pairs!(f64),
            // Saturates as 64-bit signed integers.
            U64 => match tensor.to_slice::<u64>() {
                Ok(data) => self.separated(data.iter(), |printer, number| printer.show(number)),
                Err(_) => return false,
            },
            String => {
                let Ok(data) = tensor.strings() else { return false };
                let texts: Vec<&str> =
                    data.iter().filter_map(|bytes| std::str::from_utf8(bytes).ok()).collect();
                if texts.len() != data.len() {
                    return false;
                }
                self.separated(texts, |printer, text| printer.quoted(text));
            }
            F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0 | F4E2M1 | F6E2M3 | F6E3M2 => {
                let Ok(codes) = tensor.codes() else { return false };
                self.separated(codes.iter(), |printer, code| printer.show(code));
            }
            _ => {
                let Ok(data) = tensor.to_i64s() else { return false };
                self.separated(data, |printer, number| printer.show(number));
            }
        }
        true
    }

    /// A float in the fewest digits that read back as the same number, with a point or an exponent.
    pub(super) fn number(&mut self, number: impl std::fmt::Debug + Copy + Into<f64>) {
        let wide: f64 = number.into();
        if wide.is_nan() {
            self.put(if wide.is_sign_negative() { "-nan" } else { "nan" });
        } else {
            self.show(format_args!("{number:?}"));
        }
    }

    fn abridged(&mut self, tensor: &Tensor) {
        self.put("...");
        if !self.options.statistics {
            return;
        }
        let hash = blake3::hash(tensor.bytes()).to_hex();
        self.show(format_args!(" blake3:{}", hash.get(..16).unwrap_or_default()));
        let Ok(numbers) = tensor.to_f64s() else { return };
        let finite = || numbers.iter().copied().filter(|number| number.is_finite());
        let count = finite().count();
        if count > 0 {
            let mean = finite().sum::<f64>() / count as f64;
            let variance = finite().map(|number| (number - mean).powi(2)).sum::<f64>() / count as f64;
            let (low, high) =
                finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
            for (name, number) in
                [("min", low), ("max", high), ("mean", mean), ("deviation", variance.sqrt())]
            {
                self.show(format_args!(" {name} {}", four_digits(number)));
            }
        }
        if count < numbers.len() {
            self.show(format_args!(" not-finite {}", numbers.len() - count));
        }
    }

    pub(super) fn tensor(&mut self, stored: &StoredTensor) {
        self.shape(stored.tensor.dtype(), stored.tensor.shape());
        if !stored.name.is_empty() {
            self.put(" ");
            self.name(&stored.name);
        }
        self.put(" ");
        self.elements(&stored.tensor);
    }

    pub(super) fn sparse_type(&mut self, sparse: &StoredSparse) {
        self.put("sparse_tensor(");
        self.shape(sparse.values.tensor.dtype(), &sparse.shape);
        self.put(")");
    }

    pub(super) fn sparse_elements(&mut self, sparse: &StoredSparse) {
        self.put("{");
        for (index, part) in [&sparse.values.tensor, &sparse.indices.tensor].into_iter().enumerate() {
            self.put(if index == 0 { "" } else { ", " });
            self.shape(part.dtype(), part.shape());
            self.put(" ");
            self.elements(part);
        }
        self.put("}");
    }

    pub(super) fn sparse(&mut self, sparse: &StoredSparse) {
        self.sparse_type(sparse);
        if !sparse.values.name.is_empty() {
            self.put(" ");
            self.name(&sparse.values.name);
        }
        self.put(" = ");
        self.sparse_elements(sparse);
    }
}

/// Four significant digits: enough to recognize a tensor by.
fn four_digits(number: f64) -> String {
    let magnitude = number.abs();
    if number == 0.0 || (1e-3..1e6).contains(&magnitude) {
        let places = if magnitude > 0.0 { (3 - magnitude.log10().floor() as i32).clamp(0, 6) } else { 0 };
        format!("{number:.*}", places as usize)
    } else {
        format!("{number:.3e}")
    }
}
