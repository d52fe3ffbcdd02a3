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
