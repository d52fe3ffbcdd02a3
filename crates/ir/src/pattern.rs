//! Patterns that look like the formula they match.
//!
//! ```
//! use optix_ir::pattern::{any, erf};
//! # let model = optix_ir::text::parse(r#"<opset_import: ["" : 18]>
//! #     g (float[N] x) => (float[N] y) <float r = {1.4142135}, float one = {1}, float half = {0.5}> {
//! #         a = Div (x, r)  b = Erf (a)  c = Add (one, b)  d = Mul (x, c)  y = Mul (d, half)
//! #     }"#).unwrap();
//! # let node = model.node_list(model.main())[4];
//! let x = any("x");
//! let gelu = x.clone() * (erf(x / 2f64.sqrt()) + 1.0) * 0.5;
//! let found = gelu.find(&model, node).unwrap();
//! assert_eq!(model.value(found.value("x")).name(), "x");
//! assert_eq!(found.nodes().len(), 5);
//! ```
//!
//! Operators whose order of inputs does not matter (`Add`, `Mul`, ...) match either way round. A name that
//! occurs twice stands for one value. A number matches a constant of one element with that value, as far
//! as its element type can tell. A pattern is matched backwards from a node, its root.

use std::fmt;
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::sync::Arc;

use crate::dtype::DType;
use crate::ids::{GraphId, NodeId, ValueId};
use crate::model::Model;
use crate::node::{Node, Use};
use crate::tensor::Tensor;

type ValueTest = Arc<dyn Fn(&Model, ValueId) -> bool + Send + Sync>;
type NodeTest = Arc<dyn Fn(&Model, &Node) -> bool + Send + Sync>;

/// A value that looks like something; see the [module](self)'s documentation. Cloning is cheap.
#[derive(Clone)]
pub struct Pattern {
    kind: Kind,
    name: Option<Arc<str>>,
    tests: Vec<ValueTest>,
    is_optional: bool,
}

#[derive(Clone)]
enum Kind {
    /// Any value.
    Any,
    /// A constant.
    Constant,
    /// A constant of one element, which is this number.
    Number(f64),
    /// An output of a node.
    Operator(Arc<Operator>),
    /// The first of these that matches.
    Either(Arc<[Pattern]>),
}

#[derive(Clone)]
struct Operator {
    domain: String,
    /// Any of these.
    op_types: Vec<String>,
    inputs: Vec<Pattern>,
    /// Whether the node may have more inputs.
    allows_more: bool,
    /// Which output of the node the value is.
    output: usize,
    tests: Vec<NodeTest>,
}

/// Operators of two inputs whose order does not matter.
const COMMUTATIVE: &[&str] = &[
    "Add",
    "Mul",
    "And",
    "Or",
    "Xor",
    "Equal",
    "Max",
    "Min",
    "Sum",
    "Mean",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
];

/// Any value, known by that name in the match.
pub fn any(name: &str) -> Pattern {
    Pattern::new(Kind::Any).named(name)
}

/// Any constant, known by that name in the match.
pub fn constant(name: &str) -> Pattern {
    Pattern::new(Kind::Constant).named(name)
}

/// A constant that passes a test, known by that name in the match.
pub fn constant_where(name: &str, test: impl Fn(&Tensor) -> bool + Send + Sync + 'static) -> Pattern {
    constant(name).when(move |model, value| model.constant(value).is_some_and(&test))
}

/// A constant of one element, which is that number.
pub fn number(number: f64) -> Pattern {
    Pattern::new(Kind::Number(number))
}

/// The first output of a node of the standard operator set with those inputs.
///
/// The node has exactly those inputs, except that [`Pattern::optional`] ones may be missing and that
/// [`Pattern::with_more_inputs`] lets it have further ones.
pub fn op<const N: usize>(op_type: &str, inputs: [Pattern; N]) -> Pattern {
    one_of([op_type], inputs)
}

/// As [`op`], for any of several operators.
pub fn one_of<const K: usize, const N: usize>(op_types: [&str; K], inputs: [Pattern; N]) -> Pattern {
    Pattern::new(Kind::Operator(Arc::new(Operator {
        domain: String::new(),
        op_types: op_types.map(str::to_owned).to_vec(),
        inputs: inputs.to_vec(),
        allows_more: false,
        output: 0,
        tests: Vec::new(),
    })))
}

/// The first of several patterns that matches.
pub fn either<const N: usize>(patterns: [Pattern; N]) -> Pattern {
    Pattern::new(Kind::Either(Arc::from(patterns.to_vec())))
}

macro_rules! operators {
    ($($function:ident($($input:ident),+) = $op:literal;)+) => {$(
        #[doc = concat!("The result of a `", $op, "`.")]
        pub fn $function($($input: impl Into<Pattern>),+) -> Pattern {
            op($op, [$($input.into()),+])
        }
    )+};
}
operators! {
    matmul(a, b) = "MatMul";
    pow(base, exponent) = "Pow";
    erf(x) = "Erf";
    tanh(x) = "Tanh";
    sqrt(x) = "Sqrt";
    exp(x) = "Exp";
    sigmoid(x) = "Sigmoid";
    reciprocal(x) = "Reciprocal";
    relu(x) = "Relu";
    identity(x) = "Identity";
    transpose(x) = "Transpose";
    cast(x) = "Cast";
}

/// A convolution, with or without bias `bias`.
pub fn conv(x: impl Into<Pattern>, w: impl Into<Pattern>, bias: Pattern) -> Pattern {
    op("Conv", [x.into(), w.into(), bias.optional()])
}

/// A `Gemm`, with or without `c`.
pub fn gemm(a: impl Into<Pattern>, b: impl Into<Pattern>, c: Pattern) -> Pattern {
    op("Gemm", [a.into(), b.into(), c.optional()])
}

impl From<f64> for Pattern {
    fn from(value: f64) -> Pattern {
        number(value)
    }
}

impl From<&Pattern> for Pattern {
    fn from(pattern: &Pattern) -> Pattern {
        pattern.clone()
    }
}

macro_rules! arithmetic {
    ($($trait:ident $method:ident $op:literal;)+) => {$(
        impl<T: Into<Pattern>> $trait<T> for Pattern {
            type Output = Pattern;
            fn $method(self, other: T) -> Pattern {
                op($op, [self, other.into()])
            }
        }
        impl<T: Into<Pattern>> $trait<T> for &Pattern {
            type Output = Pattern;
            fn $method(self, other: T) -> Pattern {
                op($op, [self.clone(), other.into()])
            }
        }
        impl $trait<Pattern> for f64 {
            type Output = Pattern;
            fn $method(self, other: Pattern) -> Pattern {
                op($op, [number(self), other])
            }
        }
        impl $trait<&Pattern> for f64 {
            type Output = Pattern;
            fn $method(self, other: &Pattern) -> Pattern {
                op($op, [number(self), other.clone()])
            }
        }
    )+};
}
arithmetic! { Add add "Add"; Sub sub "Sub"; Mul mul "Mul"; Div div "Div"; }

impl Neg for Pattern {
    type Output = Pattern;
    fn neg(self) -> Pattern {
        op("Neg", [self])
    }
}

impl Pattern {
    fn new(kind: Kind) -> Pattern {
        Pattern { kind, name: None, tests: Vec::new(), is_optional: false }
    }

    /// Gives it a name in the match.
    pub fn named(mut self, name: &str) -> Pattern {
        self.name = Some(name.into());
        self
    }

    /// Lets an input be missing, or be left out.
    pub fn optional(mut self) -> Pattern {
        self.is_optional = true;
        self
    }

    /// Adds a condition on the value.
    pub fn when(mut self, test: impl Fn(&Model, ValueId) -> bool + Send + Sync + 'static) -> Pattern {
        self.tests.push(Arc::new(test));
        self
    }

    /// Asks for a value that is used once and is no graph output.
    pub fn used_once(self) -> Pattern {
        self.when(|model, value| matches!(model.value(value).uses(), [Use::Node(..)]))
    }

    /// Asks for a value of a known element type.
    pub fn of_type(self, dtype: DType) -> Pattern {
        self.when(move |model, value| model.value(value).ty.as_ref().and_then(|ty| ty.dtype()) == Some(dtype))
    }

    fn edit(mut self, change: impl FnOnce(&mut Operator)) -> Pattern {
        match &mut self.kind {
            Kind::Operator(operator) => change(Arc::make_mut(operator)),
            _ => panic!("only the pattern of an operator's result has a node"),
        }
        self
    }

    /// Adds a condition on the node, such as on its attributes.
    ///
    /// # Panics
    /// When this is not the pattern of an operator's result, as with the methods that follow: patterns are
    /// written by the program's author.
    pub fn when_node(self, test: impl Fn(&Model, &Node) -> bool + Send + Sync + 'static) -> Pattern {
        self.edit(|operator| operator.tests.push(Arc::new(test)))
    }

    /// Lets the node have more inputs than the pattern says. Panics as [`Pattern::when_node`] does.
    pub fn with_more_inputs(self) -> Pattern {
        self.edit(|operator| operator.allows_more = true)
    }

    /// Says that it is another output of the node than the first. Panics as [`Pattern::when_node`] does.
    pub fn output(self, output: usize) -> Pattern {
        self.edit(|operator| operator.output = output)
    }

    /// Says that the operator is of another domain. Panics as [`Pattern::when_node`] does.
    pub fn in_domain(self, domain: &str) -> Pattern {
        self.edit(|operator| operator.domain = domain.into())
    }

    /// Matches with an output of `node` as the root.
    pub fn find(&self, model: &Model, node: NodeId) -> Option<Match> {
        let outputs = model.node(node).outputs().iter().flatten();
        outputs.copied().find_map(|output| {
            let found = self.find_value(model, output)?;
            (found.nodes.first() == Some(&node)).then_some(found)
        })
    }

    /// Matches with a value as the root.
    pub fn find_value(&self, model: &Model, value: ValueId) -> Option<Match> {
        let start = Match { root: value, names: Vec::new(), nodes: Vec::new() };
        solve(model, vec![(self, Some(value))], start)
    }

    /// All matches with their roots in a graph, in execution order. They may overlap, and become stale as
    /// soon as the model is changed.
    pub fn find_all(&self, model: &Model, graph: GraphId) -> Vec<Match> {
        model.nodes_of(graph).filter_map(|node| self.find(model, node)).collect()
    }
}

/// What a pattern was found to stand for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Match {
    root: ValueId,
    names: Vec<(Arc<str>, ValueId)>,
    nodes: Vec<NodeId>,
}

impl Match {
    /// The value that the whole pattern stands for.
    pub fn root(&self) -> ValueId {
        self.root
    }

    /// The value of that name.
    ///
    /// # Panics
    /// When no part of the pattern that matched has the name; see [`Match::get`] for optional parts.
    pub fn value(&self, name: &str) -> ValueId {
        self.get(name).unwrap_or_else(|| panic!("the pattern binds no `{name}`"))
    }

    /// The value of that name, unless the part was optional and is missing.
    pub fn get(&self, name: &str) -> Option<ValueId> {
        self.names.iter().find(|(known, _)| **known == *name).map(|&(_, value)| value)
    }

    /// The node that computes the value of that name. Panics as [`Match::value`] does, and when no node
    /// computes it.
    pub fn node(&self, model: &Model, name: &str) -> NodeId {
        let producer = model.value(self.value(name)).producer();
        producer.unwrap_or_else(|| panic!("`{name}` is not the result of an operator")).0
    }

    /// The constant of that name, if it is one.
    pub fn constant<'m>(&self, model: &'m Model, name: &str) -> Option<&'m Tensor> {
        model.constant(self.get(name)?)
    }

    /// The nodes that were matched, the root's first; `Constant` nodes are not among them.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// Whether nothing outside of the match uses what its nodes compute, the root excepted: all of them
    /// can go when the root is replaced.
    pub fn is_closed(&self, model: &Model) -> bool {
        let inner = self.nodes.iter().flat_map(|&node| model.node(node).outputs()).copied().flatten();
        inner.filter(|&value| value != self.root).all(|value| {
            model.value(value).uses().iter().all(|used| match used {
                Use::Node(node, _) => self.nodes.contains(node),
                Use::Output(..) => false,
            })
        })
    }
}

/// Finds values for all goals. Recursion is as deep as the pattern is large.
fn solve(model: &Model, mut goals: Vec<(&Pattern, Option<ValueId>)>, mut found: Match) -> Option<Match> {
    while let Some((pattern, value)) = goals.pop() {
        let Some(value) = value else {
            if pattern.is_optional {
                continue;
            }
            return None;
        };
        if let Some(name) = &pattern.name {
            match found.names.iter().find(|(known, _)| known == name) {
                Some(&(_, bound)) if bound != value => return None,
                Some(_) => {}
                None => found.names.push((name.clone(), value)),
            }
        }
        if !pattern.tests.iter().all(|test| test(model, value)) {
            return None;
        }
        match &pattern.kind {
            Kind::Any => {}
            Kind::Constant => {
                model.constant(value)?;
            }
            Kind::Number(number) => {
                let tensor = model.constant(value)?;
                if !is_number(tensor, *number) {
                    return None;
                }
            }
            Kind::Either(patterns) => {
                return patterns.iter().find_map(|pattern| {
                    let mut goals = goals.clone();
                    goals.push((pattern, Some(value)));
                    solve(model, goals, found.clone())
                });
            }
            Kind::Operator(operator) => {
                let (id, output) = model.value(value).producer()?;
                let node = model.node(id);
                if !operator.admits(model, node, output) {
                    return None;
                }
                if !found.nodes.contains(&id) {
                    found.nodes.push(id);
                }
                // Pushed in reverse, so that the first input is looked at first.
                let slots = |order: &[usize]| -> Vec<(&Pattern, Option<ValueId>)> {
                    let pairs = operator.inputs.iter().zip(order);
                    pairs.map(|(pattern, &slot)| (pattern, node.input(slot))).rev().collect()
                };
                let straight: Vec<usize> = (0..operator.inputs.len()).collect();
                if operator.inputs.len() == 2 && COMMUTATIVE.contains(&node.op_type.as_str()) {
                    return [&[0, 1], &[1, 0]].into_iter().find_map(|order| {
                        let mut goals = goals.clone();
                        goals.extend(slots(order));
                        solve(model, goals, found.clone())
                    });
                }
                goals.extend(slots(&straight));
            }
        }
    }
    Some(found)
}

impl Operator {
    fn admits(&self, model: &Model, node: &Node, output: usize) -> bool {
        self.op_types.contains(&node.op_type)
            && node.domain() == self.domain
            && output == self.output
            && (self.allows_more
                || (self.inputs.len()..node.inputs().len()).all(|slot| node.input(slot).is_none()))
            && self.tests.iter().all(|test| test(model, node))
    }
}

/// Whether a tensor is that one number, as exactly as its element type can say it.
fn is_number(tensor: &Tensor, number: f64) -> bool {
    let tolerance = match tensor.dtype() {
        DType::F64 => 1e-9,
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        DType::F32 => 1e-6,
        _ => 0.0,
    };
    tensor.single().is_some_and(|found| found == number || (found - number).abs() <= tolerance * number.abs())
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}")?;
        }
        match &self.kind {
            Kind::Any => Ok(()),
            Kind::Constant => f.write_str(":constant"),
            Kind::Number(number) => write!(f, "{number}"),
            Kind::Operator(operator) => {
                f.write_str(if self.name.is_some() { "=" } else { "" })?;
                write!(f, "{}", operator.op_types.join("|"))?;
                let mut tuple = f.debug_tuple("");
                for input in &operator.inputs {
                    tuple.field(input);
                }
                tuple.finish()
            }
            Kind::Either(patterns) => f.debug_set().entries(patterns.iter()).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text;

    fn model(graph: &str) -> Model {
        text::parse(&format!("<opset_import: [\"\" : 18, \"d\" : 1]> {graph}")).unwrap()
    }

    /// The last node of the graph as root.
    fn find(pattern: &Pattern, model: &Model) -> Option<Match> {
        pattern.find(model, model.graph(model.main()).last.unwrap())
    }

    #[test]
    fn commutative_operators_match_either_way_and_backtrack() {
        let x = any("x");
        let swish = &x * sigmoid(&x * number(1.702));
        for text in [
            "g (x) => (y) <float k = {1.702}> { a = Mul (x, k) s = Sigmoid (a) y = Mul (x, s) }",
            "g (x) => (y) <float k = {1.702}> { a = Mul (k, x) s = Sigmoid (a) y = Mul (s, x) }",
            // Both inputs are sigmoids: only one way round fits.
            "g (z) => (y) <float k = {1.702}> { x = Sigmoid (z) a = Mul (k, x) s = Sigmoid (a) y = Mul (x, s) }",
        ] {
            let model = model(text);
            let found = find(&swish, &model).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(model.value(found.value("x")).name(), "x");
            assert_eq!(found.nodes().len(), 3);
            assert!(found.is_closed(&model));
        }
        for text in [
            "g (x, z) => (y) <float k = {1.702}> { a = Mul (x, k) s = Sigmoid (a) y = Mul (z, s) }",
            "g (x) => (y) <float k = {1.703}> { a = Mul (x, k) s = Sigmoid (a) y = Mul (x, s) }",
            "g (x, float k) => (y) { a = Mul (x, k) s = Sigmoid (a) y = Mul (x, s) }",
            "g (x) => (y) <float k = {1.702}> { a = Mul (x, k) s = Tanh (a) y = Mul (x, s) }",
        ] {
            assert_eq!(find(&swish, &model(text)), None, "{text}");
        }
    }

    #[test]
    fn order_matters_elsewhere() {
        let pattern = any("a") - number(1.0);
        assert!(find(&pattern, &model("g (x) => (y) <float k = {1}> { y = Sub (x, k) }")).is_some());
        assert!(find(&pattern, &model("g (x) => (y) <float k = {1}> { y = Sub (k, x) }")).is_none());
        let reversed = 1.0 - any("a");
        assert!(find(&reversed, &model("g (x) => (y) <float k = {1}> { y = Sub (k, x) }")).is_some());
    }

    #[test]
    fn optional_inputs_and_captures() {
        let pattern = op(
            "BatchNormalization",
            [
                conv(any("x"), constant("w"), constant("b")).used_once().named("conv"),
                constant("scale"),
                constant("bias"),
                constant("mean"),
                constant("var"),
            ],
        )
        .when_node(|_, node| node.int("training_mode").unwrap_or(0) == 0)
        .named("norm");
        let constants = "float[1, 1, 1] w = {1}, float[1] c = {1}";
        let with_bias = model(&format!(
            "g (x) => (y) <{constants}> {{ h = Conv (x, w, c) y = BatchNormalization (h, c, c, c, c) }}"
        ));
        let found = find(&pattern, &with_bias).unwrap();
        assert_eq!(with_bias.node(found.node(&with_bias, "conv")).op_type, "Conv");
        assert_eq!(found.node(&with_bias, "norm"), found.nodes()[0]);
        assert_eq!(found.constant(&with_bias, "b").and_then(Tensor::single), Some(1.0));
        let without = model(&format!(
            "g (x) => (y) <{constants}> {{ h = Conv (x, w) y = BatchNormalization (h, c, c, c, c) }}"
        ));
        assert_eq!(find(&pattern, &without).unwrap().get("b"), None);
        for refused in [
            // The convolution's result is used elsewhere.
            "{ h = Conv (x, w) z = Relu (h) y = BatchNormalization (h, c, c, c, c) }",
            "{ h = Conv (x, w) y = BatchNormalization <training_mode = 1> (h, c, c, c, c) }",
            "{ h = Conv (x, x) y = BatchNormalization (h, c, c, c, c) }",
        ] {
            assert_eq!(find(&pattern, &model(&format!("g (x) => (y) <{constants}> {refused}"))), None);
        }
    }

    #[test]
    fn shapes_of_operators() {
        let unary = one_of(["Relu", "Clip"], [any("x")]);
        assert!(find(&unary, &model("g (x) => (y) { y = Relu (x) }")).is_some());
        assert!(find(&unary, &model("g (x) => (y) { y = Clip (x, \"\") }")).is_some());
        assert!(find(&unary, &model("g (x, z) => (y) { y = Clip (x, z) }")).is_none());
        let clipped = model("g (x, z) => (y) { y = Clip (x, z) }");
        assert!(find(&unary.clone().with_more_inputs(), &clipped).is_some());
        assert!(find(&unary, &model("g (x) => (y) { y = d.Relu (x) }")).is_none());
        assert!(find(&unary.in_domain("d"), &model("g (x) => (y) { y = d.Relu (x) }")).is_some());
        let split = model("g (x) => (b) { a, b = Split (x) }");
        assert!(find(&op("Split", [any("x")]).output(1), &split).is_some());
        let found = find(&op("Split", [any("x")]), &split).unwrap();
        assert_eq!(split.value(found.root()).name(), "a");
        let twice = either([tanh(any("x")), relu(relu(any("x")))]);
        let chain = model("g (x) => (c) { a = Relu (x) b = Relu (a) c = Tanh (b) }");
        assert_eq!(twice.find_all(&chain, chain.main()).len(), 2);
    }

    #[test]
    fn constants_are_tested() {
        let small = any("x") + constant_where("k", |tensor| tensor.len() < 3).of_type(DType::F32);
        for (constant, matches) in
            [("float[2] k = {1, 2}", true), ("float[3] k = {1, 2, 3}", false), ("double k = {1}", false)]
        {
            let model = model(&format!("g (x) => (y) <{constant}> {{ y = Add (x, k) }}"));
            assert_eq!(find(&small, &model).is_some(), matches, "{constant}");
        }
        // Half precision knows numbers only so well; `Constant` nodes are constants, too.
        let third = any("x") * number(1.0 / 3.0);
        let half = model("g (x) => (y) { k = Constant <value = float16 {0.33325}> () y = Mul (x, k) }");
        assert_eq!(find(&third, &half).unwrap().nodes().len(), 1);
        let float = model("g (x) => (y) <float k = {0.33325}> { y = Mul (x, k) }");
        assert_eq!(find(&third, &float), None);
    }
}
