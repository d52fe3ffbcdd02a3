//! What a rule sees of the node it is asked about.

use crate::dtype::DType;
use crate::infer::dims::{self, Outcome, unknowns};
use crate::infer::expr::Expr;
use crate::infer::fact::{Fact, MAX_CONTENTS};
use crate::node::Node;
use crate::types::{Dim, Shape, Type};

/// A rule: from facts of the inputs to facts of the outputs. Outputs it says nothing of may be left out.
pub(super) type Rule = fn(&Call<'_>) -> Outcome<Vec<Fact>>;

/// A node with what is known of its inputs.
pub(super) struct Call<'a> {
    /// The node, references to a function's attributes resolved.
    pub(super) node: &'a Node,
    /// Version of the operator set.
    pub(super) opset: i64,
    /// One entry an input slot; `None` where omitted.
    pub(super) inputs: &'a [Option<&'a Fact>],
}

/// A list that comes from an attribute or an input.
pub(super) enum Given {
    /// Neither is there.
    Absent,
    /// There, but not known now; the number of entries may be.
    Unknown(Option<usize>),
    /// There.
    Known(Vec<i64>),
}

impl<'a> Call<'a> {
    /// The fact of an input that is present.
    pub(super) fn input(&self, slot: usize) -> Option<&'a Fact> {
        self.inputs.get(slot).copied().flatten()
    }

    pub(super) fn has(&self, slot: usize) -> bool {
        self.input(slot).is_some()
    }

    pub(super) fn dtype(&self, slot: usize) -> Option<DType> {
        self.input(slot)?.dtype()
    }

    pub(super) fn ty(&self, slot: usize) -> Option<&'a Type> {
        self.input(slot)?.ty.as_ref()
    }

    pub(super) fn shape(&self, slot: usize) -> Option<&'a Shape> {
        self.input(slot)?.shape()
    }

    pub(super) fn rank(&self, slot: usize) -> Option<usize> {
        self.shape(slot).map(Vec::len)
    }

    /// What is known of the elements of an integer input.
    pub(super) fn contents(&self, slot: usize) -> Option<&'a [Option<Expr>]> {
        self.input(slot)?.contents.as_deref()
    }

    /// The elements of an integer input, when all are known numbers.
    pub(super) fn integers(&self, slot: usize) -> Option<Vec<i64>> {
        self.input(slot)?.known_integers()
    }

    /// The only element of an integer input.
    pub(super) fn scalar(&self, slot: usize) -> Option<Expr> {
        match self.contents(slot)? {
            [one] => one.clone(),
            _ => None,
        }
    }

    /// The elements of a small constant input as numbers.
    pub(super) fn floats(&self, slot: usize) -> Option<Vec<f64>> {
        self.input(slot)?.whole()?.to_f64s().ok()
    }

    /// The element type an attribute names by number.
    pub(super) fn dtype_attribute(&self, name: &str) -> Option<DType> {
        DType::from_onnx(i32::try_from(self.node.int(name)?).ok()?)
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.node.int(name).unwrap_or(default)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.int(name, 0) != 0
    }

    /// The axis attribute as index into `rank` dimensions.
    pub(super) fn axis(&self, default: i64, rank: usize) -> Outcome<usize> {
        dims::axis(self.int("axis", default), rank)
    }

    /// A list that older operator sets give as attribute and newer ones as input.
    pub(super) fn list(&self, attribute: &str, slot: usize) -> Given {
        if let Some(list) = self.node.ints(attribute) {
            return Given::Known(list.to_vec());
        }
        if self.node.attribute(attribute).is_some() {
            return Given::Unknown(None);
        }
        match self.input(slot) {
            None => Given::Absent,
            Some(fact) => match fact.known_integers() {
                Some(list) => Given::Known(list),
                None => Given::Unknown(match fact.shape().map(Vec::as_slice) {
                    Some([length]) => length.fixed(),
                    Some([]) => Some(1),
                    _ => None,
                }),
            },
        }
    }

    /// Element type and shape of an input, contents dropped: for operators that keep the shape.
    pub(super) fn like(&self, slot: usize) -> Fact {
        Fact::tensor(self.dtype(slot), self.shape(slot).cloned())
    }

    /// The number of outputs, omitted ones included.
    pub(super) fn output_count(&self) -> usize {
        self.node.outputs().len()
    }
}

/// A vector of `length` 64-bit integers, or a shape of that rank, of unknown contents.
pub(super) fn rank_only(dtype: Option<DType>, rank: usize) -> Fact {
    Fact::tensor(dtype, Some(unknowns(rank)))
}

/// One output.
pub(super) fn one(dtype: Option<DType>, shape: Option<Shape>) -> Outcome<Vec<Fact>> {
    Ok(vec![Fact::tensor(dtype, shape)])
}

/// The fixed sizes of a shape.
pub(super) fn fixed(shape: &[Dim]) -> Option<Vec<usize>> {
    shape.iter().map(Dim::fixed).collect()
}

/// Steps in a row-major tensor along each of its dimensions.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

/// Elements of a result whose every element is one of `contents`: `place` says which, for an index.
/// `None` when the result's shape is not fixed or it is too large to follow.
pub(super) fn picked(
    contents: &[Option<Expr>],
    result: &[Dim],
    place: impl Fn(&[usize]) -> usize,
) -> Option<Vec<Option<Expr>>> {
    let shape = fixed(result)?;
    let count = crate::tensor::element_count(&shape).filter(|&count| count <= MAX_CONTENTS)?;
    let mut index = vec![0usize; shape.len()];
    let mut elements = Vec::with_capacity(count);
    for _ in 0..count {
        elements.push(contents.get(place(&index)).cloned().flatten());
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Some(elements)
}

/// Where the element at `index` lies.
pub(super) fn offset(index: &[usize], strides: &[usize]) -> usize {
    index
        .iter()
        .zip(strides)
        .map(|(index, stride)| index.saturating_mul(*stride))
        .fold(0, usize::saturating_add)
}
