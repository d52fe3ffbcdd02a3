//! Losses by their formulas.

use optix_ir::{DType, Model, Tensor, ValueId, text};
use optix_pipeline::check::OpsEvaluator;
use optix_pipeline::{Batch, Oracle};
use optix_runtime::{Cpu, EngineOracle, LoadOptions};
use optix_training::loss::Distance;
use optix_training::{Aim, Student, parameters};

const ROWS: usize = 2;
const CLASSES: usize = 3;

/// The loss of a student that gives `own`, and the gradient of what it gives.
fn measured(own: &[f32], teacher: &[f32], distance: Distance) -> (f64, Vec<f64>) {
    let model = text::parse(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        net (float[2, 3] x) => (float[2, 3] y) <float[2, 3] b = {0, 0, 0, 0, 0, 0}> { y = Add (x, b) }"#,
    )
    .expect("it is a model");
    let main = |model: &Model| model.graph(model.main()).clone();
    let (input, output) = (main(&model).inputs()[0].value, main(&model).outputs()[0].value);
    let shape = vec![ROWS, CLASSES];
    let aims = [(Aim { value: output, distance, weight: 1.0 }, shape.clone())];
    let trained = parameters(&model);
    let student = Student::new(&model, &[(input, shape.clone())], &trained, &aims, false, &OpsEvaluator)
        .expect("it can be trained");
    let fed = |value: ValueId, elements: &[f32]| {
        (student.model.value(value).name().to_owned(), Tensor::from_vec(shape.clone(), elements.to_vec()))
    };
    let feeds = vec![fed(input, own), fed(student.targets[0], teacher), fed(student.inputs[0], &[0.0; 6])];
    let gradient = student.gradients[0].expect("the loss depends on it");
    let (mut loss, mut slope) = (f64::NAN, Vec::new());
    let batch = Batch { feeds, count: 1, ..Batch::default() };
    EngineOracle::new(Box::new(Cpu), LoadOptions::default())
        .observe(
            &student.model,
            &[student.loss, gradient],
            &mut std::iter::once(Ok(batch)),
            &mut |value, tensor| {
                assert_eq!(tensor.dtype(), DType::F32);
                match value == student.loss {
                    true => loss = tensor.single().expect("one number"),
                    false => slope = tensor.to_f64s().expect("floats"),
                }
                Ok(())
            },
        )
        .expect("it runs");
    (loss, slope)
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|x| x.exp()).sum();
    row.iter().map(|x| x.exp() / sum).collect()
}

/// The loss in 64 bits.
fn expected(own: &[f64], teacher: &[f64], distance: Distance) -> f64 {
    let rows = || own.chunks(CLASSES).zip(teacher.chunks(CLASSES));
    let divergence = |p: &[f64], q: &[f64]| -> f64 { p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum() };
    let mean = |of: &dyn Fn(&[f64], &[f64]) -> f64| {
        rows().map(|(own, teacher)| of(own, teacher)).sum::<f64>() / ROWS as f64
    };
    match distance {
        Distance::Logits { temperature } => {
            let by = f64::from(temperature);
            let soft = |row: &[f64]| softmax(&row.iter().map(|x| x / by).collect::<Vec<_>>());
            mean(&|own, teacher| by * by * divergence(&soft(teacher), &soft(own)))
        }
        Distance::Probabilities => mean(&|own, teacher| divergence(teacher, own)),
        Distance::Classes { of_logits } => mean(&|own, teacher| {
            let own = if of_logits { softmax(own) } else { own.to_vec() };
            teacher.iter().zip(&own).map(|(one, p)| -one * p.ln()).sum()
        }),
        Distance::Squares => {
            let noise: f64 = own.iter().zip(teacher).map(|(a, b)| (a - b).powi(2)).sum();
            noise / teacher.iter().map(|x| x * x).sum::<f64>()
        }
    }
}

#[test]
fn losses_and_their_gradients_are_those_of_the_formulas() {
    let logits = [0.5f32, -1.0, 2.0, 0.0, 0.25, -0.5];
    let others = [1.0f32, -0.5, 1.5, 0.3, -0.75, 0.2];
    let shares = [0.2f32, 0.3, 0.5, 0.6, 0.1, 0.3];
    let wanted = [0.1f32, 0.6, 0.3, 0.2, 0.5, 0.3];
    let classes = [0f32, 0.0, 1.0, 1.0, 0.0, 0.0];
    let cases = [
        (logits, others, Distance::Logits { temperature: 1.0 }),
        (logits, others, Distance::Logits { temperature: 4.0 }),
        (shares, wanted, Distance::Probabilities),
        (logits, others, Distance::Squares),
        (logits, classes, Distance::Classes { of_logits: true }),
        (shares, classes, Distance::Classes { of_logits: false }),
    ];
    for (own, teacher, distance) in cases {
        let wide = |floats: &[f32]| floats.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let (loss, slope) = measured(&own, &teacher, distance);
        let (own, teacher) = (wide(&own), wide(&teacher));
        let is = expected(&own, &teacher, distance);
        assert!((loss - is).abs() < 1e-5 * is.abs().max(1e-2), "{distance:?}: {loss} {is}");
        for place in 0..own.len() {
            let by = |step: f64| {
                let mut moved = own.clone();
                moved[place] += step;
                expected(&moved, &teacher, distance)
            };
            let difference = (by(1e-5) - by(-1e-5)) / 2e-5;
            assert!(
                (slope[place] - difference).abs() < 1e-4,
                "{distance:?} {place}: {} {difference}",
                slope[place]
            );
        }
    }
}
