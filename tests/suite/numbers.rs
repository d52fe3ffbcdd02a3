//! Numbers that are none: NaN goes where the standard (and numpy, its reference) sends it, on the reference
//! kernels and on the `cpu` engine; integers divided by zero are an error with the node's name.

use optix_ir::{Model, Tensor, ValueId};
use optix_ops::evaluate;
use optix_runtime::{Cpu, Engine, LoadOptions, RuntimeError, engines};

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

/// A model of one node over float vectors `a` and `b`.
fn model(node: &str, inputs: &[(&str, &Tensor)]) -> Model {
    let typed: Vec<String> = inputs
        .iter()
        .map(|(name, tensor)| {
            let sizes: Vec<String> = tensor.shape().iter().map(usize::to_string).collect();
            format!("{}[{}] {name}", tensor.dtype(), sizes.join(","))
        })
        .collect();
    let text =
        format!("<ir_version: 8, opset_import: [\"\" : 18]>\ng ({}) => (y) {{ {node} }}", typed.join(", "));
    optix_ir::text::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// What an engine gives for it.
fn run(engine: &dyn Engine, model: &Model, inputs: &[(&str, &Tensor)]) -> Result<Tensor, RuntimeError> {
    let mut session = engine.load(model, &LoadOptions { threads: 1, ..Default::default() })?;
    let main = model.main();
    let feeds: Vec<(ValueId, Tensor)> = inputs
        .iter()
        .map(|(name, tensor)| (model.find_value(main, name).expect("an input"), (*tensor).clone()))
        .collect();
    let wanted = [model.graph(main).outputs()[0].value];
    Ok(session.run(&feeds, &wanted)?.remove(0))
}

/// Equal numbers, within what approximations of functions are allowed; NaN only where NaN is.
fn same(found: &Tensor, expected: &[f32]) -> bool {
    let found = found.to_f64s().expect("numbers");
    let equal =
        |a: f64, b: f64| (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= 2e-6 * b.abs().max(1.0);
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| equal(*a, f64::from(*b)))
}

#[test]
fn nan_goes_where_the_standard_sends_it() {
    let vector = |values: &[f32]| Tensor::from_vec(vec![values.len()], values.to_vec());
    let x = vector(&[NAN, 1.0, -2.0, INF, -INF, 0.0, NAN, 3.0, -1.0, 0.5, 2.0, NAN]);
    let y = vector(&[1.0, NAN, -3.0, NAN, NAN, 0.0, NAN, 0.0, -1.0, 2.0, NAN, 0.0]);
    let map = |f: fn(f32) -> f32| x.to_f64s().unwrap().iter().map(|x| f(*x as f32)).collect::<Vec<f32>>();
    let pair = |f: fn(f32, f32) -> f32| {
        let (x, y) = (x.to_f64s().unwrap(), y.to_f64s().unwrap());
        x.iter().zip(&y).map(|(x, y)| f(*x as f32, *y as f32)).collect::<Vec<f32>>()
    };
    fn most(a: f32, b: f32) -> f32 {
        if a.is_nan() || b.is_nan() { NAN } else { a.max(b) }
    }
    fn least(a: f32, b: f32) -> f32 {
        if a.is_nan() || b.is_nan() { NAN } else { a.min(b) }
    }
    let n = NAN;
    let cases: Vec<(&str, Vec<f32>)> = vec![
        // Activations.
        ("y = Relu (a)", map(|x| most(x, 0.0))),
        ("y = LeakyRelu <alpha = 0.5> (a)", map(|x| if x < 0.0 { 0.5 * x } else { x })),
        ("y = Clip (a, low, high)", map(|x| least(most(x, -1.5), 2.5))),
        ("y = Sigmoid (a)", map(|x| 1.0 / (1.0 + (-x).exp()))),
        ("y = Tanh (a)", map(f32::tanh)),
        ("y = HardSigmoid (a)", map(|x| least(most(0.2 * x + 0.5, 0.0), 1.0))),
        ("y = HardSwish (a)", map(|x| x * least(most(x / 6.0 + 0.5, 0.0), 1.0))),
        ("y = Elu (a)", map(|x| if x > 0.0 { x } else { x.exp() - 1.0 })),
        ("y = Softplus (a)", map(|x| if x == INF { INF } else { (x.exp() + 1.0).ln() })),
        (
            "y = Sign (a)",
            map(|x| {
                if x.is_nan() {
                    NAN
                } else if x == 0.0 {
                    0.0
                } else {
                    x.signum()
                }
            }),
        ),
        // Elementwise functions.
        ("y = Exp (a)", map(f32::exp)),
        ("y = Log (a)", map(f32::ln)),
        ("y = Sqrt (a)", map(f32::sqrt)),
        ("y = Abs (a)", map(f32::abs)),
        ("y = Neg (a)", map(|x| -x)),
        ("y = Floor (a)", map(f32::floor)),
        ("y = Round (a)", map(f32::round_ties_even)),
        ("y = Reciprocal (a)", map(|x| 1.0 / x)),
        ("y = IsNaN (a)", map(|x| f32::from(u8::from(x.is_nan())))),
        ("y = IsInf (a)", map(|x| f32::from(u8::from(x.is_infinite())))),
        // Two inputs.
        ("y = Max (a, b)", pair(most)),
        ("y = Min (a, b)", pair(least)),
        ("y = Add (a, b)", pair(|x, y| x + y)),
        ("y = Mul (a, b)", pair(|x, y| x * y)),
        ("y = Div (a, b)", pair(|x, y| x / y)),
        ("y = Pow (a, b)", pair(f32::powf)),
        ("y = Mod <fmod = 1> (a, b)", pair(|x, y| x % y)),
        ("y = PRelu (a, b)", pair(|x, y| if x < 0.0 { x * y } else { x })),
        ("y = Sum (a, b)", pair(|x, y| x + y)),
        ("y = Mean (a, b)", pair(|x, y| (x + y) / 2.0)),
        // Comparisons with NaN are false.
        ("y = Equal (a, b)", pair(|x, y| f32::from(u8::from(x == y)))),
        ("y = Less (a, b)", pair(|x, y| f32::from(u8::from(x < y)))),
        ("y = Greater (a, b)", pair(|x, y| f32::from(u8::from(x > y)))),
        ("y = LessOrEqual (a, b)", pair(|x, y| f32::from(u8::from(x <= y)))),
        ("y = GreaterOrEqual (a, b)", pair(|x, y| f32::from(u8::from(x >= y)))),
        // What is not zero is true.
        ("y = Cast <to = 9> (a)", map(|x| f32::from(u8::from(x != 0.0)))),
        // Reductions and what is made of them.
        ("y = ReduceMax (a)", vec![n]),
        ("y = ReduceMin (a)", vec![n]),
        ("y = ReduceSum (a)", vec![n]),
        ("y = ReduceMean (a)", vec![n]),
        ("y = ReduceL2 (a)", vec![n]),
        ("y = ReduceProd (a)", vec![n]),
        ("y = ReduceLogSumExp (a)", vec![n]),
        ("y = Softmax <axis = 0> (a)", vec![n; 12]),
        ("y = LogSoftmax <axis = 0> (a)", vec![n; 12]),
        ("y = MatMul (a, b)", vec![n]),
        // numpy takes the first NaN for the greatest, and for the least.
        ("y = ArgMax <axis = 0> (a)", vec![0.0]),
        ("y = ArgMin <axis = 0> (a)", vec![0.0]),
        ("y = CumSum (a, zero)", vec![n; 12]),
        ("y = Where (which, a, b)", pair(|x, y| if x > 0.0 { x } else { y })),
    ];
    let low = Tensor::scalar(-1.5f32);
    let high = Tensor::scalar(2.5f32);
    let zero = Tensor::scalar(0i64);
    let which: Vec<bool> = x.to_f64s().unwrap().iter().map(|x| *x > 0.0).collect();
    let which = Tensor::from_bools(vec![which.len()], &which);
    let mut wrong = Vec::new();
    for (node, expected) in &cases {
        let all = [("a", &x), ("b", &y), ("low", &low), ("high", &high), ("zero", &zero), ("which", &which)];
        let named = node.split_once('(').expect("inputs").1.trim_end_matches(')');
        let inputs: Vec<(&str, &Tensor)> = named
            .split(", ")
            .map(|name| *all.iter().find(|(known, _)| *known == name).expect("a known name"))
            .collect();
        let model = model(node, &inputs);
        let id = model.walk().next().expect("a node");
        let tensors: Vec<Option<&Tensor>> = inputs.iter().map(|(_, tensor)| Some(*tensor)).collect();
        let reference = evaluate(&model, id, &tensors).map(|outputs| outputs[0].clone());
        match reference {
            Ok(found) if same(&found, expected) => {}
            other => wrong.push(format!("reference: {node}: {:?}", other.map(|t| t.to_f64s().unwrap()))),
        }
        match run(&Cpu, &model, &inputs) {
            Ok(found) if same(&found, expected) => {}
            other => {
                let found = other.map(|t| t.to_f64s().unwrap()).map_err(|error| error.to_string());
                wrong.push(format!("cpu: {node}: {found:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nan_becomes_an_integer_without_a_panic() {
    let x = Tensor::from_vec(vec![3], vec![NAN, INF, -INF]);
    // INT8, UINT8, INT32, INT64, UINT64, FLOAT8E4M3FN.
    for to in [3, 2, 6, 7, 13, 17] {
        let model = model(&format!("y = Cast <to = {to}> (a)"), &[("a", &x)]);
        for engine in engines() {
            let found = run(&*engine, &model, &[("a", &x)]);
            assert_eq!(found.map(|found| found.len()).ok(), Some(3), "{} to {to}", engine.name());
        }
    }
    let scale = Tensor::scalar(0.1f32);
    let zero = Tensor::from_vec(Vec::<usize>::new(), vec![128u8]);
    let inputs = [("a", &x), ("scale", &scale), ("zero", &zero)];
    let model = model("y = QuantizeLinear (a, scale, zero)", &inputs);
    for engine in engines() {
        let found = run(&*engine, &model, &inputs).expect("it runs").to_i64s().expect("integers");
        assert_eq!(found[1..], [255, 0], "{}", engine.name());
    }
}

#[test]
fn integers_divided_by_zero_are_an_error_that_names_the_node() {
    for (a, b, good) in [
        (Tensor::from_vec(vec![2], vec![7i32, -7]), Tensor::from_vec(vec![2], vec![2i32, 0]), false),
        (Tensor::from_vec(vec![2], vec![7i64, 1]), Tensor::from_vec(vec![1], vec![0i64]), false),
        (Tensor::from_vec(vec![2], vec![7u8, 1]), Tensor::from_vec(vec![2], vec![1u8, 0]), false),
        // The one quotient that does not fit its type.
        (Tensor::from_vec(vec![1], vec![i32::MIN]), Tensor::from_vec(vec![1], vec![-1i32]), true),
        (Tensor::from_vec(vec![1], vec![i64::MIN]), Tensor::from_vec(vec![1], vec![-1i64]), true),
    ] {
        for node in ["y = Div (a, b)", "y = Mod (a, b)", "y = Mod <fmod = 1> (a, b)"] {
            let inputs = [("a", &a), ("b", &b)];
            let model = model(node, &inputs);
            for engine in engines() {
                let found = run(&*engine, &model, &inputs);
                let says = found.as_ref().map_or_else(ToString::to_string, |_| String::new());
                assert_eq!(found.is_ok(), good, "{}: {node} of {a:?} and {b:?}: {says}", engine.name());
                if !good {
                    let op_type = &node[4..7];
                    assert!(says.starts_with("node ") && says.contains(op_type), "{says}");
                    assert!(says.contains("by zero"), "{says}");
                }
            }
        }
    }
}
