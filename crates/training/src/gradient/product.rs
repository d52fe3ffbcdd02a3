//! Products of matrices.

use optix_ir::ValueId;

use super::Rule;
use super::back::{At, Back};

pub(super) static RULES: &[(&str, Rule)] = &[("MatMul", matmul), ("Gemm", gemm)];

/// A value as a matrix whose rows are the last axis.
fn rows(back: &mut Back<'_>, value: ValueId) -> Result<ValueId, String> {
    let shape = back.shape(value)?;
    let (last, front) = shape.split_last().ok_or("a product of numbers")?;
    back.reshape(value, &[front.iter().product(), *last])
}

fn matmul(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (a, b) = (at.input(0)?, at.input(1)?);
    let (left, right) = (back.shape(a)?, back.shape(b)?);
    // Vectors are matrices of one row or one column.
    let whole = |shape: &[usize], is_left: bool| match *shape {
        [depth] if is_left => vec![1, depth],
        [depth] => vec![depth, 1],
        _ => shape.to_vec(),
    };
    let (wide_left, wide_right) = (whole(&left, true), whole(&right, false));
    let mut of_output = back.shape(at.dy)?;
    if right.len() == 1 {
        of_output.push(1);
    }
    if left.len() == 1 {
        of_output.insert(of_output.len() - 1, 1);
    }
    let dy = back.reshape(at.dy, &of_output)?;
    if back.wants(Some(a)) {
        let b = back.reshape(b, &wide_right)?;
        let turned = back.turned(b)?;
        let share = back.product(dy, turned)?;
        let share = back.summed_to(share, &wide_left)?;
        let share = back.reshape(share, &left)?;
        back.give(a, share);
    }
    if back.wants(Some(b)) {
        let a = back.reshape(a, &wide_left)?;
        let share = if wide_right.len() == 2 {
            // All rows at once.
            let (a, dy) = (rows(back, a)?, rows(back, dy)?);
            let turned = back.turned(a)?;
            back.product(turned, dy)?
        } else {
            let turned = back.turned(a)?;
            let share = back.product(turned, dy)?;
            back.summed_to(share, &wide_right)?
        };
        let share = back.reshape(share, &right)?;
        back.give(b, share);
    }
    Ok(())
}

fn gemm(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (a, b) = (at.input(0)?, at.input(1)?);
    let is_turned = |name: &str| at.node.int(name).unwrap_or(0) != 0;
    let (of_a, of_b) = (is_turned("transA"), is_turned("transB"));
    let alpha = at.node.float("alpha").unwrap_or(1.0);
    let dy = if alpha == 1.0 { at.dy } else { back.times(at.dy, alpha) };
    if back.wants(Some(a)) {
        // a' = dy b^T, or its transpose.
        let b = if of_b { b } else { back.turned(b)? };
        let share = back.product(dy, b)?;
        let share = if of_a { back.turned(share)? } else { share };
        back.give(a, share);
    }
    if back.wants(Some(b)) {
        let share = if of_b {
            let turned = back.turned(dy)?;
            let a = if of_a { back.turned(a)? } else { a };
            back.product(turned, a)?
        } else {
            let a = if of_a { a } else { back.turned(a)? };
            back.product(a, dy)?
        };
        back.give(b, share);
    }
    if let Some(c) = at.node.input(2).filter(|&c| back.wants(Some(c))) {
        let beta = at.node.float("beta").unwrap_or(1.0);
        let share = if beta == 1.0 { at.dy } else { back.times(at.dy, beta) };
        back.give_summed(c, share)?;
    }
    Ok(())
}
