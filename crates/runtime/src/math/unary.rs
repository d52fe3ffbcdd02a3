//! Elementary functions of 32-bit floats in a form that compilers vectorize: no branches, no calls.
//!
//! Polynomial coefficients are Chebyshev interpolations computed for this file in double precision; errors
//! are stated an function and checked by the tests below against the standard library in double precision.

/// Sum of `c[i] * x^i` by Horner's rule.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = sum * x + coefficients[i];
    }
    sum
}

/// `e^x`; relative error under 2e-7. Overflows to infinity, underflows gradually to zero, keeps NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to an integer, which then sits in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with few enough bits for exact products.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // NaN goes through a comparison as false: it stays NaN.
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < -104.0 { -104.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let p = polynomial(r, [0.5, 0.166_665_77, 0.041_666_465, 0.008_363_175, 0.001_393_364_3]);
    let mantissa = 1.0 + (r + r * r * p);
    // Two factors, so that results in the subnormal range and at the upper end come out right.
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = exponent >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    mantissa * power(half) * power(exponent.wrapping_sub(half))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent; relative error under 4e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let small =
        polynomial(x * x, [1.0, -0.333_332_62, 0.133_311_5, -0.053_722_68, 0.020_595_68, -0.005_664_775_4])
            * x;
    let large = (1.0 - 2.0 / (exp(2.0 * size) + 1.0)).copysign(x);
    if size < 0.625 { small } else { large }
}

/// The error function; relative error under 5e-7.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    /// From here on the result is 1 in this precision, or the number next to it.
    const ONE: f32 = 3.9;
    let size = x.abs();
    let bounded = if size > ONE { ONE } else { size };
    let square = bounded * bounded;
    // A quotient of polynomials fitted for the least relative error on 0 to 3.9, which is 2e-8.
    let above = polynomial(
        square,
        [
            std::f32::consts::FRAC_2_SQRT_PI,
            0.189_667,
            0.052_668_11,
            3.738_354_4e-3,
            2.850_625_3e-4,
            2.066_474e-6,
        ],
    );
    let below =
        polynomial(square, [1.0, 0.501_420_8, 0.113_819_03, 0.014_914_294, 1.157_378_4e-3, 3.827_005e-5]);
    let value = bounded * above / below;
    let value = if value > 1.0 || size > ONE { 1.0 } else { value };
    value.copysign(x)
}

/// `max(x, 0)`; NaN stays NaN.
#[inline(always)]
pub(crate) fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// Limits `x`; NaN stays NaN. A lower limit above the upper one means the upper one.
#[inline(always)]
pub(crate) fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// `x`, times `alpha` below zero.
#[inline(always)]
pub(crate) fn leaky_relu(x: f32, alpha: f32) -> f32 {
    if x < 0.0 { alpha * x } else { x }
}

/// `clamp(alpha x + beta, 0, 1)`.
#[inline(always)]
pub(crate) fn hard_sigmoid(x: f32, alpha: f32, beta: f32) -> f32 {
    clamp(alpha * x + beta, 0.0, 1.0)
}

/// `x clamp(x / 6 + 1/2, 0, 1)`.
#[inline(always)]
pub(crate) fn hard_swish(x: f32) -> f32 {
    x * clamp(x * (1.0 / 6.0) + 0.5, 0.0, 1.0)
}

/// `x` times the normal distribution function of `x`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The approximation of [`gelu`] by the hyperbolic tangent.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(0.797_884_6 * (x + 0.044_715 * x * x * x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error over a dense grid of `low..high`, relative to values at least `floor` large.
    fn worst(low: f64, high: f64, floor: f64, fast: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        let steps = 200_000;
        (0..=steps)
            .map(|i| {
                let x = (low + (high - low) * f64::from(i) / f64::from(steps)) as f32;
                let want = exact(f64::from(x));
                (f64::from(fast(x)) - want).abs() / want.abs().max(floor)
            })
            .fold(0.0, f64::max)
    }

    /// erf by its series: enough terms for double precision on -6..6.
    fn erf_series(x: f64) -> f64 {
        if x.abs() > 5.9 {
            return x.signum();
        }
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while f64::abs(term) > 1e-18 {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn errors_are_as_stated() {
        assert!(worst(-87.0, 88.7, 0.0, exp, f64::exp) < 2e-7);
        assert!(worst(-10.0, 10.0, 0.0, tanh, f64::tanh) < 4e-7);
        assert!(worst(-1e-3, 1e-3, 1e-9, tanh, f64::tanh) < 4e-7);
        assert!(worst(-6.0, 6.0, 1e-9, erf, erf_series) < 5e-7);
        assert!(worst(-30.0, 30.0, 1e-3, sigmoid, |x| 1.0 / (1.0 + (-x).exp())) < 5e-7);
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-100.0) > 0.0, "subnormal results are kept");
        for function in [exp, sigmoid, tanh, erf] {
            assert!(function(f32::NAN).is_nan());
        }
        assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
        assert_eq!((erf(f32::INFINITY), erf(f32::NEG_INFINITY)), (1.0, -1.0));
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (1.0, 0.0));
    }
}
