//! From operators to instructions.

use std::collections::HashMap;

use optix_ir::{DType, Tensor};

use super::find::Constants;
use super::program::{EXTRA, Function, INPUTS, Input, Instruction, Operand, Program, Source};
use crate::kernels::normalization::affine;
use crate::plan::Slot;
use crate::step::Step;

/// How an operator takes part in a chain.
pub(crate) enum Piece {
    /// It hands its input on.
    Alias,
    /// A function of one element; the rank that its input must have at least.
    Unary(Function, usize),
    /// A function of two elements: with the value of the chain on the left, and on the right.
    Binary(Function, Function),
    /// A factor and a summand a channel.
    Channels(Tensor, Tensor),
}

/// What a step is in a chain, if it can be part of one.
pub(crate) fn piece(step: &Step, constants: Constants<'_>) -> Option<Piece> {
    let node = &step.node;
    if !node.domain().is_empty() || step.control.is_some() || step.outputs.len() != 1 {
        return None;
    }
    let constant = |slot: usize| step.inputs.get(slot).copied().flatten().and_then(constants);
    let float = |name: &str, default: f32| node.float(name).unwrap_or(default);
    let unary = |function: Function| Some(Piece::Unary(function, 0));
    match node.op_type.as_str() {
        "Identity" => Some(Piece::Alias),
        // Before version 7 broadcasting was declared by attributes.
        "Add" if step.opset >= 7 => Some(Piece::Binary(Function::Add, Function::Add)),
        "Sub" if step.opset >= 7 => Some(Piece::Binary(Function::Sub, Function::SubFrom)),
        "Mul" if step.opset >= 7 => Some(Piece::Binary(Function::Mul, Function::Mul)),
        "Div" if step.opset >= 7 => Some(Piece::Binary(Function::Div, Function::DivInto)),
        "Relu" => unary(Function::Relu),
        "Clip" if step.opset < 11 => unary(Function::Clip(float("min", f32::MIN), float("max", f32::MAX))),
        "Clip" => {
            let bound = |slot: usize, default: f32| match step.inputs.get(slot).copied().flatten() {
                None => Some(default),
                Some(_) => number(constant(slot)?).map(|(number, _)| number),
            };
            unary(Function::Clip(bound(1, f32::MIN)?, bound(2, f32::MAX)?))
        }
        "LeakyRelu" => unary(Function::LeakyRelu(float("alpha", 0.01))),
        "Sigmoid" => unary(Function::Sigmoid),
        "HardSigmoid" => unary(Function::HardSigmoid(float("alpha", 0.2), float("beta", 0.5))),
        "HardSwish" => unary(Function::HardSwish),
        "Tanh" => unary(Function::Tanh),
        "Erf" => unary(Function::Erf),
        "Gelu" => match node.string("approximate").unwrap_or("none") {
            "none" => unary(Function::Gelu),
            "tanh" => unary(Function::GeluTanh),
            _ => None,
        },
        "Exp" => unary(Function::Exp),
        "Sqrt" => unary(Function::Sqrt),
        "Reciprocal" => unary(Function::Reciprocal),
        "Neg" => unary(Function::Neg),
        "Abs" => unary(Function::Abs),
        "Pow" if step.opset >= 7 => {
            let exponent = constant(1)?;
            let function = match exponent.dtype() {
                DType::F32 | DType::I32 | DType::I64 => match exponent.single()? {
                    2.0 => Function::Square,
                    3.0 => Function::Cube,
                    0.5 => Function::Sqrt,
                    -1.0 => Function::Reciprocal,
                    _ => return None,
                },
                _ => return None,
            };
            Some(Piece::Unary(function, exponent.rank()))
        }
        "BatchNormalization" if step.opset >= 7 => {
            if node.int("training_mode").unwrap_or(0) != 0 || node.int("spatial").unwrap_or(1) == 0 {
                return None;
            }
            let floats = |slot: usize| crate::kernels::floats(constant(slot)?).map(|data| data.into_owned());
            let (scale, bias, mean, variance) = (floats(1)?, floats(2)?, floats(3)?, floats(4)?);
            let lengths = [bias.len(), mean.len(), variance.len()];
            if lengths.iter().any(|&length| length != scale.len()) {
                return None;
            }
            let epsilon = float("epsilon", 1e-5);
            let channels = 0..scale.len();
            let (factors, summands) =
                channels.map(|c| affine(scale[c], bias[c], mean[c], variance[c], epsilon)).unzip();
            let tensor = |data: Vec<f32>| Tensor::from_vec(vec![data.len()], data);
            Some(Piece::Channels(tensor(factors), tensor(summands)))
        }
        _ => None,
    }
}

/// The one element of a tensor of 32-bit floats, and the tensor's rank.
fn number(tensor: &Tensor) -> Option<(f32, usize)> {
    if tensor.len() != 1 {
        return None;
    }
    crate::kernels::floats(tensor).map(|data| (data[0], tensor.rank()))
}

/// Compiles a chain: `members` are numbers of steps in order, the first one the root whose result is the
/// main value, the last one that whose result is the chain's.
pub(crate) fn compile(steps: &[Step], members: &[usize], constants: Constants<'_>) -> Option<Program> {
    let output = |step: usize| super::find::output(&steps[step]);
    let (&root, chain) = members.split_first()?;
    let mut compiler = Compiler::default();
    let inside: Vec<Slot> = members.iter().map(|&step| output(step)).collect::<Option<_>>()?;
    let pieces: Vec<Piece> =
        chain.iter().map(|&step| piece(&steps[step], constants)).collect::<Option<_>>()?;
    for (&step, piece) in chain.iter().zip(&pieces) {
        for slot in read_slots(&steps[step], piece) {
            if inside.contains(&slot) {
                *compiler.left.entry(slot).or_default() += 1;
            }
        }
    }
    compiler.place.insert(output(root)?, 0);
    for (&number, piece) in chain.iter().zip(pieces) {
        let step = &steps[number];
        let result = output(number)?;
        let operands: Vec<Slot> = step.inputs.iter().copied().flatten().collect();
        let own = |slot: &Slot| inside.contains(slot);
        let register = match piece {
            Piece::Alias => {
                let from = *operands.first()?;
                compiler.read(from);
                *compiler.place.get(&from)?
            }
            Piece::Unary(function, least_rank) => {
                compiler.need_rank(least_rank, number);
                let target = compiler.changeable(*operands.first()?)?;
                compiler.emit(target, function, Operand::None);
                target
            }
            Piece::Channels(factors, summands) => {
                let target = compiler.changeable(*operands.first()?)?;
                for (function, tensor) in [(Function::Mul, factors), (Function::Add, summands)] {
                    let input = compiler.input(Source::Channels(tensor), number);
                    compiler.emit(target, function, Operand::Input(input));
                }
                target
            }
            Piece::Binary(on_left, on_right) => {
                let &[left, right] = &operands[..] else { return None };
                match (own(&left), own(&right)) {
                    (true, false) => {
                        let operand = compiler.outside(right, number, constants)?;
                        let target = compiler.changeable(left)?;
                        compiler.emit(target, on_left, operand);
                        target
                    }
                    (false, true) => {
                        let operand = compiler.outside(left, number, constants)?;
                        let target = compiler.changeable(right)?;
                        compiler.emit(target, on_right, operand);
                        target
                    }
                    (true, true) => compiler.both(left, right, on_left, on_right)?,
                    (false, false) => return None,
                }
            }
        };
        compiler.place.insert(result, register);
    }
    let last = *compiler.place.get(&output(*members.last()?)?)?;
    if last != 0 {
        compiler.emit(0, Function::Copy, Operand::Register(last));
    }
    Some(compiler.program).filter(|program| program.inputs.len() <= INPUTS)
}

/// The slots that a step of a chain reads as elements: not limits, exponents and the like.
fn read_slots<'a>(step: &'a Step, piece: &Piece) -> impl Iterator<Item = Slot> + use<'a> {
    let count = if matches!(piece, Piece::Binary(..)) { 2 } else { 1 };
    step.inputs.iter().take(count).copied().flatten()
}

#[derive(Default)]
struct Compiler {
    program: Program,
    /// Register of every value so far.
    place: HashMap<Slot, usize>,
    /// Reads of a value that are still to come.
    left: HashMap<Slot, usize>,
}

impl Compiler {
    fn emit(&mut self, target: usize, function: Function, operand: Operand) {
        self.program.code.push(Instruction { target, function, operand });
    }

    fn need_rank(&mut self, rank: usize, step: usize) {
        if rank > self.program.least_rank {
            self.program.least_rank = rank;
            self.program.least_rank_by = step;
        }
    }

    fn input(&mut self, source: Source, step: usize) -> usize {
        self.program.inputs.push(Input { source, step });
        self.program.inputs.len() - 1
    }

    /// Notes a read of a value.
    fn read(&mut self, slot: Slot) {
        if let Some(left) = self.left.get_mut(&slot) {
            *left = left.saturating_sub(1);
        }
    }

    /// Whether a register's content is read again.
    fn is_needed(&self, register: usize) -> bool {
        self.place
            .iter()
            .any(|(slot, &place)| place == register && self.left.get(slot).is_some_and(|&left| left > 0))
    }

    fn free_register(&mut self) -> Option<usize> {
        let register = (0..=EXTRA).find(|&register| !self.is_needed(register))?;
        self.program.extra |= register > 0;
        Some(register)
    }

    /// A register that holds a value and may be changed, the value's read counted.
    fn changeable(&mut self, slot: Slot) -> Option<usize> {
        self.read(slot);
        let register = *self.place.get(&slot)?;
        if !self.is_needed(register) {
            return Some(register);
        }
        let copy = self.free_register()?;
        self.emit(copy, Function::Copy, Operand::Register(register));
        Some(copy)
    }

    /// A value of the chain's outside as an operand.
    fn outside(&mut self, slot: Slot, step: usize, constants: Constants<'_>) -> Option<Operand> {
        if let Some((number, rank)) = constants(slot).and_then(number) {
            self.need_rank(rank, step);
            return Some(Operand::Number(number));
        }
        Some(Operand::Input(self.input(Source::Slot(slot), step)))
    }

    /// A function of two values of the chain.
    fn both(&mut self, left: Slot, right: Slot, on_left: Function, on_right: Function) -> Option<usize> {
        self.read(left);
        self.read(right);
        let (a, b) = (*self.place.get(&left)?, *self.place.get(&right)?);
        let free = |compiler: &Self, register: usize| !compiler.is_needed(register);
        let (target, function, other) = if a != b && free(self, a) {
            (a, on_left, b)
        } else if a != b && free(self, b) {
            (b, on_right, a)
        } else {
            // Both stay, or they are one: the left one is copied. `b` must outlive the copy.
            let copy = (0..=EXTRA).find(|&register| register != b && free(self, register))?;
            self.program.extra |= copy > 0;
            if copy != a {
                self.emit(copy, Function::Copy, Operand::Register(a));
            }
            (copy, on_left, b)
        };
        self.emit(target, function, Operand::Register(other));
        Some(target)
    }
}
