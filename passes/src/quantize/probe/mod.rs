//! Asking an engine what it runs in integers.
//!
//! Every operator is put between quantizers in a model of its own, for every pair of types, and the engine's
//! clock tells which kernels ran and how many quantizers it left. A target profile is made of that, and of
//! [`LEFT_FLOAT`]: what an engine can run in integers is not always worth it.

mod patterns;

use std::collections::BTreeSet;

use optix_ir::{ModelBuilder, Tensor};
use optix_pipeline::{Deployment, KernelTime, Oracle, OracleError};

use super::target::operators::{Bridge, Folded, Mover, Product, Weighted};
use super::target::{
    Activations, Bias, LeftFloat, Measured, Measurements, OperatorSets, Operators, Source, Target, Weights,
};
use super::types::{ActivationType, Saturation};
use patterns::{Asks, Pattern};

/// Operators with integer kernels that stay float unless a profile says otherwise, with what was measured.
pub const LEFT_FLOAT: &[(&str, &str)] = &[
    (
        "MatMul of two activations",
        "no gain: MiniLM keeps 16.01 dB and takes 0.72 of the float time with it, 16.05 dB and 0.71 without \
         (all layers in integers, 48 samples, 2 threads of a processor without VNNI)",
    ),
    (
        "Mul",
        "no gain: OCR recognition keeps 13.25 dB and takes 0.94 of the float time with gates in integers, 13.29 dB and 0.88 without",
    ),
    ("LeakyRelu", "slower: the kernel took 1.5 to 2.5 times the float one's time"),
    ("Sigmoid", "no gain: as Mul, with which it was measured"),
    ("Softmax", "slower: the kernel took 3.6 times the float one's time"),
    ("Resize", "no gain: OCR detection comes out the same, since what it resizes is not in integers"),
    ("Gather", "not tried: no model at hand gathers what is in integers"),
    ("GatherElements", "not tried: no model at hand gathers what is in integers"),
];

/// Newest operator set that is tried.
const NEWEST: i64 = 40;

/// What patterns are called that have no quantizer behind them, where that makes a difference.
const FLOAT_BEHIND: &str = ", float behind it";

/// What a probe is told.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Name of the profile.
    pub name: String,
    /// Engine as `--engine` knows it.
    pub engine: String,
    /// Processor, with the instruction sets that matter.
    pub processor: String,
    /// The day, year first.
    pub date: String,
}

/// Types of activations and weights that are tried with operators that have weights.
const TYPES: &[[ActivationType; 2]] = &[
    [ActivationType::Uint8, ActivationType::Int8],
    [ActivationType::Int8, ActivationType::Int8],
    [ActivationType::Uint8, ActivationType::Uint8],
    [ActivationType::Uint16, ActivationType::Int8],
    [ActivationType::Int16, ActivationType::Int8],
    [ActivationType::Float8e4m3fn, ActivationType::Float8e4m3fn],
    [ActivationType::Float8e5m2, ActivationType::Float8e5m2],
];

/// The first ones are those that lists are made of.
const USUAL: [ActivationType; 2] = TYPES[0];

/// What was seen of one pattern with one pair of types.
struct Seen {
    asks: Asks,
    types: [ActivationType; 2],
    is_behind: bool,
    /// Whether it ran at all.
    runs: bool,
    integers: bool,
}

/// Probes an engine: `deployment` times its kernels and `oracle` runs models on it.
///
/// # Errors
/// When the engine runs not even the float models, or says nothing of its kernels; when interrupted by
/// `progress`, which is told how many of how many models are done.
pub fn probe(
    facts: &Facts,
    deployment: &mut dyn Deployment,
    oracle: &mut dyn Oracle,
    progress: &mut dyn FnMut(u64, u64) -> Result<(), OracleError>,
) -> Result<Target, OracleError> {
    let all = patterns::all();
    let (mut seen, mut rows) = (Vec::new(), Vec::new());
    for (done, pattern) in all.iter().enumerate() {
        progress(done as u64, all.len() as u64)?;
        let feeds = pattern.feeds();
        let float = deployment.kernels(&pattern.float(), &feeds)?;
        let tried = if pattern.has_weights() && matches!(pattern.asks, Asks::Weighted(_)) {
            TYPES
        } else {
            &TYPES[..2]
        };
        for &types in tried {
            // Whether a quantizer behind it is needed shows without one.
            let ways: &[bool] = match pattern.asks {
                Asks::Weighted(_) | Asks::Product(_) => &[false, true],
                _ => &[true],
            };
            for &is_behind in ways {
                let ran = deployment.kernels(&pattern.quantized(types, is_behind), &feeds);
                if matches!(ran, Err(OracleError::Interrupted)) {
                    return Err(OracleError::Interrupted);
                }
                let (one, row) = look(pattern, types, is_behind, &float, ran.ok());
                seen.push(one);
                rows.extend(row);
            }
        }
    }
    let clips = clips_pairs(oracle)?;
    let operator_sets = OperatorSets { least: 10, greatest: newest_operator_set(deployment)? };
    let engine = deployment.describe();
    let engine = engine.split(',').next().unwrap_or_default().to_owned();
    Ok(profile(facts, engine, operator_sets, clips, &seen, rows))
}

/// What the kernels of a pattern say.
fn look(
    pattern: &Pattern,
    types: [ActivationType; 2],
    is_behind: bool,
    float: &[KernelTime],
    ran: Option<Vec<KernelTime>>,
) -> (Seen, Option<Measured>) {
    let mut seen = Seen { asks: pattern.asks, types, is_behind, runs: ran.is_some(), integers: false };
    let Some(ran) = ran else { return (seen, None) };
    let quantizes = |kernel: &&KernelTime| kernel.op_type.ends_with("uantizeLinear");
    let quantizers = ran.iter().filter(quantizes).count();
    let borders = pattern.activations() + usize::from(is_behind);
    let left = quantizers.saturating_sub(borders);
    let kept = ran.iter().any(|kernel| pattern.is_kept(&kernel.op_type));
    seen.integers = left == 0 && !kept;
    let seconds = |kernels: &[KernelTime]| -> f64 {
        kernels.iter().filter(|kernel| !quantizes(kernel)).map(|kernel| kernel.seconds).sum()
    };
    let (integer_seconds, float_seconds) = (seconds(&ran), seconds(float));
    let names: BTreeSet<&str> = ran
        .iter()
        .filter(|kernel| !quantizes(kernel))
        .map(|kernel| kernel.op_type.as_str())
        .filter(|name| pattern.owns(name))
        .collect();
    let behind =
        if is_behind || matches!(pattern.asks, Asks::Bridge(_) | Asks::Mover(_)) { "" } else { FLOAT_BEHIND };
    let known = seen.integers && float_seconds > 0.0 && integer_seconds > 0.0;
    let row = Measured {
        pattern: format!("{}{behind}", pattern.name()),
        activations: types[0],
        weights: pattern.has_weights().then_some(types[1]),
        integers: seen.integers,
        kernels: names.into_iter().map(str::to_owned).collect(),
        quantizers_left: u32::try_from(left).unwrap_or(u32::MAX),
        time_ratio: known.then(|| (integer_seconds / float_seconds * 100.0).round() / 100.0),
    };
    (seen, Some(row))
}

/// Whether sums of two products of uint8 activations and int8 weights are clipped to int16: all activations
/// are 255 and all weights 127, so that every pair is 64,770.
fn clips_pairs(oracle: &mut dyn Oracle) -> Result<bool, OracleError> {
    const DEPTH: usize = 64;
    const COLUMNS: usize = 16;
    let model = ModelBuilder::new(17)
        .input("x", &format!("float[4, {DEPTH}]"))
        .constant("one", Tensor::scalar(1f32))
        .constant("zero", Tensor::scalar(0u8))
        .node("QuantizeLinear", ["x", "one", "zero"], ["x_quantized"])
        .node("DequantizeLinear", ["x_quantized", "one", "zero"], ["x_dequantized"])
        .constant("w_quantized", Tensor::from_vec(vec![DEPTH, COLUMNS], vec![127i8; DEPTH * COLUMNS]))
        .constant("w_zero", Tensor::scalar(0i8))
        .node("DequantizeLinear", ["w_quantized", "one", "w_zero"], ["w"])
        .node("MatMul", ["x_dequantized", "w"], ["y"])
        .output("y", &format!("float[4, {COLUMNS}]"))
        .build();
    let x = Tensor::from_vec(vec![4, DEPTH], vec![255f32; 4 * DEPTH]);
    let outputs = oracle.outputs(&model, &[("x".to_owned(), x)])?;
    let sums = outputs.first().and_then(|sums| sums.to_f64s().ok()).unwrap_or_default();
    let right = (255 * 127 * DEPTH) as f64;
    Ok(sums.iter().any(|&sum| sum < right * 0.99))
}

/// The newest operator set in which the engine runs a product behind quantizers.
fn newest_operator_set(deployment: &mut dyn Deployment) -> Result<i64, OracleError> {
    let mut newest = 17;
    while newest < NEWEST {
        let model = ModelBuilder::new(newest + 1)
            .input("x", "float[4]")
            .constant("one", Tensor::scalar(1f32))
            .constant("zero", Tensor::scalar(0u8))
            .node("QuantizeLinear", ["x", "one", "zero"], ["q"])
            .node("DequantizeLinear", ["q", "one", "zero"], ["y"])
            .output("y", "float[4]")
            .build();
        let x = Tensor::from_vec(vec![4], vec![1f32; 4]);
        match deployment.latencies(&[&model], &[("x".to_owned(), x)], 0.0) {
            Ok(_) => newest += 1,
            Err(OracleError::Interrupted) => return Err(OracleError::Interrupted),
            Err(_) => break,
        }
    }
    Ok(newest)
}

/// The profile that follows from what was seen.
fn profile(
    facts: &Facts,
    engine: String,
    operator_sets: OperatorSets,
    clips: bool,
    seen: &[Seen],
    rows: Vec<Measured>,
) -> Target {
    let integers = |asks: Asks, is_behind: Option<bool>| {
        seen.iter().any(|seen| {
            seen.asks == asks
                && seen.types == USUAL
                && seen.integers
                && is_behind.is_none_or(|is_behind| seen.is_behind == is_behind)
        })
    };
    let is_left = |name: &str| LEFT_FLOAT.iter().any(|(left, _)| *left == name);
    let weighted: Vec<Weighted> =
        Weighted::ALL.iter().copied().filter(|&op| integers(Asks::Weighted(op), None)).collect();
    let quantized_output: Vec<Weighted> =
        weighted.iter().copied().filter(|&op| !integers(Asks::Weighted(op), Some(false))).collect();
    // The two types of a layer, judged by products and convolutions.
    let judged = [Asks::Weighted(Weighted::Conv), Asks::Weighted(Weighted::MatMul)];
    let all = |types: [ActivationType; 2], holds: &dyn Fn(&Seen) -> bool| {
        judged.iter().all(|&asks| {
            seen.iter().any(|seen| seen.asks == asks && seen.types == types && seen.is_behind && holds(seen))
        })
    };
    let pick = |which: usize, emulated: bool| -> Vec<ActivationType> {
        let holds = |dtype: ActivationType, native: bool| {
            TYPES
                .iter()
                .filter(|types| types[which] == dtype)
                .any(|&types| all(types, &|seen: &Seen| if native { seen.integers } else { seen.runs }))
        };
        ActivationType::ALL
            .iter()
            .copied()
            .filter(|&dtype| holds(dtype, true) != emulated && holds(dtype, false))
            .collect()
    };
    let by_preference = |mut types: Vec<ActivationType>| {
        // Weights are int8 wherever that runs.
        types.sort_by_key(|&dtype| dtype != ActivationType::Int8);
        types
    };
    let product = |&product: &Product| {
        integers(Asks::Product(product), None) && !is_left(&format!("{} of two activations", product.name()))
    };
    let left_float = LEFT_FLOAT
        .iter()
        .filter(|(name, _)| {
            let is_own =
                |pattern: &str| pattern == *name || pattern.strip_suffix(FLOAT_BEHIND) == Some(*name);
            rows.iter().any(|row| row.integers && is_own(&row.pattern))
        })
        .map(|(name, why)| LeftFloat { operator: (*name).to_owned(), why: (*why).to_owned() })
        .collect();
    Target {
        version: 1,
        name: facts.name.clone(),
        about: format!("{engine} on the processor, as a probe found it"),
        engine: facts.engine.clone(),
        source: Source {
            how: "probe: `optix targets probe` ran every pattern below and read which kernels ran".to_owned(),
            engine,
            processor: facts.processor.clone(),
            date: facts.date.clone(),
            documents: Vec::new(),
        },
        operator_sets,
        activations: Activations { native: pick(0, false), emulated: pick(0, true), symmetric: false },
        weights: Weights {
            native: by_preference(pick(1, false)),
            emulated: pick(1, true),
            per_channel: true,
            bias: Bias::Int32,
            saturation: if clips { Saturation::Avoid } else { Saturation::Allow },
        },
        operators: Operators {
            // What needs a quantizer behind it anyhow may hand integers on; results of products are read in
            // float more often than not.
            integer_output: quantized_output.clone(),
            quantized_output,
            weighted,
            products: Product::ALL.iter().copied().filter(product).collect(),
            bridges: (Bridge::ALL.iter().copied())
                .filter(|&op| integers(Asks::Bridge(op), None) && !is_left(op.name()))
                .collect(),
            movers: (Mover::ALL.iter().copied())
                .filter(|&op| integers(Asks::Mover(op), None) && !is_left(op.name()))
                .collect(),
            folded: (Folded::ALL.iter().copied()).filter(|&op| integers(Asks::Folded(op), None)).collect(),
        },
        left_float,
        measured: Measurements { rows },
    }
}

#[cfg(test)]
mod tests {
    use optix_ir::{Model, NodeId};
    use optix_pipeline::{Batches, Visitor};

    use super::*;

    /// An engine with integer kernels for convolutions that have a quantizer behind them, for products with and
    /// without, and for sums; float8 it refuses.
    struct Engine {
        clips: bool,
    }

    impl Engine {
        fn reads_integers(model: &Model, id: NodeId) -> bool {
            let node = model.node(id);
            node.inputs().iter().flatten().all(|&input| {
                let producer = model.value(input).producer();
                producer.is_some_and(|(id, _)| {
                    let known = |slot: usize| model.node(id).input(slot).and_then(|z| model.constant(z));
                    model.node(id).is("DequantizeLinear")
                        && known(2).is_some_and(|zero| zero.dtype().bits() == 8)
                })
            })
        }
    }

    impl Deployment for Engine {
        fn describe(&self) -> String {
            "machine 7.1, 3 threads".to_owned()
        }

        fn latencies(
            &mut self,
            models: &[&Model],
            _: &[(String, Tensor)],
            _: f64,
        ) -> Result<Vec<Vec<f64>>, OracleError> {
            if models.iter().any(|model| model.opset_version(model.main(), "") > Some(21)) {
                return Err(OracleError::Feeds("too new".into()));
            }
            Ok(vec![vec![1.0]; models.len()])
        }

        fn kernels(
            &mut self,
            model: &Model,
            feeds: &[(String, Tensor)],
        ) -> Result<Vec<KernelTime>, OracleError> {
            assert_eq!(feeds.len(), model.graph(model.main()).inputs().len());
            let constants = model.values().filter_map(|value| model.constant(value));
            if constants.into_iter().any(|tensor| tensor.dtype().is_float() && tensor.dtype().bits() == 8) {
                return Err(OracleError::Feeds("no float8".into()));
            }
            let mut kernels = Vec::new();
            let mut fused: BTreeSet<NodeId> = BTreeSet::new();
            for id in model.walk() {
                let node = model.node(id);
                let behind = node.output(0).and_then(|output| model.value(output).uses().first().copied());
                let quantizer = match behind {
                    Some(optix_ir::Use::Node(user, 0)) if model.node(user).is("QuantizeLinear") => Some(user),
                    _ => None,
                };
                let is_integer = Engine::reads_integers(model, id)
                    && match node.op_type.as_str() {
                        "Conv" | "Add" => quantizer.is_some(),
                        "MatMul" => true,
                        _ => false,
                    };
                if is_integer {
                    fused.insert(id);
                    fused.extend(quantizer);
                    let inputs = node.inputs().iter().flatten();
                    fused.extend(inputs.filter_map(|&input| Some(model.value(input).producer()?.0)));
                }
                let seconds = if is_integer { 1e-6 } else { 4e-6 };
                kernels.push((id, KernelTime { nodes: vec![id], op_type: node.op_type.clone(), seconds }));
            }
            let keeps =
                |id: NodeId| !fused.contains(&id) || !model.node(id).op_type.ends_with("uantizeLinear");
            Ok(kernels.into_iter().filter(|(id, _)| keeps(*id)).map(|(_, kernel)| kernel).collect())
        }
    }

    impl Oracle for Engine {
        fn describe(&self) -> String {
            "machine".to_owned()
        }

        fn observe(
            &mut self,
            _: &Model,
            _: &[optix_ir::ValueId],
            _: Batches<'_>,
            _: Visitor<'_>,
        ) -> Result<u64, OracleError> {
            Ok(0)
        }

        fn outputs(&mut self, _: &Model, feeds: &[(String, Tensor)]) -> Result<Vec<Tensor>, OracleError> {
            let depth = feeds[0].1.shape()[1];
            let pair = if self.clips { 32_767.0 } else { 64_770f32 };
            Ok(vec![Tensor::from_vec(vec![1, 1], vec![pair * depth as f32 / 2.0])])
        }
    }

    fn facts() -> Facts {
        Facts {
            name: "mine".into(),
            engine: "machine".into(),
            processor: "abacus".into(),
            date: "2026-01-02".into(),
        }
    }

    #[test]
    fn a_profile_is_what_was_seen() {
        for clips in [true, false] {
            let mut told = 0;
            let target = probe(&facts(), &mut Engine { clips }, &mut Engine { clips }, &mut |done, total| {
                assert!(done < total);
                told += 1;
                Ok(())
            });
            let target = target.unwrap();
            assert!(told > 30);
            assert_eq!(target.source.engine, "machine 7.1");
            assert_eq!(target.operators.weighted, [Weighted::Conv, Weighted::MatMul]);
            assert_eq!(target.operators.quantized_output, [Weighted::Conv]);
            assert_eq!(target.operators.bridges, [Bridge::Add]);
            assert!(target.operators.movers.is_empty(), "{:?}", target.operators.movers);
            let native = [ActivationType::Uint8, ActivationType::Int8];
            assert_eq!(target.activations.native, native);
            assert_eq!(target.activations.emulated, [ActivationType::Uint16, ActivationType::Int16]);
            assert_eq!(target.weights.native, [ActivationType::Int8, ActivationType::Uint8]);
            assert!(target.weights.emulated.is_empty());
            assert_eq!(target.operator_sets.greatest, 21);
            assert_eq!(target.weights.saturation == Saturation::Avoid, clips);
            let conv = target.measured.rows.iter().find(|row| row.pattern == "Conv").unwrap();
            assert!(conv.integers && conv.time_ratio == Some(0.25), "{conv:?}");
            let row = target.measured.rows.iter().find(|row| row.pattern == "Gemm").unwrap();
            assert!(!row.integers && row.quantizers_left > 0 && row.time_ratio.is_none(), "{row:?}");
            assert_eq!(Target::parse(&target.to_toml()), Ok(target));
        }
    }

    #[test]
    fn the_profiles_of_onnxruntime_follow_from_what_they_list_as_measured() {
        let target = Target::built_in("ort-cpu").unwrap();
        let rows = &target.measured.rows;
        assert!(rows.len() > 60, "{}", rows.len());
        let is_integer = |name: &str| {
            let is_own = |pattern: &str| pattern == name || pattern.strip_suffix(FLOAT_BEHIND) == Some(name);
            let usual = |row: &&Measured| {
                row.activations == USUAL[0] && row.weights.is_none_or(|weights| weights == USUAL[1])
            };
            rows.iter().filter(usual).any(|row| row.integers && is_own(&row.pattern))
        };
        let is_left = |name: &str| LEFT_FLOAT.iter().any(|(left, _)| *left == name);
        for op in Bridge::ALL {
            let placed = target.operators.bridges.contains(op);
            assert_eq!(placed, is_integer(op.name()) && !is_left(op.name()), "{op:?}");
        }
        for op in Mover::ALL {
            let placed = target.operators.movers.contains(op);
            assert_eq!(placed, is_integer(op.name()) && !is_left(op.name()), "{op:?}");
        }
        for op in Weighted::ALL {
            assert_eq!(target.operators.weighted.contains(op), is_integer(op.name()), "{op:?}");
        }
        for op in Folded::ALL {
            let placed = target.operators.folded.contains(op);
            assert_eq!(placed, is_integer(&format!("Conv+{}", op.name())), "{op:?}");
        }
        let product = format!("{} of two activations", Product::MatMul.name());
        let placed = target.operators.products.contains(&Product::MatMul);
        assert_eq!(placed, is_integer(&product) && !is_left(&product));
        let left: Vec<&str> = target.left_float.iter().map(|left| left.operator.as_str()).collect();
        let known: Vec<&str> = LEFT_FLOAT.iter().map(|(name, _)| *name).filter(|n| is_integer(n)).collect();
        assert_eq!(left, known);
        assert!(target.left_float.iter().zip(LEFT_FLOAT).all(|(left, (_, why))| left.why == *why));
    }

    #[test]
    fn an_interrupt_ends_it() {
        let stop = &mut |_, _| Err(OracleError::Interrupted);
        let ended = probe(&facts(), &mut Engine { clips: true }, &mut Engine { clips: true }, stop);
        assert!(matches!(ended, Err(OracleError::Interrupted)));
    }

    #[test]
    fn every_pattern_is_a_valid_model() {
        for pattern in patterns::all() {
            let models = TYPES.iter().map(|&types| pattern.quantized(types, true));
            for mut model in models.chain([pattern.float(), pattern.quantized(USUAL, false)]) {
                optix_ir::infer::infer(&mut model, &optix_pipeline::check::OpsEvaluator);
                assert_eq!(optix_ir::verify::verify(&model), [], "{}", pattern.name());
            }
        }
    }
}
