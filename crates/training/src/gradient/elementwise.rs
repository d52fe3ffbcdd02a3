//! Operators that compute element by element.

use optix_ir::Node;

use super::Rule;
use super::back::{At, Back};

pub(super) static RULES: &[(&str, Rule)] = &[
    ("Add", add),
    ("Sum", add),
    ("Mean", mean),
    ("Sub", sub),
    ("Mul", mul),
    ("Div", div),
    ("Pow", pow),
    ("Min", extreme),
    ("Max", extreme),
    ("Where", select),
    ("Neg", neg),
    ("Abs", abs),
    ("Sqrt", sqrt),
    ("Exp", exp),
    ("Log", log),
    ("Reciprocal", reciprocal),
    ("Sin", sin),
    ("Cos", cos),
    ("Erf", erf),
    ("Sigmoid", sigmoid),
    ("Tanh", tanh),
    ("Softplus", softplus),
    ("Softsign", softsign),
    ("Relu", relu),
    ("LeakyRelu", leaky_relu),
    ("PRelu", prelu),
    ("Elu", elu),
    ("Clip", clip),
    ("HardSigmoid", hard_sigmoid),
    ("HardSwish", hard_swish),
    ("Gelu", gelu),
    ("Identity", same),
    ("Dropout", same),
    ("Cast", cast),
    ("CastLike", cast),
];

fn add(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    for &input in at.node.inputs().iter().flatten() {
        back.give_summed(input, at.dy)?;
    }
    Ok(())
}

fn mean(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let share = back.times(at.dy, 1.0 / at.node.inputs().len().max(1) as f32);
    for &input in at.node.inputs().iter().flatten() {
        back.give_summed(input, share)?;
    }
    Ok(())
}

fn sub(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    back.give_summed(at.input(0)?, at.dy)?;
    if back.wants(at.node.input(1)) {
        let less = back.unary("Neg", at.dy);
        back.give_summed(at.input(1)?, less)?;
    }
    Ok(())
}

fn mul(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (a, b) = (at.input(0)?, at.input(1)?);
    for (to, by) in [(a, b), (b, a)] {
        if back.wants(Some(to)) {
            let share = back.mul(at.dy, by);
            back.give_summed(to, share)?;
        }
    }
    Ok(())
}

fn div(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (a, b) = (at.input(0)?, at.input(1)?);
    let share = back.div(at.dy, b);
    back.give_summed(a, share)?;
    if back.wants(Some(b)) {
        let share = back.mul(share, at.output()?);
        let share = back.unary("Neg", share);
        back.give_summed(b, share)?;
    }
    Ok(())
}

fn pow(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (x, exponent) = (at.input(0)?, at.input(1)?);
    if back.wants(Some(exponent)) {
        return Err("the exponent depends on parameters".to_owned());
    }
    let one = back.model.constant(exponent).and_then(optix_ir::Tensor::single);
    let slope = match one {
        Some(2.0) => back.times(x, 2.0),
        Some(one) => {
            let less = back.number(one as f32 - 1.0);
            let shape = back.shape(x)?;
            let power = back.push(Node::new("Pow", [x, less]), &shape);
            back.times(power, one as f32)
        }
        None => return Err("the exponent is not one constant number".to_owned()),
    };
    let share = back.mul(at.dy, slope);
    back.give_summed(x, share)
}

/// The gradient goes to whatever is the extreme; to all of them where several are.
fn extreme(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    for &input in at.node.inputs().iter().flatten() {
        if back.wants(Some(input)) {
            let share = back.where_equal(at.dy, input, at.output()?);
            back.give_summed(input, share)?;
        }
    }
    Ok(())
}

fn select(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (condition, a, b) = (at.input(0)?, at.input(1)?, at.input(2)?);
    let shape = back.shape(at.dy)?;
    let zero = back.number(0.0);
    for (value, choices) in [(a, [at.dy, zero]), (b, [zero, at.dy])] {
        if back.wants(Some(value)) {
            let [first, second] = choices;
            let share = back.push(Node::new("Where", [condition, first, second]), &shape);
            back.give_summed(value, share)?;
        }
    }
    Ok(())
}

fn neg(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let share = back.unary("Neg", at.dy);
    back.give(at.input(0)?, share);
    Ok(())
}

/// Gives the gradient of the output times the slope.
fn by_slope(back: &mut Back<'_>, at: &At, slope: optix_ir::ValueId) -> Result<(), String> {
    let share = back.mul(at.dy, slope);
    back.give(at.input(0)?, share);
    Ok(())
}

fn abs(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let slope = back.unary("Sign", at.input(0)?);
    by_slope(back, at, slope)
}

fn sqrt(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let half = back.times(at.dy, 0.5);
    let share = back.div(half, at.output()?);
    back.give(at.input(0)?, share);
    Ok(())
}

fn exp(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    by_slope(back, at, at.output()?)
}

fn log(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let share = back.div(at.dy, at.input(0)?);
    back.give(at.input(0)?, share);
    Ok(())
}

fn reciprocal(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let y = at.output()?;
    let square = back.mul(y, y);
    let slope = back.unary("Neg", square);
    by_slope(back, at, slope)
}

fn sin(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let slope = back.unary("Cos", at.input(0)?);
    by_slope(back, at, slope)
}

fn cos(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let sine = back.unary("Sin", at.input(0)?);
    let slope = back.unary("Neg", sine);
    by_slope(back, at, slope)
}

/// `exp(-x * x * by) * factor`
fn bell(back: &mut Back<'_>, x: optix_ir::ValueId, by: f32, factor: f32) -> optix_ir::ValueId {
    let square = back.mul(x, x);
    let less = back.times(square, -by);
    let bell = back.unary("Exp", less);
    back.times(bell, factor)
}

fn erf(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let slope = bell(back, at.input(0)?, 1.0, std::f32::consts::FRAC_2_SQRT_PI);
    by_slope(back, at, slope)
}

fn sigmoid(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let y = at.output()?;
    let square = back.mul(y, y);
    let slope = back.sub(y, square);
    by_slope(back, at, slope)
}

fn tanh(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let y = at.output()?;
    let square = back.mul(y, y);
    let less = back.unary("Neg", square);
    let slope = back.plus(less, 1.0);
    by_slope(back, at, slope)
}

fn softplus(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let slope = back.unary("Sigmoid", at.input(0)?);
    by_slope(back, at, slope)
}

fn softsign(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let size = back.unary("Abs", at.input(0)?);
    let below = back.plus(size, 1.0);
    let root = back.unary("Reciprocal", below);
    let slope = back.mul(root, root);
    by_slope(back, at, slope)
}

fn relu(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let share = back.where_positive(at.dy, at.output()?);
    back.give(at.input(0)?, share);
    Ok(())
}

/// A gradient in two parts: where the input is above 0, and elsewhere.
fn sides(back: &mut Back<'_>, at: &At) -> Result<[optix_ir::ValueId; 2], String> {
    let above = back.where_positive(at.dy, at.input(0)?);
    let below = back.sub(at.dy, above);
    Ok([above, below])
}

fn leaky_relu(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let [above, below] = sides(back, at)?;
    let below = back.times(below, at.node.float("alpha").unwrap_or(0.01));
    let share = back.add(above, below);
    back.give(at.input(0)?, share);
    Ok(())
}

fn prelu(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (x, slope) = (at.input(0)?, at.input(1)?);
    let [above, below] = sides(back, at)?;
    if back.wants(Some(slope)) {
        let share = back.mul(below, x);
        back.give_summed(slope, share)?;
    }
    let below = back.mul(below, slope);
    let share = back.add(above, below);
    back.give(x, share);
    Ok(())
}

fn elu(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let [above, below] = sides(back, at)?;
    let slope = back.plus(at.output()?, at.node.float("alpha").unwrap_or(1.0));
    let below = back.mul(below, slope);
    let share = back.add(above, below);
    back.give(at.input(0)?, share);
    Ok(())
}

/// Through the range, its ends counted in.
fn clip(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    if (1..3).any(|slot| back.wants(at.node.input(slot))) {
        return Err("its bounds depend on parameters".to_owned());
    }
    let share = back.where_equal(at.dy, at.input(0)?, at.output()?);
    back.give(at.input(0)?, share);
    Ok(())
}

/// The line that a hard sigmoid follows within its range.
fn line(back: &mut Back<'_>, x: optix_ir::ValueId, alpha: f32, beta: f32) -> optix_ir::ValueId {
    let scaled = back.times(x, alpha);
    back.plus(scaled, beta)
}

fn hard_sigmoid(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let alpha = at.node.float("alpha").unwrap_or(0.2);
    let line = line(back, at.input(0)?, alpha, at.node.float("beta").unwrap_or(0.5));
    let shape = back.shape(line)?;
    let (low, high) = (back.number(0.0), back.number(1.0));
    let clipped = back.push(Node::new("Clip", [line, low, high]), &shape);
    let inside = back.where_equal(at.dy, line, clipped);
    let share = back.times(inside, alpha);
    back.give(at.input(0)?, share);
    Ok(())
}

fn hard_swish(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let x = at.input(0)?;
    let line = line(back, x, 1.0 / 6.0, 0.5);
    let shape = back.shape(line)?;
    let (low, high) = (back.number(0.0), back.number(1.0));
    let clipped = back.push(Node::new("Clip", [line, low, high]), &shape);
    let by_gate = back.mul(at.dy, clipped);
    let by_input = back.mul(at.dy, x);
    let by_input = back.times(by_input, 1.0 / 6.0);
    let inside = back.where_equal(by_input, line, clipped);
    let share = back.add(by_gate, inside);
    back.give(x, share);
    Ok(())
}

fn gelu(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let x = at.input(0)?;
    let slope = match at.node.string("approximate").unwrap_or("none") {
        // The normal distribution below x, and x times its density.
        "none" => {
            let scaled = back.times(x, std::f32::consts::FRAC_1_SQRT_2);
            let erf = back.unary("Erf", scaled);
            let below = back.times(erf, 0.5);
            let below = back.plus(below, 0.5);
            let density =
                bell(back, x, 0.5, std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2 / 2.0);
            let by_input = back.mul(x, density);
            back.add(below, by_input)
        }
        // (1 + tanh u) / 2 with u = c (x + d x^3).
        _ => {
            let (c, d) = (std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2, 0.044_715);
            let square = back.mul(x, x);
            let inner = back.times(square, d * c);
            let inner = back.plus(inner, c);
            let u = back.mul(inner, x);
            let t = back.unary("Tanh", u);
            let below = back.times(t, 0.5);
            let below = back.plus(below, 0.5);
            let slope_of_u = back.times(square, 3.0 * d * c);
            let slope_of_u = back.plus(slope_of_u, c);
            let tt = back.mul(t, t);
            let less = back.unary("Neg", tt);
            let slope_of_t = back.plus(less, 1.0);
            let slopes = back.mul(slope_of_u, slope_of_t);
            let by_input = back.mul(slopes, x);
            let by_input = back.times(by_input, 0.5);
            back.add(below, by_input)
        }
    };
    by_slope(back, at, slope)
}

fn same(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    back.give(at.input(0)?, at.dy);
    Ok(())
}

fn cast(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let dtype = |value| back.model.value(value).ty.as_ref().and_then(optix_ir::Type::dtype);
    let (from, to) = (dtype(at.input(0)?), dtype(at.output()?));
    if from != Some(optix_ir::DType::F32) || to != from {
        return Err("it changes the type of numbers".to_owned());
    }
    same(back, at)
}
