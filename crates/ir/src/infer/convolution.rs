//! Convolutions and pools: operators that slide a window.

use crate::dtype::DType;
use crate::infer::call::{Call, Rule, one};
use crate::infer::dims::{self, Outcome, show, unknowns, wrong};
use crate::infer::expr::Expr;
use crate::infer::fact::Fact;
use crate::types::{Dim, Shape};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("AveragePool", |call| pool(call)),
    ("CausalConvWithState", causal),
    ("Col2Im", col2im),
    ("Conv", |call| convolve(call, 0, 1, call.dtype(0))),
    ("ConvInteger", |call| convolve(call, 0, 1, Some(DType::I32))),
    ("ConvTranspose", transposed),
    ("DeformConv", |call| convolve(call, 0, 1, call.dtype(0))),
    ("LpPool", |call| pool(call)),
    ("MaxPool", max_pool),
    ("MaxRoiPool", |call| roi(call, "pooled_shape")),
    ("MaxUnpool", max_unpool),
    ("QLinearConv", |call| convolve(call, 0, 3, call.dtype(7))),
    ("RoiAlign", roi_align),
];

/// How a window slides over the spatial dimensions.
struct Window {
    kernel: Vec<Dim>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    padding: Padding,
    rounds_up: bool,
}

enum Padding {
    /// Amounts at the beginnings, then at the ends; may be negative.
    Explicit(Vec<i64>),
    /// The output is as large as the input divided by the stride, rounded up.
    Same,
    /// None.
    Valid,
}

impl Window {
    /// Reads the attributes for `rank` spatial dimensions; `kernel` is used where the node gives none.
    fn read(call: &Call<'_>, rank: usize, kernel: Option<Vec<Dim>>) -> Outcome<Window> {
        let list = |name: &str, count: usize, default: i64, least: i64| -> Outcome<Vec<i64>> {
            match call.node.ints(name) {
                None => Ok(vec![default; count]),
                Some(list) if list.len() != count => {
                    wrong(format!("`{name}` has {} entries, but {count} are needed", list.len()))
                }
                Some(list) => match list.iter().find(|&&entry| entry < least) {
                    Some(entry) => wrong(format!("`{name}` has an entry {entry}, but {least} is the least")),
                    None => Ok(list.to_vec()),
                },
            }
        };
        let kernel = match (call.node.ints("kernel_shape"), kernel) {
            (Some(_), given) => {
                let sizes = list("kernel_shape", rank, 1, 1)?;
                let mut kernel = Vec::new();
                for (index, size) in sizes.into_iter().enumerate() {
                    let size = dims::size(size, "a size of the kernel")?;
                    if let Some(weight) = given.as_ref().and_then(|given| given.get(index)) {
                        dims::same(&size, weight, "`kernel_shape` and the weight's shape")?;
                    }
                    kernel.push(size);
                }
                kernel
            }
            (None, Some(kernel)) => kernel,
            (None, None) => return wrong("attribute `kernel_shape` is missing"),
        };
        let padding = match call.node.string("auto_pad") {
            Some("SAME_UPPER" | "SAME_LOWER") => Padding::Same,
            Some("VALID") => Padding::Valid,
            _ => Padding::Explicit(list("pads", rank * 2, 0, i64::MIN)?),
        };
        Ok(Window {
            kernel,
            strides: list("strides", rank, 1, 1)?,
            dilations: list("dilations", rank, 1, 1)?,
            padding,
            rounds_up: call.flag("ceil_mode"),
        })
    }

    /// From the first to the last element the window touches.
    fn extent(&self, axis: usize) -> Outcome<Dim> {
        let dilation = self.dilations[axis];
        dims::map(&self.kernel[axis], |kernel| {
            kernel.sub(&Expr::from(1))?.mul(&Expr::from(dilation))?.add(&Expr::from(1))
        })
    }

    /// The output's spatial sizes.
    fn slide(&self, input: &[Dim]) -> Outcome<Vec<Dim>> {
        input.iter().enumerate().map(|(axis, dim)| self.slide_one(dim, axis)).collect()
    }

    fn slide_one(&self, input: &Dim, axis: usize) -> Outcome<Dim> {
        let stride = self.strides[axis];
        let (head, tail) = match &self.padding {
            Padding::Same => return dims::map(input, |input| input.ceil_div(stride)),
            Padding::Valid => (0, 0),
            Padding::Explicit(pads) => (pads[axis], pads[axis + input_rank(pads)]),
        };
        let extent = self.extent(axis)?;
        let (Some(size), Some(extent)) = (Expr::of(input), Expr::of(&extent)) else {
            return Ok(Dim::Unknown);
        };
        let padded = size.add(&Expr::from(head)).and_then(|size| size.add(&Expr::from(tail)));
        let Some(room) = padded.and_then(|padded| padded.sub(&extent)) else { return Ok(Dim::Unknown) };
        if room.constant().is_some_and(|room| room < 0) {
            return wrong(format!(
                "a window of extent {extent} does not fit into {size} padded by {head} and {tail}"
            ));
        }
        let positions = if self.rounds_up { room.ceil_div(stride) } else { room.floor_div(stride) };
        let Some(mut output) = positions.and_then(|positions| positions.add(&Expr::from(1))) else {
            return Ok(Dim::Unknown);
        };
        if self.rounds_up {
            // A window that would start in the padding behind the input is left out.
            let last = output.sub(&Expr::from(1)).and_then(|last| last.mul(&Expr::from(stride)));
            let end = size.add(&Expr::from(head));
            match (last.and_then(|last| last.constant()), end.and_then(|end| end.constant())) {
                (Some(last), Some(end)) => {
                    if last >= end {
                        output = Expr::from(output.constant().unwrap_or(1).saturating_sub(1));
                    }
                }
                // It cannot happen when the window, as far as it sticks out, is at least a stride long.
                _ => {
                    let reach = i128::from(stride) + i128::from(tail);
                    if extent.constant().is_none_or(|extent| i128::from(extent) < reach) {
                        return Ok(Dim::Unknown);
                    }
                }
            }
        }
        Ok(output.dim())
    }
}

fn input_rank(pads: &[i64]) -> usize {
    pads.len() / 2
}

/// The spatial dimensions of a shape with batch and channels in front.
fn spatial(shape: &[Dim]) -> Outcome<&[Dim]> {
    match shape.get(2..) {
        Some(spatial) if !spatial.is_empty() => Ok(spatial),
        _ => wrong(format!("needs batch, channel and spatial dimensions, but the input is {}", show(shape))),
    }
}

fn group(call: &Call<'_>) -> Outcome<i64> {
    match call.int("group", 1) {
        group if group >= 1 => Ok(group),
        group => wrong(format!("`group` is {group}, but 1 is the least")),
    }
}

/// The weight's shape, checked to have as many dimensions as the input.
fn weight<'a>(call: &Call<'a>, slot: usize, rank: usize) -> Outcome<Option<&'a Shape>> {
    match call.shape(slot) {
        Some(weight) if weight.len() != rank => {
            wrong(format!("the input has {rank} dimensions, the weight {}", weight.len()))
        }
        weight => Ok(weight),
    }
}

pub(super) fn convolve(
    call: &Call<'_>,
    input: usize,
    weights: usize,
    dtype: Option<DType>,
) -> Outcome<Vec<Fact>> {
    let Some(shape) = call.shape(input) else {
        return one(dtype, call.rank(weights).map(unknowns));
    };
    let spatial = spatial(shape)?;
    let weight = weight(call, weights, shape.len())?;
    let group = group(call)?;
    if let Some(weight) = weight {
        let channels = dims::scale(&weight[1], group)?;
        dims::same(&shape[1], &channels, "channels of the input and of the weight (times `group`)")?;
        if let Some(filters) = weight[0].fixed()
            && !i64::try_from(filters).is_ok_and(|filters| filters % group == 0)
        {
            return wrong(format!("{filters} filters cannot be divided into {group} groups"));
        }
    }
    let kernel = weight.map(|weight| weight[2..].to_vec());
    let kernel = kernel.or_else(|| call.node.ints("kernel_shape").is_none().then(|| unknowns(spatial.len())));
    let window = Window::read(call, spatial.len(), kernel)?;
    let mut result = vec![shape[0].clone(), weight.map_or(Dim::Unknown, |weight| weight[0].clone())];
    result.extend(window.slide(spatial)?);
    one(dtype, Some(result))
}

pub(super) fn pool(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let Some(shape) = call.shape(0) else {
        return one(
            dtype,
            call.node.ints("kernel_shape").map(|kernel| unknowns(kernel.len().saturating_add(2))),
        );
    };
    let spatial = spatial(shape)?;
    let window = Window::read(call, spatial.len(), None)?;
    let mut result = shape[..2].to_vec();
    result.extend(window.slide(spatial)?);
    one(dtype, Some(result))
}

fn max_pool(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let mut facts = pool(call)?;
    facts.push(Fact::tensor(Some(DType::I64), facts[0].shape().cloned()));
    Ok(facts)
}

fn transposed(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let Some(shape) = call.shape(0) else { return one(dtype, call.rank(1).map(unknowns)) };
    let spatial = spatial(shape)?;
    let rank = spatial.len();
    let weight = weight(call, 1, shape.len())?;
    let mut result = vec![shape[0].clone(), Dim::Unknown];
    if let Some(weight) = weight {
        dims::same(&shape[1], &weight[0], "channels of the input and of the weight")?;
        result[1] = dims::scale(&weight[1], group(call)?)?;
    }
    if let Some(sizes) = call.node.ints("output_shape") {
        // Older files give batch and channels too.
        let sizes = if sizes.len() == rank + 2 { &sizes[2..] } else { sizes };
        if sizes.len() != rank {
            return wrong(format!("`output_shape` has {} entries, but {rank} are needed", sizes.len()));
        }
        for &size in sizes {
            result.push(dims::size(size, "a size in `output_shape`")?);
        }
        return one(dtype, Some(result));
    }
    let kernel = weight.map(|weight| weight[2..].to_vec());
    let kernel = kernel.or_else(|| call.node.ints("kernel_shape").is_none().then(|| unknowns(rank)));
    let window = Window::read(call, rank, kernel)?;
    let extra = call.node.ints("output_padding").unwrap_or(&[]);
    for (axis, dim) in spatial.iter().enumerate() {
        let stride = Expr::from(window.strides[axis]);
        let extra = Expr::from(extra.get(axis).copied().unwrap_or(0));
        let size = match &window.padding {
            Padding::Same => dims::map(dim, |dim| dim.mul(&stride))?,
            padding => {
                let pads = match padding {
                    Padding::Explicit(pads) => pads[axis].saturating_add(pads[axis + rank]),
                    _ => 0,
                };
                let extent = window.extent(axis)?;
                let Some(extent) = Expr::of(&extent) else {
                    result.push(Dim::Unknown);
                    continue;
                };
                dims::map(dim, |dim| {
                    let spread = dim.sub(&Expr::from(1))?.mul(&stride)?;
                    spread.add(&extent)?.add(&extra)?.sub(&Expr::from(pads))
                })?
            }
        };
        result.push(size);
    }
    one(dtype, Some(result))
}

fn max_unpool(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let Some(shape) = call.shape(0) else { return one(dtype, None) };
    if call.has(2) {
        let sizes = call.contents(2).filter(|sizes| sizes.len() == shape.len());
        let sizes = sizes
            .map(|sizes| sizes.iter().map(|size| size.as_ref().map_or(Dim::Unknown, Expr::dim)).collect());
        return one(dtype, Some(sizes.unwrap_or_else(|| unknowns(shape.len()))));
    }
    let spatial = spatial(shape)?;
    let window = Window::read(call, spatial.len(), None)?;
    let Padding::Explicit(pads) = &window.padding else { return one(dtype, Some(unknowns(shape.len()))) };
    let mut result = shape[..2].to_vec();
    for (axis, dim) in spatial.iter().enumerate() {
        let Some(kernel) = Expr::of(&window.kernel[axis]) else {
            result.push(Dim::Unknown);
            continue;
        };
        let pads = pads[axis].saturating_add(pads[axis + spatial.len()]);
        result.push(dims::map(dim, |dim| {
            dim.sub(&Expr::from(1))?
                .mul(&Expr::from(window.strides[axis]))?
                .add(&kernel)?
                .sub(&Expr::from(pads))
        })?);
    }
    one(dtype, Some(result))
}

/// `[regions, channels, ...]` with sizes from an attribute.
fn roi(call: &Call<'_>, attribute: &str) -> Outcome<Vec<Fact>> {
    let first = |slot: usize, axis: usize| call.shape(slot).and_then(|shape| shape.get(axis)).cloned();
    let mut result = vec![first(1, 0).unwrap_or(Dim::Unknown), first(0, 1).unwrap_or(Dim::Unknown)];
    match call.node.ints(attribute) {
        Some(sizes) => {
            for &size in sizes {
                result.push(dims::size(size, attribute)?);
            }
        }
        None => result.extend(unknowns(2)),
    }
    one(call.dtype(0), Some(result))
}

fn roi_align(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let first = |slot: usize, axis: usize| call.shape(slot).and_then(|shape| shape.get(axis)).cloned();
    let result = vec![
        first(1, 0).unwrap_or(Dim::Unknown),
        first(0, 1).unwrap_or(Dim::Unknown),
        dims::size(call.int("output_height", 1), "`output_height`")?,
        dims::size(call.int("output_width", 1), "`output_width`")?,
    ];
    one(call.dtype(0), Some(result))
}

/// `[batch, channels * block elements, blocks]` to `[batch, channels, image sizes...]`.
fn col2im(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(image) = call.contents(1) else { return one(call.dtype(0), None) };
    let mut channels = Dim::Unknown;
    let shape = call.shape(0).filter(|shape| shape.len() == 3);
    if let (Some(shape), Some(block)) = (shape, call.integers(2)) {
        let elements = block.iter().try_fold(1i64, |product, &size| product.checked_mul(size));
        if let Some(elements) = elements.filter(|&elements| elements > 0) {
            channels = dims::map(&shape[1], |all| all.floor_div(elements))?;
        }
    }
    let mut result = vec![shape.map_or(Dim::Unknown, |shape| shape[0].clone()), channels];
    result.extend(image.iter().map(|size| size.as_ref().map_or(Dim::Unknown, Expr::dim)));
    one(call.dtype(0), Some(result))
}

/// The output is as long as the input; the state is what the window needs of the past.
fn causal(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let state = match (call.shape(0).map(Vec::as_slice), call.shape(1).map(Vec::as_slice)) {
        (Some([batch, channels, _]), Some([_, _, kernel])) => {
            let past = dims::map(kernel, |kernel| kernel.sub(&Expr::from(1)))?;
            Some(vec![batch.clone(), channels.clone(), past])
        }
        _ => Some(unknowns(3)),
    };
    Ok(vec![call.like(0), Fact::tensor(call.dtype(0), state)])
}
