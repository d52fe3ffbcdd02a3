//! Properties of observers and of the quantizers chosen from them.

use optix_ir::DType;
use proptest::prelude::*;

use super::{Observer, Reader, Writer};
use crate::quantize::affine::Affine;

/// Values of every kind: ordinary ones, huge, denormal, zeros of both signs.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -10f32..10.0,
        2 => prop::num::f32::NORMAL,
        1 => prop::num::f32::SUBNORMAL,
        2 => Just(0f32),
        1 => Just(-0f32),
        1 => prop_oneof![Just(f32::MAX), Just(f32::MIN), Just(f32::MIN_POSITIVE), Just(1e38f32)],
    ]
}

/// Samples of four channels of three values.
fn samples() -> impl Strategy<Value = Vec<[f32; 12]>> {
    let one = (prop::array::uniform12(value()), -30i32..30, any::<bool>());
    prop::collection::vec(one, 1..24).prop_map(|samples| {
        let scaled = |(values, exponent, positive): ([f32; 12], i32, bool)| {
            let scale = 2f32.powi(exponent);
            values.map(|x| {
                let x = if (x * scale).is_finite() { x * scale } else { x };
                if positive { x.abs() } else { x }
            })
        };
        samples.into_iter().map(scaled).collect()
    })
}

fn observed(samples: &[[f32; 12]], batch: usize) -> Observer {
    let mut observer = Observer::new(Some(1));
    for samples in samples.chunks(batch) {
        observer.observe(samples.as_flattened(), &[samples.len(), 4, 3], samples.len());
    }
    observer
}

/// All methods.
fn quantizers(observer: &Observer, dtype: DType) -> Vec<(&'static str, Affine)> {
    vec![
        ("min-max", observer.min_max(dtype)),
        ("moving-average", observer.moving_average(dtype)),
        ("mean-extremes", observer.mean_extremes(dtype)),
        ("percentile", observer.percentile(99.0, dtype)),
        ("entropy", observer.entropy(dtype).0),
        ("mse", observer.mean_squared_error(dtype)),
    ]
}

/// Equal in everything but the moving average, which is compared apart.
fn same(a: &Observer, b: &Observer) -> bool {
    let (mut a, mut b) = (a.clone(), b.clone());
    a.average = Default::default();
    b.average = Default::default();
    a == b
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merged_statistics_are_those_of_one_pass(samples in samples(), cut in 0usize..24, batch in 1usize..9) {
        let whole = observed(&samples, samples.len());
        let cut = cut.min(samples.len());
        let mut merged = observed(&samples[..cut], batch);
        merged.merge(&observed(&samples[cut..], batch));
        prop_assert!(same(&merged, &whole));
        // Moving averages are equal up to rounding.
        for (a, b) in merged.average.now.iter().zip(&whole.average.now) {
            let size = f64::from(whole.max.abs().max(whole.min.abs()));
            prop_assert!((a - b).abs() <= 1e-12 * size, "{a} {b}");
        }
    }

    #[test]
    fn batches_do_not_matter(samples in samples(), batch in 1usize..9) {
        let (one, many) = (observed(&samples, 1), observed(&samples, batch));
        prop_assert_eq!(&one, &many);
        prop_assert_eq!(quantizers(&one, DType::U8), quantizers(&many, DType::U8));
    }

    #[test]
    fn order_changes_nothing_but_when_ranges_grew(samples in samples()) {
        let mut turned = samples.clone();
        turned.reverse();
        let (mut a, mut b) = (observed(&samples, 1), observed(&turned, 1));
        a.growth = Default::default();
        b.growth = Default::default();
        prop_assert!(same(&a, &b));
    }

    #[test]
    fn no_quantizer_is_invalid(samples in samples(), signed in any::<bool>()) {
        let observer = observed(&samples, 4);
        let dtype = if signed { DType::I8 } else { DType::U8 };
        for (method, quantizer) in quantizers(&observer, dtype) {
            prop_assert!(quantizer.scale.is_normal() && quantizer.scale > 0.0, "{method} {quantizer:?}");
            prop_assert!((quantizer.low..=quantizer.high).contains(&quantizer.zero_point), "{method} {quantizer:?}");
            for integer in [quantizer.low, quantizer.high] {
                prop_assert!(quantizer.dequantize(integer).is_finite(), "{method} {quantizer:?}");
            }
            let (signal, noise) = observer.signal_and_noise(&quantizer);
            prop_assert!(signal.is_finite() && noise.is_finite() && noise >= 0.0, "{method} {signal} {noise}");
        }
    }

    #[test]
    fn errors_stay_within_half_a_scale_where_nothing_is_clipped(samples in samples()) {
        let quantizer = observed(&samples, 4).min_max(DType::U8);
        // A range too narrow for a normal scale is not quantized at all.
        prop_assume!(quantizer.scale != 1.0);
        let reach = |integer: i32| f64::from(integer - quantizer.zero_point) * f64::from(quantizer.scale);
        let (low, high) = (reach(quantizer.low), reach(quantizer.high));
        for &x in samples.as_flattened() {
            // The rounded zero point moves the range by half a scale at most; what that cuts off is clipped.
            if (low..=high).contains(&f64::from(x)) {
                let error = (f64::from(quantizer.round_trip(x)) - f64::from(x)).abs();
                prop_assert!(error <= f64::from(quantizer.scale) * 0.5001, "{x} {quantizer:?}");
            }
        }
    }

    #[test]
    fn the_least_squared_error_is_no_greater_than_any_other_methods(samples in samples()) {
        let observer = observed(&samples, 4);
        let noise = |quantizer| observer.signal_and_noise(&quantizer).1;
        let best = noise(observer.mean_squared_error(DType::U8));
        prop_assert!(best <= noise(observer.min_max(DType::U8)));
    }

    #[test]
    fn written_and_read_again_it_is_the_same(samples in samples()) {
        let observer = observed(&samples, 3);
        let mut writer = Writer::default();
        observer.write(&mut writer);
        let mut reader = Reader(&writer.0);
        let read = Observer::read(&mut reader);
        prop_assert_eq!(read.as_ref(), Ok(&observer));
        prop_assert!(reader.0.is_empty());
        for end in 0..writer.0.len() {
            prop_assert!(Observer::read(&mut Reader(&writer.0[..end])).is_err());
        }
    }

    #[test]
    fn damaged_bytes_are_refused_or_harmless(samples in samples(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut writer = Writer::default();
        observed(&samples, 3).write(&mut writer);
        let at = at.index(writer.0.len());
        writer.0[at] ^= 1 << bit;
        if let Ok(observer) = Observer::read(&mut Reader(&writer.0)) {
            for (method, quantizer) in quantizers(&observer, DType::U8) {
                prop_assert!(quantizer.scale.is_normal() && quantizer.scale > 0.0, "{method}");
            }
            let _ = observer.settled_after();
        }
    }
}

/// Values that look like noise, evenly spread over -1 to 1, the same everywhere.
fn spread(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f64 * 0.618_033_988_75).fract() as f32 * 2.0 - 1.0).collect()
}

#[test]
fn noise_from_the_histogram_is_close_to_the_true_one() {
    let bell: Vec<f32> = spread(120_000).chunks_exact(6).map(|six| six.iter().sum::<f32>().powi(3)).collect();
    let mut observer = Observer::default();
    observer.observe(&bell, &[bell.len()], 1);
    for (method, quantizer) in quantizers(&observer, DType::U8) {
        let error = |x: &f32| f64::from(quantizer.round_trip(*x) - x).powi(2);
        let (expected, found) =
            (bell.iter().map(error).sum::<f64>(), observer.signal_and_noise(&quantizer).1);
        assert!((expected / found - 1.0).abs() < 0.05, "{method}: {expected} {found}");
    }
    let signal: f64 = bell.iter().map(|x| f64::from(*x).powi(2)).sum();
    assert!((observer.signal_and_noise(&observer.min_max(DType::U8)).0 / signal - 1.0).abs() < 1e-3);
}

#[test]
fn a_lone_outlier_is_cut_by_all_but_the_whole_range() {
    let mut observer = Observer::default();
    let mut values = spread(1_000_000);
    values[123_456] = 4.0;
    for values in values.chunks(10_000) {
        observer.observe(values, &[values.len()], 1);
    }
    let whole = observer.min_max(DType::U8);
    for (method, quantizer) in quantizers(&observer, DType::U8) {
        if method != "min-max" {
            assert!(quantizer.scale < whole.scale * 0.9, "{method}: {} {}", quantizer.scale, whole.scale);
            assert!(observer.sqnr_db(&quantizer) > observer.sqnr_db(&whole), "{method}");
        }
    }
}

#[test]
fn percentiles_hold_what_they_say() {
    let mut observer = Observer::default();
    observer.observe(&spread(100_000), &[100_000], 1);
    let range = |percent| {
        let quantizer = observer.percentile(percent, DType::U8);
        let real = |integer: i32| quantizer.dequantize(integer);
        (real(0), real(255))
    };
    let (low, high) = range(90.0);
    assert!((low + 0.9).abs() < 0.01 && (high - 0.9).abs() < 0.01, "{low} {high}");
    assert_eq!(observer.percentile(100.0, DType::U8), observer.min_max(DType::U8));
    // One-sided values lose everything at that side, and zeros count.
    let mut positive = Observer::default();
    let values: Vec<f32> = spread(100_000).iter().map(|x| x.max(0.0)).collect();
    positive.observe(&values, &[100_000], 1);
    let high = positive.percentile(90.0, DType::U8).dequantize(255);
    assert!((high - 0.8).abs() < 0.01, "{high}");
}

#[test]
fn entropy_has_a_choice_and_cuts_a_long_tail() {
    let mut observer = Observer::default();
    let tail: Vec<f32> = spread(200_000).iter().map(|x| -(1.0 - x.abs()).max(1e-6).ln()).collect();
    observer.observe(&tail, &[tail.len()], 1);
    let (quantizer, choices) = observer.entropy(DType::U8);
    assert_eq!(choices, 128);
    assert!(quantizer.scale < 0.9 * observer.min_max(DType::U8).scale);
    // Evenly spread values have no tail to cut.
    let mut even = Observer::default();
    even.observe(&spread(200_000), &[200_000], 1);
    let (quantizer, _) = even.entropy(DType::U8);
    assert!(quantizer.scale > 0.95 * even.min_max(DType::U8).scale);
}

#[test]
fn extremes_of_samples() {
    let mut observer = Observer::default();
    observer.observe(&[0.0, 1.0, -1.0, 3.0, 0.0, 2.0], &[3, 2], 3);
    assert_eq!(observer.mean_extremes(DType::U8), Affine::asymmetric(-1.0 / 3.0, 2.0, DType::U8));
    let expected = |first: f64, then: [f64; 2]| then.iter().fold(first, |m, x| m + 0.01 * (x - m)) as f32;
    let (min, max) = (expected(0.0, [-1.0, 0.0]), expected(1.0, [3.0, 2.0]));
    assert_eq!(observer.moving_average(DType::U8), Affine::asymmetric(min, max, DType::U8));
    // Without an axis of samples it is one sample, whatever its shape.
    let mut together = Observer::default();
    together.observe(&[0.0, 1.0, -1.0, 3.0, 0.0, 2.0], &[2, 3], 3);
    assert_eq!(together.mean_extremes(DType::U8), together.min_max(DType::U8));
    assert_eq!(together.samples(), 3);
}

#[test]
fn what_has_no_range_gets_a_scale_all_the_same() {
    let mut observer = Observer::default();
    observer.observe(&[], &[0], 1);
    observer.observe(&[f32::NAN, f32::INFINITY], &[2], 1);
    assert_eq!((observer.count(), observer.non_finite(), observer.nan(), observer.range()), (0, 2, 1, None));
    let one = Affine { scale: 1.0, zero_point: 0, low: 0, high: 255 };
    assert!(quantizers(&observer, DType::U8).iter().all(|(_, quantizer)| *quantizer == one));
    observer.observe(&[0.0, -0.0], &[2], 1);
    assert_eq!(observer.zeros(), 2);
    assert!(quantizers(&observer, DType::U8).iter().all(|(_, quantizer)| *quantizer == one));
    observer.observe(&[1.0, f32::NAN], &[2], 1);
    assert_eq!(observer.range(), Some((0.0, 1.0)));
    assert_eq!((observer.non_finite(), observer.samples()), (3, 4));
}

#[test]
fn a_constant_is_kept() {
    for constant in [3.5f32, -0.1, 1e-30, 2e38] {
        let mut observer = Observer::default();
        observer.observe(&[constant; 100], &[100], 1);
        for (method, quantizer) in quantizers(&observer, DType::U8) {
            let kept = quantizer.round_trip(constant);
            assert!((kept / constant - 1.0).abs() < 1e-5, "{method}: {constant} became {kept}");
        }
    }
}

#[test]
fn channels_along_any_axis() {
    let mut observer = Observer::new(Some(-1));
    observer.observe(&[1.0, -2.0, 3.0, 4.0, 0.0, 6.0], &[2, 3], 1);
    let channels = observer.channels().expect("asked for");
    assert_eq!(channels.iter().map(|c| c.mean()).collect::<Vec<_>>(), [2.5, -1.0, 4.5]);
    assert_eq!(
        channels.iter().map(|c| c.range()).collect::<Vec<_>>(),
        [Some((1.0, 4.0)), Some((-2.0, 0.0)), Some((3.0, 6.0))]
    );
    assert_eq!(channels[0].count(), 2);
    // Another number of channels: they are given up, the rest is kept.
    observer.observe(&[1.0, 2.0], &[1, 2], 1);
    assert_eq!((observer.channels(), observer.count()), (None, 8));
}

#[test]
fn when_a_range_settled_and_how_it_grew() {
    let mut observer = Observer::default();
    for sample in 1..=100 {
        let reach = if sample <= 40 { sample as f32 / 40.0 } else { 1.0 };
        observer.observe(&[-reach / 2.0, reach], &[2], 1);
    }
    assert_eq!(observer.settled_after(), 40);
    assert_eq!(observer.growth_since(90), 0.0);
    let growth = observer.growth_since(20);
    assert!((growth - 1.0).abs() < 0.05, "{growth}");
}
