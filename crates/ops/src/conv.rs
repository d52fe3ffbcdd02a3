//! Convolutions over any number of spatial axes, and pools: everything that slides a window.

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{product, strides};
use crate::numbers::{Numbers, integer_tensor};

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("Conv", 1, conv),
    KernelSpec::onnx("ConvInteger", 10, conv_integer),
    KernelSpec::onnx("QLinearConv", 10, q_linear_conv),
    KernelSpec::onnx("ConvTranspose", 1, conv_transpose),
    KernelSpec::onnx("MaxPool", 1, max_pool),
    KernelSpec::onnx("AveragePool", 1, average_pool),
    KernelSpec::onnx("GlobalAveragePool", 1, global_average_pool),
    KernelSpec::onnx("GlobalMaxPool", 1, global_max_pool),
];

/// Greatest number of window places: beyond it a file is hostile, not large.
pub(crate) const MOST_STEPS: u64 = 1 << 40;

/// How a window slides.
pub(crate) struct Window {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    /// Padding before each axis.
    before: Vec<i64>,
    /// Sizes of the output's spatial axes.
    pub(crate) out: Vec<usize>,
}

pub(crate) fn list(call: &Call<'_>, name: &str, rank: usize, default: usize) -> Result<Vec<usize>, OpError> {
    let Some(values) = call.node.ints(name) else { return Ok(vec![default; rank]) };
    let sizes: Option<Vec<usize>> = values
        .iter()
        .map(|&value| usize::try_from(value).ok().filter(|&size| size > 0 && size < 1 << 31))
        .collect();
    match sizes {
        Some(sizes) if sizes.len() == rank => Ok(sizes),
        _ => Err(call.invalid(format!(
            "`{name}` is {values:?} for {rank} spatial axes: it takes that many positive sizes"
        ))),
    }
}

pub(crate) fn pads(call: &Call<'_>, rank: usize) -> Result<Vec<i64>, OpError> {
    match call.node.ints("pads") {
        None => Ok(vec![0; 2 * rank]),
        Some(pads) if pads.len() == 2 * rank && pads.iter().all(|pad| pad.unsigned_abs() < 1 << 31) => {
            Ok(pads.to_vec())
        }
        Some(pads) => {
            Err(call.invalid(format!("`pads` is {pads:?} for {rank} spatial axes: it takes two an axis")))
        }
    }
}

pub(crate) fn window(call: &Call<'_>, spatial: &[usize], kernel: Vec<usize>) -> Result<Window, OpError> {
    let rank = spatial.len();
    let (steps, dilations) = (list(call, "strides", rank, 1)?, list(call, "dilations", rank, 1)?);
    let ceil = call.node.int("ceil_mode").unwrap_or(0) != 0;
    let auto = call.node.string("auto_pad").unwrap_or("NOTSET");
    let given = pads(call, rank)?;
    let (mut before, mut out) = (Vec::with_capacity(rank), Vec::with_capacity(rank));
    for axis in 0..rank {
        let size = spatial[axis] as i64;
        let span = (kernel[axis] as i64 - 1) * dilations[axis] as i64 + 1;
        let step = steps[axis] as i64;
        let (first, last) = match auto {
            "SAME_UPPER" | "SAME_LOWER" => {
                let wanted = size.div_euclid(step) + i64::from(size.rem_euclid(step) != 0);
                let total = ((wanted - 1) * step + span - size).max(0);
                let small = total / 2;
                if auto == "SAME_UPPER" { (small, total - small) } else { (total - small, small) }
            }
            "VALID" => (0, 0),
            "NOTSET" | "" => (given[axis], given[axis + rank]),
            other => return Err(call.invalid(format!("there is no auto_pad `{other}`"))),
        };
        let room = size + first + last - span;
        if room < 0 {
            return Err(call.invalid(format!(
                "a window of {span} does not fit {size} elements with padding {first} and {last}"
            )));
        }
        let mut count = room / step + 1;
        if ceil && room % step != 0 {
            // The last window must start inside the input or the padding before it.
            let starts_inside = count * step < size + first;
            count += i64::from(starts_inside);
        }
        before.push(first);
        out.push(count as usize);
    }
    Ok(Window { kernel, strides: steps, dilations, before, out })
}

impl Window {
    /// Calls `visit` with kernel place and input place for each input element under the window at `out`.
    pub(crate) fn visit(&self, spatial: &[usize], out: usize, mut visit: impl FnMut(usize, usize)) {
        let rank = spatial.len();
        let (out_strides, in_strides) = (strides(&self.out), strides(spatial));
        let kernel_strides = strides(&self.kernel);
        'places: for place in 0..product(&self.kernel) {
            let mut input = 0;
            for axis in 0..rank {
                let at = out / out_strides[axis] % self.out[axis];
                let within = place / kernel_strides[axis] % self.kernel[axis];
                let position =
                    (at * self.strides[axis] + within * self.dilations[axis]) as i64 - self.before[axis];
                match usize::try_from(position) {
                    Ok(position) if position < spatial[axis] => input += position * in_strides[axis],
                    _ => continue 'places,
                }
            }
            visit(place, input);
        }
    }
}

/// Shapes of a convolution.
struct Layout {
    batch: usize,
    channels: usize,
    filters: usize,
    groups: usize,
    spatial: Vec<usize>,
    window: Window,
}

fn layout(call: &Call<'_>, x: &Tensor, w: &Tensor) -> Result<Layout, OpError> {
    let ([batch, channels, spatial @ ..], [filters, depth, kernel @ ..]) = (x.shape(), w.shape()) else {
        return Err(call.invalid(format!(
            "shapes {:?} and {:?} are no input and weights",
            x.shape(),
            w.shape()
        )));
    };
    let groups = call.node.int("group").unwrap_or(1);
    let groups = usize::try_from(groups).ok().filter(|&groups| groups > 0);
    let groups = groups.ok_or_else(|| call.invalid("`group` is not positive"))?;
    if spatial.is_empty() || spatial.len() != kernel.len() {
        return Err(call.invalid(format!("{} spatial axes and a kernel of {}", spatial.len(), kernel.len())));
    }
    if depth.checked_mul(groups) != Some(*channels) || filters % groups != 0 {
        return Err(call.invalid(format!(
            "{channels} channels, {filters} filters of {depth} and {groups} groups do not fit"
        )));
    }
    if let Some(declared) = call.node.ints("kernel_shape")
        && declared.iter().map(|&size| usize::try_from(size).ok()).ne(kernel.iter().map(|&size| Some(size)))
    {
        return Err(call.invalid(format!("`kernel_shape` is {declared:?} and the weights say {kernel:?}")));
    }
    if kernel.contains(&0) {
        return Err(call.invalid("the kernel is empty"));
    }
    let window = window(call, spatial, kernel.to_vec())?;
    let shape = [vec![*batch, *filters], window.out.clone()].concat();
    call.check_size(DType::F64, &shape)?;
    let steps = (product(&shape) as u64).saturating_mul(product(kernel) as u64).saturating_mul(*depth as u64);
    if steps > MOST_STEPS {
        return Err(call.unsupported(format!("a convolution of {steps} products")));
    }
    Ok(Layout {
        batch: *batch,
        channels: *channels,
        filters: *filters,
        groups,
        spatial: spatial.to_vec(),
        window,
    })
}

impl Layout {
    fn shape(&self) -> Vec<usize> {
        [vec![self.batch, self.filters], self.window.out.clone()].concat()
    }

    fn run<T: Copy + Default>(&self, x: &[T], w: &[T], plus_product: fn(T, T, T) -> T) -> Vec<T> {
        let (size, places) = (product(&self.spatial), product(&self.window.kernel));
        let out_size = product(&self.window.out);
        let depth = self.channels / self.groups;
        let filters_a_group = self.filters / self.groups;
        let mut out = vec![T::default(); product(&self.shape())];
        for at in 0..if out.is_empty() { 0 } else { out_size } {
            let mut pairs = Vec::with_capacity(places);
            self.window.visit(&self.spatial, at, |place, input| pairs.push((place, input)));
            for batch in 0..self.batch {
                for filter in 0..self.filters {
                    let first = filter / filters_a_group.max(1) * depth;
                    let mut sum = T::default();
                    for channel in 0..depth {
                        let image = &x[(batch * self.channels + first + channel) * size..];
                        let weights = &w[(filter * depth + channel) * places..];
                        for &(place, input) in &pairs {
                            sum = plus_product(sum, image[input], weights[place]);
                        }
                    }
                    out[(batch * self.filters + filter) * out_size + at] = sum;
                }
            }
        }
        out
    }
}

pub(crate) fn conv(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (call.input(0)?, call.input(1)?);
    if x.dtype() != w.dtype() {
        return Err(call.invalid(format!("input and weights are {} and {}", x.dtype(), w.dtype())));
    }
    let layout = layout(call, x, w)?;
    let (Numbers::Floats(values), Numbers::Floats(weights)) = (Numbers::of(call, x)?, Numbers::of(call, w)?)
    else {
        return Err(call.wrong_type(0, x.dtype()));
    };
    let mut out = layout.run(&values, &weights, |sum, a, b| sum + a * b);
    if let Some(bias) = call.optional(2) {
        let bias = bias.to_f64s().map_err(|error| call.tensor_error(error))?;
        if bias.len() != layout.filters {
            return Err(call.invalid(format!("{} biases for {} filters", bias.len(), layout.filters)));
        }
        let size = product(&layout.window.out).max(1);
        out.iter_mut().enumerate().for_each(|(index, value)| *value += bias[index / size % bias.len()]);
    }
    Ok(vec![Numbers::Floats(out).tensor(call, x.dtype(), layout.shape())?])
}

/// Integers minus their zero point; a list of zero points goes along the first axis.
fn shifted(call: &Call<'_>, slot: usize, zero_slot: usize) -> Result<Vec<i64>, OpError> {
    let tensor = call.input(slot)?;
    let mut values = tensor.to_i64s().map_err(|error| call.tensor_error(error))?;
    let Some(zero) = call.optional(zero_slot) else { return Ok(values) };
    let zeros = zero.to_i64s().map_err(|error| call.tensor_error(error))?;
    let rows = tensor.shape().first().copied().unwrap_or(1);
    if zeros.is_empty() || (zeros.len() != 1 && zeros.len() != rows) {
        return Err(call.invalid(format!("{} zero points for {rows} filters", zeros.len())));
    }
    let row = (values.len() / rows.max(1)).max(1);
    values.iter_mut().enumerate().for_each(|(index, value)| *value -= zeros[index / row % zeros.len()]);
    Ok(values)
}

fn integer_step(sum: i64, a: i64, b: i64) -> i64 {
    sum.wrapping_add(a.wrapping_mul(b))
}

fn conv_integer(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let layout = layout(call, call.input(0)?, call.input(1)?)?;
    let out = layout.run(&shifted(call, 0, 2)?, &shifted(call, 1, 3)?, integer_step);
    Ok(vec![integer_tensor(call, DType::I32, layout.shape(), &out)?])
}

fn q_linear_conv(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let layout = layout(call, call.input(0)?, call.input(3)?)?;
    let mut sums = layout.run(&shifted(call, 0, 2)?, &shifted(call, 3, 5)?, integer_step);
    let floats = |slot: usize| -> Result<Vec<f64>, OpError> {
        let values = call.input(slot)?.to_f64s().map_err(|error| call.tensor_error(error))?;
        if values.is_empty() { Err(call.invalid(format!("input {slot} is empty"))) } else { Ok(values) }
    };
    let (x_scale, w_scales, y_scale) = (floats(1)?, floats(4)?, floats(6)?);
    let zero = call.input(7)?;
    let zero_point = zero.to_i64s().ok().and_then(|zeros| zeros.first().copied()).unwrap_or(0);
    let size = product(&layout.window.out).max(1);
    if w_scales.len() != 1 && w_scales.len() != layout.filters {
        return Err(call.invalid(format!("{} weight scales for {} filters", w_scales.len(), layout.filters)));
    }
    if let Some(bias) = call.optional(8) {
        let bias = bias.to_i64s().map_err(|error| call.tensor_error(error))?;
        if bias.len() != layout.filters {
            return Err(call.invalid(format!("{} biases for {} filters", bias.len(), layout.filters)));
        }
        sums.iter_mut().enumerate().for_each(|(index, sum)| *sum += bias[index / size % bias.len()]);
    }
    let Some((low, high)) = zero.dtype().integer_range() else {
        return Err(call.wrong_type(7, zero.dtype()));
    };
    let integers: Vec<i64> = sums
        .iter()
        .enumerate()
        .map(|(index, &sum)| {
            let scale = x_scale[0] * w_scales[index / size % w_scales.len()] / y_scale[0];
            let real = f64::from((sum as f64 * scale) as f32).round_ties_even();
            (real + zero_point as f64).clamp(low as f64, high as f64) as i64
        })
        .collect();
    Ok(vec![integer_tensor(call, zero.dtype(), layout.shape(), &integers)?])
}

/// The transposed convolution: every input element adds its multiple of the kernel to the output.
fn conv_transpose(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (call.input(0)?, call.input(1)?);
    let ([batch, channels, spatial @ ..], [w_channels, depth, kernel @ ..]) = (x.shape(), w.shape()) else {
        return Err(call.invalid(format!(
            "shapes {:?} and {:?} are no input and weights",
            x.shape(),
            w.shape()
        )));
    };
    let rank = spatial.len();
    let groups = usize::try_from(call.node.int("group").unwrap_or(1)).ok().filter(|&groups| groups > 0);
    let groups = groups.ok_or_else(|| call.invalid("`group` is not positive"))?;
    if rank == 0
        || rank != kernel.len()
        || channels != w_channels
        || channels % groups != 0
        || kernel.contains(&0)
    {
        return Err(call.invalid(format!("shapes {:?} and {:?} do not fit", x.shape(), w.shape())));
    }
    let (steps, dilations) = (list(call, "strides", rank, 1)?, list(call, "dilations", rank, 1)?);
    let extra = call.node.ints("output_padding").map_or_else(|| vec![0; rank], <[i64]>::to_vec);
    let wanted = call.node.ints("output_shape");
    let given = pads(call, rank)?;
    let auto = call.node.string("auto_pad").unwrap_or("NOTSET");
    if extra.len() != rank || wanted.is_some_and(|wanted| wanted.len() < rank) {
        return Err(
            call.invalid("`output_padding` or `output_shape` has another length than there are spatial axes")
        );
    }
    let (mut before, mut out) = (Vec::new(), Vec::new());
    for axis in 0..rank {
        let span = (kernel[axis] as i64 - 1) * dilations[axis] as i64 + 1;
        let full = (spatial[axis] as i64 - 1) * steps[axis] as i64 + extra[axis] + span;
        let (first, size) = match wanted {
            Some(wanted) => {
                let size = wanted[wanted.len() - rank + axis];
                let total = (full - size).max(0);
                (if auto == "SAME_UPPER" { total / 2 } else { total - total / 2 }, size)
            }
            None if auto.starts_with("SAME") => {
                let size = spatial[axis] as i64 * steps[axis] as i64;
                let total = (full - size).max(0);
                (if auto == "SAME_UPPER" { total / 2 } else { total - total / 2 }, size)
            }
            None => (given[axis], full - given[axis] - given[axis + rank]),
        };
        let size =
            usize::try_from(size).map_err(|_| call.invalid("the output would have a negative size"))?;
        before.push(first);
        out.push(size);
    }
    let filters = depth.saturating_mul(groups);
    let shape = [vec![*batch, filters], out.clone()].concat();
    call.check_size(DType::F64, &shape)?;
    let (Numbers::Floats(values), Numbers::Floats(weights)) = (Numbers::of(call, x)?, Numbers::of(call, w)?)
    else {
        return Err(call.wrong_type(0, x.dtype()));
    };
    let (size, places, out_size) = (product(spatial), product(kernel), product(&out));
    let (in_strides, kernel_strides, out_strides) = (strides(spatial), strides(kernel), strides(&out));
    let mut result = vec![0f64; product(&shape)];
    let channels_a_group = channels / groups;
    for at in 0..if values.is_empty() { 0 } else { size } {
        for place in 0..places {
            let mut target = Some(0);
            for axis in 0..rank {
                let along = at / in_strides[axis] % spatial[axis] * steps[axis];
                let within = place / kernel_strides[axis] % kernel[axis] * dilations[axis];
                let position = usize::try_from((along + within) as i64 - before[axis]).ok();
                let position = position.filter(|&position| position < out[axis]);
                target = target.zip(position).map(|(sum, position)| sum + position * out_strides[axis]);
            }
            let Some(target) = target else { continue };
            for sample in 0..*batch {
                for channel in 0..*channels {
                    let value = values[(sample * channels + channel) * size + at];
                    let group = channel / channels_a_group;
                    for filter in 0..*depth {
                        let weight = weights[(channel * depth + filter) * places + place];
                        result[(sample * filters + group * depth + filter) * out_size + target] +=
                            value * weight;
                    }
                }
            }
        }
    }
    if let Some(bias) = call.optional(2) {
        let bias = bias.to_f64s().map_err(|error| call.tensor_error(error))?;
        if bias.len() != filters {
            return Err(call.invalid(format!("{} biases for {filters} filters", bias.len())));
        }
        result
            .iter_mut()
            .enumerate()
            .for_each(|(index, value)| *value += bias[index / out_size.max(1) % filters]);
    }
    Ok(vec![Numbers::Floats(result).tensor(call, x.dtype(), shape)?])
}

pub(crate) fn pool_window(call: &Call<'_>) -> Result<(Window, Vec<usize>, usize), OpError> {
    let x = call.input(0)?;
    let [batch, channels, spatial @ ..] = x.shape() else {
        return Err(call.invalid(format!("shape {:?} has no batch and channels", x.shape())));
    };
    let kernel = list(call, "kernel_shape", spatial.len(), 1)?;
    let window = window(call, spatial, kernel)?;
    call.check_size(DType::F64, &[&[*batch, *channels], window.out.as_slice()].concat())?;
    let steps = (product(&window.out) as u64).saturating_mul(product(&window.kernel) as u64);
    if steps > MOST_STEPS {
        return Err(call.unsupported(format!("a pool of {steps} steps")));
    }
    Ok((window, spatial.to_vec(), batch * channels))
}

fn max_pool(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let (window, spatial, images) = pool_window(call)?;
    let (size, out_size) = (product(&spatial), product(&window.out));
    let by_column = call.node.int("storage_order").unwrap_or(0) != 0;
    let all = x.to_f64s().map_err(|error| call.tensor_error(error))?;
    let (mut found, mut places) = (vec![0f64; images * out_size], vec![0i64; images * out_size]);
    for at in 0..if images == 0 { 0 } else { out_size } {
        let mut inputs = Vec::new();
        window.visit(&spatial, at, |_, input| inputs.push(input));
        for image in 0..images {
            let values = &all[image * size..(image + 1) * size];
            let best = inputs.iter().copied().reduce(|best, next| {
                if values[next] > values[best] || values[next].is_nan() && !values[best].is_nan() {
                    next
                } else {
                    best
                }
            });
            let target = image * out_size + at;
            match best {
                Some(best) => {
                    found[target] = values[best];
                    places[target] =
                        (image * size + if by_column { column_major(&spatial, best) } else { best }) as i64;
                }
                // Only padding under the window.
                None => found[target] = f64::NEG_INFINITY,
            }
        }
    }
    let shape = [&x.shape()[..2], window.out.as_slice()].concat();
    let values = match Numbers::of(call, x)? {
        Numbers::Floats(_) => Numbers::Floats(found).tensor(call, x.dtype(), shape.clone())?,
        Numbers::Integers(_) => {
            let (low, _) = x.dtype().integer_range().unwrap_or((0, 1));
            let whole: Vec<i64> =
                found.iter().map(|&x| if x.is_finite() { x as i64 } else { low as i64 }).collect();
            integer_tensor(call, x.dtype(), shape.clone(), &whole)?
        }
    };
    Ok(vec![values, Tensor::from_vec(shape, places)])
}

/// A place in a row-major box as its place in the column-major one.
fn column_major(shape: &[usize], place: usize) -> usize {
    let steps = strides(shape);
    let (mut result, mut step) = (0, 1);
    for axis in 0..shape.len() {
        result += place / steps[axis] % shape[axis] * step;
        step *= shape[axis];
    }
    result
}

pub(crate) fn average_pool(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let (window, spatial, images) = pool_window(call)?;
    let (size, out_size) = (product(&spatial), product(&window.out));
    let with_padding = call.node.int("count_include_pad").unwrap_or(0) != 0;
    let given = pads(call, spatial.len())?;
    let auto = !matches!(call.node.string("auto_pad").unwrap_or("NOTSET"), "NOTSET" | "");
    let Numbers::Floats(all) = Numbers::of(call, x)? else { return Err(call.wrong_type(0, x.dtype())) };
    let out_strides = strides(&window.out);
    let mut result = vec![0f64; images * out_size];
    for at in 0..if images == 0 { 0 } else { out_size } {
        let mut inputs = Vec::new();
        window.visit(&spatial, at, |_, input| inputs.push(input));
        let count = if with_padding {
            // Padding counts, what lies beyond it (a last window made by rounding up) does not.
            (0..spatial.len())
                .map(|axis| {
                    let start = (at / out_strides[axis] % window.out[axis] * window.strides[axis]) as i64
                        - window.before[axis];
                    let after = if auto { i64::MAX / 2 } else { given[axis + spatial.len()] };
                    let end = (spatial[axis] as i64).saturating_add(after);
                    (0..window.kernel[axis] as i64)
                        .filter(|within| start + within * (window.dilations[axis] as i64) < end)
                        .count()
                })
                .product()
        } else {
            inputs.len()
        };
        for image in 0..images {
            let sum: f64 = inputs.iter().map(|&input| all[image * size + input]).sum();
            result[image * out_size + at] = sum / count as f64;
        }
    }
    let shape = [&x.shape()[..2], window.out.as_slice()].concat();
    Ok(vec![Numbers::Floats(result).tensor(call, x.dtype(), shape)?])
}

pub(crate) fn global(call: &Call<'_>, join: impl Fn(&[f64]) -> f64) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let [_, _, spatial @ ..] = x.shape() else {
        return Err(call.invalid(format!("shape {:?} has no batch and channels", x.shape())));
    };
    let Numbers::Floats(values) = Numbers::of(call, x)? else { return Err(call.wrong_type(0, x.dtype())) };
    let size = product(spatial);
    if size == 0 {
        return Err(call.invalid("there is nothing to pool"));
    }
    let results: Vec<f64> = values.chunks(size).map(join).collect();
    let mut shape = x.shape().to_vec();
    shape[2..].fill(1);
    Ok(vec![Numbers::Floats(results).tensor(call, x.dtype(), shape)?])
}

pub(crate) fn global_average_pool(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    global(call, |values| values.iter().sum::<f64>() / values.len() as f64)
}

fn global_max_pool(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    global(call, |values| {
        values.iter().copied().reduce(|a, b| if a.is_nan() || a > b { a } else { b }).unwrap_or(0.0)
    })
}
