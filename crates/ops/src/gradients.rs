//! What graphs of gradients need beside the standard's operators (domain `ai.optix`, on 32-bit floats).

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::conv::{MOST_STEPS, pool_window, window};
use crate::movement::{broadcast, common_shape, product};

/// The domain.
const DOMAIN: &str = "ai.optix";

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::of(DOMAIN, "ConvGradWeights", 1, conv_grad_weights),
    KernelSpec::of(DOMAIN, "MaxPoolGrad", 1, max_pool_grad),
    KernelSpec::of(DOMAIN, "WherePositive", 1, |call| masked(call, |x| x > 0.0)),
    KernelSpec::of(DOMAIN, "WhereZero", 1, |call| masked(call, |x| x == 0.0)),
];

fn floats<'a>(call: &Call<'a>, slot: usize) -> Result<(&'a Tensor, std::borrow::Cow<'a, [f32]>), OpError> {
    let tensor = call.input(slot)?;
    if tensor.dtype() != DType::F32 {
        return Err(call.wrong_type(slot, tensor.dtype()));
    }
    Ok((tensor, tensor.to_slice::<f32>().map_err(|error| call.tensor_error(error))?))
}

/// The gradient of a convolution's weights: for `x` of shape `[N, C, ...]` and the gradient `dy` of its result, of
/// shape `[N, F, ...]`, `[F, C / group, kernel...]`.
fn conv_grad_weights(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let ((x, inputs), (dy, gradients)) = (floats(call, 0)?, floats(call, 1)?);
    let ([batch, channels, spatial @ ..], [other, filters, out @ ..]) = (x.shape(), dy.shape()) else {
        return Err(call.invalid("an input and a gradient have samples and channels"));
    };
    let kernel = crate::conv::list(call, "kernel_shape", spatial.len(), 0)?;
    let groups = usize::try_from(call.node.int("group").unwrap_or(1)).ok().filter(|&groups| groups > 0);
    let groups = groups.ok_or_else(|| call.invalid("`group` is not positive"))?;
    if batch != other || spatial.len() != out.len() || channels % groups != 0 || filters % groups != 0 {
        return Err(call.invalid(format!(
            "{:?} and {:?} in {groups} groups do not fit",
            x.shape(),
            dy.shape()
        )));
    }
    if kernel.contains(&0) {
        return Err(call.invalid("`kernel_shape` is missing"));
    }
    let window = window(call, spatial, kernel.clone())?;
    if window.out != out {
        return Err(call.invalid(format!("a window over {spatial:?} gives {:?}, not {out:?}", window.out)));
    }
    let depth = channels / groups;
    let shape = [vec![*filters, depth], kernel.clone()].concat();
    call.check_size(DType::F64, &shape)?;
    let (size, places, results) = (product(spatial), product(&kernel), product(out));
    let steps = (product(&shape) as u64).saturating_mul(*batch as u64).saturating_mul(results as u64);
    if steps > MOST_STEPS {
        return Err(call.unsupported(format!("a convolution of {steps} products")));
    }
    let mut sums = vec![0f64; product(&shape)];
    for at in 0..if sums.is_empty() { 0 } else { results } {
        let mut pairs = Vec::with_capacity(places);
        window.visit(spatial, at, |place, input| pairs.push((place, input)));
        for sample in 0..*batch {
            for filter in 0..*filters {
                let gradient = f64::from(gradients[(sample * filters + filter) * results + at]);
                let first = filter / (filters / groups) * depth;
                for channel in 0..depth {
                    let image = &inputs[(sample * channels + first + channel) * size..];
                    let sums = &mut sums[(filter * depth + channel) * places..];
                    for &(place, input) in &pairs {
                        sums[place] += gradient * f64::from(image[input]);
                    }
                }
            }
        }
    }
    Ok(vec![Tensor::from_vec(shape, sums.into_iter().map(|sum| sum as f32).collect())])
}

/// The gradient of a maximum pool's input `x` from that of its result: each goes to the first greatest place.
fn max_pool_grad(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let ((x, inputs), (dy, gradients)) = (floats(call, 0)?, floats(call, 1)?);
    let (window, spatial, images) = pool_window(call)?;
    let (size, results) = (product(&spatial), product(&window.out));
    if dy.len() != images * results {
        return Err(call.invalid(format!("a gradient of shape {:?} for {results} places", dy.shape())));
    }
    let mut sums = vec![0f64; inputs.len()];
    for at in 0..if images == 0 { 0 } else { results } {
        let mut places = Vec::new();
        window.visit(&spatial, at, |_, input| places.push(input));
        for image in 0..images {
            let values = &inputs[image * size..(image + 1) * size];
            let best = places.iter().copied().reduce(|best, next| {
                let is_better =
                    values[next] > values[best] || values[next].is_nan() && !values[best].is_nan();
                if is_better { next } else { best }
            });
            if let Some(best) = best {
                sums[image * size + best] += f64::from(gradients[image * results + at]);
            }
        }
    }
    Ok(vec![Tensor::from_vec(x.shape().to_vec(), sums.into_iter().map(|sum| sum as f32).collect())])
}

/// The first input where the second is what is asked, else 0.
fn masked(call: &Call<'_>, is_kept: fn(f32) -> bool) -> Result<Vec<Tensor>, OpError> {
    let ((a, values), (x, others)) = (floats(call, 0)?, floats(call, 1)?);
    let shape = common_shape(call, a.shape(), x.shape())?;
    call.check_size(DType::F32, &shape)?;
    let (values, others) =
        (broadcast(call, &values, a.shape(), &shape)?, broadcast(call, &others, x.shape(), &shape)?);
    let kept = values.iter().zip(&others).map(|(&value, &other)| if is_kept(other) { value } else { 0.0 });
    Ok(vec![Tensor::from_vec(shape, kept.collect())])
}
