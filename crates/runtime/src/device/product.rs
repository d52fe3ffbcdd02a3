//! Products of matrices with the precision of 32-bit floats on every backend.

use burn::tensor::ops::FloatTensorOps;

use super::{B, Device, DeviceCall, DeviceTensor, scalar};

/// Whether a backend shortens the factors of a product. CUDA's matrix units take 32-bit floats as
/// TensorFloat-32, with 11 significant bits of 24.
fn shortens(device: &Device) -> bool {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => true,
        _ => false,
    }
}

/// The product `a b` over the last two dimensions, in the precision of 32-bit floats.
pub(crate) fn product(call: &DeviceCall<'_>, a: DeviceTensor, b: DeviceTensor) -> DeviceTensor {
    if shortens(&call.place.device) { of_halves(a, b, call.truth_type()) } else { B::float_matmul(a, b) }
}

/// The product of factors that a backend shortens to 11 bits: each is what 11 bits hold and the rest, and
/// the three products that reach the result's last bits are added (Ootomo and Yokota 2022, "Recovering
/// single precision accuracy from Tensor Cores"). Greater than 2^115, factors stay shortened.
fn of_halves(a: DeviceTensor, b: DeviceTensor, truth: burn::tensor::BoolDType) -> DeviceTensor {
    let ((a, a_rest), (b, b_rest)) = (halves(a, truth), halves(b, truth));
    let rest = B::float_add(B::float_matmul(a_rest, b.clone()), B::float_matmul(a.clone(), b_rest));
    let main = B::float_matmul(a, b);
    // Infinite factors have rests that are no numbers; all that such a factor reaches is infinite or no
    // number in the main product too, which then is the result.
    let odd = B::float_is_nan(rest.clone(), truth);
    B::float_mask_where(B::float_add(main.clone(), rest), odd, main)
}

/// A tensor rounded to 11 significant bits, and what is left (Veltkamp's splitting: Dekker 1971, "A
/// floating-point technique for extending the available precision").
fn halves(x: DeviceTensor, truth: burn::tensor::BoolDType) -> (DeviceTensor, DeviceTensor) {
    let scaled = B::float_mul_scalar(x.clone(), scalar(8193.0));
    let head = B::float_sub(scaled.clone(), B::float_sub(scaled, x.clone()));
    let overflown = B::float_is_nan(head.clone(), truth);
    let head = B::float_mask_where(head, overflown, x.clone());
    let rest = B::float_sub(x, head.clone());
    (head, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::from_floats;

    fn read(tensor: DeviceTensor) -> Vec<f32> {
        let data = burn::tensor::read_sync(B::float_into_data(tensor)).expect("it can be read");
        data.into_vec().expect("they are floats")
    }

    /// A float with its last 13 bits cut off, as matrix units take it.
    fn shortened(x: f32) -> f32 {
        f32::from_bits(x.to_bits() & !0x1fff)
    }

    #[test]
    fn heads_fit_eleven_bits_and_rests_are_exact() {
        let device = Device::Flex(Default::default());
        let truth = burn::tensor::get_device_settings::<B>(&device).bool_dtype;
        let numbers: Vec<f32> =
            (1..200).map(|i| (i as f32 * 0.7).sin() * 10f32.powi(i % 30 - 15)).chain([0.0, 3e38]).collect();
        let (head, rest) = halves(from_floats(vec![numbers.len()], numbers.clone(), &device), truth);
        for ((x, head), rest) in numbers.iter().zip(read(head)).zip(read(rest)) {
            assert_eq!(*x, head + rest);
            assert!(x.abs() > 1e35 || shortened(head) == head, "{x}: {head}");
            assert!(rest.abs() <= x.abs() / 2048.0, "{x}: {rest}");
        }
    }

    #[test]
    fn products_of_halves_are_products() {
        let device = Device::Flex(Default::default());
        let truth = burn::tensor::get_device_settings::<B>(&device).bool_dtype;
        let inf = f32::INFINITY;
        let left = vec![0.3, -1.7, 2.1, inf, 1.0, 0.0, f32::NAN, 1.0, 2.0, 3e38, 1.0, 0.5];
        let right = vec![1.1, 0.0, -0.9, 2.0, 0.1, inf];
        let place = |shape: [usize; 2], data: &[f32]| from_floats(shape.to_vec(), data.to_vec(), &device);
        let made = read(of_halves(place([4, 3], &left), place([3, 2], &right), truth));
        let plain = read(B::float_matmul(place([4, 3], &left), place([3, 2], &right)));
        for (made, plain) in made.iter().zip(&plain) {
            let same = made == plain || (made.is_nan() && plain.is_nan());
            assert!(same || (made - plain).abs() <= 1e-6 * plain.abs(), "{made} {plain}");
        }
        assert!(plain.iter().any(|x| x.is_infinite()) && plain.iter().any(|x| x.is_nan()));
        assert!(plain.iter().any(|x| x.is_finite()));
    }
}
