//! Small models that show how an engine runs an operator: in float, and behind quantizers.

use optix_ir::{AttributeValue, DType, Model, ModelBuilder, Tensor};

use crate::quantize::target::Runs;
use crate::quantize::target::operators::{Bridge, Folded, Mover, Product, Weighted};
use crate::quantize::types::ActivationType;

/// What a pattern is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    /// An operator with constant weights.
    Weighted(Weighted),
    /// A product of two activations.
    Product(Product),
    /// An operator between integer neighbours.
    Bridge(Bridge),
    /// An operator that moves elements.
    Mover(Mover),
    /// A convolution with an activation function behind it.
    Folded(Folded),
}

/// One operator with all that it needs.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    pub(super) asks: Asks,
    op: &'static str,
    /// Shapes of its activations.
    inputs: Vec<Vec<usize>>,
    /// Shape of its weights and the axis of their channels.
    weights: Option<(Vec<usize>, usize)>,
    /// Further inputs; none for one that is left out.
    constants: Vec<Option<Tensor>>,
    attributes: Vec<(&'static str, AttributeValue)>,
    /// Operator behind it, with further inputs.
    then: Option<(&'static str, Vec<Tensor>)>,
}

/// Scale of activations: random numbers from -1 to 1 fill a third of the range of 8 bits or more.
const SCALE: f32 = 0.02;

/// Scale of weights.
const WEIGHT_SCALE: f32 = 0.01;

impl Pattern {
    fn new(asks: Asks, op: &'static str, inputs: &[&[usize]]) -> Pattern {
        Pattern {
            asks,
            op,
            inputs: inputs.iter().map(|shape| shape.to_vec()).collect(),
            weights: None,
            constants: Vec::new(),
            attributes: Vec::new(),
            then: None,
        }
    }

    fn weights(mut self, shape: &[usize], axis: usize) -> Pattern {
        self.weights = Some((shape.to_vec(), axis));
        self
    }

    fn constant(mut self, tensor: Tensor) -> Pattern {
        self.constants.push(Some(tensor));
        self
    }

    fn no_constant(mut self) -> Pattern {
        self.constants.push(None);
        self
    }

    fn attribute(mut self, name: &'static str, value: impl Into<AttributeValue>) -> Pattern {
        self.attributes.push((name, value.into()));
        self
    }

    fn then(mut self, op: &'static str, constants: Vec<Tensor>) -> Pattern {
        self.then = Some((op, constants));
        self
    }

    /// Its name in profiles.
    pub(super) fn name(&self) -> String {
        match self.asks {
            Asks::Product(_) => format!("{} of two activations", self.op),
            Asks::Mover(mover) => mover.name().to_owned(),
            _ => match &self.then {
                Some((then, _)) => format!("{}+{then}", self.op),
                None => self.op.to_owned(),
            },
        }
    }

    /// Whether a kernel of that name belongs to what is asked about, and not to a change of layout.
    pub(super) fn owns(&self, kernel: &str) -> bool {
        kernel == self.op || !(kernel == "Transpose" || kernel.starts_with("Reorder"))
    }

    /// Whether the function behind the operator was left as a kernel.
    pub(super) fn is_kept(&self, kernel: &str) -> bool {
        self.then.as_ref().is_some_and(|(then, _)| kernel == *then)
    }

    /// Number of activations it reads.
    pub(super) fn activations(&self) -> usize {
        self.inputs.len()
    }

    /// Whether it has weights.
    pub(super) fn has_weights(&self) -> bool {
        self.weights.is_some()
    }

    /// What it is fed.
    pub(super) fn feeds(&self) -> Vec<(String, Tensor)> {
        let feed = |(index, shape): (usize, &Vec<usize>)| {
            let count = shape.iter().product();
            (format!("x{index}"), Tensor::from_vec(shape.clone(), numbers(count, 1 + index as u64)))
        };
        self.inputs.iter().enumerate().map(feed).collect()
    }

    /// The model in float.
    pub(super) fn float(&self) -> Model {
        self.build(None, false)
    }

    /// The model behind quantizers to a type of activations and one of weights; with `is_behind`, with one behind
    /// it too.
    pub(super) fn quantized(&self, types: [ActivationType; 2], is_behind: bool) -> Model {
        self.build(Some(types), is_behind)
    }

    fn build(&self, types: Option<[ActivationType; 2]>, is_behind: bool) -> Model {
        let opset =
            types.map_or(17, |[activations, _]| activations.least_operator_set(Runs::Emulated).max(17));
        let mut builder = ModelBuilder::new(opset);
        let mut inputs: Vec<String> = Vec::new();
        for (index, shape) in self.inputs.iter().enumerate() {
            let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
            builder = builder.input(&format!("x{index}"), &format!("float[{}]", sizes.join(", ")));
        }
        for index in 0..self.inputs.len() {
            let name = format!("x{index}");
            let Some([activations, _]) = types else {
                inputs.push(name);
                continue;
            };
            builder = pair(builder, &name, activations, false);
            inputs.push(format!("{name}_dequantized"));
        }
        if let Some((shape, axis)) = &self.weights {
            let count = shape.iter().product();
            match types {
                None => builder = builder.constant("w", Tensor::from_vec(shape.clone(), numbers(count, 9))),
                Some([_, weights]) => {
                    let channels = shape[*axis];
                    let zero = if weights == ActivationType::Uint8 { 128 } else { 0 };
                    builder = builder
                        .constant("w_quantized", integers(shape, &numbers(count, 9), weights.dtype()))
                        .constant("w_scale", Tensor::from_vec(vec![channels], vec![WEIGHT_SCALE; channels]))
                        .constant("w_zero", codes(weights.dtype(), vec![channels], &vec![zero; channels]))
                        .node("DequantizeLinear", ["w_quantized", "w_scale", "w_zero"], ["w"])
                        .attr("axis", *axis as i64);
                }
            }
            inputs.push("w".to_owned());
        }
        for (index, constant) in self.constants.iter().enumerate() {
            match constant {
                None => inputs.push(String::new()),
                Some(tensor) => {
                    let name = format!("c{index}");
                    builder = builder.constant(&name, tensor.clone());
                    inputs.push(name);
                }
            }
        }
        builder = builder.node(self.op, inputs.iter().map(String::as_str), ["y"]);
        for (name, value) in &self.attributes {
            builder = builder.attr(name, value.clone());
        }
        let mut output = "y";
        if let Some((then, constants)) = &self.then {
            let mut inputs = vec!["y".to_owned()];
            for (index, constant) in constants.iter().enumerate() {
                let name = format!("t{index}");
                builder = builder.constant(&name, constant.clone());
                inputs.push(name);
            }
            builder = builder.node(then, inputs.iter().map(String::as_str), ["z"]);
            output = "z";
        }
        if let (Some([activations, _]), true) = (types, is_behind) {
            // The range of what is clipped at 0 starts there.
            builder = pair(builder, output, activations, self.then.is_some());
            return builder.output(&format!("{output}_dequantized"), "").build();
        }
        builder.output(output, "").build()
    }
}

/// A pair behind a value.
fn pair(builder: ModelBuilder, name: &str, dtype: ActivationType, from_zero: bool) -> ModelBuilder {
    let names = ["scale", "zero", "quantized", "dequantized"].map(|part| format!("{name}_{part}"));
    let [scale, zero, quantized, dequantized] = names.each_ref().map(String::as_str);
    let (low, middle) = match dtype {
        ActivationType::Uint8 => (0, 128),
        ActivationType::Int8 => (-128, 0),
        ActivationType::Uint16 => (0, 32_768),
        ActivationType::Int16 => (-32_768, 0),
        ActivationType::Float8e4m3fn | ActivationType::Float8e5m2 => (0, 0),
    };
    builder
        .constant(scale, Tensor::scalar(SCALE))
        .constant(zero, codes(dtype.dtype(), vec![], &[if from_zero { low } else { middle }]))
        .node("QuantizeLinear", [name, scale, zero], [quantized])
        .node("DequantizeLinear", [quantized, scale, zero], [dequantized])
}

/// Whole numbers as a tensor of a quantized type.
fn codes(dtype: DType, shape: Vec<usize>, numbers: &[i32]) -> Tensor {
    match dtype {
        DType::I8 => Tensor::from_vec(shape, numbers.iter().map(|&n| n as i8).collect::<Vec<_>>()),
        DType::U8 => Tensor::from_vec(shape, numbers.iter().map(|&n| n as u8).collect::<Vec<_>>()),
        DType::I16 => Tensor::from_vec(shape, numbers.iter().map(|&n| n as i16).collect::<Vec<_>>()),
        DType::U16 => Tensor::from_vec(shape, numbers.iter().map(|&n| n as u16).collect::<Vec<_>>()),
        _ => {
            let code = |&number: &i32| optix_ir::minifloat::from_f64(dtype, f64::from(number), true);
            Tensor::from_codes(dtype, shape, &numbers.iter().map(code).collect::<Vec<u8>>())
        }
    }
}

/// Numbers from -1 to 1 as weights of a type.
fn integers(shape: &[usize], numbers: &[f32], dtype: DType) -> Tensor {
    let shift = if dtype == DType::U8 { 128 } else { 0 };
    let all: Vec<i32> = numbers.iter().map(|number| (number / WEIGHT_SCALE).round() as i32 + shift).collect();
    codes(dtype, shape.to_vec(), &all)
}

/// Numbers from -1 to 1 that look random.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// Every pattern, in the order of profiles. Sizes are those of a middle layer of a small net.
pub(super) fn all() -> Vec<Pattern> {
    const IMAGE: &[usize] = &[1, 64, 28, 28];
    const ROWS: &[usize] = &[128, 384];
    let conv = |asks: Asks| {
        Pattern::new(asks, "Conv", &[IMAGE]).weights(&[64, 64, 3, 3], 0).attribute("pads", vec![1i64; 4])
    };
    let scalar = |number: f32| Tensor::scalar(number);
    let sizes = |sizes: &[i64]| Tensor::from_i64s(sizes);
    let mut all = Vec::new();
    for &operator in Weighted::ALL {
        let asks = Asks::Weighted(operator);
        all.push(match operator {
            Weighted::Conv => conv(asks),
            Weighted::ConvTranspose => {
                Pattern::new(asks, "ConvTranspose", &[IMAGE]).weights(&[64, 64, 3, 3], 1)
            }
            Weighted::Gemm => Pattern::new(asks, "Gemm", &[ROWS]).weights(&[384, 384], 1),
            Weighted::MatMul => Pattern::new(asks, "MatMul", &[ROWS]).weights(&[384, 384], 1),
        });
    }
    for &product in Product::ALL {
        let (left, right) = ([1usize, 12, 128, 32], [1usize, 12, 32, 128]);
        all.push(Pattern::new(Asks::Product(product), product.name(), &[&left, &right]));
    }
    for &bridge in Bridge::ALL {
        let (asks, op) = (Asks::Bridge(bridge), bridge.name());
        let one = || Pattern::new(asks, op, &[IMAGE]);
        let two = || Pattern::new(asks, op, &[IMAGE, IMAGE]);
        all.push(match bridge {
            Bridge::Add | Bridge::Sub | Bridge::Mul | Bridge::Div => two(),
            Bridge::Concat => two().attribute("axis", 1i64),
            Bridge::AveragePool => one().attribute("kernel_shape", vec![2i64, 2]),
            Bridge::ReduceMean => one().attribute("axes", vec![2i64, 3]),
            Bridge::Softmax => one().attribute("axis", -1i64),
            Bridge::GlobalAveragePool | Bridge::LeakyRelu | Bridge::Sigmoid | Bridge::Tanh => one(),
        });
    }
    for &mover in Mover::ALL {
        let asks = Asks::Mover(mover);
        let one = |op: &'static str| Pattern::new(asks, op, &[IMAGE]);
        let name = mover.name();
        all.push(match mover {
            Mover::Flatten | Mover::Identity => one(name),
            Mover::Reshape => one(name).constant(sizes(&[1, -1])),
            Mover::Squeeze | Mover::Unsqueeze => one(name).constant(sizes(&[0])),
            Mover::Transpose => one(name).attribute("perm", vec![0i64, 2, 3, 1]),
            Mover::MaxPool => one(name).attribute("kernel_shape", vec![2i64, 2]),
            Mover::Slice => one(name).constant(sizes(&[0])).constant(sizes(&[16])).constant(sizes(&[2])),
            Mover::DepthToSpace | Mover::SpaceToDepth => one(name).attribute("blocksize", 2i64),
            Mover::Expand => one(name).constant(sizes(&[2, 64, 28, 28])),
            Mover::Tile => one(name).constant(sizes(&[2, 1, 1, 1])),
            Mover::Resize | Mover::ResizeLinear => {
                let mode = if mover == Mover::Resize { "nearest" } else { "linear" };
                let scales = Tensor::from_vec(vec![4], vec![1f32, 1.0, 2.0, 2.0]);
                one("Resize").no_constant().constant(scales).attribute("mode", mode)
            }
            Mover::Gather => one(name).constant(sizes(&[0, 2, 4])).attribute("axis", 1i64),
            Mover::GatherElements => {
                let indices = Tensor::from_vec(vec![1, 64, 28, 28], vec![0i64; 64 * 28 * 28]);
                one(name).constant(indices)
            }
        });
    }
    for &function in Folded::ALL {
        let behind = match function {
            Folded::Relu => Vec::new(),
            // To the end of the range of 8 bits: a narrower clip would not be the quantizer's.
            Folded::Clip => vec![scalar(0.0), scalar(255.0 * SCALE)],
        };
        all.push(conv(Asks::Folded(function)).then(function.name(), behind));
    }
    all
}
