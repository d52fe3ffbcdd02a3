//! The graph of gradients while it grows.

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{DType, Dim, GraphId, Model, Node, NodeId, Position, Tensor, Type, ValueId};

/// Domain of the operators that only graphs of gradients have: docs/operators.md lists them.
pub const DOMAIN: &str = "ai.optix";

/// Adds nodes behind a model and keeps what is known of every value's gradient.
///
/// All shapes are known: a value without one makes the rule that asks for it fail with the value's name.
pub(crate) struct Back<'m> {
    pub(crate) model: &'m mut Model,
    graph: GraphId,
    /// The sum of what was given to a value so far.
    sums: BTreeMap<ValueId, ValueId>,
    /// Values that depend on what is differentiated by.
    wanted: BTreeSet<ValueId>,
}

/// A node whose gradient is derived, and the gradient of its first output.
pub(crate) struct At {
    /// A copy of it.
    pub(crate) node: Node,
    pub(crate) id: NodeId,
    /// Version of its operator set.
    pub(crate) opset: i64,
    /// The gradient of its first output.
    pub(crate) dy: ValueId,
}

impl At {
    /// The input of a slot that the operator must have.
    pub(crate) fn input(&self, slot: usize) -> Result<ValueId, String> {
        self.node.input(slot).ok_or_else(|| format!("input {slot} is missing"))
    }

    /// Its first output.
    pub(crate) fn output(&self) -> Result<ValueId, String> {
        self.node.output(0).ok_or_else(|| "it has no first output".to_owned())
    }
}

/// Axes as the standard counts them, from the end where negative.
pub(crate) fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let from_start = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_start)
        .ok()
        .filter(|&axis| axis < rank.max(1))
        .ok_or_else(|| format!("axis {axis} of {rank}"))
}

/// Shape of the broadcast of two shapes that fit.
fn broadcast(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let dim = |dims: &[usize], axis: usize| {
        (axis + dims.len()).checked_sub(rank).map_or(1, |axis| dims.get(axis).copied().unwrap_or(1))
    };
    (0..rank)
        .map(|axis| match dim(a, axis) {
            1 => dim(b, axis),
            other => other,
        })
        .collect()
}

impl<'m> Back<'m> {
    pub(crate) fn new(model: &'m mut Model, wanted: BTreeSet<ValueId>) -> Back<'m> {
        let graph = model.main();
        Back { model, graph, sums: BTreeMap::new(), wanted }
    }

    /// Whether anything is gained by a value's gradient.
    pub(crate) fn wants(&self, value: Option<ValueId>) -> bool {
        value.is_some_and(|value| self.wanted.contains(&value))
    }

    /// The gradient of a value as far as it was given.
    pub(crate) fn gradient(&self, value: ValueId) -> Option<ValueId> {
        self.sums.get(&value).copied()
    }

    /// Adds to a value's gradient, whose shape is the value's.
    pub(crate) fn give(&mut self, value: ValueId, gradient: ValueId) {
        if !self.wanted.contains(&value) {
            return;
        }
        let sum = match self.sums.get(&value) {
            None => gradient,
            Some(&before) => self.add(before, gradient),
        };
        self.sums.insert(value, sum);
    }

    /// As [`Back::give`], of a gradient that is summed over the axes along which the value was repeated.
    pub(crate) fn give_summed(&mut self, value: ValueId, gradient: ValueId) -> Result<(), String> {
        if self.wanted.contains(&value) {
            let shape = self.shape(value)?;
            let summed = self.summed_to(gradient, &shape)?;
            self.give(value, summed);
        }
        Ok(())
    }

    /// The shape of a value.
    pub(crate) fn shape(&self, value: ValueId) -> Result<Vec<usize>, String> {
        let known = self.model.value(value);
        let of_constant = || self.model.constant(value).map(|tensor| tensor.shape().to_vec());
        known
            .ty
            .as_ref()
            .and_then(Type::fixed_shape)
            .or_else(of_constant)
            .ok_or_else(|| format!("the shape of `{}` is not known", known.name()))
    }

    /// Adds a node with one output of this shape.
    pub(crate) fn push(&mut self, node: Node, shape: &[usize]) -> ValueId {
        let (_, value) = self.model.add_node(self.graph, Position::End, node, "gradient");
        self.model.value_mut(value).ty =
            Some(Type::tensor(DType::F32, shape.iter().map(|&size| Dim::Fixed(size))));
        value
    }

    /// A constant of integers.
    pub(crate) fn integers(&mut self, values: &[usize]) -> ValueId {
        let values: Vec<i64> = values.iter().map(|&value| value as i64).collect();
        self.model.add_constant(self.graph, "gradient", Tensor::from_i64s(&values))
    }

    /// A constant.
    pub(crate) fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.model.add_constant(self.graph, "gradient", tensor)
    }

    /// A number.
    pub(crate) fn number(&mut self, number: f32) -> ValueId {
        self.constant(Tensor::scalar(number))
    }

    /// A function of two elements, which broadcast.
    pub(crate) fn binary(&mut self, op_type: &str, a: ValueId, b: ValueId) -> ValueId {
        self.of_two(Node::new(op_type, [a, b]), a, b)
    }

    fn of_two(&mut self, node: Node, a: ValueId, b: ValueId) -> ValueId {
        let shape = |value| self.shape(value).unwrap_or_default();
        let shape = broadcast(&shape(a), &shape(b));
        self.push(node, &shape)
    }

    pub(crate) fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary("Add", a, b)
    }

    pub(crate) fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary("Sub", a, b)
    }

    pub(crate) fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary("Mul", a, b)
    }

    pub(crate) fn div(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary("Div", a, b)
    }

    /// A function of each element.
    pub(crate) fn unary(&mut self, op_type: &str, a: ValueId) -> ValueId {
        let shape = self.shape(a).unwrap_or_default();
        self.push(Node::new(op_type, [a]), &shape)
    }

    pub(crate) fn times(&mut self, a: ValueId, number: f32) -> ValueId {
        let number = self.number(number);
        self.mul(a, number)
    }

    pub(crate) fn plus(&mut self, a: ValueId, number: f32) -> ValueId {
        let number = self.number(number);
        self.add(a, number)
    }

    /// `a` where `value` is above 0, else 0.
    pub(crate) fn where_positive(&mut self, a: ValueId, value: ValueId) -> ValueId {
        self.masked("WherePositive", a, value)
    }

    /// `a` where two values are equal, else 0.
    pub(crate) fn where_equal(&mut self, a: ValueId, x: ValueId, y: ValueId) -> ValueId {
        let difference = self.sub(x, y);
        self.masked("WhereZero", a, difference)
    }

    fn masked(&mut self, op_type: &str, a: ValueId, value: ValueId) -> ValueId {
        self.of_two(Node::new(op_type, [a, value]).in_domain(DOMAIN), a, value)
    }

    /// Sums over axes, in ascending order, which stay with size 1: one run of neighbours after the other, the last one
    /// first, since kernels are made for such.
    pub(crate) fn sum(&mut self, a: ValueId, axes: &[usize]) -> Result<ValueId, String> {
        let mut shape = self.shape(a)?;
        let mut sum = a;
        for run in axes.chunk_by(|a, b| a + 1 == *b).rev() {
            for &axis in run {
                *shape.get_mut(axis).ok_or("an axis that is not there")? = 1;
            }
            let axes = self.integers(run);
            sum = self.push(Node::new("ReduceSum", [sum, axes]), &shape);
        }
        Ok(sum)
    }

    /// Means over axes, which stay with size 1.
    pub(crate) fn mean(&mut self, a: ValueId, axes: &[usize]) -> Result<ValueId, String> {
        let shape = self.shape(a)?;
        let count: usize = axes.iter().filter_map(|&axis| shape.get(axis)).product();
        let sum = self.sum(a, axes)?;
        Ok(self.times(sum, 1.0 / count.max(1) as f32))
    }

    pub(crate) fn reshape(&mut self, a: ValueId, shape: &[usize]) -> Result<ValueId, String> {
        if self.shape(a)? == shape {
            return Ok(a);
        }
        let target = self.integers(shape);
        Ok(self.push(Node::new("Reshape", [a, target]), shape))
    }

    /// Repeats a value to a shape that it broadcasts to.
    pub(crate) fn expand(&mut self, a: ValueId, shape: &[usize]) -> Result<ValueId, String> {
        if self.shape(a)? == shape {
            return Ok(a);
        }
        let target = self.integers(shape);
        Ok(self.push(Node::new("Expand", [a, target]), shape))
    }

    pub(crate) fn transpose(&mut self, a: ValueId, order: &[usize]) -> Result<ValueId, String> {
        let from = self.shape(a)?;
        let shape: Vec<usize> = order.iter().filter_map(|&axis| from.get(axis).copied()).collect();
        let order: Vec<i64> = order.iter().map(|&axis| axis as i64).collect();
        Ok(self.push(Node::new("Transpose", [a]).with("perm", order), &shape))
    }

    /// The last two axes exchanged.
    pub(crate) fn turned(&mut self, a: ValueId) -> Result<ValueId, String> {
        let rank = self.shape(a)?.len();
        let mut order: Vec<usize> = (0..rank).collect();
        if rank >= 2 {
            order.swap(rank - 1, rank - 2);
        }
        self.transpose(a, &order)
    }

    /// A product of matrices, stacks of them broadcast.
    pub(crate) fn product(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, String> {
        let (left, right) = (self.shape(a)?, self.shape(b)?);
        let ([front @ .., rows, _], [others @ .., _, columns]) = (left.as_slice(), right.as_slice()) else {
            return Err("a product of vectors".to_owned());
        };
        let mut shape = broadcast(front, others);
        shape.extend([*rows, *columns]);
        Ok(self.push(Node::new("MatMul", [a, b]), &shape))
    }

    /// Elements from `start` to `end` of an axis.
    pub(crate) fn slice(
        &mut self,
        a: ValueId,
        axis: usize,
        start: usize,
        end: usize,
    ) -> Result<ValueId, String> {
        let mut shape = self.shape(a)?;
        let size = shape.get_mut(axis).ok_or("an axis that is not there")?;
        *size = end.saturating_sub(start);
        let [start, end, axes] = [start, end, axis].map(|number| self.integers(&[number]));
        Ok(self.push(Node::new("Slice", [a, start, end, axes]), &shape))
    }

    pub(crate) fn concat(&mut self, parts: &[ValueId], axis: usize) -> Result<ValueId, String> {
        let mut shape = self.shape(*parts.first().ok_or("nothing to join")?)?;
        let mut size = 0;
        for &part in parts {
            size += self.shape(part)?.get(axis).copied().unwrap_or(0);
        }
        *shape.get_mut(axis).ok_or("an axis that is not there")? = size;
        Ok(self.push(Node::new("Concat", parts.iter().copied()).with("axis", axis as i64), &shape))
    }

    /// Zeros.
    pub(crate) fn zeros(&mut self, shape: &[usize]) -> Result<ValueId, String> {
        let zero = self.constant(Tensor::from_vec(vec![1; shape.len()], vec![0f32]));
        self.expand(zero, shape)
    }

    /// Sums over the axes along which a value of `shape` was repeated to become what `a` is the gradient of.
    pub(crate) fn summed_to(&mut self, a: ValueId, shape: &[usize]) -> Result<ValueId, String> {
        let from = self.shape(a)?;
        if from == shape {
            return Ok(a);
        }
        let more = from.len().checked_sub(shape.len()).ok_or("a gradient of fewer axes than its value")?;
        let own = |axis: usize| axis.checked_sub(more).and_then(|axis| shape.get(axis)).copied().unwrap_or(1);
        let axes: Vec<usize> = (0..from.len()).filter(|&axis| own(axis) == 1 && from[axis] != 1).collect();
        let summed = self.sum(a, &axes)?;
        self.reshape(summed, shape)
    }
}
