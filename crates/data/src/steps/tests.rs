use optix_ir::{DType, Tensor};

use super::*;

fn bytes(shape: &[usize], values: &[u8]) -> Tensor {
    Tensor::from_vec(shape.to_vec(), values.to_vec())
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_slice::<f32>().unwrap().into_owned()
}

#[test]
fn the_usual_image_chain() {
    let steps = [
        Step::ToFloat {},
        Step::Scale(0.5),
        Step::Normalize { mean: vec![1.0], std: vec![2.0], axis: None },
        Step::Layout(Order::Nchw),
    ];
    let sample = apply_steps(&steps, bytes(&[2, 2], &[0, 2, 4, 6])).unwrap();
    assert_eq!(sample.shape(), [1, 2, 2]);
    assert_eq!(floats(&sample), [-0.5, 0.0, 0.5, 1.0]);
}

#[test]
fn channels_are_normalized_where_the_layout_puts_them() {
    // Two pixels of three channels.
    let image = bytes(&[1, 2, 3], &[1, 2, 3, 4, 5, 6]);
    let normalize = |axis| Step::Normalize { mean: vec![1.0, 2.0, 3.0], std: vec![1.0, 1.0, 3.0], axis };
    let before = [Step::ToFloat {}, normalize(None), Step::Layout(Order::Nchw)];
    let after = [Step::Layout(Order::Nchw), Step::ToFloat {}, normalize(None)];
    for steps in [before, after] {
        let sample = apply_steps(&steps, image.clone()).unwrap();
        assert_eq!(sample.shape(), [3, 1, 2]);
        assert_eq!(floats(&sample), [0.0, 3.0, 0.0, 3.0, 0.0, 1.0]);
    }
    let there_and_back = [Step::Layout(Order::Nchw), Step::Layout(Order::Nhwc)];
    assert_eq!(apply_steps(&there_and_back, image.clone()).unwrap(), image);
    let planar = bytes(&[3, 1, 2], &[1, 4, 2, 5, 3, 6]);
    let error = apply_steps(&[Step::ToFloat {}, normalize(None)], planar.clone()).unwrap_err();
    assert!(error.contains("step 2 (`normalize`)") && error.contains("`axis = N`"), "{error}");
    let sample = apply_steps(&[Step::ToFloat {}, normalize(Some(0))], planar).unwrap();
    assert_eq!(floats(&sample), [0.0, 3.0, 0.0, 3.0, 0.0, 1.0]);
}

#[test]
fn shapes_and_types() {
    let sample = bytes(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    let reshaped = apply_steps(&[Step::Reshape(vec![3, -1]), Step::Unsqueeze(0)], sample.clone()).unwrap();
    assert_eq!(reshaped.shape(), [1, 3, 2]);
    let cast = |dtype| apply_steps(&[Step::Cast(TypeName(dtype))], sample.clone()).unwrap();
    assert_eq!(cast(DType::I64).to_i64s().unwrap(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(cast(DType::F16).to_f64s().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(cast(DType::Bool).bools().unwrap(), [true; 6]);
    let truncated = Tensor::from_vec(vec![2], vec![-1.9f32, 1.9]);
    let truncated = apply_steps(&[Step::Cast(TypeName(DType::I8))], truncated).unwrap();
    assert_eq!(truncated.to_i64s().unwrap(), [-1, 1]);
    for (values, dtype) in
        [(vec![300.0f32], DType::U8), (vec![f32::NAN], DType::I32), (vec![-1.0], DType::U64)]
    {
        let tensor = Tensor::from_vec(vec![1], values);
        assert!(apply_steps(&[Step::Cast(TypeName(dtype))], tensor).is_err(), "{dtype}");
    }
    let bad = [
        Step::Reshape(vec![4, -1]),
        Step::Reshape(vec![0, -1]),
        Step::Reshape(vec![i64::MAX, i64::MAX]),
        Step::Unsqueeze(9),
        Step::Scale(2.0),
    ];
    for step in bad {
        assert!(apply_steps(std::slice::from_ref(&step), sample.clone()).is_err(), "{step:?}");
    }
    let flat = bytes(&[6], &[1; 6]);
    assert!(apply_steps(&[Step::Layout(Order::Nchw)], flat).is_err());
}

/// A picture of five rows and seven columns, and what Pillow 13.0.0 makes of it.
#[test]
fn resized_like_pillow() {
    let pixel =
        |at: usize| ((7 * (at / 7).pow(2) + 31 * (at % 7).pow(2) + 13 * (at / 7) * (at % 7)) % 251) as u8;
    let picture = bytes(&[5, 7], &(0..35).map(pixel).collect::<Vec<u8>>());
    let resized = |mode, height, width| {
        let step =
            Step::Resize { size: Size::Two([height, width]), mode, antialias: true, keep_aspect: None };
        let result = apply_steps(&[step], picture.clone()).unwrap();
        assert_eq!(result.shape(), [height, width]);
        result.bytes().to_vec()
    };
    let small: [(Mode, [u8; 6]); 6] = [
        (Mode::Nearest, [51, 74, 94, 133, 208, 29]),
        (Mode::Box, [34, 127, 109, 126, 106, 92]),
        (Mode::Bilinear, [61, 109, 115, 103, 122, 107]),
        (Mode::Hamming, [47, 104, 112, 109, 124, 102]),
        (Mode::Bicubic, [53, 116, 115, 105, 124, 107]),
        (Mode::Lanczos, [51, 121, 114, 104, 126, 108]),
    ];
    for (mode, expected) in small {
        assert_eq!(resized(mode, 2, 3), expected, "{mode:?}");
    }
    // Larger: the first and the last row.
    let large: [(Mode, [u8; 9], [u8; 9]); 3] = [
        (Mode::Nearest, [0, 31, 31, 124, 28, 245, 22, 22, 112], [112, 195, 195, 89, 45, 63, 143, 143, 34]),
        (Mode::Bicubic, [0, 13, 76, 106, 25, 232, 128, 28, 110], [111, 180, 163, 76, 33, 41, 118, 118, 19]),
        (Mode::Lanczos, [0, 6, 91, 98, 25, 244, 144, 13, 108], [109, 179, 177, 77, 26, 23, 133, 120, 6]),
    ];
    for (mode, first, last) in large {
        let result = resized(mode, 8, 9);
        assert_eq!((&result[..9], &result[63..]), (&first[..], &last[..]), "{mode:?}");
    }
    // Lower and wider: the columns come first.
    let pixel =
        |at: usize| ((7 * (at / 5).pow(2) + 31 * (at % 5).pow(2) + 13 * (at / 5) * (at % 5)) % 251) as u8;
    let picture = bytes(&[7, 5], &(0..35).map(pixel).collect::<Vec<u8>>());
    let step =
        Step::Resize { size: Size::Two([2, 9]), mode: Mode::Lanczos, antialias: true, keep_aspect: None };
    let expected = [22, 35, 69, 116, 137, 118, 105, 132, 152, 94, 103, 114, 106, 93, 94, 107, 116, 120];
    assert_eq!(apply_steps(&[step], picture).unwrap().bytes().as_ref(), expected);
}

#[test]
fn images_are_cut_and_filled() {
    let picture = bytes(&[3, 5], &(0..15).collect::<Vec<u8>>());
    let of = |step: Step| apply_steps(&[step], picture.clone()).unwrap();
    let crop = of(Step::CenterCrop(Size::Two([1, 2])));
    // Half of three is 1.5, which goes to the even 2.
    assert_eq!((crop.shape(), crop.bytes().as_ref()), (&[1, 2][..], &[7, 8][..]));
    let filled = of(Step::CenterCrop(Size::Two([4, 5])));
    assert_eq!(filled.bytes()[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(filled.bytes()[15..], [0; 5]);
    let padded = of(Step::Pad { size: Size::Two([4, 6]), value: 9.0, place: Place::TopLeft });
    assert_eq!((padded.bytes()[5], &padded.bytes()[18..]), (9, &[9; 6][..]));
    let trimmed = of(Step::PadOrTrim { length: 2, axis: 1, value: 0.0 });
    assert_eq!(trimmed.bytes().as_ref(), [0, 1, 5, 6, 10, 11]);
    let longer = of(Step::PadOrTrim { length: 4, axis: 0, value: 7.0 });
    assert_eq!(longer.bytes()[15..], [7; 5]);
    let shape = |size, keep_aspect| {
        let step = Step::Resize { size, mode: Mode::Box, antialias: true, keep_aspect };
        of(step).shape().to_vec()
    };
    assert_eq!(shape(Size::One(2), None), [2, 3]);
    assert_eq!(shape(Size::One(2), Some(false)), [2, 2]);
    assert_eq!(shape(Size::Two([10, 10]), Some(true)), [6, 10]);
}

#[test]
fn channels_are_made_and_dropped() {
    let of = |shape: &[usize], values: &[u8], channel| {
        apply_steps(&[Step::Channel(channel)], bytes(shape, values)).unwrap()
    };
    assert_eq!(of(&[1, 1, 3], &[10, 200, 30], Channel::Bgr).bytes().as_ref(), [30, 200, 10]);
    assert_eq!(of(&[1, 1, 4], &[10, 200, 30, 0], Channel::Rgb).bytes().as_ref(), [10, 200, 30]);
    assert_eq!(of(&[1, 2], &[7, 8], Channel::Rgb).bytes().as_ref(), [7, 7, 7, 8, 8, 8]);
    // What Pillow's convert("L") gives.
    let gray = of(&[1, 2, 3], &[10, 200, 30, 255, 255, 255], Channel::Gray);
    assert_eq!((gray.shape(), gray.bytes().as_ref()), (&[1, 2][..], &[124, 255][..]));
}

/// A chirp of 256 samples, and what librosa 0.11.0 makes of it.
#[test]
fn spectrograms_like_librosa() {
    let chirp: Vec<f32> = (0..256).map(|at| ((at * at) as f32 / 300.0).sin()).collect();
    let chirp = Tensor::from_vec(vec![256], chirp);
    let plain = Mel { n_fft: 64, n_mels: 4, rate: Some(8000), ..Mel::default() };
    let other = Mel {
        hop: 100,
        scale: MelScale::Htk,
        norm: MelNorm::None,
        pad: MelPad::Reflect,
        power: 1.0,
        ..plain.clone()
    };
    let decibels = Mel { hop: 128, log: MelLog::Db, ..plain.clone() };
    let cases: [(Vec<Step>, &[usize], &[f32]); 4] = [
        (
            vec![Step::Mel(Mel { hop: 64, ..plain })],
            &[4, 5],
            &[
                0.0269633,
                0.640692,
                0.008237,
                1.10655e-06,
                0.00186818,
                2.30765e-05,
                0.137276,
                0.53053,
                0.0109896,
                0.00309506,
                2.48485e-07,
                4.08945e-05,
                0.132226,
                0.432288,
                0.0869588,
                9.6968e-09,
                3.5676e-08,
                6.53559e-06,
                0.0385527,
                0.0835248,
            ],
        ),
        (
            vec![Step::Mel(other)],
            &[4, 3],
            &[
                5.55124, 3.89252, 0.0238529, 0.458471, 31.933, 0.64873, 0.0346338, 5.74791, 32.2686,
                0.00510527, 0.0320066, 8.80223,
            ],
        ),
        (
            vec![Step::Mel(decibels.clone())],
            &[4, 3],
            &[
                -15.6923, -20.8423, -27.2858, -46.3683, -2.7529, -25.0933, -66.047, -8.78683, -10.6069,
                -80.1337, -51.8472, -10.7818,
            ],
        ),
        (
            vec![Step::Mel(decibels), Step::Mfcc { count: 2 }],
            &[2, 3],
            &[-104.121, -42.1146, -36.8839, 47.4234, 21.8877, -14.7017],
        ),
    ];
    for (steps, shape, expected) in cases {
        let result = apply_steps(&steps, chirp.clone()).unwrap();
        assert_eq!(result.shape(), shape);
        for (found, expected) in floats(&result).iter().zip(expected) {
            // librosa computes in 32 bits; what is small beside the rest is rounding of the rest.
            let bound = 2e-5 * expected.abs() + if expected.abs() < 0.1 { 1e-7 } else { 1e-5 };
            let bound = if steps.len() > 1 || *expected < -1.0 { 0.02 } else { bound };
            assert!((found - expected).abs() <= bound, "{found} and {expected} in {steps:?}");
        }
    }
}
