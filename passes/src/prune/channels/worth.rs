//! What channels are worth to the layers that read them.

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{DType, Model, NodeId, ValueId};
use optix_linalg::{Moments, damped_inverse, inverse};
use rayon::prelude::*;

use super::groups::{Along, Channel, Group};
use super::places::Held;
use super::recover::Found;
use crate::unroll::Unrolled;

/// Share of the mean variance that is added to each: what few samples do not tell apart is not relied on.
const DAMPING: f64 = 0.1;

/// Inputs of a layer from which on what they have to do with each other is not looked at: it would take too long.
const MOST: usize = 2304;

/// A layer that reads channels.
#[derive(Clone)]
pub(in crate::prune) struct Reader {
    pub(in crate::prune) node: NodeId,
    pub(in crate::prune) unrolled: Unrolled,
    /// Its weights by rows.
    weights: Vec<f32>,
    /// The axis of its weights along which what it reads lies.
    along: Along,
    /// Weights of a row for one channel that it reads.
    width: usize,
}

impl Reader {
    fn of(model: &Model, node: NodeId) -> Option<Reader> {
        let read = model.node(node);
        if !read.domain().is_empty() {
            return None;
        }
        let value = read.input(1)?;
        let tensor = model.constant(value).filter(|tensor| tensor.dtype() == DType::F32)?;
        let unrolled = Unrolled::of(model, node, tensor.shape()).ok()?;
        let axis = match read.op_type.as_str() {
            "Conv" => 1,
            "Gemm" if read.int("transB").unwrap_or(0) != 0 => 1,
            "Gemm" | "MatMul" => 0,
            _ => return None,
        };
        let width = unrolled.depth / tensor.shape()[axis].max(1);
        let weights = tensor.to_slice::<f32>().ok()?;
        if weights.iter().any(|weight| !weight.is_finite()) {
            return None;
        }
        let weights = unrolled.by_rows(&weights);
        Some(Reader { node, unrolled, weights, along: (Held { value, reader: None }, axis), width })
    }

    /// The weights as a value.
    pub(super) fn value(&self) -> ValueId {
        self.along.0.value
    }

    /// Products of the weights with their gradients, summed up by columns.
    pub(super) fn products(&self, gradient: &[f32]) -> Vec<f64> {
        let depth = self.unrolled.depth;
        let mut sums = vec![0f64; depth];
        let pairs = self.unrolled.by_rows(gradient);
        for (row, gradient) in self.weights.chunks_exact(depth).zip(pairs.chunks_exact(depth)) {
            for ((sum, &weight), &gradient) in sums.iter_mut().zip(row).zip(gradient) {
                *sum += f64::from(weight) * f64::from(gradient);
            }
        }
        sums
    }

    /// The columns of a channel.
    pub(super) fn columns(&self, channel: &Channel) -> Vec<usize> {
        let own = channel.members.iter().filter(|(along, _)| *along == self.along);
        own.flat_map(|(_, index)| index * self.width..(index + 1) * self.width).collect()
    }
}

/// For each group, the layers that read its channels.
pub(in crate::prune) fn readers(model: &Model, groups: &[Group]) -> Vec<Vec<Reader>> {
    let mut by_along: BTreeMap<Along, Vec<usize>> = BTreeMap::new();
    for (place, group) in groups.iter().enumerate() {
        for (along, _) in group.channels.first().into_iter().flat_map(|channel| &channel.members) {
            let places = by_along.entry(*along).or_default();
            if places.last() != Some(&place) {
                places.push(place);
            }
        }
    }
    let mut found: Vec<Vec<Reader>> = groups.iter().map(|_| Vec::new()).collect();
    for node in model.nodes_of(model.main()) {
        let Some(reader) = Reader::of(model, node) else { continue };
        for &place in by_along.get(&reader.along).into_iter().flatten() {
            found[place].push(reader.clone());
        }
    }
    found
}

/// What a group of a reader loses with columns: `weights` are rows of `depth`, the inverse is that of the
/// covariance of what is read.
struct State {
    weights: Vec<f64>,
    inverse: Vec<f64>,
    depth: usize,
    /// One by the energy of all that the layer gives.
    scale: f64,
    /// By channel of the group that is being looked at.
    columns: Vec<Vec<usize>>,
    /// What is read in the mean.
    mean: Vec<f32>,
    /// The reader's place.
    reader: usize,
}

impl State {
    /// The states of a reader, one for each of its own groups; none where nothing can be learned from the moments.
    fn of(place: usize, reader: &Reader, moments: &[Moments], channels: &[Channel]) -> Option<Vec<State>> {
        let Unrolled { rows, depth, .. } = reader.unrolled;
        if depth > MOST {
            return None;
        }
        let mut energy = 0.0;
        let mut states = Vec::new();
        for (weights, moments) in reader.weights.chunks_exact(rows * depth).zip(moments) {
            let covariance = moments.average(true);
            let weights: Vec<f64> = weights.iter().map(|&weight| f64::from(weight)).collect();
            energy += weights
                .par_chunks_exact(depth)
                .map(|row| -> f64 {
                    let of = |(at, weight): (usize, &f64)| {
                        let line = &covariance[at * depth..][..depth];
                        weight * line.iter().zip(row).map(|(a, b)| a * b).sum::<f64>()
                    };
                    row.iter().enumerate().map(of).sum()
                })
                .collect::<Vec<f64>>()
                .iter()
                .sum::<f64>();
            let inverse = damped_inverse(covariance, depth, DAMPING)?;
            let columns = channels.iter().map(|channel| reader.columns(channel)).collect();
            let mean = moments.mean.clone();
            states.push(State { weights, inverse, depth, scale: 1.0, columns, mean, reader: place });
        }
        if energy <= 0.0 {
            return None;
        }
        states.iter_mut().for_each(|state| state.scale = 1.0 / energy);
        Some(states)
    }

    /// The inverse of a part of the inverse.
    fn part(&self, columns: &[usize]) -> Option<Vec<f64>> {
        let part: Vec<f64> = columns
            .iter()
            .flat_map(|&row| columns.iter().map(move |&column| self.inverse[row * self.depth + column]))
            .collect();
        inverse(&part, columns.len())
    }

    /// What is lost with a channel when the others make up for it as well as they can, as a share of all that the
    /// layer gives (Hassibi and Stork 1993, "Second order derivatives for network pruning"; by blocks as in Kurtic
    /// et al. 2023, ZipLM).
    fn lost(&self, channel: usize) -> f64 {
        let columns = &self.columns[channel];
        if columns.is_empty() {
            return 0.0;
        }
        let Some(part) = self.part(columns) else { return f64::INFINITY };
        let width = columns.len();
        let of_row = |row: &[f64]| -> f64 {
            let own: Vec<f64> = columns.iter().map(|&column| row[column]).collect();
            own.iter()
                .enumerate()
                .map(|(at, a)| a * own.iter().zip(&part[at * width..]).map(|(b, p)| b * p).sum::<f64>())
                .sum()
        };
        self.scale * self.weights.chunks_exact(self.depth).map(of_row).sum::<f64>()
    }

    /// Takes a channel away: the others make up for it.
    fn remove(&mut self, channel: usize) {
        let columns = std::mem::take(&mut self.columns[channel]);
        let Some(part) = self.part(&columns).filter(|_| !columns.is_empty()) else { return };
        let (depth, width) = (self.depth, columns.len());
        // The lines of the inverse that go, behind the inverse of the part where they cross.
        let mut lines = vec![0f64; width * depth];
        for (line, part) in lines.chunks_exact_mut(depth).zip(part.chunks_exact(width)) {
            for (&row, factor) in columns.iter().zip(part) {
                let own = &self.inverse[row * depth..][..depth];
                line.iter_mut().zip(own).for_each(|(line, own)| *line += factor * own);
            }
        }
        let reduce = |row: &mut [f64]| {
            let own: Vec<f64> = columns.iter().map(|&column| row[column]).collect();
            for (factor, line) in own.iter().zip(lines.chunks_exact(depth)) {
                row.iter_mut().zip(line).for_each(|(x, line)| *x -= factor * line);
            }
            columns.iter().for_each(|&column| row[column] = 0.0);
        };
        self.weights.par_chunks_exact_mut(depth).for_each(reduce);
        self.inverse.par_chunks_exact_mut(depth).for_each(reduce);
    }
}

/// In which order the channels of a group go, and what is lost when so many are gone: the sum, over the layers that
/// read them, of the shares of what they give.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::prune) struct Curve {
    pub(in crate::prune) order: Vec<usize>,
    /// One more than there are channels in the order.
    pub(in crate::prune) lost: Vec<f64>,
}

/// What makes up for channels that are gone: other weights of a reader, zero for those channels, and what is added to
/// its channels.
pub(in crate::prune) struct MadeUp {
    /// The reader's place.
    pub(in crate::prune) reader: usize,
    pub(in crate::prune) found: Found,
}

/// The curve of a group from what its readers read, channels chosen `step` at a time, as many left at last as the last
/// of `counts` says; and what makes up for those that are gone when so many are left as the middle one says. None where
/// no reader tells anything.
pub(in crate::prune) fn by_readers(
    group: &Group,
    readers: &[(&Reader, Option<&[Moments]>)],
    step: usize,
    counts: &[usize],
) -> Option<(Curve, Vec<MadeUp>)> {
    let mut states: Vec<State> = readers
        .iter()
        .enumerate()
        .filter_map(|(place, (reader, moments))| State::of(place, reader, (*moments)?, &group.channels))
        .flatten()
        .collect();
    if states.is_empty() {
        return None;
    }
    let (left, middle) = (counts.last().copied().unwrap_or(1), middle(counts));
    let mut remaining: Vec<usize> = (0..group.channels.len()).collect();
    let mut curve = Curve { order: Vec::new(), lost: vec![0.0] };
    let (mut lost, mut made_up) = (0.0, Vec::new());
    while remaining.len() > left {
        let scores: Vec<f64> = remaining
            .par_iter()
            .map(|&channel| states.iter().map(|state| state.lost(channel)).sum())
            .collect();
        let mut places: Vec<usize> = (0..remaining.len()).collect();
        places.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
        // From a multiple of the step to the next.
        let many = match remaining.len() % step {
            0 => step,
            odd => odd,
        };
        let going: BTreeSet<usize> =
            places.iter().take(many.min(remaining.len() - left)).map(|&place| remaining[place]).collect();
        for &channel in &going {
            lost += states.iter().map(|state| state.lost(channel).max(0.0)).sum::<f64>();
            states.iter_mut().for_each(|state| state.remove(channel));
            curve.order.push(channel);
            curve.lost.push(lost);
        }
        remaining.retain(|channel| !going.contains(channel));
        if remaining.len() == middle {
            made_up = self::made_up(&states, readers);
        }
    }
    Some((curve, made_up))
}

/// The middle one of the numbers of channels that may stay.
pub(in crate::prune) fn middle(counts: &[usize]) -> usize {
    counts.get(counts.len() / 2).copied().unwrap_or(0)
}

fn made_up(states: &[State], readers: &[(&Reader, Option<&[Moments]>)]) -> Vec<MadeUp> {
    let of = |(place, (reader, _)): (usize, &(&Reader, Option<&[Moments]>))| {
        let own: Vec<&State> = states.iter().filter(|state| state.reader == place).collect();
        let weights: Vec<f32> =
            own.iter().flat_map(|state| state.weights.iter().map(|&x| x as f32)).collect();
        if weights.len() != reader.weights.len() {
            return None;
        }
        let Unrolled { rows, depth, .. } = reader.unrolled;
        let shift = |(channel, (new, old)): (usize, (&[f32], &[f32]))| -> f32 {
            let mean = &own[channel / rows].mean;
            new.iter().zip(old).zip(mean).map(|((new, old), mean)| (old - new) * mean).sum()
        };
        let pairs = weights.chunks_exact(depth).zip(reader.weights.chunks_exact(depth));
        let shift = pairs.enumerate().map(shift).collect();
        Some(MadeUp { reader: place, found: Found { weights, shift } })
    };
    readers.iter().enumerate().filter_map(of).collect()
}

/// The curve of a group whose channels go one by one, each worth this, the least first.
pub(super) fn in_order(worth: &[f64]) -> Curve {
    let mut order: Vec<usize> = (0..worth.len()).collect();
    order.sort_by(|&a, &b| worth[a].total_cmp(&worth[b]).then(a.cmp(&b)));
    let mut lost = vec![0.0];
    for &channel in &order {
        lost.push(lost.last().copied().unwrap_or(0.0) + worth[channel]);
    }
    Curve { order, lost }
}

/// Which norm of its weights a channel is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::prune) enum Norm {
    /// The sum of what they are without signs.
    L1,
    /// The sum of their squares.
    L2,
}

/// The curve of a group from the weights alone: a channel is worth the mean of its norm in all tensors that it
/// lies in, as shares of all channels' (Li et al. 2017, "Pruning filters for efficient ConvNets").
pub(in crate::prune) fn by_weights(model: &Model, group: &Group, norm: Norm) -> Curve {
    let mut worth = vec![0f64; group.channels.len()];
    let axes: Vec<Along> = group.channels.first().map_or(Vec::new(), |channel| {
        let mut axes: Vec<Along> = channel.members.iter().map(|(along, _)| *along).collect();
        axes.dedup();
        axes
    });
    let mut tensors = 0usize;
    for along in axes {
        let (held, axis) = along;
        let Some(tensor) = model.constant(held.value).filter(|tensor| tensor.rank() > 1) else { continue };
        let Ok(elements) = tensor.to_slice::<f32>() else { continue };
        let size = tensor.shape()[axis];
        let inner: usize = tensor.shape()[axis + 1..].iter().product();
        let mut norms = vec![0f64; size];
        for (at, &element) in elements.iter().enumerate() {
            let size_of = f64::from(element.abs());
            norms[at / inner % size] += if norm == Norm::L1 { size_of } else { size_of * size_of };
        }
        let total: f64 = norms.iter().sum();
        if total <= 0.0 || !total.is_finite() {
            continue;
        }
        tensors += 1;
        for (channel, worth) in group.channels.iter().zip(&mut worth) {
            let own = channel.members.iter().filter(|(known, _)| *known == along);
            *worth += own.map(|(_, index)| norms[*index]).sum::<f64>() / total;
        }
    }
    worth.iter_mut().for_each(|worth| *worth /= tensors.max(1) as f64);
    in_order(&worth)
}
