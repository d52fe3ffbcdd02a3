//! What is made small, as nodes behind a model.

use optix_ir::{DType, Dim, Model, Node, Position, Tensor, Type, ValueId};

/// How far two values are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distance {
    /// `T^2` times the Kullback-Leibler divergence of the softmax of `student / T` from that of `teacher / T`, in nats,
    /// the mean over all rows of the last axis (Hinton et al. 2015, arXiv 1503.02531).
    Logits {
        /// `T`, above 0.
        temperature: f32,
    },
    /// Kullback-Leibler divergence of values that are probabilities already.
    Probabilities,
    /// Sum of squared differences over the sum of the teacher's squares: 0.01 is 20 dB.
    Squares,
}

/// A term of a loss.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// Value of the student.
    pub student: ValueId,
    /// What it is to be: a value of the same shape that does not depend on parameters.
    pub teacher: ValueId,
    /// How far they are apart.
    pub distance: Distance,
    /// What it counts.
    pub weight: f32,
}

/// Least probability that a logarithm is taken of.
const LEAST: f32 = 1e-7;

/// Adds nodes at the end of the main graph; all values of `terms` have fixed shapes.
struct Ends<'m> {
    model: &'m mut Model,
}

impl Ends<'_> {
    fn push(&mut self, node: Node, shape: &[usize]) -> ValueId {
        let main = self.model.main();
        let (_, value) = self.model.add_node(main, Position::End, node, "loss");
        self.model.value_mut(value).ty =
            Some(Type::tensor(DType::F32, shape.iter().map(|&size| Dim::Fixed(size))));
        value
    }

    fn number(&mut self, number: f32) -> ValueId {
        let main = self.model.main();
        self.model.add_constant(main, "loss", Tensor::scalar(number))
    }

    /// The sum over everything.
    fn total(&mut self, value: ValueId, rank: usize) -> ValueId {
        let axes: Vec<i64> = (0..rank as i64).collect();
        let main = self.model.main();
        let axes = self.model.add_constant(main, "loss", Tensor::from_i64s(&axes));
        self.push(Node::new("ReduceSum", [value, axes]).with("keepdims", 0), &[])
    }

    /// Sum of `p (log p - log q)`.
    fn divergence(&mut self, p: ValueId, log_p: ValueId, log_q: ValueId, shape: &[usize]) -> ValueId {
        let difference = self.push(Node::new("Sub", [log_p, log_q]), shape);
        let each = self.push(Node::new("Mul", [p, difference]), shape);
        self.total(each, shape.len())
    }

    fn term(&mut self, term: &Term, shape: &[usize]) -> ValueId {
        let rows = shape.split_last().map_or(1, |(_, front)| front.iter().product::<usize>()).max(1);
        match term.distance {
            Distance::Logits { temperature } => {
                let by = self.number(1.0 / temperature);
                let [teacher, student] = [term.teacher, term.student].map(|value| {
                    let scaled = self.push(Node::new("Mul", [value, by]), shape);
                    self.push(Node::new("LogSoftmax", [scaled]).with("axis", -1), shape)
                });
                let p = self.push(Node::new("Exp", [teacher]), shape);
                let sum = self.divergence(p, teacher, student, shape);
                let factor = self.number(temperature * temperature / rows as f32);
                self.push(Node::new("Mul", [sum, factor]), &[])
            }
            Distance::Probabilities => {
                let least = self.number(LEAST);
                let [teacher, student] = [term.teacher, term.student].map(|value| {
                    let above = self.push(Node::new("Max", [value, least]), shape);
                    self.push(Node::new("Log", [above]), shape)
                });
                let sum = self.divergence(term.teacher, teacher, student, shape);
                let factor = self.number(1.0 / rows as f32);
                self.push(Node::new("Mul", [sum, factor]), &[])
            }
            Distance::Squares => {
                let difference = self.push(Node::new("Sub", [term.student, term.teacher]), shape);
                let [noise, signal] = [difference, term.teacher].map(|value| {
                    let square = self.push(Node::new("Mul", [value, value]), shape);
                    self.total(square, shape.len())
                });
                let least = self.number(1e-12);
                let signal = self.push(Node::new("Max", [signal, least]), &[]);
                self.push(Node::new("Div", [noise, signal]), &[])
            }
        }
    }
}

/// Adds the weighted sum of the terms, one number; `None` when a value has no fixed shape or the two of a term differ.
pub fn add(model: &mut Model, terms: &[Term]) -> Option<ValueId> {
    let mut sum: Option<ValueId> = None;
    for term in terms {
        let shape = |value: ValueId| model.value(value).ty.as_ref().and_then(Type::fixed_shape);
        let (shape, other) = (shape(term.student)?, shape(term.teacher)?);
        if shape != other {
            return None;
        }
        let mut ends = Ends { model };
        let value = ends.term(term, &shape);
        let weight = ends.number(term.weight);
        let value = ends.push(Node::new("Mul", [value, weight]), &[]);
        sum = Some(match sum {
            None => value,
            Some(before) => ends.push(Node::new("Add", [before, value]), &[]),
        });
    }
    sum
}
