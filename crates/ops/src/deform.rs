//! Convolution at displaced places: DeformConv.
//!
//! <https://onnx.ai/onnx/operators/onnx__DeformConv.html>

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::conv::{MOST_STEPS, list, pads};
use crate::movement::product;
use crate::numbers::{Numbers, float_tensor};

pub(crate) static KERNELS: &[KernelSpec] = &[KernelSpec::onnx("DeformConv", 19, deform_conv)];

/// The four elements around a place and their weights; those outside of the image count as zero.
fn around(y: f64, x: f64, height: usize, width: usize) -> impl Iterator<Item = (usize, f64)> {
    let (top, left) = (y.floor(), x.floor());
    let (dy, dx) = (y - top, x - left);
    let corners = [
        (top, left, (1.0 - dy) * (1.0 - dx)),
        (top, left + 1.0, (1.0 - dy) * dx),
        (top + 1.0, left, dy * (1.0 - dx)),
        (top + 1.0, left + 1.0, dy * dx),
    ];
    let inside = move |&(y, x, _): &(f64, f64, f64)| {
        (0.0..height as f64).contains(&y) && (0.0..width as f64).contains(&x)
    };
    corners.into_iter().filter(inside).map(move |(y, x, weight)| (y as usize * width + x as usize, weight))
}

fn deform_conv(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, w, offsets) = (call.input(0)?, call.input(1)?, call.input(2)?);
    if x.rank() != 4 {
        return Err(call.unsupported(format!("an input of rank {}", x.rank())));
    }
    let (&[batch, channels, height, width], &[filters, depth, rows, columns]) = (x.shape(), w.shape()) else {
        return Err(call.invalid(format!("shapes {:?} and {:?} do not fit", x.shape(), w.shape())));
    };
    let count = |name: &str| {
        let value = call.node.int(name).unwrap_or(1);
        let value = usize::try_from(value).ok().filter(|&groups| groups > 0);
        value.ok_or_else(|| call.invalid(format!("`{name}` is not positive")))
    };
    let (groups, offset_groups) = (count("group")?, count("offset_group")?);
    let (steps, dilations) = (list(call, "strides", 2, 1)?, list(call, "dilations", 2, 1)?);
    let padding = pads(call, 2)?;
    let places = rows * columns;
    if depth.checked_mul(groups) != Some(channels)
        || filters % groups != 0
        || channels % offset_groups != 0
        || places == 0
    {
        return Err(call.invalid(format!("shapes {:?} and {:?} do not fit", x.shape(), w.shape())));
    }
    if let Some(declared) = call.node.ints("kernel_shape")
        && declared != [rows as i64, columns as i64]
    {
        return Err(
            call.invalid(format!("`kernel_shape` is {declared:?} and the weights say {rows}, {columns}"))
        );
    }
    let out = [(height, rows), (width, columns)].into_iter().enumerate().map(|(axis, (size, kernel))| {
        let span = (kernel as i64 - 1) * dilations[axis] as i64 + 1;
        let room = size as i64 + padding[axis] + padding[axis + 2] - span;
        usize::try_from(room).map(|room| room / steps[axis] + 1)
    });
    let out: Vec<usize> =
        out.collect::<Result<_, _>>().map_err(|_| call.invalid("the kernel does not fit the image"))?;
    let fits = |tensor: &Tensor, a_place: usize| {
        let planes = offset_groups.saturating_mul(places).saturating_mul(a_place);
        tensor.shape() == [batch, planes, out[0], out[1]]
    };
    let mask = call.optional(4);
    if !fits(offsets, 2) || mask.is_some_and(|mask| !fits(mask, 1)) {
        return Err(call.invalid(format!("offsets {:?} do not fit an output of {out:?}", offsets.shape())));
    }
    let shape = [batch, filters, out[0], out[1]];
    call.check_size(DType::F64, &shape)?;
    let work = (product(&shape) as u64).saturating_mul(places as u64).saturating_mul(depth as u64);
    if work > MOST_STEPS {
        return Err(call.unsupported(format!("a convolution of {work} products")));
    }
    let floats = |tensor: &Tensor, slot: usize| match Numbers::of(call, tensor)? {
        Numbers::Floats(values) => Ok(values),
        Numbers::Integers(_) => Err(call.wrong_type(slot, tensor.dtype())),
    };
    let (values, weights, offsets) = (floats(x, 0)?, floats(w, 1)?, floats(offsets, 2)?);
    let mask = mask.map(|mask| floats(mask, 4)).transpose()?;
    let bias = call.optional(3).map(|bias| floats(bias, 3)).transpose()?;
    if bias.as_ref().is_some_and(|bias| bias.len() != filters) {
        return Err(call.invalid(format!("the bias is not of {filters} filters")));
    }
    let (size, out_size) = (height * width, out[0] * out[1]);
    let mut result = vec![0f64; product(&shape)];
    for sample in 0..batch {
        for at in 0..out_size {
            let (down, across) = (at / out[1] * steps[0], at % out[1] * steps[1]);
            // What every channel gives at every place of the kernel.
            let mut seen = vec![0f64; channels * places];
            for (index, seen) in seen.iter_mut().enumerate() {
                let (channel, place) = (index / places, index % places);
                let group = sample * offset_groups + channel / (channels / offset_groups);
                let plane = |index: usize| index * out_size + at;
                let moved = |axis: usize| offsets[plane((group * places + place) * 2 + axis)];
                let y = (down + place / columns * dilations[0]) as f64 - padding[0] as f64 + moved(0);
                let x = (across + place % columns * dilations[1]) as f64 - padding[1] as f64 + moved(1);
                let image = &values[(sample * channels + channel) * size..];
                *seen = around(y, x, height, width).map(|(place, weight)| image[place] * weight).sum();
                if let Some(mask) = &mask {
                    *seen *= mask[plane(group * places + place)];
                }
            }
            for filter in 0..filters {
                let first = filter / (filters / groups) * depth * places;
                let kernel = &weights[filter * depth * places..(filter + 1) * depth * places];
                let sum: f64 = kernel.iter().zip(&seen[first..]).map(|(a, b)| a * b).sum();
                let bias = bias.as_ref().map_or(0.0, |bias| bias[filter]);
                result[(sample * filters + filter) * out_size + at] = sum + bias;
            }
        }
    }
    Ok(vec![float_tensor(call, x.dtype(), shape.to_vec(), &result)?])
}
