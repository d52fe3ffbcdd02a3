//! What tests of passes share: numbers to feed, engines to run, a recipe to apply.

use optix_ir::{Model, Tensor, ValueId};
use optix_passes::PASSES;
use optix_pipeline::runner::{self, RunOptions};
use optix_pipeline::{Changes, Recipe, Resources};
use optix_runtime::{Cpu, Engine, EngineOracle, LoadOptions};

/// Numbers that look random and are the same everywhere.
pub struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// One of `count` numbers from 0 on.
    pub fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    /// About normally distributed, of standard deviation 1.
    pub fn normal(&mut self) -> f32 {
        let sum: f32 = (0..12).map(|_| (self.next() % 65536) as f32 / 65536.0).sum();
        sum - 6.0
    }

    pub fn floats(&mut self, shape: &[usize]) -> Tensor {
        let count = shape.iter().product();
        Tensor::from_vec(shape.to_vec(), (0..count).map(|_| self.normal()).collect::<Vec<f32>>())
    }
}

/// The cpu engine, and onnxruntime where it is found.
pub fn engines() -> Vec<Box<dyn Engine>> {
    let found = optix_runtime::all_engines(None).into_iter();
    let wanted = found.filter(|found| ["cpu", "onnxruntime"].contains(&found.name));
    let engines: Vec<_> = wanted.filter_map(|found| found.engine.ok()).collect();
    assert!(!engines.is_empty());
    engines
}

/// The outputs of a model for its inputs in order.
pub fn outputs(engine: &dyn Engine, model: &Model, inputs: &[Tensor]) -> Vec<Tensor> {
    try_outputs(engine, model, inputs)
        .unwrap_or_else(|error| panic!("{}: {error}\n{}", engine.name(), optix_ir::text::print(model)))
}

/// The same, or why the engine does not run the model.
pub fn try_outputs(engine: &dyn Engine, model: &Model, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let graph = model.graph(model.main());
    let feeds: Vec<(ValueId, Tensor)> =
        graph.inputs().iter().map(|info| info.value).zip(inputs.iter().cloned()).collect();
    let wanted: Vec<ValueId> = graph.outputs().iter().map(|info| info.value).collect();
    let options = LoadOptions { threads: 1, ..LoadOptions::default() };
    let session = engine.load(model, &options);
    session.and_then(|mut session| session.run(&feeds, &wanted)).map_err(|error| error.to_string())
}

/// A model behind the steps of a recipe, with what each step did; the error's text where it fails.
pub fn apply(steps: &str, model: &Model) -> Result<(Model, Vec<Changes>), String> {
    let text = format!("version = 1\n{steps}");
    let recipe = Recipe::parse(&text, "test", PASSES, &[]).map_err(|error| error.to_string())?;
    let mut resources = Resources {
        oracle: &mut EngineOracle::new(Box::new(Cpu), LoadOptions::default()),
        ..Resources::default()
    };
    let mut changed = model.clone();
    let reports = runner::run(&recipe, &mut changed, &mut resources, &RunOptions::default(), &mut |_, _| {})
        .map_err(|error| error.to_string())?;
    Ok((changed, reports.into_iter().map(|report| report.changes).collect()))
}

/// How often each operator is in a model.
pub fn count(model: &Model, op_type: &str) -> usize {
    model.walk().filter(|&id| model.node(id).op_type == op_type).count()
}

/// Signal to noise in dB.
pub fn sqnr(expected: &Tensor, got: &Tensor) -> f64 {
    let (a, b) = (expected.to_f64s().expect("numbers"), got.to_f64s().expect("numbers"));
    assert_eq!(expected.shape(), got.shape());
    let signal: f64 = a.iter().map(|x| x * x).sum();
    let noise: f64 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
    10.0 * (signal / noise).log10()
}

/// Greatest difference, in parts of the greatest magnitude.
pub fn relative(expected: &Tensor, got: &Tensor) -> f64 {
    let (a, b) = (expected.to_f64s().expect("numbers"), got.to_f64s().expect("numbers"));
    assert_eq!(expected.shape(), got.shape());
    let greatest = a.iter().fold(0f64, |max, x| max.max(x.abs()));
    a.iter().zip(&b).fold(0f64, |max, (x, y)| max.max((x - y).abs())) / greatest.max(1e-30)
}
