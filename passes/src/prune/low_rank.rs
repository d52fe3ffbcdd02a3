//! Layers as two smaller ones: which ranks there are, what they cost and what they lose.
//!
//! A product of rank `r` is the projection of a layer's outputs on their first `r` principal axes, over calibration data
//! (Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks for Classification and Detection", section 3):
//! no other of that rank is nearer to what the layer gives. A kernel may also be a column behind a row of it
//! (Jaderberg et al. 2014, "Speeding up Convolutional Neural Networks with Low Rank Expansions"); then the row is fitted, by
//! least squares, to what the layer gives.

use optix_ir::{DType, Model, NodeId, Type, ValueId};
use optix_linalg::{Moments, eigen, inverse, product};

use crate::unroll::{Unrolled, Window};

/// Share of the mean of its diagonal that is added to a matrix before it is inverted.
const DAMPING: f64 = 1e-6;

/// Layers with more outputs are left alone: their axes are not worth the time.
const MOST_OUTPUTS: usize = 4096;

/// Layers that add up more products are left alone: matrices of that size squared would be kept.
const MOST_DEPTH: usize = 4608;

/// The two layers that one becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// The layer with fewer outputs, then a product of these.
    Product,
    /// Columns of the kernel, then rows.
    Spatial,
}

/// A layer that may become two.
pub(super) struct Layer {
    pub(super) node: NodeId,
    pub(super) unrolled: Unrolled,
    weights: ValueId,
    /// Places of the kernel along height and width, where both are more than one.
    kernel: Option<[usize; 2]>,
    /// Whether it has a bias, or a place for one.
    pub(super) has_bias: bool,
    /// Positions of the output, and of what lies between columns and rows of the kernel.
    positions: [f64; 2],
}

/// A way to make two of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) scheme: Scheme,
    pub(super) rank: usize,
    /// Multiplications and additions of both.
    pub(super) operations: f64,
    /// What the layer's output loses, as a share of its energy.
    pub(super) lost: f64,
}

/// All that is known of a layer's ways.
pub(super) struct Ways {
    pub(super) all: Vec<Way>,
    weights: Vec<f64>,
    mean: Vec<f64>,
    /// Principal axes of the outputs, one a row.
    axes: Vec<f64>,
    spatial: Option<Spatial>,
}

/// Columns of kernels in the order of their worth.
struct Spatial {
    /// What they do to what a position reads: a row for each column and place along the width.
    columns: Vec<f64>,
    /// Second moments of what they give, and their products with what the layer gives.
    inner: Vec<f64>,
    outer: Vec<f64>,
    /// Places along the width.
    width: usize,
    count: usize,
}

/// Numbers of the two layers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parts {
    /// A row for each of the rank.
    pub(super) first: Vec<f32>,
    /// A row for each output.
    pub(super) second: Vec<f32>,
    /// Added to the bias; empty where there is none.
    pub(super) shift: Vec<f32>,
}

/// Elements of a value; 1 for sizes that are not known.
fn elements(model: &Model, value: ValueId) -> Vec<f64> {
    let shape = model.value(value).ty.as_ref().and_then(Type::shape);
    shape.map_or_else(Vec::new, |shape| shape.iter().map(|dim| dim.fixed().unwrap_or(1) as f64).collect())
}

/// Multiplications and additions of a layer with constant weights; none for what is no such layer.
pub(super) fn operations(shaped: &Model, node: NodeId) -> Option<f64> {
    let held = shaped.constant(shaped.node(node).input(1)?)?;
    let unrolled = Unrolled::of(shaped, node, held.shape()).ok()?;
    let output: f64 = elements(shaped, shaped.node(node).output(0)?).iter().product();
    Some(output * unrolled.depth as f64)
}

impl Layer {
    /// The layer of a node; `shaped` is the model with the shapes of a sample.
    ///
    /// # Errors
    /// Why it stays whole.
    pub(super) fn of(model: &Model, shaped: &Model, node: NodeId) -> Result<Layer, String> {
        let read = model.node(node);
        let weights = read.input(1).ok_or("it has no weights")?;
        let held = model.constant(weights).ok_or("its weights are computed")?;
        if held.dtype() != DType::F32 {
            return Err(format!("its weights are {}", held.dtype()));
        }
        let unrolled = Unrolled::of(model, node, held.shape())?;
        if unrolled.groups > 1 {
            return Err("its channels stand in groups".to_owned());
        }
        if unrolled.rows > MOST_OUTPUTS {
            return Err(format!("it has more than {MOST_OUTPUTS} outputs"));
        }
        if unrolled.depth > MOST_DEPTH {
            return Err(format!("it adds up more than {MOST_DEPTH} products"));
        }
        let bias = read.input(2);
        let is_float = |value: ValueId| {
            model.constant(value).is_some_and(|held| {
                let is_row = matches!(held.shape(), [count] | [1, count] if *count == unrolled.rows);
                held.dtype() == DType::F32 && is_row
            })
        };
        let has_bias = match read.op_type.as_str() {
            "Conv" => bias.is_none_or(is_float),
            "Gemm" => bias.is_some_and(is_float),
            _ => false,
        };
        let output = elements(shaped, read.output(0).ok_or("nothing reads it")?);
        let input = elements(shaped, unrolled.input);
        let of_output = output.iter().product::<f64>() / unrolled.rows as f64;
        let kernel = match &unrolled.window {
            Window::Kernel { sizes, .. } => match **sizes {
                [down, across] if down > 1 && across > 1 => Some([down, across]),
                _ => None,
            },
            Window::Row => None,
        };
        // Columns stand along the whole width of the input.
        let between = match (output.as_slice(), input.as_slice()) {
            (&[batch, _, height, _], &[.., width]) => batch * height * width,
            _ => of_output,
        };
        Ok(Layer { node, unrolled, weights, kernel, has_bias, positions: [of_output, between] })
    }

    /// Multiplications and additions of the layer as it is.
    pub(super) fn operations(&self) -> f64 {
        self.positions[0] * (self.unrolled.rows * self.unrolled.depth) as f64
    }

    /// Numbers that the first of two layers has for each of the rank, and the second for each output and rank.
    pub(super) fn sizes(&self, scheme: Scheme) -> [usize; 2] {
        match (scheme, self.kernel) {
            (Scheme::Spatial, Some([_, across])) => [self.unrolled.depth / across, across],
            _ => [self.unrolled.depth, 1],
        }
    }

    /// Multiplications and additions of both.
    pub(super) fn cost(&self, scheme: Scheme, rank: usize) -> f64 {
        let [first, second] = self.sizes(scheme);
        let [output, between] = self.positions;
        let of_first = if scheme == Scheme::Spatial { between } else { output };
        rank as f64 * (of_first * first as f64 + output * (self.unrolled.rows * second) as f64)
    }

    /// Whether it can be taken apart like this.
    pub(super) fn allows(&self, scheme: Scheme) -> bool {
        scheme == Scheme::Product || self.kernel.is_some()
    }

    /// Its ways, for ranks that are multiples; none where no rank has fewer operations.
    pub(super) fn ways(&self, model: &Model, moments: &Moments, multiple: usize) -> Option<Ways> {
        let held = model.constant(self.weights)?.to_slice::<f32>().ok()?;
        let Unrolled { rows, depth, .. } = self.unrolled;
        let weights: Vec<f64> = self.unrolled.by_rows(&held).into_iter().map(f64::from).collect();
        let covariance = moments.average(self.has_bias);
        let passed = product(&weights, &covariance, depth, depth, false);
        let outputs = product(&passed, &weights, depth, rows, true);
        let total: f64 = (0..rows).map(|row| outputs[row * rows + row]).sum();
        if !(total.is_finite() && total > 0.0) {
            return None;
        }
        let (values, axes) = eigen(&outputs, rows)?;
        let whole = self.operations();
        let ranks = |scheme: Scheme, most: usize| {
            let ranks = (1..).map(move |step| step * multiple).take_while(move |&rank| rank < most);
            ranks.take_while(move |&rank| self.cost(scheme, rank) < whole).collect::<Vec<usize>>()
        };
        let way = |scheme: Scheme, rank: usize, lost: f64| Way {
            scheme,
            rank,
            operations: self.cost(scheme, rank),
            lost: (lost / total).max(0.0),
        };
        let mut all: Vec<Way> = Vec::new();
        for rank in ranks(Scheme::Product, rows.min(depth)) {
            let lost: f64 = values.get(rank..).unwrap_or_default().iter().map(|value| value.max(0.0)).sum();
            all.push(way(Scheme::Product, rank, lost));
        }
        let mut spatial = None;
        if let Some(kernel) = self.kernel {
            let most = (depth / kernel[1]).min(rows * kernel[1]);
            let ranks = ranks(Scheme::Spatial, most);
            if let Some(&count) = ranks.last() {
                let found = Spatial::of(&weights, &covariance, &passed, (rows, depth, kernel), count)?;
                for rank in ranks {
                    let (_, kept) = found.fitted(rows, rank)?;
                    all.push(way(Scheme::Spatial, rank, total - kept));
                }
                spatial = Some(found);
            }
        }
        let mean = moments.mean.iter().map(|&x| f64::from(x)).collect();
        (!all.is_empty()).then_some(Ways { all, weights, mean, axes, spatial })
    }

    /// The numbers of the two layers.
    pub(super) fn parts(&self, ways: &Ways, scheme: Scheme, rank: usize) -> Option<Parts> {
        let Unrolled { rows, depth, .. } = self.unrolled;
        let (first, second, whole) = match scheme {
            Scheme::Product => {
                let axes = ways.axes.get(..rank * rows)?;
                let first = product(axes, &ways.weights, rows, depth, false);
                let turned: Vec<f64> =
                    (0..rows * rank).map(|at| axes[at % rank * rows + at / rank]).collect();
                let whole = product(&turned, &first, rank, depth, false);
                (first, turned, whole)
            }
            Scheme::Spatial => {
                let spatial = ways.spatial.as_ref()?;
                let (second, _) = spatial.fitted(rows, rank)?;
                let used = rank * spatial.width;
                let whole = product(&second, &spatial.columns[..used * depth], used, depth, false);
                (spatial.plain(depth, rank), second, whole)
            }
        };
        let shift = |row: usize| -> f64 {
            let off = ways.weights[row * depth..].iter().zip(&whole[row * depth..]);
            off.zip(&ways.mean).map(|((wanted, given), mean)| (wanted - given) * mean).sum()
        };
        let shift: Vec<f32> =
            if self.has_bias { (0..rows).map(|row| shift(row) as f32).collect() } else { Vec::new() };
        let floats = |numbers: Vec<f64>| -> Vec<f32> { numbers.into_iter().map(|x| x as f32).collect() };
        let parts = Parts { first: floats(first), second: floats(second), shift };
        let mut all = parts.first.iter().chain(&parts.second).chain(&parts.shift);
        all.all(|x| x.is_finite()).then_some(parts)
    }
}

impl Spatial {
    /// The first `count` columns of kernels: left singular vectors of the weights, each input by its energy.
    fn of(
        weights: &[f64],
        covariance: &[f64],
        passed: &[f64],
        (rows, depth, [down, across]): (usize, usize, [usize; 2]),
        count: usize,
    ) -> Option<Spatial> {
        // The depth runs over input channels, height and width: a line is a channel at a height.
        let lines = depth / across;
        debug_assert_eq!(lines % down, 0, "lines of whole kernels");
        let energy = |line: usize| -> f64 {
            let of = (0..across).map(|at| covariance[(line * across + at) * (depth + 1)]);
            (of.sum::<f64>() / across as f64).max(0.0)
        };
        let mean = (0..lines).map(energy).sum::<f64>() / lines as f64;
        let scale: Vec<f64> = (0..lines).map(|line| (energy(line) + 1e-3 * mean).sqrt()).collect();
        if scale.iter().any(|scale| !(*scale > 0.0 && scale.is_finite())) {
            return None;
        }
        let width = rows * across;
        let wide: Vec<f64> = (0..lines * width)
            .map(|at| {
                let (line, row, place) = (at / width, at % width / across, at % across);
                scale[line] * weights[row * depth + line * across + place]
            })
            .collect();
        let (_, vectors) = eigen(&product(&wide, &wide, width, lines, true), lines)?;
        let mut columns = vec![0f64; count * across * depth];
        for column in 0..count {
            for line in 0..lines {
                let own = vectors[column * lines + line] / scale[line];
                // What lies beside each other is kept apart by the place along the width.
                for place in 0..across {
                    columns[(column * across + place) * depth + line * across + place] = own;
                }
            }
        }
        let through = product(&columns, covariance, depth, depth, false);
        let inner = product(&through, &columns, depth, count * across, true);
        let outer = product(passed, &columns, depth, count * across, true);
        Some(Spatial { columns, inner, outer, width: across, count })
    }

    /// The rows of kernels behind the first `rank` columns that come nearest to what the layer gives, and how much of its
    /// energy they give.
    fn fitted(&self, rows: usize, rank: usize) -> Option<(Vec<f64>, f64)> {
        let (all, used) = (self.count * self.width, rank * self.width);
        let mut inner: Vec<f64> =
            (0..used * used).map(|at| self.inner[at / used * all + at % used]).collect();
        let mean = (0..used).map(|at| inner[at * used + at]).sum::<f64>() / used.max(1) as f64;
        (0..used).for_each(|at| inner[at * used + at] += DAMPING * mean);
        let outer: Vec<f64> = (0..rows * used).map(|at| self.outer[at / used * all + at % used]).collect();
        let second = product(&outer, &inverse(&inner, used)?, used, used, false);
        let kept = second.iter().zip(&outer).map(|(a, b)| a * b).sum();
        Some((second, kept))
    }

    /// The first `rank` columns by themselves.
    fn plain(&self, depth: usize, rank: usize) -> Vec<f64> {
        let lines = depth / self.width;
        let of = |at: usize| self.columns[at / lines * self.width * depth + at % lines * self.width];
        (0..rank * lines).map(of).collect()
    }
}
