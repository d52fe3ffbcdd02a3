//! What is known of a value, and how two such pieces of knowledge combine.

use std::sync::Arc;

use crate::dtype::DType;
use crate::infer::expr::Expr;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType, Type};

/// Contents are followed for tensors of at most so many elements.
pub const MAX_CONTENTS: usize = 1024;

/// What inference knows of a value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fact {
    /// The type, as far as known.
    pub ty: Option<Type>,
    /// The elements of a small integer or bool tensor in row-major order (bools are 0 and 1), each as far
    /// as known. Given only with a shape whose dimensions are all fixed, and exactly as many.
    pub contents: Option<Arc<[Option<Expr>]>>,
    /// The whole value, where it is a small constant.
    pub tensor: Option<Tensor>,
}

impl Fact {
    /// Nothing known.
    pub fn unknown() -> Fact {
        Fact::default()
    }

    /// A type without contents.
    pub fn of_type(ty: Type) -> Fact {
        Fact { ty: Some(ty), contents: None, tensor: None }
    }

    /// A dense tensor.
    pub fn tensor(dtype: Option<DType>, shape: Option<Shape>) -> Fact {
        Fact::of_type(Type::Tensor(TensorType { dtype, shape }))
    }

    /// A constant; contents are kept when it is small (at most [`MAX_CONTENTS`] elements).
    pub fn constant(tensor: &Tensor) -> Fact {
        let mut fact = Fact::of_type(Type::of(tensor));
        if tensor.len() <= MAX_CONTENTS {
            let followed = match tensor.dtype() {
                DType::I64 => MAX_CONTENTS,
                // Hardly ever shapes, and mostly weights: followed only where it costs nothing.
                other if other.is_integer() || other == DType::Bool => MAX_CONTENTS / 16,
                _ => 0,
            };
            if tensor.len() <= followed
                && let Ok(elements) = tensor.to_i64s()
            {
                fact.contents = Some(elements.into_iter().map(|element| Some(Expr::from(element))).collect());
            }
            fact.tensor = Some(tensor.clone());
        }
        fact
    }

    /// An integer tensor with what is known of its elements; they are dropped when they are more than
    /// [`MAX_CONTENTS`] or not as many as the shape says.
    pub(super) fn integers(dtype: Option<DType>, shape: Shape, contents: Option<Vec<Option<Expr>>>) -> Fact {
        let count = shape.iter().map(Dim::fixed).try_fold(1usize, |count, dim| count.checked_mul(dim?));
        let contents =
            contents.filter(|elements| elements.len() <= MAX_CONTENTS && count == Some(elements.len()));
        Fact { contents: contents.map(Arc::from), ..Fact::tensor(dtype, Some(shape)) }
    }

    /// The element type, when it is a dense tensor and known.
    pub fn dtype(&self) -> Option<DType> {
        self.ty.as_ref()?.dtype()
    }

    /// The shape, when it is a dense tensor and its rank is known.
    pub fn shape(&self) -> Option<&Shape> {
        self.ty.as_ref()?.shape()
    }

    /// The elements, when every one is a known number.
    pub fn known_integers(&self) -> Option<Vec<i64>> {
        let Some(contents) = &self.contents else { return self.tensor.as_ref()?.to_i64s().ok() };
        contents.iter().map(|element| element.as_ref()?.constant()).collect()
    }

    /// The whole value where it is a small constant: given as one, or put together from its contents.
    pub(super) fn whole(&self) -> Option<Tensor> {
        if self.tensor.is_some() {
            return self.tensor.clone();
        }
        let shape = self.ty.as_ref()?.fixed_shape()?;
        let elements = self.known_integers()?;
        match self.dtype()? {
            DType::I64 => Some(Tensor::from_vec(shape, elements)),
            DType::I32 => {
                let elements: Option<Vec<i32>> =
                    elements.into_iter().map(|x| i32::try_from(x).ok()).collect();
                Some(Tensor::from_vec(shape, elements?))
            }
            DType::Bool => {
                let elements: Vec<bool> = elements.into_iter().map(|x| x != 0).collect();
                Some(Tensor::from_bools(shape, &elements))
            }
            _ => None,
        }
    }

    /// The same without contents: what stays when a value may change from turn to turn.
    pub(super) fn without_contents(&self) -> Fact {
        Fact { ty: self.ty.clone(), contents: None, tensor: None }
    }

    /// What holds of a value that is one or the other.
    pub(super) fn join(&self, other: &Fact) -> Fact {
        let ty = match (&self.ty, &other.ty) {
            (Some(left), Some(right)) => join_types(left, right),
            _ => None,
        };
        let contents = match (&self.contents, &other.contents) {
            (Some(left), Some(right)) if left.len() == right.len() && self.shape() == other.shape() => {
                let same =
                    |(left, right): (&Option<Expr>, &Option<Expr>)| left.clone().filter(|_| left == right);
                Some(left.iter().zip(right.iter()).map(same).collect())
            }
            _ => None,
        };
        let tensor = self.tensor.clone().filter(|_| self.tensor == other.tensor);
        Fact { ty, contents, tensor }
    }
}

fn join_types(left: &Type, right: &Type) -> Option<Type> {
    // Containers within containers: as deep as the file's type nests, which the reader bounds.
    Some(match (left, right) {
        (Type::Tensor(left), Type::Tensor(right)) => Type::Tensor(join_tensors(left, right)),
        (Type::SparseTensor(left), Type::SparseTensor(right)) => {
            Type::SparseTensor(join_tensors(left, right))
        }
        (Type::Sequence(left), Type::Sequence(right)) => Type::Sequence(Box::new(join_types(left, right)?)),
        (Type::Optional(left), Type::Optional(right)) => Type::Optional(Box::new(join_types(left, right)?)),
        _ if left == right => left.clone(),
        _ => return None,
    })
}

fn join_tensors(left: &TensorType, right: &TensorType) -> TensorType {
    let shape = match (&left.shape, &right.shape) {
        (Some(left), Some(right)) => join_shapes(left, right),
        _ => None,
    };
    TensorType { dtype: left.dtype.filter(|_| left.dtype == right.dtype), shape }
}

/// The shape of something that has one shape or the other: `None` when the ranks differ.
fn join_shapes(left: &[Dim], right: &[Dim]) -> Option<Shape> {
    (left.len() == right.len()).then(|| {
        let dims = left.iter().zip(right);
        dims.map(|(left, right)| if left == right { left.clone() } else { Dim::Unknown }).collect()
    })
}

/// What is known when both the file's declaration and the inference hold, and whether they can both hold.
///
/// Where they cannot, inference wins. Where the declaration names a size that inference knows as an
/// expression or another name, inference wins too: it knows how the size hangs together with others.
pub(super) fn refine(inferred: &Type, declared: &Type) -> (Type, bool) {
    let (ty, agrees) = match (inferred, declared) {
        (Type::Tensor(inferred), Type::Tensor(declared)) => {
            let (tensor, agrees) = refine_tensors(inferred, declared);
            (Type::Tensor(tensor), agrees)
        }
        (Type::SparseTensor(inferred), Type::SparseTensor(declared)) => {
            let (tensor, agrees) = refine_tensors(inferred, declared);
            (Type::SparseTensor(tensor), agrees)
        }
        (Type::Sequence(inferred), Type::Sequence(declared)) => {
            let (element, agrees) = refine(inferred, declared);
            (Type::Sequence(Box::new(element)), agrees)
        }
        (Type::Optional(inferred), Type::Optional(declared)) => {
            let (element, agrees) = refine(inferred, declared);
            (Type::Optional(Box::new(element)), agrees)
        }
        _ => (inferred.clone(), inferred == declared),
    };
    (ty, agrees)
}

fn refine_tensors(inferred: &TensorType, declared: &TensorType) -> (TensorType, bool) {
    let dtype = inferred.dtype.or(declared.dtype);
    let mut agrees = declared.dtype.is_none_or(|declared| dtype == Some(declared));
    let shape = match (&inferred.shape, &declared.shape) {
        (Some(inferred), Some(declared)) if inferred.len() != declared.len() => {
            agrees = false;
            Some(inferred.clone())
        }
        (Some(inferred), Some(declared)) => {
            let dims = inferred.iter().zip(declared).map(|(inferred, declared)| match (inferred, declared) {
                (Dim::Fixed(left), Dim::Fixed(right)) => {
                    agrees &= left == right;
                    inferred.clone()
                }
                (_, Dim::Fixed(size)) => {
                    agrees &= inferred_admits(inferred, *size);
                    if inferred_admits(inferred, *size) { declared.clone() } else { inferred.clone() }
                }
                (Dim::Unknown, _) => named(declared),
                _ => inferred.clone(),
            });
            Some(dims.collect())
        }
        (inferred, None) => inferred.clone(),
        (None, Some(declared)) => Some(declared.iter().map(named).collect()),
    };
    (TensorType { dtype, shape }, agrees)
}

/// Whether an inferred dimension may have that size: an expression has a least value.
fn inferred_admits(inferred: &Dim, size: usize) -> bool {
    // Size 0 is let through: only by convention are symbols at least 1.
    let least = Expr::of(inferred).and_then(|expr| expr.least());
    size == 0 || least.is_none_or(|least| i64::try_from(size).is_ok_and(|size| least <= size))
}

/// A declared dimension in normal form; a question mark is no name.
pub(super) fn named(declared: &Dim) -> Dim {
    Expr::of(declared).map_or(Dim::Unknown, |expr| expr.dim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_type;

    #[test]
    fn declarations_refine_and_contradict() {
        for (inferred, declared, result, agrees) in [
            ("float[batch, ?]", "float[N, 4]", "float[batch, 4]", true),
            ("float[?, 3]", "float[N, 4]", "float[N, 3]", false),
            ("float[2]", "float[N]", "float[2]", true),
            ("float[batch]", "float[1]", "float[1]", true),
            ("float[2, 3]", "float[6]", "float[2, 3]", false),
            ("float[2]", "int64[2]", "float[2]", false),
            ("seq(float[?])", "seq(float[3])", "seq(float[3])", true),
        ] {
            let read = |text: &str| parse_type(text).unwrap();
            assert_eq!(
                refine(&read(inferred), &read(declared)),
                (read(result), agrees),
                "{inferred} {declared}"
            );
        }
        // Concatenating one row to a batch gives at least two.
        let grown = Type::tensor(DType::F32, [Dim::symbol("batch + 1")]);
        assert!(!refine(&grown, &parse_type("float[1]").unwrap()).1);
        assert!(refine(&grown, &parse_type("float[2]").unwrap()).1);
    }

    #[test]
    fn small_integers_are_whole_again() {
        let tensor = Tensor::from_i64s(&[3, -1]);
        let mut fact = Fact::constant(&tensor);
        fact.tensor = None;
        assert_eq!(fact.whole(), Some(tensor));
        assert_eq!(Fact::tensor(Some(DType::I64), Some(vec![Dim::Fixed(2)])).whole(), None);
    }
}
