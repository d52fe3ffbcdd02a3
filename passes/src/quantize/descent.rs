//! Rounding that minds what a layer computes, by coordinate descent.
//!
//! The error of an output channel over calibration data is a quadratic function of its weights. Its change is
//! known exactly when one weight moves from one integer to the next, so weights are moved one at a time as long
//! as that makes the error smaller. It is the objective that AdaRound relaxes and learns by gradient descent
//! (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization"); a descent over the
//! integers themselves needs neither rates nor iterations to be chosen, gives the same on every machine, and
//! never ends worse than it began (as in Behdin et al. 2023, "QuantEase").

/// Sweeps over the weights of a channel: each gains much less than the one before.
const SWEEPS: usize = 12;

/// What the rows of a layer, or of a group of it, have in common.
pub(super) struct Problem<'a> {
    /// Second moments of the inputs, `depth x depth`, row by row, with what is added to their diagonal.
    pub(super) gram: &'a [f32],
    /// Products that are added up.
    pub(super) depth: usize,
    /// Least and greatest integer.
    pub(super) range: (i32, i32),
    /// For each place in the depth the one whose product is added to it in int16, where that must not be
    /// clipped.
    pub(super) partners: Option<&'a [usize]>,
}

/// What two weights of one sign may add up to when pairs of products are added in int16: 32,767 / 255.
pub(crate) const PAIR: i32 = 128;

/// An output channel: integers, what a step of each is worth, which way each may move from where it was
/// rounded to (+1 or -1), and the gradient of the error: half of its derivative by each weight.
pub(super) struct Row<'a> {
    /// Integers; changed.
    pub(super) integers: &'a mut [i32],
    /// Scale of each.
    pub(super) steps: &'a [f32],
    /// The side of each weight that it was not rounded to.
    pub(super) sides: &'a [i8],
    /// Kept up to date.
    pub(super) gradient: &'a mut [f32],
}

/// Moves weights of a row between the two integers around each until no move makes the error smaller. Returns
/// which are moved, and by how much the error fell.
pub(super) fn descend(problem: &Problem<'_>, row: Row<'_>) -> (Vec<bool>, f64) {
    let Problem { gram, depth, range: (low, high), partners } = *problem;
    let mut moved = vec![false; depth];
    let mut saved = 0f64;
    for _ in 0..SWEEPS {
        let mut is_still = true;
        for place in 0..depth {
            let by = i32::from(if moved[place] { -row.sides[place] } else { row.sides[place] });
            let to = row.integers[place] + by;
            if by == 0 || to < low || to > high {
                continue;
            }
            let step = row.steps[place] * by as f32;
            let own = gram[place * depth + place];
            // Twice the gradient times the step, and the curvature.
            let change = 2.0 * step * row.gradient[place] + step * step * own;
            // Gains below this are rounding errors of the gradient.
            if change >= -1e-4 * step * step * own {
                continue;
            }
            if let Some(partners) = partners
                && let Some(&other) = row.integers.get(partners[place])
                && (other > 0) == (to > 0)
                && to.abs() > row.integers[place].abs()
                && (other + to).abs() > PAIR
            {
                continue;
            }
            row.integers[place] = to;
            moved[place] = !moved[place];
            let products = &gram[place * depth..][..depth];
            row.gradient.iter_mut().zip(products).for_each(|(gradient, product)| *gradient += step * product);
            saved -= f64::from(change);
            is_still = false;
        }
        if is_still {
            break;
        }
    }
    (moved, saved)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A row rounded to the nearest integers, with correlated inputs.
    struct Case {
        gram: Vec<f32>,
        integers: Vec<i32>,
        sides: Vec<i8>,
        gradient: Vec<f32>,
        weights: Vec<f32>,
    }

    const STEP: f32 = 0.1;

    fn case(depth: usize, seed: u32) -> Case {
        let number = |i: usize| ((i as f32 + 1.0) * (seed as f32 * 0.013 + 0.7)).sin();
        let positions = 3 * depth;
        let inputs: Vec<f32> =
            (0..positions * depth).map(|i| number(i) + number(i / depth * 7 + 3)).collect();
        let mut gram = vec![0f32; depth * depth];
        for row in inputs.chunks_exact(depth) {
            for a in 0..depth {
                for b in 0..depth {
                    gram[a * depth + b] += row[a] * row[b];
                }
            }
        }
        let weights: Vec<f32> = (0..depth).map(|i| number(i * 5 + 2)).collect();
        let integers: Vec<i32> = weights.iter().map(|w| (w / STEP).round() as i32).collect();
        let errors: Vec<f32> = integers.iter().zip(&weights).map(|(&q, w)| q as f32 * STEP - w).collect();
        let sides = errors.iter().map(|&error| if error > 0.0 { -1 } else { 1 }).collect();
        let gradient =
            (0..depth).map(|a| (0..depth).map(|b| gram[a * depth + b] * errors[b]).sum()).collect();
        Case { gram, integers, sides, gradient, weights }
    }

    fn energy(case: &Case, integers: &[i32]) -> f64 {
        let depth = case.weights.len();
        let errors: Vec<f64> =
            integers.iter().zip(&case.weights).map(|(&q, &w)| f64::from(q as f32 * STEP - w)).collect();
        let of = |a: usize, b: usize| errors[a] * f64::from(case.gram[a * depth + b]) * errors[b];
        (0..depth).map(|a| (0..depth).map(|b| of(a, b)).sum::<f64>()).sum()
    }

    proptest! {
        #[test]
        fn the_error_falls_by_what_is_said_and_stays_around_the_weights(
            depth in 2usize..40, seed in 0u32..500, pairs in any::<bool>(),
        ) {
            let mut case = case(depth, seed);
            let start = case.integers.clone();
            let before = energy(&case, &start);
            let partners: Vec<usize> = (0..depth).map(|place| place ^ 1).collect();
            let steps = vec![STEP; depth];
            let mut gradient = case.gradient.clone();
            let mut integers = start.clone();
            let problem = Problem {
                gram: &case.gram, depth, range: (-8, 7), partners: pairs.then_some(&partners[..]),
            };
            let row = Row {
                integers: &mut integers, steps: &steps, sides: &case.sides, gradient: &mut gradient,
            };
            let (moved, saved) = descend(&problem, row);
            let after = energy(&case, &integers);
            prop_assert!(saved >= 0.0);
            prop_assert!((before - after - saved).abs() <= 1e-3 * before.max(1e-3), "{} {} {}", before, after, saved);
            for place in 0..depth {
                let by = integers[place] - start[place];
                prop_assert_eq!(by != 0, moved[place]);
                let clipped = start[place] < -8 || start[place] > 7;
                prop_assert!(clipped || (integers[place] as f32 * STEP - case.weights[place]).abs() < STEP * 1.001);
                prop_assert!(by == 0 || (-8..=7).contains(&integers[place]));
            }
            case.integers = integers;
        }
    }

    #[test]
    fn correlated_inputs_are_rounded_against_each_other() {
        // Two inputs that are always the same, with weights of 0.4 each: nearest gives 0, their sum is 0.8.
        let gram = [1f32, 1.0, 1.0, 1.0];
        let mut integers = [0, 0];
        let mut gradient = [-0.8f32, -0.8];
        let problem = Problem { gram: &gram, depth: 2, range: (-127, 127), partners: None };
        let row =
            Row { integers: &mut integers, steps: &[1.0, 1.0], sides: &[1, 1], gradient: &mut gradient };
        let (moved, saved) = descend(&problem, row);
        assert_eq!(integers, [1, 0]);
        assert_eq!(moved, [true, false]);
        assert!((saved - (0.64 - 0.04)).abs() < 1e-6, "{saved}");
    }

    #[test]
    fn pairs_stay_within_what_kernels_add_up() {
        let gram = [1f32, 0.0, 0.0, 1.0];
        let run = |integers: [i32; 2], partners: Option<&[usize]>| {
            let (mut integers, mut gradient) = (integers, [-10f32, 0.0]);
            let problem = Problem { gram: &gram, depth: 2, range: (-127, 127), partners };
            let row =
                Row { integers: &mut integers, steps: &[1.0, 1.0], sides: &[1, 1], gradient: &mut gradient };
            descend(&problem, row);
            integers
        };
        let pair: &[usize] = &[1, 0];
        assert_eq!(run([64, 64], None), [65, 64]);
        assert_eq!(run([64, 64], Some(pair)), [64, 64]);
        assert_eq!(run([64, -64], Some(pair)), [65, -64]);
        assert_eq!(run([64, 63], Some(pair)), [65, 63]);
        assert_eq!(run([64, 64], Some(&[5, 5])), [65, 64]);
    }
}
