//! Fused and unfused, every result is the same to the bit.

use optix_ir::{DType, Model, Tensor, ValueId, text};

use crate::engine::{Engine, LoadOptions};
use crate::engines::Cpu;

/// Numbers that repeat nowhere near.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let data: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 22) as f32 - 2.0
        })
        .collect();
    Tensor::from_vec(shape, data)
}

fn run(
    model: &Model,
    fuse: bool,
    threads: usize,
    feeds: &[(ValueId, Tensor)],
    wanted: &[ValueId],
) -> Vec<Tensor> {
    let options = LoadOptions { threads, fuse, ..LoadOptions::default() };
    let mut session = Cpu.load(model, &options).unwrap();
    // Twice: the second run has the memory of the first, and the cuts that it found.
    session.run(feeds, wanted).unwrap();
    session.run(feeds, wanted).unwrap()
}

/// Runs a graph of one output fused and unfused; `shapes` are those of its inputs.
fn same(what: &str, graph: &str, shapes: &[&[usize]]) {
    let model = text::parse(&format!("<ir_version: 8, opset_import: [\"\" : 17]> {graph}"))
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let main = model.graph(model.main());
    let feeds: Vec<(ValueId, Tensor)> = main
        .inputs()
        .iter()
        .zip(shapes)
        .enumerate()
        .map(|(seed, (input, shape))| (input.value, numbers(shape, seed as u64 + 1)))
        .collect();
    let outputs: Vec<ValueId> = main.outputs().iter().map(|output| output.value).collect();
    let want = run(&model, false, 1, &feeds, &outputs);
    for threads in [1, 3] {
        let got = run(&model, true, threads, &feeds, &outputs);
        for (got, want) in got.iter().zip(&want) {
            assert_eq!((got.dtype(), got.shape()), (DType::F32, want.shape()), "{what}");
            assert!(got.bytes() == want.bytes(), "{what}: {got:?} is not {want:?}");
        }
    }
    // Looking at what lies inside a chain changes nothing either.
    let inside: Vec<ValueId> = model
        .nodes_of(model.main())
        .flat_map(|node| model.node(node).outputs().iter().flatten().copied().collect::<Vec<_>>())
        .collect();
    let want = run(&model, false, 1, &feeds, &inside);
    let got = run(&model, true, 1, &feeds, &inside);
    assert!(want.iter().zip(&got).all(|(want, got)| want.bytes() == got.bytes()), "{what}: inside");
}

#[test]
fn chains_behind_convolutions() {
    same(
        "bias, batch normalization, identity, clip",
        "g (float[n,3,h,w] x, float[8,3,3,3] k) => (float[n,8,a,b] y)
           <float[1,8,1,1] bias = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] s = {1, 2, 1, 2, 1, 2, 1, 2},
            float[8] m = {0, 1, 0, 1, 0, 1, 0, 1}, float[8] v = {1, 2, 3, 4, 1, 2, 3, 4},
            float low = {0}, float high = {6}> {
           c = Conv<pads = [1, 1, 1, 1]>(x, k)
           d = Add(c, bias)
           e = BatchNormalization(d, s, m, m, v)
           f = Identity(e)
           y = Clip(f, low, high)
         }",
        &[&[2, 3, 13, 17], &[8, 3, 3, 3]],
    );
    same(
        "hard swish, written out, and a residual",
        "g (float[n,8,h,w] x, float[8,1,3,3] k) => (float[n,8,h,w] y) <float three = {3}, float six = {6}, float zero = {0}> {
           c = Conv<pads = [1, 1, 1, 1], group = 8>(x, k)
           d = Add(c, three)
           e = Clip(d, zero, six)
           f = Mul(c, e)
           h = Div(f, six)
           y = Add(x, h)
         }",
        &[&[3, 8, 7, 7], &[8, 1, 3, 3]],
    );
    same(
        "strides and one filter of one pixel",
        "g (float[n,4,h,w] x, float[6,4,1,1] k) => (float[n,6,h,w] y) {
           c = Conv<strides = [2, 2]>(x, k)
           s = Sigmoid(c)
           y = Mul(s, c)
         }",
        &[&[2, 4, 9, 11], &[6, 4, 1, 1]],
    );
}

#[test]
fn chains_behind_products() {
    same(
        "gelu, written out, behind a product with a bias",
        "g (float[b,t,40] x, float[40,70] w, float[70] bias) => (float[b,t,70] y)
           <float root = {1.4142135}, float one = {1}, float half = {0.5}> {
           m = MatMul(x, w)
           a = Add(bias, m)
           d = Div(a, root)
           e = Erf(d)
           o = Add(e, one)
           p = Mul(a, o)
           y = Mul(p, half)
         }",
        &[&[3, 50, 40], &[40, 70], &[70]],
    );
    same(
        "scaled and masked scores",
        "g (float[b,h,t,d] q, float[b,h,d,t] k, float[b,1,1,t] mask) => (float[b,h,t,t] y) <float eight = {8}> {
           m = MatMul(q, k)
           s = Div(m, eight)
           a = Add(s, mask)
           y = Softmax<axis = -1>(a)
         }",
        &[&[2, 3, 20, 8], &[2, 3, 8, 20], &[2, 1, 1, 20]],
    );
    same(
        "a general product",
        "g (float[n,30] x, float[50,30] w, float[50] c) => (float[n,50] y) {
           m = Gemm<transB = 1, alpha = 0.5>(x, w, c)
           r = Relu(m)
           s = Sqrt(r)
           y = Sub(m, s)
         }",
        &[&[70, 30], &[50, 30], &[50]],
    );
}

#[test]
fn chains_of_elementwise_operators() {
    same(
        "the same value on both sides, and functions of one element",
        "g (float[a,b] x, float[a,b] z) => (float[a,b] y) <float two = {2}> {
           p = Add(x, z)
           q = Mul(p, p)
           r = Sub(q, p)
           s = Abs(r)
           t = Sqrt(s)
           u = Neg(t)
           v = Exp(u)
           w = Reciprocal(v)
           k = Pow(w, two)
           l = Tanh(k)
           m = Add(l, l)
           o = Sub(z, m)
           y = Div(x, o)
         }",
        &[&[70, 300], &[70, 300]],
    );
    same(
        "an operand that makes the result larger",
        "g (float[n,c,1,1] x, float[n,c,h,w] z) => (float[n,c,h,w] y) {
           p = HardSigmoid<alpha = 0.16>(x)
           q = Mul(z, p)
           y = Relu(q)
         }",
        &[&[2, 5, 1, 1], &[2, 5, 6, 7]],
    );
    same(
        "rows, columns and a scalar of higher rank",
        "g (float[a,b] x, float[b] r, float[a,1] c) => (float[1,a,b] y) <float[1,1,1] one = {1}> {
           p = Mul(x, r)
           q = Add(p, c)
           s = Sub(r, q)
           y = Add(s, one)
         }",
        &[&[33, 65], &[65], &[33, 1]],
    );
    same(
        "layer normalization, written out",
        "g (float[b,t,c] x, float[c] s, float[c] z) => (float[b,t,c] y) <float two = {2}, float tiny = {0.00001}> {
           m = ReduceMean<axes = [-1]>(x)
           d = Sub(x, m)
           p = Pow(d, two)
           v = ReduceMean<axes = [-1]>(p)
           e = Add(v, tiny)
           r = Sqrt(e)
           n = Div(d, r)
           q = Mul(n, s)
           y = Add(q, z)
         }",
        &[&[3, 5, 100], &[100], &[100]],
    );
}

#[test]
fn a_value_read_twice_outside_ends_its_chain() {
    same(
        "two readers",
        "g (float[a,b] x) => (float[a,b] y, float[a,1] z) {
           p = Relu(x)
           q = Exp(p)
           y = Mul(q, p)
           z = ReduceMean<axes = [1]>(q)
         }",
        &[&[9, 10]],
    );
}

#[test]
fn chains_in_branches() {
    same(
        "a branch that reads what is around it",
        "g (float[a,b] x) => (float[a,b] y) <float zero = {0}> {
           p = Relu(x)
           s = ReduceSum<keepdims = 0>(p)
           c = Greater(s, zero)
           y = If(c) <then_branch = t () => (float[a,b] u) { k = Exp(p)  l = Neg(k)  u = Mul(l, p) },
                      else_branch = e () => (float[a,b] v) { v = Neg(p) }>
         }",
        &[&[9, 10]],
    );
}
