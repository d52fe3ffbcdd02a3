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
    let aims = [(Aim { value: output, distance, weight: 1.0, is_border: false }, shape.clone())];
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

#[test]
fn blocks_learn_from_what_they_are_fed_and_give() {
    let model = text::parse(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        net (float[1, 2] x) => (float[1, 2] y) <float[2, 2] a = {1, 2, 3, 4}, float[2, 2] b = {1, 0, 2, 1}> {
            h = MatMul (x, a)
            r = Relu (h)
            y = MatMul (r, b)
        }"#,
    )
    .expect("it is a model");
    let named =
        |name: &str| model.values().find(|&value| model.value(value).name() == name).expect("a value");
    let aim = |name: &str, is_border: bool| {
        let distance = Distance::Squares;
        (Aim { value: named(name), distance, weight: 1.0, is_border }, vec![1, 2])
    };
    let parameters = parameters(&model);
    let gradients =
        |aims: &[(Aim, Vec<usize>)], answers: &[[f32; 2]]| -> (Vec<Vec<usize>>, Vec<f64>, Vec<Vec<f64>>) {
            let fed = [(named("x"), vec![1, 2])];
            let student =
                Student::new(&model, &fed, &parameters, aims, false, &OpsEvaluator).expect("it can learn");
            let name = |value: ValueId| student.model.value(value).name().to_owned();
            let row = |elements: [f32; 2]| Tensor::from_vec(vec![1, 2], elements.to_vec());
            let mut feeds = vec![("x".to_owned(), row([1.0, -0.5]))];
            feeds.extend(
                student.targets.iter().zip(answers).map(|(target, answer)| (name(*target), row(*answer))),
            );
            for (input, parameter) in student.inputs.iter().zip(&parameters) {
                feeds.push((name(*input), model.constant(parameter.value).expect("weights").clone()));
            }
            let of_parameters = student.gradients.iter().map(|gradient| gradient.expect("both learn"));
            let wanted: Vec<ValueId> = student.terms.iter().copied().chain(of_parameters).collect();
            let mut found = std::collections::BTreeMap::new();
            let batch = Batch { feeds, count: 1, ..Batch::default() };
            let mut oracle = EngineOracle::new(Box::new(Cpu), LoadOptions::default());
            let mut keep = |value, tensor: &Tensor| {
                found.insert(value, tensor.to_f64s().expect("floats"));
                Ok(())
            };
            let mut batches = std::iter::once(Ok(batch));
            oracle.observe(&student.model, &wanted, &mut batches, &mut keep).expect("it runs");
            let of = |values: &[ValueId]| values.iter().map(|value| found[value].clone()).collect::<Vec<_>>();
            let terms = of(&student.terms).concat();
            (student.by_term(), terms, of(&wanted[student.terms.len()..]))
        };
    let (given, last) = ([2.0f32, 1.0], [0.5f32, -1.0]);
    let (turns, terms, own) = gradients(&[aim("r", true), aim("y", false)], &[given, last]);
    // Each parameter belongs to the block that it is in.
    assert_eq!(turns, [[0], [1]]);
    // The first block alone: r is relu(1 * 1 - 0.5 * 3, 1 * 2 - 0.5 * 4) = (0, 0), and no gradient passes a zero.
    assert!((terms[0] - 1.0).abs() < 1e-6, "{terms:?}");
    assert_eq!(own[0], [0.0; 4]);
    // The second one is fed (2, 1): it gives (4, 1), and the gradient is what it is fed by 2 (y - t) / |t|^2.
    let squares = f64::from(last[0] * last[0] + last[1] * last[1]);
    assert!((terms[1] - (3.5f64.powi(2) + 2f64.powi(2)) / squares).abs() < 1e-5, "{terms:?}");
    let expected = [2.0 * 3.5, 2.0 * 2.0, 3.5, 2.0].map(|product| 2.0 * product / squares);
    assert!(own[1].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{own:?} {expected:?}");
    // Without the border the second one would be fed zeros.
    let (_, _, whole) = gradients(&[aim("r", false), aim("y", false)], &[given, last]);
    assert_eq!(whole[1], [0.0; 4]);
}
