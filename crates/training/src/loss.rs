//! What is made small, as nodes behind a model.

use std::collections::BTreeSet;

use optix_ir::{Model, Node, NodeId, ValueId};

use crate::gradient::back::Back;

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
    /// Cross entropy with classes that are known: the teacher's value is 1 at the class of a row and 0 elsewhere.
    Classes {
        /// Whether the student's are logits; probabilities otherwise.
        of_logits: bool,
    },
}

impl Distance {
    /// What suits an output: probabilities behind a Softmax; logits where it has two axes and is called logits, scores or
    /// classes; squares otherwise.
    pub fn suited(model: &Model, output: ValueId, temperature: f32) -> Distance {
        let held = model.value(output);
        let name = held.name().to_lowercase();
        let is_flat = held.ty.as_ref().and_then(|ty| ty.shape()).is_some_and(|shape| shape.len() == 2);
        match is_flat && ["logit", "score", "class"].iter().any(|word| name.contains(word)) {
            _ if is_softmax(model, output) => Distance::Probabilities,
            true => Distance::Logits { temperature },
            false => Distance::Squares,
        }
    }
}

/// The Softmax that gives a value, perhaps rounded or in another form, and whether the form is its own.
fn softmax(model: &Model, mut value: ValueId) -> Option<(NodeId, bool)> {
    const PASSED: &[&str] = &["QuantizeLinear", "DequantizeLinear", "Identity", "Cast"];
    const SHAPED: &[&str] = &["Reshape", "Flatten"];
    let mut is_own = true;
    while let Some((node, _)) = model.value(value).producer() {
        let made = model.node(node);
        if made.is("Softmax") {
            return Some((node, is_own));
        }
        let is_shaped = SHAPED.iter().any(|op| made.is(op));
        is_own &= !is_shaped;
        value = made.input(0).filter(|_| is_shaped || PASSED.iter().any(|op| made.is(op)))?;
    }
    None
}

/// Whether a value is what a Softmax gives, perhaps rounded or in another form.
pub fn is_softmax(model: &Model, value: ValueId) -> bool {
    softmax(model, value).is_some()
}

/// Whether a value of this rank is what a Softmax over its last axis gives.
pub fn is_softmax_of_rows(model: &Model, value: ValueId, rank: usize) -> bool {
    softmax(model, value).is_some_and(|(node, is_own)| {
        // Before operator set 13 all axes from 1 on were one by default.
        let usual = if model.opset_of(node) < Some(13) { 1 } else { -1 };
        let axis = model.node(node).int("axis").unwrap_or(usual);
        is_own && (axis == -1 || usize::try_from(axis).is_ok_and(|axis| axis + 1 == rank))
    })
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

/// The sum over everything.
fn total(back: &mut Back<'_>, value: ValueId, rank: usize) -> ValueId {
    let axes = back.integers(&(0..rank).collect::<Vec<_>>());
    back.push(Node::new("ReduceSum", [value, axes]).with("keepdims", 0), &[])
}

/// Sum of `p (log p - log q)`.
fn divergence(back: &mut Back<'_>, p: ValueId, log_p: ValueId, log_q: ValueId, rank: usize) -> ValueId {
    let difference = back.sub(log_p, log_q);
    let each = back.mul(p, difference);
    total(back, each, rank)
}

/// A term, one number, of values of this shape.
fn of_term(back: &mut Back<'_>, term: &Term, shape: &[usize]) -> ValueId {
    let rows = shape.split_last().map_or(1, |(_, front)| front.iter().product::<usize>()).max(1);
    let rank = shape.len();
    match term.distance {
        Distance::Logits { temperature } => {
            let [teacher, student] = [term.teacher, term.student].map(|value| {
                let scaled = back.times(value, 1.0 / temperature);
                back.push(Node::new("LogSoftmax", [scaled]).with("axis", -1), shape)
            });
            let p = back.unary("Exp", teacher);
            let sum = divergence(back, p, teacher, student, rank);
            back.times(sum, temperature * temperature / rows as f32)
        }
        Distance::Probabilities => {
            let least = back.number(LEAST);
            let [teacher, student] = [term.teacher, term.student].map(|value| {
                let above = back.binary("Max", value, least);
                back.unary("Log", above)
            });
            let sum = divergence(back, term.teacher, teacher, student, rank);
            back.times(sum, 1.0 / rows as f32)
        }
        Distance::Classes { of_logits } => {
            let logs = match of_logits {
                true => back.push(Node::new("LogSoftmax", [term.student]).with("axis", -1), shape),
                false => {
                    let least = back.number(LEAST);
                    let above = back.binary("Max", term.student, least);
                    back.unary("Log", above)
                }
            };
            let each = back.mul(term.teacher, logs);
            let sum = total(back, each, rank);
            back.times(sum, -1.0 / rows as f32)
        }
        Distance::Squares => {
            let difference = back.sub(term.student, term.teacher);
            let [noise, signal] = [difference, term.teacher].map(|value| {
                let square = back.mul(value, value);
                total(back, square, rank)
            });
            let least = back.number(1e-12);
            let signal = back.binary("Max", signal, least);
            back.div(noise, signal)
        }
    }
}

/// Adds the weighted sum of the terms, one number, and each of them; `None` when a value has no fixed shape or the two of a term differ.
pub fn add(model: &mut Model, terms: &[Term]) -> Option<(ValueId, Vec<ValueId>)> {
    let mut back = Back::new(model, BTreeSet::new());
    let (mut sum, mut each): (Option<ValueId>, Vec<ValueId>) = (None, Vec::new());
    for term in terms {
        let (shape, other) = (back.shape(term.student).ok()?, back.shape(term.teacher).ok()?);
        if shape != other {
            return None;
        }
        let value = of_term(&mut back, term, &shape);
        let value = back.times(value, term.weight);
        each.push(value);
        sum = Some(match sum {
            None => value,
            Some(before) => back.add(before, value),
        });
    }
    sum.map(|sum| (sum, each))
}
