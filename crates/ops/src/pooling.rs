//! Pools by norm, and the way back from pools and blocks to images: LpPool, GlobalLpPool, MaxUnpool, Col2Im.
//!
//! <https://onnx.ai/onnx/operators/onnx__LpPool.html>,
//! <https://onnx.ai/onnx/operators/onnx__GlobalLpPool.html>,
//! <https://onnx.ai/onnx/operators/onnx__MaxUnpool.html>,
//! <https://onnx.ai/onnx/operators/onnx__Col2Im.html>

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::conv::{global, list, pads, pool_window};
use crate::movement::{Run, assemble, integers, product, sizes, strides};
use crate::numbers::Numbers;

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("LpPool", 2, lp_pool),
    KernelSpec::onnx("GlobalLpPool", 2, global_lp_pool),
    KernelSpec::onnx("MaxUnpool", 9, max_unpool),
    KernelSpec::onnx("Col2Im", 18, col2im),
];

fn power(call: &Call<'_>) -> Result<f64, OpError> {
    match call.node.int("p").unwrap_or(2) {
        p if p > 0 => Ok(p as f64),
        p => Err(call.invalid(format!("`p` is {p}; it must be positive"))),
    }
}

/// The p-norm, computed such that no power overflows.
pub(crate) fn norm(values: impl Iterator<Item = f64> + Clone, p: f64) -> f64 {
    let sum: f64 = values.clone().map(|x| if p == 2.0 { x * x } else { x.abs().powf(p) }).sum();
    let root = if p == 2.0 { sum.sqrt() } else { sum.powf(1.0 / p) };
    if root.is_nan() || (1e-150..1e150).contains(&sum) {
        return root;
    }
    let greatest = values.clone().fold(0.0, |greatest: f64, x| greatest.max(x.abs()));
    if greatest == 0.0 || greatest == f64::INFINITY {
        return greatest;
    }
    greatest * values.map(|x| (x.abs() / greatest).powf(p)).sum::<f64>().powf(1.0 / p)
}

fn lp_pool(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, p) = (call.input(0)?, power(call)?);
    let (window, spatial, images) = pool_window(call)?;
    let Numbers::Floats(all) = Numbers::of(call, x)? else { return Err(call.wrong_type(0, x.dtype())) };
    let (size, out_size) = (product(&spatial), product(&window.out));
    let mut result = vec![0f64; images * out_size];
    for at in 0..out_size {
        let mut inputs = Vec::new();
        window.visit(&spatial, at, |_, input| inputs.push(input));
        for image in 0..images {
            result[image * out_size + at] = norm(inputs.iter().map(|&input| all[image * size + input]), p);
        }
    }
    let shape = [&x.shape()[..2], window.out.as_slice()].concat();
    Ok(vec![Numbers::Floats(result).tensor(call, x.dtype(), shape)?])
}

fn global_lp_pool(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let p = power(call)?;
    global(call, |values| norm(values.iter().copied(), p))
}

/// Puts every element at its index in the image that was pooled, zeros elsewhere.
fn max_unpool(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, indices) = (call.input(0)?, integers(call, 1)?);
    let [batch, channels, spatial @ ..] = x.shape() else {
        return Err(call.invalid(format!("shape {:?} has no batch and channels", x.shape())));
    };
    let rank = spatial.len();
    let kernel = call.node.ints("kernel_shape").ok_or_else(|| call.invalid("`kernel_shape` is missing"))?;
    if indices.len() != x.len() || kernel.len() != rank {
        return Err(call.invalid(format!("{} indices for shape {:?}", indices.len(), x.shape())));
    }
    let (kernel, steps) = (list(call, "kernel_shape", rank, 1)?, list(call, "strides", rank, 1)?);
    let padding = pads(call, rank)?;
    let pooled = (0..rank).map(|axis| {
        let size = (spatial[axis] as i64 - 1).saturating_mul(steps[axis] as i64) + kernel[axis] as i64
            - padding[axis]
            - padding[axis + rank];
        usize::try_from(size).map_err(|_| call.invalid("the output would have a negative size"))
    });
    let pooled = [Ok(*batch), Ok(*channels)].into_iter().chain(pooled).collect::<Result<Vec<_>, _>>()?;
    // Indices count in the shape that follows from the attributes; a given one may have more room.
    let shape = match call.optional(2) {
        Some(_) => sizes(call, &integers(call, 2)?)?,
        None => pooled.clone(),
    };
    if shape.len() != pooled.len() || shape.iter().zip(&pooled).any(|(given, least)| given < least) {
        return Err(call.unsupported(format!("an output of {shape:?} for what makes {pooled:?}")));
    }
    call.check_size(DType::I64, &shape)?;
    let (from, to) = (strides(&pooled), strides(&shape));
    let count = product(&pooled);
    let mut sources = vec![None; product(&shape)];
    for (source, &index) in indices.iter().enumerate() {
        let index = usize::try_from(index).ok().filter(|&index| index < count);
        let index = index.ok_or_else(|| call.invalid("an index is outside of the output"))?;
        let place: usize = (0..pooled.len()).map(|axis| index / from[axis] % pooled[axis] * to[axis]).sum();
        sources[place] = Some(source);
    }
    let zero = Tensor::zeros(x.dtype(), vec![1]).map_err(|error| call.tensor_error(error))?;
    let runs = sources.into_iter().map(|source| source.map_or(Run::one(1, 0), |at| Run::one(0, at)));
    Ok(vec![assemble(call, &[x, &zero], shape, runs)?])
}

/// Adds up columns of blocks that slide over an image.
fn col2im(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let (image, block) = (sizes(call, &integers(call, 1)?)?, sizes(call, &integers(call, 2)?)?);
    let &[batch, rows, columns] = x.shape() else {
        return Err(call.invalid(format!("shape {:?} is not that of columns", x.shape())));
    };
    let rank = image.len();
    if block.len() != rank
        || rank == 0
        || block.iter().chain(&image).any(|&size| !(1..1 << 31).contains(&size))
    {
        return Err(call.invalid(format!("image {image:?} and block {block:?} do not fit")));
    }
    let (steps, dilations) = (list(call, "strides", rank, 1)?, list(call, "dilations", rank, 1)?);
    let padding = pads(call, rank)?;
    let blocks = (0..rank).map(|axis| {
        let room = image[axis] as i64 + padding[axis] + padding[axis + rank]
            - (block[axis] as i64 - 1) * dilations[axis] as i64
            - 1;
        usize::try_from(room).map(|room| room / steps[axis] + 1).unwrap_or(0)
    });
    let blocks: Vec<usize> = blocks.collect();
    let places = product(&block);
    if rows % places != 0 || product(&blocks) != columns {
        return Err(call.invalid(format!(
            "shape {:?} is not that of columns of blocks {block:?}, {blocks:?} of them",
            x.shape()
        )));
    }
    let shape = [&[batch, rows / places], image.as_slice()].concat();
    call.check_size(DType::F64, &shape)?;
    let size = product(&image);
    let (image_strides, block_strides, blocks_strides) = (strides(&image), strides(&block), strides(&blocks));
    // Where in the image an element of a block lies; nowhere for padding.
    let place = |row: usize, column: usize| -> Option<usize> {
        let mut place = 0;
        for axis in 0..rank {
            let at = column / blocks_strides[axis] % blocks[axis] * steps[axis];
            let within = row / block_strides[axis] % block[axis] * dilations[axis];
            let position = usize::try_from((at + within) as i64 - padding[axis]).ok()?;
            place += (position < image[axis]).then_some(position)? * image_strides[axis];
        }
        Some(place)
    };
    fn add<T: Copy + Default>(
        values: &[T],
        (columns, places, size): (usize, usize, usize),
        place: impl Fn(usize, usize) -> Option<usize>,
        plus: fn(T, T) -> T,
    ) -> Vec<T> {
        let images = values.len() / (places * columns).max(1);
        let mut result = vec![T::default(); images * size];
        for row in 0..places {
            for column in 0..columns {
                let Some(at) = place(row, column) else { continue };
                for image in 0..images {
                    let value = values[(image * places + row) * columns + column];
                    let target = &mut result[image * size + at];
                    *target = plus(*target, value);
                }
            }
        }
        result
    }
    let layout = (columns, places, size);
    if x.dtype() == DType::Bool {
        return Err(call.wrong_type(0, x.dtype()));
    }
    if x.is_empty() {
        return Ok(vec![Tensor::zeros(x.dtype(), shape).map_err(|error| call.tensor_error(error))?]);
    }
    let result = match Numbers::of(call, x)? {
        Numbers::Floats(values) => Numbers::Floats(add(&values, layout, place, |a, b| a + b)),
        Numbers::Integers(values) => Numbers::Integers(add(&values, layout, place, i64::wrapping_add)),
    };
    Ok(vec![result.tensor(call, x.dtype(), shape)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    #[test]
    fn norms_neither_overflow_nor_vanish() {
        let of = |values: &[f64], p: f64| norm(values.iter().copied(), p);
        assert_eq!(of(&[3.0, -4.0], 2.0), 5.0);
        assert!((of(&[3e200, 4e200], 2.0) / 5e200 - 1.0).abs() < 1e-12);
        assert!((of(&[1e-200, 1e-200], 3.0) / 2f64.cbrt() / 1e-200 - 1.0).abs() < 1e-12);
        assert_eq!(of(&[0.0, 0.0], 3.0), 0.0);
        assert_eq!(of(&[f64::INFINITY, 1.0], 2.0), f64::INFINITY);
        assert!(of(&[f64::NAN, 1.0], 2.0).is_nan());
    }

    #[test]
    fn pools_by_norm_are_those_of_onnxruntime() {
        let image = Tensor::from_vec(vec![1, 1, 2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 7.0]);
        let node = Node::new("LpPool", []).with("p", 3).with("kernel_shape", vec![2i64, 2]);
        let node = node.with("pads", vec![0i64, 0, 0, 1]);
        let result = lp_pool(&Call::new(&node, 18, &[Some(&image)])).unwrap()[0].to_f64s().unwrap();
        for (got, expected) in result.iter().zip([5.828_477, 7.952_848, 7.179_054_7]) {
            assert!((got - expected).abs() < 1e-5, "{result:?}");
        }
    }

    #[test]
    fn indices_and_blocks_are_checked() {
        let image = Tensor::from_vec(vec![1, 1, 1, 1], vec![1f32]);
        let node = Node::new("MaxUnpool", []).with("kernel_shape", vec![2i64, 2]);
        for index in [-1, 4, i64::MAX] {
            let indices = Tensor::from_vec(vec![1, 1, 1, 1], vec![index]);
            assert!(max_unpool(&Call::new(&node, 11, &[Some(&image), Some(&indices)])).is_err());
        }
        let columns = Tensor::from_vec(vec![1, 4, 2], (1..9).map(|value| value as f32).collect::<Vec<_>>());
        let run = |image: &[i64], block: &[i64]| {
            let (image, block) = (Tensor::from_i64s(image), Tensor::from_i64s(block));
            let node = Node::new("Col2Im", []);
            col2im(&Call::new(&node, 18, &[Some(&columns), Some(&image), Some(&block)]))
        };
        assert_eq!(run(&[2, 3], &[2, 2]).unwrap()[0].to_f64s().unwrap(), [1.0, 5.0, 4.0, 5.0, 13.0, 8.0]);
        for (image, block) in [([2, 4], [2, 2]), ([0, 3], [2, 2]), ([2, 3], [0, 2]), ([1 << 62, 3], [2, 2])] {
            assert!(run(&image, &block).is_err(), "{image:?} {block:?}");
        }
    }
}
