//! Nodes of the operator cases with inputs and attributes that do not fit: a kernel may refuse them or
//! compute, but neither panic nor run away.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use optix_ir::{AttributeValue, DType, Node, Tensor, element_count};

use crate::cases::{self, Sample};

/// Operators of the standard that are looked at, beside all of onnxruntime's own.
const STANDARD: &[&str] = &[
    "Attention",
    "CausalConvWithState",
    "FlexAttention",
    "GRU",
    "LSTM",
    "LinearAttention",
    "NegativeLogLikelihoodLoss",
    "RNN",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "SoftmaxCrossEntropyLoss",
    "SwiGLU",
    "TensorScatter",
];

/// How often each case is changed.
const ROUNDS: usize = 40;

/// Numbers without a pattern, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

#[test]
fn misfits_neither_panic_nor_run_away() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut bad = Vec::new();
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let contrib = cases::load_from("fixtures/contrib/cases.bin.gz");
    for case in cases::load().iter().chain(&contrib) {
        let model = crate::models::read_model(&case.model);
        let ids: Vec<_> = model.nodes_of(model.main()).collect();
        let [id] = ids[..] else { continue };
        let node = model.node(id);
        let opset = model.opset_of(id).unwrap_or(1);
        if node.domain() != "com.microsoft" && !STANDARD.contains(&node.op_type.as_str()) {
            continue;
        }
        let mut given = case.sets[0].inputs.iter().map(|sample| match sample {
            Sample::Tensor(bytes) => crate::models::read_tensor(bytes),
            _ => panic!("{}: the inputs are tensors", case.name),
        });
        let slots: Vec<Option<Tensor>> =
            node.inputs().iter().map(|input| input.and_then(|_| given.next())).collect();
        for _ in 0..ROUNDS {
            let (mut node, mut slots) = (node.clone(), slots.clone());
            for _ in 0..1 + random.below(2) {
                change(&mut random, &mut node, &mut slots);
            }
            let inputs: Vec<Option<&Tensor>> = slots.iter().map(Option::as_ref).collect();
            let start = Instant::now();
            let ended = catch_unwind(AssertUnwindSafe(|| {
                drop(optix_ops::evaluate_limited(&node, opset, &inputs, 64 << 20));
            }));
            if ended.is_err() || start.elapsed() > Duration::from_secs(20) {
                let shapes: Vec<_> = inputs.iter().map(|input| input.map(|input| input.shape())).collect();
                let attributes: Vec<_> = node.attributes.iter().map(|one| (&one.name, &one.value)).collect();
                bad.push(format!("{}: {shapes:?} {attributes:?}", case.name));
            }
        }
    }
    std::panic::set_hook(quiet);
    assert!(bad.is_empty(), "{} panicked or ran away:\n{}", bad.len(), bad.join("\n"));
}

/// Changes one attribute or one input.
fn change(random: &mut Random, node: &mut Node, slots: &mut [Option<Tensor>]) {
    if random.below(3) == 0 && !node.attributes.is_empty() {
        let place = random.below(node.attributes.len());
        let number = random.of(&[0, -1, 1, 2, 3, 7, i64::MAX, i64::MIN, 1 << 40, 1 << 20]);
        match &mut node.attributes[place].value {
            AttributeValue::Int(value) => *value = number,
            AttributeValue::Float(value) => *value = random.of(&[0.0, f32::NAN, -1.0, f32::INFINITY, 1e30]),
            // Windows of a million places are slow, not wrong.
            AttributeValue::Ints(values) if !values.is_empty() && number < 8 => {
                let place = random.below(values.len());
                values[place] = number;
            }
            AttributeValue::Ints(values) => drop(values.pop()),
            AttributeValue::Floats(values) => drop(values.pop()),
            AttributeValue::Strings(values) => drop(values.pop()),
            _ => drop(node.attributes.remove(place)),
        }
        return;
    }
    let place = random.below(slots.len());
    slots[place] = match &slots[place] {
        Some(_) if random.below(8) == 0 => None,
        Some(tensor) => Some(changed(random, tensor)),
        None => Some(Tensor::from_vec(vec![2, 3], vec![1f32; 6])),
    };
}

fn changed(random: &mut Random, tensor: &Tensor) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let mut dtype = tensor.dtype();
    let axis = random.below(shape.len().max(1));
    match random.below(8) {
        0 => return tensor.reshaped(vec![tensor.len()]).expect("as many elements"),
        1 => {
            shape.push(1);
            return tensor.reshaped(shape).expect("as many elements");
        }
        2 => return extremes(random, tensor),
        3 => dtype = random.of(&[DType::F32, DType::F16, DType::I64, DType::U8, DType::Bool, DType::I4]),
        4 => drop(shape.pop()),
        5 => shape.reverse(),
        // Nothing, in rows without number.
        6 if shape.len() > 1 => {
            shape[axis] = 0;
            let other = (axis + 1) % shape.len();
            shape[other] = random.of(&[0, 1 << 20, 1 << 44]);
        }
        _ => shape.iter_mut().skip(axis).take(1).for_each(|size| *size = random.of(&[0, 1, *size + 1])),
    }
    let small = element_count(&shape).is_some_and(|count| count < 1 << 16);
    if small { Tensor::zeros(dtype, shape).unwrap_or_else(|_| tensor.clone()) } else { tensor.clone() }
}

/// The tensor with the greatest and least numbers of its type.
fn extremes(random: &mut Random, tensor: &Tensor) -> Tensor {
    let (shape, count) = (tensor.shape().to_vec(), tensor.len());
    match tensor.dtype() {
        DType::I64 => {
            let numbers = [i64::MIN, i64::MAX, -1, 1, 1 << 31];
            Tensor::from_vec(shape, (0..count).map(|_| random.of(&numbers)).collect::<Vec<i64>>())
        }
        DType::I32 => {
            let numbers = [i32::MIN, i32::MAX, -1, 1, 1 << 20];
            Tensor::from_vec(shape, (0..count).map(|_| random.of(&numbers)).collect::<Vec<i32>>())
        }
        DType::F32 => {
            let numbers = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 1e38];
            Tensor::from_vec(shape, (0..count).map(|_| random.of(&numbers)).collect::<Vec<f32>>())
        }
        _ => tensor.clone(),
    }
}
