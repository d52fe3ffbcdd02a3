//! Layers with constant weights as products of matrices: at every position of the output, a layer is the
//! product of its weights with the inputs that this position reads (im2col; Chellapilla et al. 2006).

use optix_ir::view::{self, AutoPad};
use optix_ir::{Model, NodeId, ValueId};
use rayon::prelude::*;

use crate::evenly;

/// Which inputs a position of the output reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// All of the last axis.
    Row,
    /// Those beneath a kernel.
    Kernel {
        /// Places of the kernel along each spatial axis.
        sizes: Vec<usize>,
        /// Steps from one position to the next.
        strides: Vec<usize>,
        /// Distances between places.
        dilations: Vec<usize>,
        /// Zeros before the first element of each axis, and behind the last one.
        pads: Vec<(usize, usize)>,
    },
}

/// A layer as products of matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unrolled {
    /// What is read.
    pub(crate) input: ValueId,
    /// Where a position reads.
    pub(crate) window: Window,
    /// Products that stand beside each other: groups of a convolution.
    pub(crate) groups: usize,
    /// Output channels of a group.
    pub(crate) rows: usize,
    /// Products that are added up for one element of the output.
    pub(crate) depth: usize,
    /// Whether the weights lie as `[depth, rows]` and not the other way round.
    is_depth_first: bool,
}

impl Unrolled {
    /// The layer of a node, whose weights have this shape.
    ///
    /// # Errors
    /// Why it is none.
    pub(crate) fn of(model: &Model, id: NodeId, weights: &[usize]) -> Result<Unrolled, &'static str> {
        if let Some(conv) = view::Conv::view(model, id) {
            let &[channels, inputs, ref sizes @ ..] = weights else { return Err("its weights have no axes") };
            let positive = |list: &[i64]| -> Option<Vec<usize>> {
                list.iter().map(|&x| usize::try_from(x).ok()).collect()
            };
            let lists = (positive(&conv.strides), positive(&conv.dilations), positive(&conv.pads));
            let (Some(strides), Some(dilations), Some(pads)) = lists else {
                return Err("its strides, dilations or pads are negative");
            };
            let (begins, ends) = pads.split_at(pads.len() / 2);
            let pads: Vec<(usize, usize)> = match conv.auto_pad {
                AutoPad::Valid => vec![(0, 0); sizes.len()],
                AutoPad::NotSet => begins.iter().copied().zip(ends.iter().copied()).collect(),
                _ => Vec::new(),
            };
            if pads.len() != sizes.len() || strides.len() != sizes.len() || dilations.len() != sizes.len() {
                return Err("how it is padded is not written down");
            }
            if strides.contains(&0) || sizes.contains(&0) {
                return Err("its kernel or its strides are 0");
            }
            let groups = usize::try_from(conv.group).unwrap_or(0);
            if groups == 0 || channels % groups != 0 {
                return Err("its groups do not fit its channels");
            }
            let depth = sizes.iter().try_fold(inputs, |depth, &size| depth.checked_mul(size));
            let depth = depth.filter(|&depth| depth > 0).ok_or("its weights are empty")?;
            let window = Window::Kernel { sizes: sizes.to_vec(), strides, dilations, pads };
            let rows = channels / groups;
            let input = conv.x;
            return Ok(Unrolled { input, window, groups, rows, depth, is_depth_first: false });
        }
        let (input, is_depth_first) = match (view::Gemm::view(model, id), view::MatMul::view(model, id)) {
            (Some(gemm), _) if gemm.alpha != 1.0 || gemm.beta != 1.0 || gemm.trans_a => {
                return Err("it has factors, or its input is transposed");
            }
            (Some(gemm), _) => (gemm.a, !gemm.trans_b),
            (None, Some(product)) => (product.a, true),
            (None, None) => return Err("it is no convolution and no product"),
        };
        let &[first, second] = weights else { return Err("its weights are no matrix") };
        let (depth, rows) = if is_depth_first { (first, second) } else { (second, first) };
        if depth == 0 || rows == 0 {
            return Err("its weights are empty");
        }
        Ok(Unrolled { input, window: Window::Row, groups: 1, rows, depth, is_depth_first })
    }

    /// Output channels of all groups.
    pub(crate) fn channels(&self) -> usize {
        self.groups * self.rows
    }

    /// Where the weight of an output channel at a place of the depth lies. The depth of convolutions runs over
    /// input channels first, and over the kernel's places within each.
    pub(crate) fn at(&self, channel: usize, place: usize) -> usize {
        if self.is_depth_first { place * self.rows + channel } else { channel * self.depth + place }
    }

    /// Elements in the order of rows: one output channel behind the other.
    pub(crate) fn by_rows<T: Copy>(&self, elements: &[T]) -> Vec<T> {
        let pairs =
            (0..self.channels()).flat_map(|channel| (0..self.depth).map(move |place| (channel, place)));
        pairs.map(|(channel, place)| elements[self.at(channel, place)]).collect()
    }

    /// From the order of rows back to that of the elements.
    pub(crate) fn by_elements<T: Copy>(&self, rows: &[T]) -> Vec<T> {
        let mut elements = rows.to_vec();
        for channel in 0..self.channels() {
            for place in 0..self.depth {
                elements[self.at(channel, place)] = rows[channel * self.depth + place];
            }
        }
        elements
    }

    /// Sizes of the spatial axes of the output for an input of that shape, and positions in all; none for what is
    /// no input of this layer.
    fn places(&self, input: &[usize]) -> Option<(Vec<usize>, usize)> {
        let Window::Kernel { sizes, strides, dilations, pads } = &self.window else {
            let (depth, rest) = input.split_last()?;
            return (*depth == self.depth).then(|| (Vec::new(), rest.iter().product()));
        };
        let &[batch, channels, ref extents @ ..] = input else { return None };
        let kernel: usize = sizes.iter().product();
        if channels != self.groups * (self.depth / kernel) || extents.len() != sizes.len() {
            return None;
        }
        let of_axis = |axis: usize| {
            let reach = dilations[axis].checked_mul(sizes[axis] - 1)? + 1;
            let room = (extents[axis] + pads[axis].0 + pads[axis].1).checked_sub(reach)?;
            Some(room / strides[axis] + 1)
        };
        let places: Option<Vec<usize>> = (0..sizes.len()).map(of_axis).collect();
        places.map(|places| {
            let count = batch * places.iter().product::<usize>();
            (places, count)
        })
    }

    /// How many positions the output has for an input of that shape; none for what is no input of this layer.
    pub(crate) fn positions(&self, input: &[usize]) -> Option<usize> {
        Some(self.places(input)?.1)
    }

    /// What a group reads at some positions: `depth` elements a position. `None` where the shape does not fit.
    pub(crate) fn inputs(
        &self,
        input: &[f32],
        shape: &[usize],
        group: usize,
        positions: &[usize],
    ) -> Option<Vec<f32>> {
        let (output, _) = self.places(shape)?;
        let mut rows = vec![0f32; positions.len() * self.depth];
        let Window::Kernel { sizes, strides, dilations, pads } = &self.window else {
            for (row, &position) in rows.chunks_exact_mut(self.depth).zip(positions) {
                row.copy_from_slice(input.get(position * self.depth..)?.get(..self.depth)?);
            }
            return Some(rows);
        };
        let &[_, channels, ref extents @ ..] = shape else { return None };
        let kernel: usize = sizes.iter().product();
        let inputs = self.depth / kernel;
        let (plane, of_output): (usize, usize) = (extents.iter().product(), output.iter().product());
        let offset = |place: usize, at: usize| {
            // Both counted from the last axis on.
            let (mut place, mut at, mut offset, mut stride) = (place, at, 0, 1);
            for axis in (0..sizes.len()).rev() {
                let read = at % output[axis] * strides[axis] + place % sizes[axis] * dilations[axis];
                let within = read.checked_sub(pads[axis].0).filter(|&within| within < extents[axis])?;
                (offset, stride) = (offset + within * stride, stride * extents[axis]);
                (place, at) = (place / sizes[axis], at / output[axis]);
            }
            Some(offset)
        };
        rows.par_chunks_exact_mut(self.depth).zip(positions).for_each(|(row, &position)| {
            let (sample, at) = (position / of_output, position % of_output);
            let start = (sample * channels + group * inputs) * plane;
            for place in 0..kernel {
                // Beyond the edges it stays 0.
                let Some(offset) = offset(place, at) else { continue };
                for channel in 0..inputs {
                    row[channel * kernel + place] = input[start + channel * plane + offset];
                }
            }
        });
        Some(rows)
    }
}

/// At most so many of `count` positions, evenly apart.
pub(crate) fn some(count: usize, most: usize) -> Vec<usize> {
    (0..count).step_by(evenly::step(count, most)).collect()
}

#[cfg(test)]
mod tests {
    use optix_ir::Tensor;
    use optix_ir::infer::{NoEvaluator, infer};

    use super::*;

    fn parsed(text: &str) -> Model {
        let mut model = optix_ir::text::parse(text).expect("the text is a model");
        infer(&mut model, &NoEvaluator);
        model
    }

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) % 23) as f32 - 11.0).collect()
    }

    /// Unrolled products must give what the operator gives.
    fn check(text: &str, x: &[usize], w: &[usize]) {
        let mut model = parsed(text);
        let id = model.walk().next().expect("a node");
        let weights = numbers(w.iter().product(), 5);
        let value = model.node(id).input(1).expect("weights");
        model.set_tensor(value, Tensor::from_vec(w.to_vec(), weights.clone()));
        let input = Tensor::from_vec(x.to_vec(), numbers(x.iter().product(), 3));
        let held = model.constant(value).cloned().expect("just set");
        let expected = optix_ops::evaluate(&model, id, &[Some(&input), Some(&held)]).expect("it runs");
        let expected = &expected[0];
        let layer = Unrolled::of(&model, id, w).expect("a layer");
        let count = layer.positions(x).expect("its input");
        assert_eq!(count * layer.channels(), expected.len());
        let positions = some(count, 7);
        let outputs = expected.to_slice::<f32>().unwrap();
        // Channels lie behind the batch, and behind everything else where there is no kernel.
        let inner: usize =
            if layer.window == Window::Row { 1 } else { expected.shape()[2..].iter().product() };
        let wanted = |position: usize, channel: usize| {
            outputs[(position / inner * layer.channels() + channel) * inner + position % inner]
        };
        let rows = layer.by_rows(&weights);
        assert_eq!(layer.by_elements(&rows), weights);
        let elements = input.to_slice::<f32>().unwrap();
        for group in 0..layer.groups {
            let read = layer.inputs(&elements, x, group, &positions).expect("they fit");
            for (read, &position) in read.chunks_exact(layer.depth).zip(&positions) {
                for row in 0..layer.rows {
                    let channel = group * layer.rows + row;
                    let weights = &rows[channel * layer.depth..][..layer.depth];
                    let sum: f32 = weights.iter().zip(read).map(|(a, b)| a * b).sum();
                    assert_eq!(sum, wanted(position, channel), "{text} {position} {channel}");
                }
            }
        }
    }

    #[test]
    fn unrolled_products_are_what_the_operators_compute() {
        let conv = |attributes: &str, x: &str, w: &str| {
            format!(
                r#"<ir_version: 8, opset_import: ["" : 13]> net (float[{x}] x) => (y)
                <float[{w}] w = {{0}}> {{ y = Conv <{attributes}> (x, w) }}"#
            )
        };
        for (attributes, x, w) in [
            ("pads = [1, 1, 1, 1]", vec![2, 3, 5, 4], vec![4, 3, 3, 3]),
            ("strides = [2, 1], pads = [0, 1, 1, 1]", vec![1, 2, 6, 5], vec![3, 2, 3, 2]),
            ("dilations = [2, 2], group = 2", vec![2, 4, 7, 6], vec![6, 2, 2, 3]),
            ("group = 3, pads = [2, 2, 2, 2]", vec![1, 3, 4, 4], vec![3, 1, 5, 5]),
            ("strides = [3]", vec![2, 2, 11], vec![5, 2, 4]),
        ] {
            let list = |sizes: &[usize]| sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            // The text gives a constant of one element; the real one is put in its place.
            let text = conv(attributes, &list(&x), &list(&w)).replace(
                &format!("float[{}] w = {{0}}", list(&w)),
                &format!("float[{}] w = {{{}}}", list(&w), vec!["0"; w.iter().product()].join(", ")),
            );
            check(&text, &x, &w);
        }
        let zeros = |count: usize| vec!["0"; count].join(", ");
        let product = |op: &str, x: &str, w: &str, count: usize| {
            format!(
                r#"<ir_version: 8, opset_import: ["" : 13]> net (float[{x}] x) => (y)
                <float[{w}] w = {{{}}}> {{ y = {op} (x, w) }}"#,
                zeros(count)
            )
        };
        check(&product("MatMul", "2, 3, 4", "4, 5", 20), &[2, 3, 4], &[4, 5]);
        check(&product("Gemm", "3, 4", "4, 5", 20), &[3, 4], &[4, 5]);
        check(&product("Gemm <transB = 1>", "9, 4", "5, 4", 20), &[9, 4], &[5, 4]);
    }

    #[test]
    fn what_is_no_such_product_is_refused() {
        let model = parsed(
            r#"<ir_version: 8, opset_import: ["" : 13]>
            net (float[1, 1, 4, 4] x, float[2, 2] m) => (y, g, r)
            <float[1, 1, 3, 3] w = {0, 0, 0, 0, 0, 0, 0, 0, 0}, float[2, 2] v = {1, 0, 0, 1}>
            { y = Conv <auto_pad = "SAME_UPPER"> (x, w) g = Gemm <alpha = 0.5> (m, v) r = Relu (m) }"#,
        );
        let ids: Vec<NodeId> = model.walk().collect();
        assert!(Unrolled::of(&model, ids[0], &[1, 1, 3, 3]).is_err());
        assert!(Unrolled::of(&model, ids[1], &[2, 2]).is_err());
        assert!(Unrolled::of(&model, ids[2], &[2, 2]).is_err());
        assert_eq!(some(5, 9), [0, 1, 2, 3, 4]);
        assert_eq!(some(10, 4), [0, 3, 6, 9]);
    }
}
