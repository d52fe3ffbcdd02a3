//! Which weights become zero: patterns.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::unroll::{Unrolled, Window};

/// Where zeros may stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Pattern {
    /// Anywhere.
    #[default]
    Unstructured,
    /// So many of each run of neighbouring inputs are kept, `2:4`.
    Runs {
        /// Weights that are kept of each run.
        kept: usize,
        /// Length of a run.
        of: usize,
    },
    /// Blocks of output channels by inputs that become zero together, `4x4`.
    Blocks {
        /// Output channels.
        rows: usize,
        /// Inputs.
        columns: usize,
    },
}

impl JsonSchema for Pattern {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Pattern".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "Where zeros may stand: `unstructured`, anywhere; `N:M`, N of every M neighbouring \
                            inputs are kept; `RxC`, blocks of R output channels by C inputs become zero together."
        })
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Pattern, String> {
        let pair = |by: char| -> Option<(usize, usize)> {
            let (a, b) = text.split_once(by)?;
            let number = |text: &str| text.parse().ok().filter(|number| (1..100).contains(number));
            Some((number(a)?, number(b)?))
        };
        match (text.as_str(), pair(':'), pair('x')) {
            ("unstructured", ..) => Ok(Pattern::Unstructured),
            (_, Some((kept, of)), _) if kept < of => Ok(Pattern::Runs { kept, of }),
            (_, _, Some((rows, columns))) => Ok(Pattern::Blocks { rows, columns }),
            _ => Err(format!(
                "`{text}` is no pattern: `unstructured`, `N:M` as in `2:4` (N of every M are kept, N below M), or `RxC` \
                 as in `4x4`"
            )),
        }
    }
}

/// The order of places in the depth in which inputs are neighbours: for convolutions the input channels of one
/// place of the kernel, as kernels for patterns want them.
pub(super) fn lanes(unrolled: &Unrolled) -> (Vec<usize>, usize) {
    let kernel: usize = match &unrolled.window {
        Window::Row => 1,
        Window::Kernel { sizes, .. } => sizes.iter().product(),
    };
    let inputs = unrolled.depth / kernel.max(1);
    let order = (0..kernel).flat_map(|place| (0..inputs).map(move |input| input * kernel + place));
    (order.collect(), inputs)
}

/// Marks the `count` least of some scores, the first ones of equals.
pub(super) fn least(scores: &[f32], count: usize) -> Vec<bool> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    let count = count.min(scores.len());
    if count > 0 && count < scores.len() {
        let by = |&a: &usize, &b: &usize| scores[a].total_cmp(&scores[b]).then(a.cmp(&b));
        places.select_nth_unstable_by(count - 1, by);
    }
    let mut marked = vec![false; scores.len()];
    places[..count].iter().for_each(|&place| marked[place] = true);
    marked
}

/// How many weights a share is.
pub(super) fn share_of(count: usize, sparsity: f64) -> usize {
    ((count as f64 * sparsity).round() as usize).min(count)
}

/// Which weights of a layer become zero: those with the least scores that the pattern allows, `sparsity` of all
/// where it leaves the choice. With `by_row` each output channel loses the same share.
///
/// # Errors
/// Why the pattern does not suit the layer.
pub(super) fn mask(
    scores: &[f32],
    unrolled: &Unrolled,
    pattern: Pattern,
    sparsity: f64,
    by_row: bool,
) -> Result<Vec<bool>, String> {
    let depth = unrolled.depth;
    match pattern {
        Pattern::Unstructured if by_row => {
            let of_row = |row: &[f32]| least(row, share_of(depth, sparsity));
            Ok(scores.chunks_exact(depth).flat_map(of_row).collect())
        }
        Pattern::Unstructured => Ok(least(scores, share_of(scores.len(), sparsity))),
        Pattern::Runs { kept, of } => {
            let (order, inputs) = lanes(unrolled);
            if inputs < of {
                return Err(format!("an output has {inputs} neighbouring inputs, a run of the pattern {of}"));
            }
            let mut zeros = vec![false; scores.len()];
            for row in 0..unrolled.channels() {
                for lane in order.chunks_exact(inputs) {
                    // What is left over at the end of a lane is no whole run and stays.
                    for run in lane.chunks_exact(of) {
                        let own: Vec<f32> = run.iter().map(|&place| scores[row * depth + place]).collect();
                        for (&place, zero) in run.iter().zip(least(&own, of - kept)) {
                            zeros[row * depth + place] = zero;
                        }
                    }
                }
            }
            Ok(zeros)
        }
        Pattern::Blocks { rows, columns } => {
            let channels = unrolled.channels();
            if unrolled.rows < rows || depth < columns {
                return Err(format!(
                    "its {} output channels of a group by {depth} inputs are less than a block",
                    unrolled.rows
                ));
            }
            let wide = depth.div_ceil(columns);
            let block = |channel: usize, place: usize| channel / rows * wide + place / columns;
            let mut sums = vec![(0f64, 0usize); channels.div_ceil(rows) * wide];
            for (at, &score) in scores.iter().enumerate() {
                let (sum, count) = &mut sums[block(at / depth, at % depth)];
                (*sum, *count) = (*sum + f64::from(score), *count + 1);
            }
            let means: Vec<f32> = sums.iter().map(|(sum, count)| (sum / *count as f64) as f32).collect();
            let zeros = least(&means, share_of(means.len(), sparsity));
            Ok((0..scores.len()).map(|at| zeros[block(at / depth, at % depth)]).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use optix_ir::{ModelBuilder, Tensor};
    use proptest::prelude::*;

    use super::*;

    /// A product of so many outputs and inputs, or a convolution with 3 places.
    fn layer(rows: usize, inputs: usize, places: usize) -> Unrolled {
        let shape = if places == 1 { vec![rows, inputs] } else { vec![rows, inputs, places] };
        let weights = Tensor::from_vec(shape.clone(), vec![0f32; rows * inputs * places]);
        let net = ModelBuilder::new(15).constant("w", weights);
        let net = match places {
            1 => net
                .input("x", &format!("float[N, {inputs}]"))
                .node("Gemm", ["x", "w"], ["y"])
                .attr("transB", 1),
            _ => net.input("x", &format!("float[N, {inputs}, 9]")).node("Conv", ["x", "w"], ["y"]),
        };
        let model = net.output("y", "float[?, ?]").build();
        let id = model.walk().next().expect("a node");
        Unrolled::of(&model, id, &shape).expect("a layer")
    }

    #[test]
    fn patterns_are_read() {
        let read = |text: &str| Pattern::try_from(text.to_owned());
        assert_eq!(read("unstructured"), Ok(Pattern::Unstructured));
        assert_eq!(read("2:4"), Ok(Pattern::Runs { kept: 2, of: 4 }));
        assert_eq!(read("4x8"), Ok(Pattern::Blocks { rows: 4, columns: 8 }));
        for wrong in ["4:4", "0:4", "2:400", "", "2-4", "x4", "4:2"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn patterns_are_exact(
            rows in 1usize..9, inputs in 1usize..21, places in prop::sample::select(vec![1usize, 3]),
            sparsity in 0f64..1.0, kept in 1usize..4, seed in 0u32..99,
        ) {
            let unrolled = layer(rows, inputs, places);
            let depth = inputs * places;
            let scores: Vec<f32> =
                (0..rows * depth).map(|i| ((i as f32 + 1.0) * (seed as f32 + 0.7)).sin().abs()).collect();
            let count = |zeros: &[bool]| zeros.iter().filter(|zero| **zero).count();
            let zeros = mask(&scores, &unrolled, Pattern::Unstructured, sparsity, false).expect("anywhere");
            prop_assert_eq!(count(&zeros), share_of(rows * depth, sparsity));
            let greatest = scores.iter().zip(&zeros).filter(|(_, zero)| **zero).map(|(x, _)| *x).fold(0.0, f32::max);
            prop_assert!(scores.iter().zip(&zeros).all(|(x, zero)| *zero || *x >= greatest));
            let zeros = mask(&scores, &unrolled, Pattern::Unstructured, sparsity, true).expect("anywhere");
            prop_assert!(zeros.chunks_exact(depth).all(|row| count(row) == share_of(depth, sparsity)));
            match mask(&scores, &unrolled, Pattern::Runs { kept, of: 4 }, 0.0, false) {
                Err(_) => prop_assert!(inputs < 4),
                Ok(zeros) => {
                    for row in zeros.chunks_exact(depth) {
                        for place in 0..places {
                            let lane: Vec<bool> = (0..inputs).map(|input| row[input * places + place]).collect();
                            prop_assert!(lane.chunks_exact(4).all(|run| count(run) == 4 - kept));
                            prop_assert_eq!(count(lane.chunks_exact(4).remainder()), 0);
                        }
                    }
                }
            }
            match mask(&scores, &unrolled, Pattern::Blocks { rows: 2, columns: 3 }, sparsity, false) {
                Err(_) => prop_assert!(rows < 2 || depth < 3),
                Ok(zeros) => {
                    let at = |row: usize, column: usize| zeros[row * depth + column];
                    for row in 0..rows {
                        for column in 0..depth {
                            prop_assert_eq!(at(row, column), at(row / 2 * 2, column / 3 * 3));
                        }
                    }
                    let blocks = (0..rows).step_by(2).flat_map(|row| (0..depth).step_by(3).map(move |column| (row, column)));
                    let blocks: Vec<bool> = blocks.map(|(row, column)| at(row, column)).collect();
                    prop_assert_eq!(count(&blocks), share_of(blocks.len(), sparsity));
                }
            }
        }
    }
}
