//! Chains of elementwise operators as one program over blocks that stay in the first-level cache.
//!
//! A program changes the elements of one value, the *main* value, in place: a kernel applies it to the
//! part of its result that it has just computed. Instructions are two-address; the few other registers hold
//! what a chain needs twice (the `x` of `x * sigmoid(x)`). Every instruction computes exactly what the
//! operator's own kernel does, so fusing changes no bit of a result.

use optix_ir::Tensor;

use crate::kernels::elementwise::{broadcast, merged};
use crate::kernels::floats;
use crate::math::simd::vectorized;
use crate::math::unary;
use crate::plan::Slot;

/// Elements that are taken through a program at a time.
const BLOCK: usize = 256;

/// Inputs that a program has at most.
pub(crate) const INPUTS: usize = 8;

/// Merged dimensions that a main value has at most.
const DIMENSIONS: usize = 8;

/// Registers beside the main value.
pub(crate) const EXTRA: usize = 3;

/// A chain of operators.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub code: Vec<Instruction>,
    pub inputs: Vec<Input>,
    /// The least rank that the main value must have for the numbers in the code not to raise it.
    pub least_rank: usize,
    /// The operator that brings `least_rank` about.
    pub least_rank_by: usize,
    /// Whether registers beside the main one are used.
    pub extra: bool,
}

/// A value that a program reads beside the main one.
#[derive(Debug)]
pub(crate) struct Input {
    pub source: Source,
    /// Number of the step whose operator reads it.
    pub step: usize,
}

/// Where an input comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A value of the run.
    Slot(Slot),
    /// One number a channel (axis 1).
    Channels(Tensor),
}

/// `target = function(target, operand)`. Register 0 is the main value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Instruction {
    pub target: usize,
    pub function: Function,
    pub operand: Operand,
}

/// The second operand of an instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Operand {
    /// The function has no second operand.
    None,
    /// Another register; never the target.
    Register(usize),
    /// A number.
    Number(f32),
    /// An input of the program.
    Input(usize),
}

/// What an instruction computes; `x` is the target, `y` the operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Function {
    /// `y`
    Copy,
    /// `x + y`
    Add,
    /// `x - y`
    Sub,
    /// `y - x`
    SubFrom,
    /// `x * y`
    Mul,
    /// `x / y`
    Div,
    /// `y / x`
    DivInto,
    Relu,
    Clip(f32, f32),
    LeakyRelu(f32),
    Sigmoid,
    HardSigmoid(f32, f32),
    HardSwish,
    Tanh,
    Erf,
    Gelu,
    GeluTanh,
    Exp,
    Sqrt,
    Reciprocal,
    Neg,
    Abs,
    Square,
    Cube,
}

/// A program with the inputs of one run, for a main value of a known shape.
pub(crate) struct Bound<'a> {
    code: &'a [Instruction],
    extra: bool,
    /// Elements of the inputs.
    data: Vec<std::borrow::Cow<'a, [f32]>>,
    /// Dimensions of the main value, merged where all inputs walk on evenly; outermost first, never empty.
    dims: Vec<usize>,
    /// For each input its stride an each dimension; 0 where it repeats.
    strides: Vec<Vec<usize>>,
}

/// Why a program cannot be bound: the step whose operand makes the result larger than the main value, or
/// is of another type.
pub(crate) struct Misfit(pub usize);

impl Program {
    /// Binds the inputs' tensors, in order, for a main value of `shape`.
    pub(crate) fn bind<'a>(
        &'a self,
        shape: &[usize],
        tensors: &[Option<&'a Tensor>],
    ) -> Result<Bound<'a>, Misfit> {
        if shape.len() < self.least_rank {
            return Err(Misfit(self.least_rank_by));
        }
        let mut data = Vec::with_capacity(self.inputs.len());
        let mut shapes: Vec<Vec<usize>> = Vec::with_capacity(self.inputs.len());
        for (input, &tensor) in self.inputs.iter().zip(tensors) {
            let misfit = Misfit(input.step);
            let (tensor, own): (&Tensor, Vec<usize>) = match (&input.source, tensor) {
                (Source::Channels(tensor), _) if shape.len() >= 2 => {
                    let mut own = vec![1; shape.len() - 1];
                    own[0] = tensor.len();
                    (tensor, own)
                }
                (Source::Slot(_), Some(tensor)) => (tensor, tensor.shape().to_vec()),
                _ => return Err(misfit),
            };
            // It must not make the result larger.
            if broadcast(shape, &own).as_deref() != Some(shape) {
                return Err(misfit);
            }
            data.push(floats(tensor).ok_or(misfit)?);
            shapes.push(own);
        }
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let (dims, strides) = merged(&shapes, shape);
        if dims.len() > DIMENSIONS {
            return Err(Misfit(self.inputs.first().map_or(self.least_rank_by, |input| input.step)));
        }
        Ok(Bound { code: &self.code, extra: self.extra, data, dims, strides })
    }
}

/// An input of a run of elements.
#[derive(Clone, Copy)]
enum Run<'a> {
    /// One number for all.
    Number(f32),
    /// One an element.
    Elements(&'a [f32]),
}

impl Bound<'_> {
    /// Takes `part`, the elements of the main value from number `start` on, through the program.
    pub(crate) fn apply(&self, start: usize, part: &mut [f32]) {
        if self.extra {
            self.apply_with(start, part, &mut [[0.0; BLOCK]; EXTRA]);
        } else {
            self.apply_with(start, part, &mut []);
        }
    }

    fn apply_with(&self, start: usize, mut part: &mut [f32], extra: &mut [[f32; BLOCK]]) {
        let mut runs = [Run::Number(0.0); INPUTS];
        if self.data.is_empty() {
            return execute(self.code, &runs, part, extra);
        }
        let last = self.dims.len() - 1;
        let inner = self.dims[last].max(1);
        // The place along every dimension, and of every input at the start of the row.
        let (mut row, mut column) = (start / inner, start % inner);
        let (mut place, mut at) = ([0; DIMENSIONS], [0; INPUTS]);
        for axis in (0..last).rev() {
            place[axis] = row % self.dims[axis];
            row /= self.dims[axis];
            for (at, strides) in at.iter_mut().zip(&self.strides) {
                *at += place[axis] * strides[axis];
            }
        }
        while !part.is_empty() {
            let count = part.len().min(inner - column);
            let (now, rest) = std::mem::take(&mut part).split_at_mut(count);
            for (((run, data), strides), at) in runs.iter_mut().zip(&self.data).zip(&self.strides).zip(at) {
                *run = match strides[last] {
                    0 => Run::Number(data[at]),
                    _ => Run::Elements(&data[at + column..][..count]),
                };
            }
            execute(self.code, &runs, now, extra);
            (part, column) = (rest, 0);
            // The next row.
            for axis in (0..last).rev() {
                place[axis] += 1;
                let full = place[axis] == self.dims[axis];
                for (at, strides) in at.iter_mut().zip(&self.strides) {
                    *at += strides[axis];
                    if full {
                        *at -= self.dims[axis] * strides[axis];
                    }
                }
                if !full {
                    break;
                }
                place[axis] = 0;
            }
        }
    }
}

fn execute(code: &[Instruction], runs: &[Run<'_>], part: &mut [f32], extra: &mut [[f32; BLOCK]]) {
    vectorized(
        #[inline(always)]
        || {
            for (number, main) in part.chunks_mut(BLOCK).enumerate() {
                for instruction in code {
                    one_instruction(instruction, runs, number * BLOCK, main, extra);
                }
            }
        },
    );
}

/// One instruction on one block, which starts at element `at` of the runs.
#[inline(always)]
fn one_instruction(
    instruction: &Instruction,
    runs: &[Run<'_>],
    at: usize,
    main: &mut [f32],
    extra: &mut [[f32; BLOCK]],
) {
    let count = main.len();
    // The target and, if it is a register, the operand; they are never the same.
    let (target, other): (&mut [f32], &[f32]) = match (instruction.target, instruction.operand) {
        (0, Operand::Register(register)) => (main, &extra[register - 1][..count]),
        (0, _) => (main, &[]),
        (target, Operand::Register(0)) => (&mut extra[target - 1][..count], main),
        (target, Operand::Register(register)) => {
            let Ok([target, other]) = extra.get_disjoint_mut([target - 1, register - 1]) else { return };
            (&mut target[..count], &other[..count])
        }
        (target, _) => (&mut extra[target - 1][..count], &[]),
    };
    let operand = match instruction.operand {
        Operand::None => Run::Number(0.0),
        Operand::Register(_) => Run::Elements(other),
        Operand::Number(number) => Run::Number(number),
        Operand::Input(input) => match runs[input] {
            Run::Number(number) => Run::Number(number),
            Run::Elements(elements) => Run::Elements(&elements[at..at + count]),
        },
    };
    match instruction.function {
        Function::Copy => two(target, operand, |_, y| y),
        Function::Add => two(target, operand, |x, y| x + y),
        Function::Sub => two(target, operand, |x, y| x - y),
        Function::SubFrom => two(target, operand, |x, y| y - x),
        Function::Mul => two(target, operand, |x, y| x * y),
        Function::Div => two(target, operand, |x, y| x / y),
        Function::DivInto => two(target, operand, |x, y| y / x),
        Function::Relu => each(target, unary::relu),
        Function::Clip(low, high) => each(target, |x| unary::clamp(x, low, high)),
        Function::LeakyRelu(alpha) => each(target, |x| unary::leaky_relu(x, alpha)),
        Function::Sigmoid => each(target, unary::sigmoid),
        Function::HardSigmoid(alpha, beta) => each(target, |x| unary::hard_sigmoid(x, alpha, beta)),
        Function::HardSwish => each(target, unary::hard_swish),
        Function::Tanh => each(target, unary::tanh),
        Function::Erf => each(target, unary::erf),
        Function::Gelu => each(target, unary::gelu),
        Function::GeluTanh => each(target, unary::gelu_tanh),
        Function::Exp => each(target, unary::exp),
        Function::Sqrt => each(target, f32::sqrt),
        Function::Reciprocal => each(target, |x| 1.0 / x),
        Function::Neg => each(target, |x| -x),
        Function::Abs => each(target, f32::abs),
        Function::Square => each(target, |x| x * x),
        Function::Cube => each(target, |x| x * x * x),
    }
}

#[inline(always)]
fn each(target: &mut [f32], function: impl Fn(f32) -> f32) {
    for value in target {
        *value = function(*value);
    }
}

#[inline(always)]
fn two(target: &mut [f32], operand: Run<'_>, function: impl Fn(f32, f32) -> f32) {
    match operand {
        Run::Number(number) => target.iter_mut().for_each(|value| *value = function(*value, number)),
        Run::Elements(elements) => {
            for (value, &element) in target.iter_mut().zip(elements) {
                *value = function(*value, element);
            }
        }
    }
}
