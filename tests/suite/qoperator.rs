//! QDQ to operators on integers and back: outputs stay.
//!
//! Back in QDQ they are the same to the bit. In between, every operator may be one integer off: QDQ rounds
//! products and sums of floats, operators on integers round once at the end.

use optix_ir::{Model, ModelBuilder, Tensor};

use crate::lab::{Draw, apply, count, engines, outputs, sqnr};
use crate::program::Place;

const THERE: &str = "[[step]]\npass = \"to-qoperator\"\n";
const BACK: &str = "[[step]]\npass = \"to-qdq\"\n";

/// A QDQ graph that grows operator by operator over a value of shape [1, channels, 6, 6].
struct Grown {
    builder: ModelBuilder,
    draw: Draw,
    made: usize,
    signed: bool,
    /// The dequantized value everybody reads next, and its channels.
    last: (String, usize),
    /// Scale and zero point constants of it.
    parameters: (String, String),
}

impl Grown {
    fn new(seed: u64, signed: bool) -> Grown {
        let builder = ModelBuilder::new(18).input("x", "float[1, 4, 6, 6]");
        let grown = Grown {
            builder,
            draw: Draw(seed),
            made: 0,
            signed,
            last: ("x".into(), 4),
            parameters: Default::default(),
        };
        grown.quantized("x", 4, 0.03, false)
    }

    fn zero(&self, zero: i64) -> Tensor {
        if self.signed { Tensor::scalar((zero - 128) as i8) } else { Tensor::scalar(zero as u8) }
    }

    /// Puts a pair behind a float value.
    fn quantized(mut self, float: &str, channels: usize, scale: f32, positive: bool) -> Grown {
        let id = self.made;
        self.made += 1;
        let zero = if positive { 0 } else { 110 + self.draw.below(30) as i64 };
        let [scale_name, zero_name] = [format!("s{id}"), format!("z{id}")];
        let zero = self.zero(zero);
        self.builder = self.builder.constant(&scale_name, Tensor::scalar(scale)).constant(&zero_name, zero);
        self.parameters = (scale_name, zero_name);
        self.pair(float, channels, id)
    }

    /// The same with the scale and zero point of the value before.
    fn pair(mut self, float: &str, channels: usize, id: usize) -> Grown {
        let (q, d) = (format!("q{id}"), format!("d{id}"));
        let (scale, zero) = (&self.parameters.0, &self.parameters.1);
        self.builder = self.builder.node("QuantizeLinear", [float, scale, zero], [q.as_str()]).node(
            "DequantizeLinear",
            [&*q, scale, zero],
            [d.as_str()],
        );
        self.last = (d, channels);
        self
    }

    fn weights(&mut self, id: usize, shape: &[usize], fan: usize) -> (String, f32) {
        let count = shape.iter().product();
        // 7 bits: without VNNI onnxruntime adds pairs of products in 16 bits, which 8 would overflow.
        let numbers: Vec<i8> = (0..count).map(|_| (self.draw.below(127) as i64 - 63) as i8).collect();
        // Uniform up to 63: of standard deviation 37, so that results have about 1.
        let scale = 1.0 / 37.0 / (fan as f32).sqrt();
        let scales: Vec<f32> =
            (0..shape[0]).map(|_| scale * (0.5 + self.draw.below(64) as f32 / 64.0)).collect();
        let [w, s, z, d] = ["w", "ws", "wz", "wd"].map(|part| format!("{part}{id}"));
        let builder = std::mem::replace(&mut self.builder, ModelBuilder::new(18));
        self.builder = builder
            .constant(&w, Tensor::from_vec(shape.to_vec(), numbers))
            .constant(&s, Tensor::from_vec(vec![shape[0]], scales.clone()))
            .constant(&z, Tensor::from_vec(vec![shape[0]], vec![0i8; shape[0]]))
            .node("DequantizeLinear", [&*w, &*s, &*z], [d.as_str()])
            .attr("axis", 0i64);
        let x_scale = 0.03f32;
        let bias: Vec<i32> = (0..shape[0]).map(|_| self.draw.below(400) as i32 - 200).collect();
        let [b, bs, bd] = ["b", "bs", "bd"].map(|part| format!("{part}{id}"));
        let units: Vec<f32> = scales.iter().map(|scale| x_scale * scale).collect();
        let builder = std::mem::replace(&mut self.builder, ModelBuilder::new(18));
        self.builder = builder
            .constant(&b, Tensor::from_vec(vec![shape[0]], bias))
            .constant(&bs, Tensor::from_vec(vec![shape[0]], units))
            .node("DequantizeLinear", [&*b, &*bs], [bd.as_str()])
            .attr("axis", 0i64);
        (d, x_scale)
    }

    /// One more operator.
    fn grow(mut self, op: u64) -> Grown {
        let id = self.made;
        let (last, channels) = self.last.clone();
        let float = format!("f{id}");
        let f = float.as_str();
        match op {
            // A convolution, with a Relu or without.
            0 | 1 => {
                let filters = 2 + self.draw.below(4) as usize;
                let (d, _) = self.weights(id, &[filters, channels, 3, 3], channels * 9);
                let bias = format!("bd{id}");
                let conv = format!("c{id}");
                let out = if op == 1 { conv.as_str() } else { f };
                self.builder =
                    self.builder.node("Conv", [&*last, &*d, &*bias], [out]).attr("pads", vec![1i64; 4]);
                if op == 1 {
                    self.builder = self.builder.node("Relu", [conv.as_str()], [f]);
                }
                // The scale that biases are in the unit of.
                self.quantized(f, filters, 0.03, op == 1)
            }
            2 | 3 => {
                self.builder = self.builder.node(if op == 2 { "Add" } else { "Mul" }, [&*last, &*last], [f]);
                self.quantized(f, channels, 0.03, false)
            }
            4 => {
                self.builder = self.builder.node("Concat", [&*last, &*last], [f]).attr("axis", 1i64);
                self.quantized(f, 2 * channels, 0.03, false)
            }
            5 => {
                self.builder = self.builder.node("Sigmoid", [&*last], [f]);
                self.quantized(f, channels, 0.03, false)
            }
            6 => {
                self.builder = self.builder.node("LeakyRelu", [&*last], [f]).attr("alpha", 0.2f32);
                self.quantized(f, channels, 0.03, false)
            }
            7 => {
                self.builder = self
                    .builder
                    .node("AveragePool", [&*last], [f])
                    .attr("kernel_shape", vec![3i64, 3])
                    .attr("pads", vec![1i64; 4]);
                self.quantized(f, channels, 0.03, false)
            }
            8 => {
                self.builder = self
                    .builder
                    .node("MaxPool", [&*last], [f])
                    .attr("kernel_shape", vec![3i64, 3])
                    .attr("pads", vec![1i64; 4]);
                self.made += 1;
                self.pair(f, channels, id)
            }
            _ => {
                self.builder =
                    self.builder.node("Transpose", [&*last], [f]).attr("perm", vec![0i64, 1, 3, 2]);
                self.made += 1;
                self.pair(f, channels, id)
            }
        }
    }

    /// Closes with a pooled, flattened, fully connected end, or as it is.
    fn end(mut self, head: bool) -> Model {
        if !head {
            let (last, channels) = self.last;
            let ty = format!("float[1, {channels}, 6, 6]");
            return self.builder.output(&last, &ty).build();
        }
        let (last, channels) = self.last.clone();
        self.builder = self.builder.node("GlobalAveragePool", [&*last], ["pooled"]);
        let mut grown = self.quantized("pooled", channels, 0.03, false);
        let last = grown.last.0.clone();
        let id = grown.made;
        grown.builder = grown.builder.node("Flatten", [&*last], ["flat"]);
        grown.made += 1;
        let mut grown = grown.pair("flat", channels, id);
        let last = grown.last.0.clone();
        let (d, _) = grown.weights(100, &[5, channels], channels);
        grown
            .builder
            .node("Gemm", [&*last, &*d, "bd100"], ["y"])
            .attr("transB", 1i64)
            .output("y", "float[1, 5]")
            .build()
    }
}

fn input(seed: u64) -> Tensor {
    Draw(seed).floats(&[1, 4, 6, 6])
}

/// Greatest difference in units of the scale.
fn steps(expected: &Tensor, got: &Tensor) -> f64 {
    let (a, b) = (expected.to_f64s().expect("numbers"), got.to_f64s().expect("numbers"));
    a.iter().zip(&b).fold(0f64, |max, (x, y)| max.max((x - y).abs())) / 0.03
}

#[test]
fn one_operator_is_at_most_one_integer_off() {
    for engine in engines() {
        for signed in [false, true] {
            for op in 0..10 {
                let model = Grown::new(op + 1, signed).grow(op).end(false);
                let (integers, changes) = apply(THERE, &model).expect("it converts");
                // onnxruntime's own operators on int8 exist as well; only what cannot be converted is left.
                assert_eq!(changes[0].skips, [], "{op}");
                assert_eq!(count(&integers, "QuantizeLinear"), 1, "{op}: the input's alone");
                let (back, changes) = apply(BACK, &integers).expect("it converts");
                assert_eq!(changes[0].skips, [], "{op}");
                let x = [input(op)];
                let expected = outputs(engine.as_ref(), &model, &x);
                let found = outputs(engine.as_ref(), &integers, &x);
                let apart = steps(&expected[0], &found[0]);
                assert!(apart < 1.01, "{} operator {op}, signed {signed}: {apart}", engine.name());
                if engine.name() == "cpu" {
                    let again = outputs(engine.as_ref(), &back, &x);
                    assert_eq!(expected, again, "operator {op}");
                }
            }
        }
    }
}

#[test]
fn graphs_keep_their_outputs_there_and_back() {
    let mut ratios = Vec::new();
    for seed in 0..40 {
        let mut draw = Draw(seed * 77 + 5);
        let mut grown = Grown::new(seed + 50, seed % 3 == 0);
        for _ in 0..2 + draw.below(6) {
            grown = grown.grow(draw.below(10));
        }
        let model = grown.end(seed % 2 == 0);
        let (integers, changes) = apply(THERE, &model).expect("it converts");
        assert_eq!(changes[0].skips, [], "{seed}");
        let (back, changes) = apply(BACK, &integers).expect("it converts");
        assert_eq!(changes[0].skips, [], "{seed}");
        let x = [input(seed)];
        for engine in engines() {
            let expected = outputs(engine.as_ref(), &model, &x);
            if engine.name() == "cpu" {
                assert_eq!(expected, outputs(engine.as_ref(), &back, &x), "{seed}");
            }
            // Where integers are one off they differ on, but stay small beside the signal; more so in long
            // graphs of few elements.
            for other in [&integers, &back] {
                let found = outputs(engine.as_ref(), other, &x);
                let ratio = sqnr(&expected[0], &found[0]);
                assert!(ratio > 6.0, "{} {seed}: {ratio} dB", engine.name());
                ratios.push(ratio);
            }
        }
    }
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[ratios.len() / 10] > 20.0, "{ratios:?}");
}

#[test]
fn what_cannot_be_converted_says_why() {
    let pair = |builder: ModelBuilder, scale: &str| {
        builder
            .input("x", "float[1, 4]")
            .constant("s", Tensor::scalar(0.1f32))
            .constant("t", Tensor::scalar(0.2f32))
            .constant("z", Tensor::scalar(3u8))
            .node("QuantizeLinear", ["x", "s", "z"], ["q"])
            .node("DequantizeLinear", ["q", "s", "z"], ["d"])
            .node("Flatten", ["d"], ["f"])
            .node("QuantizeLinear", ["f", scale, "z"], ["r"])
            .node("DequantizeLinear", ["r", scale, "z"], ["e"])
    };
    let skips = |model: Model| apply(THERE, &model).expect("it runs").1.remove(0).skips;
    let model = pair(ModelBuilder::new(18), "t").output("e", "float[1, 4]").build();
    assert_eq!(skips(model)[0].reason, "scale or zero point change across it");
    let model = pair(ModelBuilder::new(18), "s").node("Erf", ["e"], ["y"]).output("y", "float[1, 4]").build();
    assert_eq!(skips(model)[0].reason, "Erf has no form on integers");
    let model =
        pair(ModelBuilder::new(18), "s").node("Sigmoid", ["e"], ["y"]).output("y", "float[1, 4]").build();
    assert_eq!(skips(model)[0].reason, "its result is read as float");
    // A Relu that cuts what the quantizer does not.
    let model = pair(ModelBuilder::new(18), "s")
        .node("Sigmoid", ["e"], ["g"])
        .node("Relu", ["g"], ["h"])
        .node("QuantizeLinear", ["h", "s", "z"], ["y"])
        .output("y", "uint8[1, 4]")
        .build();
    assert_eq!(
        skips(model)[0].reason,
        "the activation function before its QuantizeLinear cuts more than that does"
    );
}

#[test]
fn quantized_fixtures_keep_their_outputs() {
    let place = Place::new();
    place.write("there.toml", format!("version = 1\n{THERE}"));
    place.write("back.toml", format!("version = 1\n{BACK}"));
    for name in ["fmnist_resnet", "fmnist_mobilenet"] {
        place.ok(&format!(
            "quantize fixtures/models/{name}.onnx -o {name}.onnx --calib fixtures/data/fmnist-calib.toml --calib-samples 32"
        ));
        place.ok(&format!("run there.toml {name}.onnx -o {name}-integers.onnx"));
        place.ok(&format!("run back.toml {name}-integers.onnx -o {name}-back.onnx"));
        let load = |suffix: &str| {
            let path = place.path(&format!("{name}{suffix}.onnx"));
            optix_io::load(&path, &optix_io::LoadOptions::default()).expect("it loads").model
        };
        let (model, integers, back) = (load(""), load("-integers"), load("-back"));
        assert_eq!(count(&integers, "Conv"), 0, "{name}");
        assert_eq!(count(&integers, "QLinearConv"), count(&model, "Conv"), "{name}");
        assert_eq!(count(&back, "Conv"), count(&model, "Conv"), "{name}");
        let x = [Draw(9).floats(&[4, 1, 28, 28])];
        for engine in engines() {
            let expected = outputs(engine.as_ref(), &model, &x);
            if engine.name() == "cpu" {
                assert_eq!(expected, outputs(engine.as_ref(), &back, &x), "{name}");
            }
            for other in [&integers, &back] {
                let found = outputs(engine.as_ref(), other, &x);
                let ratio = sqnr(&expected[0], &found[0]);
                assert!(ratio > 25.0, "{} {name}: {ratio} dB", engine.name());
            }
        }
    }
}
