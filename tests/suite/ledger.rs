//! The layer ledger: errors split by their sources, and shares of the error at the outputs.

use optix_base::CancelToken;
use optix_data::{Batch, DataError};
use optix_ir::{Model, ModelBuilder, Tensor};
use optix_passes::PASSES;
use optix_pipeline::runner::{self, RunOptions};
use optix_pipeline::{Calibration, Changes, ErrorSplit, Layer, OracleError, Recipe, Resources};
use optix_runtime::{Cpu, EngineOracle, LoadOptions};

/// Bell-shaped numbers.
fn bell(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| (0..6).map(|_| next()).sum::<f32>() / 2f32.sqrt()).collect()
}

fn tensor(shape: &[usize], seed: u64, scale: f32) -> Tensor {
    let values = bell(shape.iter().product(), seed);
    Tensor::from_vec(shape.to_vec(), values.into_iter().map(|x| x * scale).collect())
}

/// Calibration data from memory.
struct Samples(Tensor);

impl Calibration for Samples {
    fn describe(&self) -> String {
        "samples".to_owned()
    }

    fn batches<'a>(
        &'a self,
        _: &Model,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>, DataError> {
        let feeds = vec![("x".to_owned(), self.0.clone())];
        let batch = Batch { feeds, count: self.0.shape()[0], ..Batch::default() };
        Ok(Box::new(std::iter::once(Ok(batch))))
    }
}

/// Quantizes with those options.
fn quantize(model: &Model, x: &Tensor, options: &str) -> Changes {
    let text = format!(
        "version = 1\n[[step]]\npass = \"quantize-static\"\nmin-sqnr = 0.0\nonly-faster = false\n{options}"
    );
    let recipe = Recipe::parse(&text, "test", PASSES, &[]).expect("it parses");
    let mut oracle = EngineOracle::new(Box::new(Cpu), LoadOptions { threads: 2, ..LoadOptions::default() });
    let data = Samples(x.clone());
    let mut resources = Resources { oracle: &mut oracle, calibration: Some(&data), ..Resources::default() };
    let mut model = model.clone();
    let steps = runner::run(&recipe, &mut model, &mut resources, &RunOptions::default(), &mut |_, _| {});
    steps.unwrap_or_else(|error| panic!("{error}")).remove(0).changes
}

fn errors(changes: &Changes) -> Vec<(&Layer, ErrorSplit)> {
    // Nodes without weights have an error of their own only where no layer reads through their quantizer.
    let weighted = changes.layers.iter().filter(|layer| layer.weight_sqnr_db.is_some());
    weighted.map(|layer| (layer, layer.error.expect("a split"))).collect()
}

/// A convolution with an activation, a depthwise one, and a product.
fn three_layers() -> Model {
    ModelBuilder::new(17)
        .input("x", "float[N, 8, 10, 10]")
        .constant("w1", tensor(&[16, 8, 3, 3], 1, 0.2))
        .constant("b1", tensor(&[16], 2, 0.3))
        .node("Conv", ["x", "w1", "b1"], ["c1"])
        .node("Relu", ["c1"], ["r1"])
        .constant("w2", tensor(&[16, 1, 3, 3], 3, 0.4))
        .node("Conv", ["r1", "w2"], ["c2"])
        .attr("group", 16)
        .node("GlobalAveragePool", ["c2"], ["g"])
        .node("Flatten", ["g"], ["f"])
        .constant("w3", tensor(&[16, 12], 4, 0.5))
        .constant("b3", tensor(&[12], 5, 1.0))
        .node("Gemm", ["f", "w3", "b3"], ["y"])
        .output("y", "float[N, 12]")
        .build()
}

#[test]
fn the_parts_of_an_error_sum_to_the_whole() {
    let x = tensor(&[96, 8, 10, 10], 9, 1.0);
    let clipped =
        quantize(&three_layers(), &x, "ledger = \"full\"\nobserver = \"percentile\"\npercentile = 99.0");
    for (layer, error) in errors(&clipped) {
        let sum: f64 = error.parts().iter().map(|(_, part)| part).sum();
        assert!((0.8..1.25).contains(&(sum / error.whole)), "{layer:?}");
        assert!(error.weight_rounding > 0.0 && error.activation_rounding > 0.0, "{layer:?}");
        // A hundredth of a bell clipped is far more than what rounding to 8 bits loses.
        assert!(layer.op != "Conv" || error.clipping > error.activation_rounding, "{layer:?}");
    }
    // Behind Relu only great values are clipped: the mean falls.
    let (_, second) = errors(&clipped)[1];
    assert!(second.bias_shift > 1e-6, "{second:?}");
    // The whole range: nothing is clipped, and what is left is what the formulas of rounding give.
    let whole = quantize(&three_layers(), &x, "ledger = \"full\"\nobserver = \"min-max\"");
    for (layer, error) in errors(&whole) {
        let sum: f64 = error.parts().iter().map(|(_, part)| part).sum();
        assert!((0.8..1.25).contains(&(sum / error.whole)), "{layer:?}");
        assert!(error.clipping < 0.01 * error.whole, "{layer:?}");
        assert!(error.whole < 1e-3, "{layer:?}");
    }
    // Scale squared over twelve, of the input of the first layer, against its variance: the layer is linear.
    let (low, high) =
        x.to_f64s().unwrap().iter().fold((0f64, 0f64), |(low, high), &x| (low.min(x), high.max(x)));
    let step = (high - low) / 255.0;
    let (_, first) = errors(&whole)[0];
    let expected = step * step / 12.0;
    let ratio = first.activation_rounding / expected;
    // The activation and the bias behind it keep some of both; the order of magnitude is the formula's.
    assert!((0.4..2.5).contains(&ratio), "{ratio}");
    assert_eq!(errors(&whole).len(), 3);
    for (layer, _) in errors(&whole) {
        assert_eq!((layer.weight_bits, layer.activation_bits), (Some(8), Some(8)), "{layer:?}");
        let scheme = layer.scheme.as_deref().expect("a scheme");
        assert!(scheme.contains("int8 symmetric, a scale for a channel"), "{scheme}");
        assert!(layer.output_sqnr_db.expect("a ratio") > 20.0, "{layer:?}");
        // The product has too few elements for a histogram.
        assert!(layer.output_kl.map_or(layer.op == "Gemm", |kl| kl < 0.05), "{layer:?}");
    }
}

/// Products with a normalizing activation between them; the weights of one have an outlier.
fn chain(layers: usize, outlier: usize) -> Model {
    let mut builder = ModelBuilder::new(17).input("x", "float[N, 24]");
    let mut value = "x".to_owned();
    for layer in 0..layers {
        let weights = tensor(&[24, 24], 20 + layer as u64, 0.3);
        let mut numbers = weights.to_f64s().unwrap().into_iter().map(|x| x as f32).collect::<Vec<_>>();
        if layer == outlier {
            numbers[7] = 12.0;
        }
        let (weight, product, next) = (format!("w{layer}"), format!("p{layer}"), format!("v{layer}"));
        builder = builder
            .constant(&weight, Tensor::from_vec(vec![24, 24], numbers))
            .node("MatMul", [value.as_str(), weight.as_str()], [product.as_str()])
            .node("Tanh", [product.as_str()], [next.as_str()]);
        value = next;
    }
    builder.output(&value, "float[N, 24]").build()
}

#[test]
fn shares_by_random_signs_are_those_of_one_layer_at_a_time() {
    let model = chain(14, 4);
    let x = tensor(&[64, 24], 3, 1.0);
    let options = "per-channel = false\nobserver = \"min-max\"\n";
    let (quick, full) =
        (quantize(&model, &x, options), quantize(&model, &x, &format!("{options}ledger = \"full\"")));
    let note = |changes: &Changes, part: &str| {
        assert!(changes.notes.iter().any(|note| note.contains(part)), "{part}: {:?}", changes.notes);
    };
    note(&quick, "first-order propagation");
    note(&full, "one at a time");
    let shares = |changes: &Changes| -> Vec<f64> {
        changes.layers.iter().map(|layer| layer.error_share.expect("a share")).collect()
    };
    let (quick, full) = (shares(&quick), shares(&full));
    for shares in [&quick, &full] {
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
        let loudest = (0..14).max_by(|&a, &b| shares[a].total_cmp(&shares[b]));
        assert_eq!(loudest, Some(4), "{shares:?}");
    }
    for (quick, full) in quick.iter().zip(&full) {
        assert!((quick - full).abs() < 0.2, "{quick} {full}");
    }
}

#[test]
fn the_ledger_can_be_left_out_and_changes_no_model() {
    let x = tensor(&[32, 24], 3, 1.0);
    let none = quantize(&chain(3, 9), &x, "ledger = \"none\"");
    assert!(none.layers.iter().all(|layer| layer.error.is_none() && layer.output_sqnr_db.is_none()));
    assert!(none.layers.iter().all(|layer| layer.scheme.is_some() && layer.weight_sqnr_db.is_some()));
    let quick = quantize(&chain(3, 9), &x, "");
    assert!(quick.layers.iter().all(|layer| layer.error.is_some() && layer.error_share.is_some()));
    let weights = |changes: &Changes| -> Vec<Option<f64>> {
        changes.layers.iter().map(|layer| layer.weight_sqnr_db).collect()
    };
    assert_eq!(weights(&none), weights(&quick));
}

/// Data whose user interrupts after some batches.
struct Interrupted<'a> {
    x: Tensor,
    token: &'a CancelToken,
}

impl Calibration for Interrupted<'_> {
    fn describe(&self) -> String {
        "interrupted".to_owned()
    }

    fn batches<'a>(
        &'a self,
        _: &Model,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>, DataError> {
        let batch = Batch { feeds: vec![("x".to_owned(), self.x.clone())], count: 1, ..Batch::default() };
        Ok(Box::new((0..).map(move |number| {
            assert!(number < 10, "it goes on after the interrupt");
            if number == 5 {
                self.token.cancel();
            }
            Ok(batch.clone())
        })))
    }
}

#[test]
fn calibration_notices_an_interrupt() {
    let token = CancelToken::new();
    let data = Interrupted { x: tensor(&[1, 24], 3, 1.0), token: &token };
    let mut oracle = EngineOracle::new(Box::new(Cpu), LoadOptions { threads: 1, ..LoadOptions::default() });
    let mut resources = Resources {
        oracle: &mut oracle,
        calibration: Some(&data),
        cancel: token.clone(),
        ..Resources::default()
    };
    let recipe =
        Recipe::parse("version = 1\n[[step]]\npass = \"quantize-static\"", "test", PASSES, &[]).unwrap();
    let mut model = chain(2, 9);
    let error = runner::run(&recipe, &mut model, &mut resources, &RunOptions::default(), &mut |_, _| {});
    let error = error.expect_err("interrupted").to_string();
    assert!(error.contains(&OracleError::Interrupted.to_string()), "{error}");
}
