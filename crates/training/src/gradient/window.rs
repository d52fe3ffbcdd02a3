//! Convolutions and pools.

use optix_ir::{Node, Tensor, ValueId};

use super::Rule;
use super::back::{At, Back, DOMAIN};

pub(super) static RULES: &[(&str, Rule)] = &[
    ("Conv", conv),
    ("ConvTranspose", conv_transpose),
    ("GlobalAveragePool", global_average_pool),
    ("GlobalMaxPool", global_max_pool),
    ("AveragePool", average_pool),
    ("MaxPool", max_pool),
];

/// How a window moves, an entry an axis.
struct Moves {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    before: Vec<usize>,
    after: Vec<usize>,
}

/// The moves of a window over `wide` places that gives `narrow` results.
fn moves(at: &At, kernel: &[usize], wide: &[usize], narrow: &[usize]) -> Result<Moves, String> {
    let rank = kernel.len();
    let list = |name: &str, count: usize, other: usize| -> Result<Vec<usize>, String> {
        let Some(given) = at.node.ints(name) else { return Ok(vec![other; count]) };
        let sizes: Option<Vec<usize>> = given.iter().map(|&size| usize::try_from(size).ok()).collect();
        sizes.filter(|sizes| sizes.len() == count).ok_or_else(|| format!("`{name}` is {given:?}"))
    };
    let (strides, dilations) = (list("strides", rank, 1)?, list("dilations", rank, 1)?);
    let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
    let auto = at.node.string("auto_pad").unwrap_or("NOTSET");
    match auto {
        "NOTSET" | "" => {
            let pads = list("pads", 2 * rank, 0)?;
            (before, after) = (pads[..rank].to_vec(), pads[rank..].to_vec());
        }
        "VALID" => {}
        _ => {
            for axis in 0..rank {
                let reach = (kernel[axis] - 1) * dilations[axis] + 1;
                let total =
                    (narrow[axis].saturating_sub(1) * strides[axis] + reach).saturating_sub(wide[axis]);
                let less = total / 2;
                (before[axis], after[axis]) = match auto {
                    "SAME_UPPER" => (less, total - less),
                    _ => (total - less, less),
                };
            }
        }
    }
    Ok(Moves { kernel: kernel.to_vec(), strides, dilations, before, after })
}

impl Moves {
    /// Sets them on a node of a convolution's kind.
    fn on(&self, node: Node, groups: usize) -> Node {
        let list = |sizes: &[usize]| sizes.iter().map(|&size| size as i64).collect::<Vec<i64>>();
        let mut pads = list(&self.before);
        pads.extend(list(&self.after));
        node.with("kernel_shape", list(&self.kernel))
            .with("strides", list(&self.strides))
            .with("dilations", list(&self.dilations))
            .with("pads", pads)
            .with("group", groups as i64)
    }

    /// What a transposed convolution must add behind, to give `wide` places from `narrow` ones.
    fn missing(&self, wide: &[usize], narrow: &[usize]) -> Result<Vec<i64>, String> {
        let of_axis = |axis: usize| {
            let reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1;
            let full = narrow[axis].checked_sub(1)? * self.strides[axis] + reach;
            let made = full.checked_sub(self.before[axis] + self.after[axis])?;
            wide[axis].checked_sub(made).map(|missing| missing as i64)
        };
        let missing: Option<Vec<i64>> = (0..wide.len()).map(of_axis).collect();
        missing.ok_or_else(|| "its window looks beyond its input".to_owned())
    }
}

/// Sums over samples and places: the gradient of what is added to every channel.
fn give_bias(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    if let Some(bias) = at.node.input(2).filter(|&bias| back.wants(Some(bias))) {
        let rank = back.shape(at.dy)?.len();
        let axes: Vec<usize> = (0..rank).filter(|&axis| axis != 1).collect();
        let sum = back.sum(at.dy, &axes)?;
        let shape = back.shape(bias)?;
        let share = back.reshape(sum, &shape)?;
        back.give(bias, share);
    }
    Ok(())
}

/// What a convolution of `wide` to `narrow` owes its weights: the operator that only graphs of gradients have.
fn of_weights(
    back: &mut Back<'_>,
    moves: &Moves,
    groups: usize,
    wide: ValueId,
    narrow: ValueId,
    shape: &[usize],
) -> ValueId {
    let node = moves.on(Node::new("ConvGradWeights", [wide, narrow]).in_domain(DOMAIN), groups);
    back.push(node, shape)
}

fn groups(at: &At) -> Result<usize, String> {
    usize::try_from(at.node.int("group").unwrap_or(1)).map_err(|_| "its groups".to_owned())
}

fn conv(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (x, w) = (at.input(0)?, at.input(1)?);
    let (of_x, of_w, of_y) = (back.shape(x)?, back.shape(w)?, back.shape(at.dy)?);
    let (wide, narrow) = (&of_x[2..], &of_y[2..]);
    let (moves, groups) = (moves(at, &of_w[2..], wide, narrow)?, groups(at)?);
    if back.wants(Some(x)) {
        let node = moves.on(Node::new("ConvTranspose", [at.dy, w]), groups);
        let node = node.with("output_padding", moves.missing(wide, narrow)?);
        let share = back.push(node, &of_x);
        back.give(x, share);
    }
    if back.wants(Some(w)) {
        let share = of_weights(back, &moves, groups, x, at.dy, &of_w);
        back.give(w, share);
    }
    give_bias(back, at)
}

fn conv_transpose(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (x, w) = (at.input(0)?, at.input(1)?);
    let auto = at.node.string("auto_pad").unwrap_or("NOTSET");
    if at.node.ints("output_shape").is_some() || !matches!(auto, "NOTSET" | "") {
        return Err("its padding is worked out from its output".to_owned());
    }
    let (of_x, of_w, of_y) = (back.shape(x)?, back.shape(w)?, back.shape(at.dy)?);
    let (moves, groups) = (moves(at, &of_w[2..], &of_y[2..], &of_x[2..])?, groups(at)?);
    if back.wants(Some(x)) {
        let share = back.push(moves.on(Node::new("Conv", [at.dy, w]), groups), &of_x);
        back.give(x, share);
    }
    if back.wants(Some(w)) {
        // Its input is what the convolution of its output gives.
        let share = of_weights(back, &moves, groups, at.dy, x, &of_w);
        back.give(w, share);
    }
    give_bias(back, at)
}

fn global_average_pool(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let x = at.input(0)?;
    let shape = back.shape(x)?;
    let count: usize = shape.iter().skip(2).product();
    let each = back.times(at.dy, 1.0 / count.max(1) as f32);
    let share = back.expand(each, &shape)?;
    back.give(x, share);
    Ok(())
}

fn global_max_pool(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let x = at.input(0)?;
    let share = back.where_equal(at.dy, x, at.output()?);
    back.give(x, share);
    Ok(())
}

/// A transposed convolution with ones spreads every result over what it is the mean of.
fn average_pool(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let x = at.input(0)?;
    let (of_x, of_y) = (back.shape(x)?, back.shape(at.dy)?);
    let kernel: Vec<usize> =
        at.node.ints("kernel_shape").unwrap_or_default().iter().map(|&size| size as usize).collect();
    if kernel.len() + 2 != of_x.len() || at.node.int("ceil_mode").unwrap_or(0) != 0 {
        return Err("its windows reach beyond the input".to_owned());
    }
    let (wide, narrow) = (&of_x[2..], &of_y[2..]);
    let moves = moves(at, &kernel, wide, narrow)?;
    let is_all = at.node.int("count_include_pad").unwrap_or(0) != 0;
    // How many places of the input each window sees, an axis at a time.
    let mut shares = vec![1f32];
    for axis in 0..kernel.len() {
        let seen = |result: usize| {
            let places = (0..kernel[axis]).filter(|&tap| {
                let place = result * moves.strides[axis] + tap * moves.dilations[axis];
                is_all || (place >= moves.before[axis] && place - moves.before[axis] < wide[axis])
            });
            places.count().max(1) as f32
        };
        shares = shares
            .iter()
            .flat_map(|share| (0..narrow[axis]).map(move |result| share / seen(result)))
            .collect();
    }
    let shape: Vec<usize> = [1, 1].into_iter().chain(narrow.iter().copied()).collect();
    let shares = back.constant(Tensor::from_vec(shape, shares));
    let each = back.mul(at.dy, shares);
    let channels = of_x[1];
    let of_ones: Vec<usize> = [channels, 1].into_iter().chain(kernel.iter().copied()).collect();
    let ones = back.constant(Tensor::from_vec(of_ones.clone(), vec![1f32; of_ones.iter().product()]));
    let node = moves.on(Node::new("ConvTranspose", [each, ones]), channels);
    let node = node.with("output_padding", moves.missing(wide, narrow)?);
    let share = back.push(node, &of_x);
    back.give(x, share);
    Ok(())
}

fn max_pool(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    if at.node.int("storage_order").unwrap_or(0) != 0 {
        return Err("its places are counted by columns".to_owned());
    }
    let x = at.input(0)?;
    let of_x = back.shape(x)?;
    let mut node = Node::new("MaxPoolGrad", [x, at.dy]).in_domain(DOMAIN);
    node.attributes = at.node.attributes.clone();
    let share = back.push(node, &of_x);
    back.give(x, share);
    Ok(())
}
