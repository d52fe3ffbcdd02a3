//! Metrics against figures worked out by hand, or by the formulas of their sources.

use optix_ir::Tensor;

use super::*;
use crate::batch::Labels;

fn scores(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_vec(shape.to_vec(), values.to_vec())
}

fn batch(count: usize, labels: Option<LabelValues>) -> Batch {
    Batch { count, labels: labels.map(|values| Labels { first: 0, values }), ..Batch::default() }
}

/// Measures one batch.
fn measured(
    metric: &str,
    labels: Option<LabelValues>,
    found: &Tensor,
    reference: Option<&Tensor>,
) -> Result<Measured, DataError> {
    let metric = Metric::parse(metric).unwrap();
    let mut meter = meter(&metric, Vec::new())?;
    let batch = batch(found.shape()[0], labels);
    meter.add(&Seen { batch: &batch, output: "y", found, reference })?;
    meter.finish()
}

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
}

#[test]
fn names_are_read_back() {
    let all = ["top1", "top5", "f1", "f1-micro", "kl", "sqnr-db", "probe", "cmd:wc -l", "perplexity"];
    for name in all {
        assert_eq!(Metric::parse(name).unwrap().name(), name);
    }
    assert_eq!(Metric::parse("accuracy"), Ok(Metric::Top(1)));
    for (name, says) in
        [("top0", "there is no metric"), ("consine", "did you mean `cosine`?"), ("cmd: ", "command")]
    {
        assert!(Metric::parse(name).unwrap_err().contains(says), "{name}");
    }
}

#[test]
fn f1_is_that_of_its_formula() {
    // Labels 0 0 1 1 2, decisions 0 1 1 1 0: F1 is 1/2, 4/5 and 0.
    let found = scores(&[5, 3], &[9., 1., 0., 1., 9., 0., 1., 9., 0., 1., 9., 0., 9., 1., 0.]);
    let labels = || Some(LabelValues::Classes(vec![0, 0, 1, 1, 2]));
    let macro_ = measured("f1", labels(), &found, None).unwrap();
    close(macro_.value, (0.5 + 0.8 + 0.0) / 3.0);
    let interval = macro_.interval.unwrap();
    assert!(interval.low <= macro_.value && macro_.value <= interval.high, "{interval:?}");
    close(measured("f1-micro", labels(), &found, None).unwrap().value, 0.6);
    close(measured("top1", labels(), &found, None).unwrap().value, 0.6);
    // Against itself nothing changes, and that is known without doubt.
    let same = measured("f1", labels(), &found, Some(&found)).unwrap();
    assert_eq!(same.change.unwrap().interval, Some(Interval { low: 0.0, high: 0.0 }));
    assert!(measured("f1", None, &found, None).is_err());
}

#[test]
fn shares_are_paired() {
    let found = scores(&[4, 2], &[1., 0., 1., 0., 0., 1., 0., 1.]);
    let reference = scores(&[4, 2], &[1., 0., 0., 1., 0., 1., 1., 0.]);
    let labels = Some(LabelValues::Classes(vec![0, 0, 1, 0]));
    let top1 = measured("top1", labels, &found, Some(&reference)).unwrap();
    assert_eq!((top1.value, top1.reference), (0.75, Some(0.75)));
    let counts = top1.change.unwrap().counts.unwrap();
    assert_eq!((counts.only_reference, counts.only_candidate), (1, 1));
    let agreement = measured("agreement", None, &found, Some(&reference)).unwrap();
    assert_eq!((agreement.value, agreement.change), (0.5, None));
    assert!(matches!(agreement.judge(0.4).0, Verdict::Inconclusive { samples_needed: Some(n) } if n > 4));
    assert_eq!(agreement.judge(0.99).0, Verdict::Missed);
}

#[test]
fn binary_scores_are_on_a_side() {
    let found = scores(&[4, 1], &[0.9, 0.2, 0.6, f32::NAN]);
    let labels = Some(LabelValues::Classes(vec![1, 0, 0, 0]));
    close(measured("binary-accuracy", labels, &found, None).unwrap().value, 0.5);
    let two = scores(&[1, 2], &[0.9, 0.2]);
    let labels = Some(LabelValues::Classes(vec![1]));
    assert!(measured("binary-accuracy", labels, &two, None).unwrap_err().to_string().contains("top1"));
}

#[test]
fn divergence_of_scores_and_of_probabilities() {
    let p = scores(&[2, 2], &[0.75, 0.25, 0.5, 0.5]);
    let q = scores(&[2, 2], &[0.5, 0.5, 0.5, 0.5]);
    let expected = (0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln()) / 2.0;
    let kl = measured("kl", None, &q, Some(&p)).unwrap();
    assert!((kl.value - expected).abs() < 1e-7, "{}", kl.value);
    // The same as scores, moved by a constant.
    let logs = |t: &Tensor| {
        let values: Vec<f32> = t.to_f64s().unwrap().iter().map(|p| p.ln() as f32 + 3.0).collect();
        scores(t.shape(), &values)
    };
    let kl = measured("kl", None, &logs(&q), Some(&logs(&p))).unwrap();
    assert!((kl.value - expected).abs() < 1e-6, "{}", kl.value);
    assert_eq!(measured("kl", None, &p, Some(&p)).unwrap().value, 0.0);
}

#[test]
fn nearness_to_recorded_outputs() {
    let found = scores(&[2, 2], &[1., 0., 3., 4.]);
    let target = |values: [f32; 2]| Tensor::from_vec(vec![2], values.to_vec());
    let targets = Some(LabelValues::Tensors(vec![target([1., 1.]), target([3., 4.])]));
    close(measured("cosine", targets.clone(), &found, None).unwrap().value, (0.5f64.sqrt() + 1.0) / 2.0);
    close(measured("mean-abs-error", targets.clone(), &found, None).unwrap().value, 0.25);
    close(measured("max-abs-error", targets.clone(), &found, None).unwrap().value, 1.0);
    close(measured("sqnr-db", targets, &found, None).unwrap().value, 10.0 * 27f64.log10());
    let named = |name: &str| vec![(name.to_owned(), target([1., 0.]))];
    let recorded = |name| Some(LabelValues::Outputs(vec![named(name)]));
    let one = scores(&[1, 2], &[1., 0.]);
    assert_eq!(measured("sqnr-db", recorded("y"), &one, None).unwrap().value, f64::INFINITY);
    let error = measured("sqnr-db", recorded("z"), &one, None).unwrap_err().to_string();
    assert!(error.contains("record no output `y`"), "{error}");
    let error = measured("cosine", None, &one, None).unwrap_err().to_string();
    assert!(error.contains("--vs"), "{error}");
}

#[test]
fn perplexity_of_the_next_token() {
    // A model that gives each of four tokens the same chance is as perplexed as by four.
    let flat = scores(&[2, 3, 4], &[0.5; 24]);
    let ids = Tensor::from_vec(vec![2, 3], vec![0i64, 1, 2, 3, 0, 0]);
    let mask = Tensor::from_vec(vec![2, 3], vec![1i64, 1, 1, 1, 1, 0]);
    let mut meter = meter(&Metric::Perplexity, Vec::new()).unwrap();
    let mut seen = batch(2, None);
    seen.feeds = vec![("input_ids".into(), ids), ("attention_mask".into(), mask)];
    meter.add(&Seen { batch: &seen, output: "y", found: &flat, reference: Some(&flat) }).unwrap();
    let found = meter.finish().unwrap();
    close(found.value, 4.0);
    assert_eq!(found.change.unwrap().difference, 0.0);
    assert_eq!(found.judge(4.1).0, Verdict::Met);
    // With labels, position by position; negative ones do not count.
    let sure = scores(&[1, 2, 2], &[0.0, 2.0, 9.0, 9.0]);
    let labels = LabelValues::Tensors(vec![Tensor::from_vec(vec![2], vec![1i64, -100])]);
    let expected = (1.0 + (-2f64).exp()).ln().exp();
    close(measured("perplexity", Some(labels), &sure, None).unwrap().value, expected);
    let labels = LabelValues::Tensors(vec![Tensor::from_vec(vec![2], vec![1i64, 2])]);
    assert!(measured("perplexity", Some(labels), &sure, None).unwrap_err().to_string().contains("token 2"));
}

#[test]
fn a_probe_separates_what_is_separable() {
    let mut fit = ProbeFit::default();
    let train = scores(&[6, 2], &[1., 0.1, 2., 0.1, 0.1, 1., 0., 3., -1., -1., -2., -1.]);
    let labels = vec![5, 5, 7, 7, 9, 9];
    let seen = batch(6, Some(LabelValues::Classes(labels.clone())));
    fit.add(&Seen { batch: &seen, output: "y", found: &train, reference: None }).unwrap();
    let probe = fit.finish().unwrap();
    assert_eq!(probe.classify(&train, 6).unwrap(), labels);
    assert_eq!(probe.classify(&scores(&[1, 2], &[50., 1.]), 1).unwrap(), [5]);
    assert!(probe.classify(&scores(&[1, 3], &[0.; 3]), 1).is_err());
    let mut one = ProbeFit::default();
    let seen = batch(1, Some(LabelValues::Classes(vec![1])));
    one.add(&Seen { batch: &seen, output: "y", found: &scores(&[1, 2], &[1., 0.]), reference: None })
        .unwrap();
    assert!(one.finish().unwrap_err().to_string().contains("two classes"));
    assert!(measured("probe", None, &train, None).unwrap_err().to_string().contains("--train"));
}

#[test]
fn a_command_counts_its_lines() {
    let found = scores(&[3, 2], &[1., 0., 3., f32::NAN, 5., 6.]);
    let labels = || Some(LabelValues::Classes(vec![4, 5, 6]));
    assert_eq!(measured("cmd:wc -l", labels(), &found, None).unwrap().value, 3.0);
    // What it is told of the second sample.
    let line =
        "cmd:sed -n 2p | grep -c '\"label\":5.*\"output\":\\[3.0,null\\].*\"sample\":1,\"shape\":\\[2\\]'";
    assert_eq!(measured(line, labels(), &found, Some(&found)).unwrap().change.unwrap().difference, 0.0);
    for (line, says) in
        [("cmd:exit 3", "exit status: 3"), ("cmd:echo many", "not `many`"), ("cmd:cat", "number")]
    {
        let error = measured(line, labels(), &found, None).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn means_know_how_sure_they_are() {
    let mut mean = Mean::default();
    for x in [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0] {
        mean.add(x, 1.0);
    }
    // Student's 97.5% point at 8 degrees of freedom is 2.306.
    let half = 2.306 * 7.5f64.sqrt() / 3.0;
    let interval = mean.interval().unwrap();
    assert!(
        (interval.high - 5.0 - half).abs() < 5e-3 && (5.0 - interval.low - half).abs() < 5e-3,
        "{interval:?}"
    );
    assert_eq!(mean.judge(2.0, Better::Higher), Verdict::Met);
    assert_eq!(mean.judge(2.0, Better::Lower), Verdict::Missed);
    assert!(
        matches!(mean.judge(4.0, Better::Higher), Verdict::Inconclusive { samples_needed: Some(n) } if n > 9)
    );
    assert_eq!(Mean::default().value(), None);
}
