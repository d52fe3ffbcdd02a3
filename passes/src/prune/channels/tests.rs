//! Random graphs that become smaller, against what they give when the same channels are zero.

use std::collections::BTreeSet;

use optix_ir::infer::{NoEvaluator, contradictions, infer};
use optix_ir::{Model, ModelBuilder, Tensor, verify};
use optix_ops::Datum;
use proptest::prelude::*;

use super::groups::{Group, find};
use super::places::Places;
use super::relations::relate;
use super::{Held, cut};

/// Numbers that look random and are the same everywhere.
struct Draw(u64);

impl Draw {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % below.max(1)
    }

    fn floats(&mut self, shape: &[usize]) -> Tensor {
        let count = shape.iter().product::<usize>();
        let data: Vec<f32> = (0..count).map(|_| self.next(64) as f32 / 32.0 - 1.0).collect();
        Tensor::from_vec(shape.to_vec(), data)
    }

    fn positive(&mut self, shape: &[usize]) -> Tensor {
        let count = shape.iter().product::<usize>();
        Tensor::from_vec(
            shape.to_vec(),
            (0..count).map(|_| self.next(32) as f32 / 32.0 + 0.5).collect::<Vec<f32>>(),
        )
    }
}

/// A graph that is being drawn: the last value, and how many channels it has.
struct Net {
    draw: Draw,
    built: Option<ModelBuilder>,
    last: String,
    channels: usize,
    count: usize,
}

impl Net {
    fn name(&mut self) -> String {
        self.count += 1;
        format!("v{}", self.count)
    }

    fn constant(&mut self, tensor: Tensor) -> String {
        let name = self.name();
        self.built = self.built.take().map(|built| built.constant(&name, tensor));
        name
    }

    fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, optix_ir::AttributeValue)]) -> String {
        let name = self.name();
        let mut built =
            self.built.take().expect("one at a time").node(op, inputs.iter().copied(), [name.as_str()]);
        for (key, value) in attributes {
            built = built.attr(key, value.clone());
        }
        self.built = Some(built);
        name
    }

    fn conv(&mut self, from: &str, inputs: usize, outputs: usize, kernel: usize, group: usize) -> String {
        let weights = self.draw.floats(&[outputs, inputs / group, kernel, kernel]);
        let (weights, bias) = (self.constant(weights), self.draw.floats(&[outputs]));
        let bias = self.constant(bias);
        let pad = (kernel / 2) as i64;
        self.node(
            "Conv",
            &[from, &weights, &bias],
            &[("group", (group as i64).into()), ("pads", vec![pad; 4].into())],
        )
    }

    /// Adds one part.
    fn part(&mut self) {
        let (last, channels) = (self.last.clone(), self.channels);
        match self.draw.next(11) {
            0 => {
                let outputs = 2 * (1 + self.draw.next(4));
                let kernel = 1 + 2 * self.draw.next(2);
                (self.last, self.channels) = (self.conv(&last, channels, outputs, kernel, 1), outputs);
            }
            1 => {
                // Depthwise, one or two for each channel.
                let times = 1 + self.draw.next(2);
                (self.last, self.channels) =
                    (self.conv(&last, channels, channels * times, 3, channels), channels * times);
            }
            2 if channels % 2 == 0 => self.last = self.conv(&last, channels, channels, 1, 2),
            3 => {
                let inner = 2 + self.draw.next(5);
                let inside = self.conv(&last, channels, inner, 3, 1);
                let inside = self.node("Relu", &[&inside], &[]);
                let inside = self.conv(&inside, inner, channels, 1, 1);
                self.last = self.node("Add", &[&last, &inside], &[]);
            }
            4 => {
                let other = 2 + self.draw.next(4);
                let side = self.conv(&last, channels, other, 1, 1);
                self.last = self.node("Concat", &[&last, &side], &[("axis", 1i64.into())]);
                self.channels += other;
            }
            5 => {
                let op = ["Relu", "Sigmoid", "HardSwish", "Tanh"][self.draw.next(4)];
                self.last = self.node(op, &[&last], &[]);
            }
            6 => {
                let parts = [
                    self.draw.positive(&[channels]),
                    self.draw.floats(&[channels]),
                    self.draw.floats(&[channels]),
                ];
                let mut inputs = vec![last];
                for part in parts {
                    inputs.push(self.constant(part));
                }
                let variance = self.draw.positive(&[channels]);
                inputs.push(self.constant(variance));
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                self.last = self.node("BatchNormalization", &inputs, &[]);
            }
            7 => {
                let slope = self.draw.floats(&[channels, 1, 1]);
                let slope = self.constant(slope);
                self.last = self.node("PRelu", &[&last, &slope], &[]);
            }
            8 if channels >= 4 => {
                // The second part is what goes on, the first one gates it where they are as long.
                let first = channels / 2;
                let ints = |values: &[i64]| Tensor::from_i64s(values);
                let bounds = [ints(&[first as i64]), ints(&[channels as i64]), ints(&[1])];
                let names: Vec<String> = bounds.into_iter().map(|bound| self.constant(bound)).collect();
                let back = self.node("Slice", &[&last, &names[0], &names[1], &names[2]], &[]);
                if channels % 2 == 0 {
                    let bounds = [ints(&[0]), ints(&[first as i64])];
                    let own: Vec<String> = bounds.into_iter().map(|bound| self.constant(bound)).collect();
                    let front = self.node("Slice", &[&last, &own[0], &own[1], &names[2]], &[]);
                    let gate = self.node("Sigmoid", &[&front], &[]);
                    self.last = self.node("Mul", &[&back, &gate], &[]);
                } else {
                    self.last = back;
                }
                self.channels -= first;
            }
            9 => {
                // Squeeze and excite.
                let inner = 2 + self.draw.next(3);
                let pooled = self.node("GlobalAveragePool", &[&last], &[]);
                let inside = self.conv(&pooled, channels, inner, 1, 1);
                let inside = self.node("Relu", &[&inside], &[]);
                let inside = self.conv(&inside, inner, channels, 1, 1);
                let gate = self.node("Sigmoid", &[&inside], &[]);
                self.last = self.node("Mul", &[&last, &gate], &[]);
            }
            10 => {
                let weights = self.draw.floats(&[channels, 3, 1, 1]);
                let weights = self.constant(weights);
                self.last = self.node("ConvTranspose", &[&last, &weights], &[]);
                self.channels = 3;
            }
            _ => {}
        }
    }

    /// Attention over positions with some heads, or a plain end.
    fn finish(mut self, has_attention: bool) -> Model {
        let (last, channels) = (self.last.clone(), self.channels);
        if !has_attention {
            let flat = self.node("Flatten", &[&last], &[]);
            let weights = self.draw.floats(&[3, channels * 9]);
            let weights = self.constant(weights);
            let y = self.node("Gemm", &[&flat, &weights], &[("transB", 1i64.into())]);
            return self.built.expect("all nodes are there").output(&y, "float[2, 3]").build();
        }
        let (heads, width) = (3usize, 2usize);
        let shape = self.constant(Tensor::from_i64s(&[2, channels as i64, 9]));
        let rows = self.node("Reshape", &[&last, &shape], &[]);
        let rows = self.node("Transpose", &[&rows], &[("perm", vec![0i64, 2, 1].into())]);
        let split = self.constant(Tensor::from_i64s(&[2, 9, heads as i64, width as i64]));
        let mut projected = Vec::new();
        for part in 0..3 {
            let weights = self.draw.floats(&[channels, heads * width]);
            let (weights, bias) = (self.constant(weights), self.draw.floats(&[heads * width]));
            let bias = self.constant(bias);
            let own = self.node("MatMul", &[&rows, &weights], &[]);
            let own = self.node("Add", &[&bias, &own], &[]);
            let own = self.node("Reshape", &[&own, &split], &[]);
            let order: Vec<i64> = if part == 1 { vec![0, 2, 3, 1] } else { vec![0, 2, 1, 3] };
            projected.push(self.node("Transpose", &[&own], &[("perm", order.into())]));
        }
        let scores = self.node("MatMul", &[&projected[0], &projected[1]], &[]);
        let shares = self.node("Softmax", &[&scores], &[("axis", (-1i64).into())]);
        let mixed = self.node("MatMul", &[&shares, &projected[2]], &[]);
        let mixed = self.node("Transpose", &[&mixed], &[("perm", vec![0i64, 2, 1, 3].into())]);
        let joined = self.constant(Tensor::from_i64s(&[2, 9, -1]));
        let mixed = self.node("Reshape", &[&mixed, &joined], &[]);
        let weights = self.draw.floats(&[heads * width, 5]);
        let weights = self.constant(weights);
        let y = self.node("MatMul", &[&mixed, &weights], &[]);
        self.built.expect("all nodes are there").output(&y, "float[2, 9, 5]").build()
    }
}

fn drawn(seed: u64, parts: usize, has_attention: bool) -> Model {
    let built = ModelBuilder::new(17).input("x", "float[2, 3, 3, 3]");
    let mut net = Net { draw: Draw(seed), built: Some(built), last: "x".into(), channels: 3, count: 0 };
    let first = net.conv("x", 3, 6, 3, 1);
    (net.last, net.channels) = (first, 6);
    (0..parts).for_each(|_| net.part());
    let mut model = net.finish(has_attention);
    infer(&mut model, &NoEvaluator);
    model
}

fn outputs(model: &Model) -> Vec<f64> {
    let input = Draw(5).floats(&[2, 3, 3, 3]);
    let found = optix_ops::interpret(model, vec![Some(Datum::Tensor(input))]).expect("it runs");
    found.iter().flat_map(|datum| datum.as_tensor().expect("a tensor").to_f64s().expect("numbers")).collect()
}

/// The model with zeros at all places that go, in every constant.
fn masked(model: &Model, places: &Places, gone: &BTreeSet<usize>) -> Model {
    let mut masked = model.clone();
    for (Held { value, .. }, axes) in places.tensors() {
        let Some(tensor) = masked.constant(value).cloned() else { continue };
        let Ok(elements) = tensor.to_slice::<f32>() else { continue };
        let mut elements = elements.into_owned();
        let mut inner = 1;
        for (axis, &size) in axes.iter().zip(tensor.shape()).rev() {
            let axis = axis.expect("constants have sizes");
            for (at, element) in elements.iter_mut().enumerate() {
                if gone.contains(&places.root(axis.at(at / inner % size))) {
                    *element = 0.0;
                }
            }
            inner *= size;
        }
        masked.set_tensor(value, Tensor::from_vec(tensor.shape().to_vec(), elements));
    }
    masked
}

/// Some of the channels of some of the groups, never all of one.
fn some_gone(draw: &mut Draw, groups: &[Group], places: &Places) -> BTreeSet<usize> {
    let mut gone = BTreeSet::new();
    for group in groups {
        let spared = draw.next(group.channels.len());
        for (number, channel) in group.channels.iter().enumerate() {
            if number != spared && draw.next(3) > 0 {
                let ((held, axis), index) = channel.members[0];
                let axis = places.known(held).expect("known")[axis].expect("a size");
                gone.insert(places.root(axis.at(index)));
            }
        }
    }
    gone
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn smaller_graphs_are_masked_ones(seed in any::<u64>(), parts in 1usize..9, has_attention in any::<bool>()) {
        let model = drawn(seed, parts, has_attention);
        let places = relate(&model);
        let (groups, _) = find(&model, &places);
        let gone = some_gone(&mut Draw(seed ^ 77), &groups, &places);
        let mut smaller = model.clone();
        cut(&mut smaller, &places, &|root| gone.contains(&root)).expect("it can be cut");
        prop_assert!(contradictions(&smaller, &NoEvaluator).is_empty());
        prop_assert!(verify::verify(&smaller).is_empty());
        prop_assert!(gone.is_empty() || smaller.tensor_bytes() < model.tensor_bytes());
        let (found, expected) = (outputs(&smaller), outputs(&masked(&model, &places, &gone)));
        prop_assert_eq!(found.len(), expected.len());
        let most = expected.iter().fold(1f64, |most, x| most.max(x.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert!((found - expected).abs() <= 1e-5 * most, "{} {}", found, expected);
        }
    }
}

#[test]
fn groups_are_what_depends_on_each_other() {
    let model = drawn(3, 0, true);
    let places = relate(&model);
    let (groups, kept) = find(&model, &places);
    // The channels of the convolution, and three heads.
    assert_eq!(groups.iter().map(|group| group.channels.len()).collect::<Vec<_>>(), [6, 3]);
    // What makes the output stays.
    assert_eq!(kept.len(), 1);
    assert!(kept[0].lock.why.contains("output of the model"), "{:?}", kept[0].lock);
}
