//! Classical models of `ai.onnx.ml`: TreeEnsemble, TreeEnsembleRegressor and LinearRegressor.
//!
//! <https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html> and its neighbours

use std::collections::{HashMap, HashSet};

use optix_ir::{AttributeValue, DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::conv::MOST_STEPS;
use crate::numbers::float_tensor;

const DOMAIN: &str = "ai.onnx.ml";

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::of(DOMAIN, "TreeEnsemble", 5, tree_ensemble),
    KernelSpec::of(DOMAIN, "TreeEnsembleRegressor", 1, tree_regressor),
    KernelSpec::of(DOMAIN, "LinearRegressor", 1, linear_regressor),
];

#[derive(Clone)]
enum Test {
    LessOrEqual,
    Less,
    GreaterOrEqual,
    Greater,
    Equal,
    NotEqual,
    Member(Vec<f64>),
}

#[derive(Clone, Copy)]
enum Next {
    Node(usize),
    Leaf(usize),
}

struct Branch {
    feature: usize,
    test: Test,
    split: f64,
    /// Where NaN goes.
    missing: bool,
    yes: Next,
    no: Next,
}

impl Branch {
    fn holds(&self, x: f64) -> bool {
        let split = self.split;
        let holds = match &self.test {
            Test::LessOrEqual => x <= split,
            Test::Less => x < split,
            Test::GreaterOrEqual => x >= split,
            Test::Greater => x > split,
            Test::Equal => x == split,
            Test::NotEqual => x != split && !x.is_nan(),
            Test::Member(members) => members.contains(&x),
        };
        holds || (x.is_nan() && self.missing)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Aggregate {
    Average,
    Sum,
    Min,
    Max,
}

#[derive(Clone, Copy, PartialEq)]
enum Transform {
    None,
    Softmax,
    Logistic,
}

impl Transform {
    fn apply(self, row: &mut [f64]) {
        match self {
            Transform::None => {}
            Transform::Logistic => row.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
            Transform::Softmax => {
                let greatest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                row.iter_mut().for_each(|x| *x = (*x - greatest).exp());
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|x| *x /= sum);
            }
        }
    }
}

fn transform(call: &Call<'_>, name: &str, targets: usize) -> Result<Transform, OpError> {
    match name {
        "NONE" => Ok(Transform::None),
        // Of a single number implementations make different things.
        "SOFTMAX" if targets > 1 => Ok(Transform::Softmax),
        "LOGISTIC" if targets > 1 => Ok(Transform::Logistic),
        other => Err(call.unsupported(format!("post_transform {other} of {targets} targets"))),
    }
}

/// Decision trees over the rows of the input.
struct Forest {
    branches: Vec<Branch>,
    roots: Vec<Next>,
    /// What each leaf gives to which targets.
    leaves: Vec<Vec<(usize, f64)>>,
    targets: usize,
    aggregate: Aggregate,
    base: Vec<f64>,
    transform: Transform,
}

fn rows(call: &Call<'_>) -> Result<(Vec<f64>, usize, usize), OpError> {
    let x = call.input(0)?;
    let &[count, features] = x.shape() else {
        return Err(call.invalid(format!("shape {:?} is not that of rows of features", x.shape())));
    };
    Ok((x.to_f64s().map_err(|error| call.tensor_error(error))?, count, features))
}

impl Forest {
    fn leaf(&self, call: &Call<'_>, root: Next, row: &[f64]) -> Result<usize, OpError> {
        let mut at = root;
        for _ in 0..=self.branches.len() {
            match at {
                Next::Leaf(leaf) if leaf < self.leaves.len() => return Ok(leaf),
                Next::Leaf(leaf) => return Err(call.invalid(format!("there is no leaf {leaf}"))),
                Next::Node(node) => {
                    let branch = self.branches.get(node);
                    let branch = branch.ok_or_else(|| call.invalid(format!("there is no node {node}")))?;
                    let x = row.get(branch.feature).copied();
                    let x =
                        x.ok_or_else(|| call.invalid(format!("there is no feature {}", branch.feature)))?;
                    at = if branch.holds(x) { branch.yes } else { branch.no };
                }
            }
        }
        Err(call.invalid("a tree has a cycle"))
    }

    fn run(&self, call: &Call<'_>, dtype: DType) -> Result<Vec<Tensor>, OpError> {
        let (values, count, features) = rows(call)?;
        let shape = vec![count, self.targets];
        call.check_size(DType::F64, &shape)?;
        let steps = (count as u64).saturating_mul(self.roots.len() as u64);
        if steps > MOST_STEPS {
            return Err(call.unsupported(format!("{steps} trees and rows")));
        }
        if self.leaves.iter().flatten().any(|&(target, _)| target >= self.targets) {
            return Err(call.invalid(format!("a leaf is not for one of the {} targets", self.targets)));
        }
        let mut result = Vec::new();
        for row in 0..count {
            let row = &values[row * features..(row + 1) * features];
            let mut sums: Vec<Option<f64>> = vec![None; self.targets];
            for &root in &self.roots {
                for &(target, weight) in &self.leaves[self.leaf(call, root, row)?] {
                    let sum = &mut sums[target];
                    *sum = Some(match (*sum, self.aggregate) {
                        (None, _) => weight,
                        (Some(sum), Aggregate::Sum | Aggregate::Average) => sum + weight,
                        (Some(sum), Aggregate::Min) => sum.min(weight),
                        (Some(sum), Aggregate::Max) => sum.max(weight),
                    });
                }
            }
            let mut scores = Vec::with_capacity(self.targets);
            for (target, sum) in sums.into_iter().enumerate() {
                let base = self.base.get(target).copied().unwrap_or(0.0);
                scores.push(match (sum, self.aggregate) {
                    (None, Aggregate::Min | Aggregate::Max) => {
                        return Err(call.unsupported("an extreme of no leaves"));
                    }
                    // Some add it only to what a leaf gave something to.
                    (None, _) if base != 0.0 => {
                        return Err(call.unsupported("a base value of a target without leaves"));
                    }
                    (sum, Aggregate::Average) => sum.unwrap_or(0.0) / self.roots.len() as f64 + base,
                    (sum, _) => sum.unwrap_or(0.0) + base,
                });
            }
            self.transform.apply(&mut scores);
            result.extend(scores);
        }
        Ok(vec![float_tensor(call, dtype, shape, &result)?])
    }
}

fn list<'a>(call: &Call<'a>, name: &str) -> Result<&'a [i64], OpError> {
    call.node.ints(name).ok_or_else(|| call.invalid(format!("`{name}` is missing")))
}

fn numbers(call: &Call<'_>, name: &str) -> Result<Vec<f64>, OpError> {
    let tensor = call.node.tensor(name).ok_or_else(|| call.invalid(format!("`{name}` is missing")))?;
    tensor.to_f64s().map_err(|error| call.tensor_error(error))
}

fn target_count(call: &Call<'_>) -> Result<usize, OpError> {
    let targets = usize::try_from(call.node.int("n_targets").unwrap_or(1)).ok().filter(|&count| count > 0);
    targets.ok_or_else(|| call.invalid("`n_targets` is not positive"))
}

fn tree_ensemble(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let dtype = call.input(0)?.dtype();
    if !dtype.is_float() {
        return Err(call.wrong_type(0, dtype));
    }
    let modes = numbers(call, "nodes_modes")?;
    let splits = numbers(call, "nodes_splits")?;
    let weights = numbers(call, "leaf_weights")?;
    let leaf_targets = list(call, "leaf_targetids")?;
    let (features, missing) =
        (list(call, "nodes_featureids")?, call.node.ints("nodes_missing_value_tracks_true"));
    let sides = [
        (list(call, "nodes_truenodeids")?, list(call, "nodes_trueleafs")?),
        (list(call, "nodes_falsenodeids")?, list(call, "nodes_falseleafs")?),
    ];
    let count = modes.len();
    let lists = sides.iter().flat_map(|(ids, leaves)| [ids.len(), leaves.len()]);
    let mut lists = lists.chain([splits.len(), features.len(), missing.map_or(count, <[i64]>::len)]);
    if lists.any(|length| length != count) || weights.len() != leaf_targets.len() {
        return Err(call.invalid("its lists differ in length"));
    }
    let mut sets = match call.node.tensor("membership_values") {
        Some(_) => {
            let members = numbers(call, "membership_values")?;
            let sets: Vec<Vec<f64>> = members.split(|x| x.is_nan()).map(<[f64]>::to_vec).collect();
            sets.into_iter()
        }
        None => Vec::new().into_iter(),
    };
    let position =
        |index: i64| usize::try_from(index).map_err(|_| call.invalid(format!("index {index} is negative")));
    let mut branches = Vec::with_capacity(count);
    for node in 0..count {
        let test = match modes[node] as u8 {
            0 => Test::LessOrEqual,
            1 => Test::Less,
            2 => Test::GreaterOrEqual,
            3 => Test::Greater,
            4 => Test::Equal,
            5 => Test::NotEqual,
            6 => Test::Member(sets.next().ok_or_else(|| call.invalid("there are too few sets of members"))?),
            other => return Err(call.invalid(format!("there is no mode {other}"))),
        };
        let side = |(ids, leaves): (&[i64], &[i64])| {
            let at = position(ids[node])?;
            Ok(if leaves[node] != 0 { Next::Leaf(at) } else { Next::Node(at) })
        };
        branches.push(Branch {
            feature: position(features[node])?,
            test,
            split: splits[node],
            missing: missing.is_some_and(|missing| missing[node] != 0),
            yes: side(sides[0])?,
            no: side(sides[1])?,
        });
    }
    let targets = target_count(call)?;
    let aggregate = match call.node.int("aggregate_function").unwrap_or(1) {
        0 => Aggregate::Average,
        1 => Aggregate::Sum,
        2 => Aggregate::Min,
        3 => Aggregate::Max,
        other => return Err(call.invalid(format!("there is no aggregate_function {other}"))),
    };
    // By the standard 1 is softmax and 2 is logistic; an implementation has them the other way around.
    if call.node.int("post_transform").unwrap_or(0) != 0 {
        return Err(call.unsupported("post_transform other than none"));
    }
    let roots = list(call, "tree_roots")?.iter().map(|&root| position(root).map(Next::Node));
    let leaves =
        leaf_targets.iter().zip(weights).map(|(&target, weight)| Ok(vec![(position(target)?, weight)]));
    let forest = Forest {
        roots: roots.collect::<Result<_, OpError>>()?,
        leaves: leaves.collect::<Result<_, OpError>>()?,
        branches,
        targets,
        aggregate,
        base: Vec::new(),
        transform: Transform::None,
    };
    forest.run(call, dtype)
}

/// A list of floats, or the tensor that says it in more digits.
fn floats(call: &Call<'_>, name: &str) -> Result<Vec<f64>, OpError> {
    if call.node.tensor(&format!("{name}_as_tensor")).is_some() {
        return numbers(call, &format!("{name}_as_tensor"));
    }
    Ok(call.node.floats(name).unwrap_or(&[]).iter().map(|&value| f64::from(value)).collect())
}

/// The older form: trees and nodes have numbers, and leaves are nodes.
fn tree_regressor(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (trees, nodes) = (list(call, "nodes_treeids")?, list(call, "nodes_nodeids")?);
    let (yes, no) = (list(call, "nodes_truenodeids")?, list(call, "nodes_falsenodeids")?);
    let features = list(call, "nodes_featureids")?;
    let missing = call.node.ints("nodes_missing_value_tracks_true").filter(|list| !list.is_empty());
    let splits = floats(call, "nodes_values")?;
    let Some(AttributeValue::Strings(modes)) = call.node.attribute("nodes_modes") else {
        return Err(call.invalid("`nodes_modes` is missing"));
    };
    let count = modes.len();
    let lengths = [trees.len(), nodes.len(), yes.len(), no.len(), features.len(), splits.len()];
    if lengths.iter().any(|&length| length != count) || missing.is_some_and(|list| list.len() != count) {
        return Err(call.invalid("its lists differ in length"));
    }
    let places: HashMap<(i64, i64), usize> = (0..count).map(|at| ((trees[at], nodes[at]), at)).collect();
    if places.len() != count {
        return Err(call.invalid("a node is there twice"));
    }
    let mut leaves: Vec<Vec<(usize, f64)>> = vec![Vec::new(); count];
    let (leaf_trees, leaf_nodes) = (list(call, "target_treeids")?, list(call, "target_nodeids")?);
    let (leaf_targets, weights) = (list(call, "target_ids")?, floats(call, "target_weights")?);
    if [leaf_nodes.len(), leaf_targets.len(), weights.len()] != [leaf_trees.len(); 3] {
        return Err(call.invalid("its lists differ in length"));
    }
    for (at, weight) in weights.into_iter().enumerate() {
        let place = places.get(&(leaf_trees[at], leaf_nodes[at]));
        let (Some(&place), Ok(target)) = (place, usize::try_from(leaf_targets[at])) else {
            return Err(call.invalid("a weight is of no node or no target"));
        };
        leaves[place].push((target, weight));
    }
    let is_leaf = |at: usize| &modes[at][..] == b"LEAF";
    let mut children = HashSet::new();
    let mut branches = Vec::with_capacity(count);
    for at in 0..count {
        let mut side = |ids: &[i64]| {
            if is_leaf(at) {
                return Ok(Next::Leaf(at));
            }
            let place = places.get(&(trees[at], ids[at])).copied();
            let place = place.ok_or_else(|| call.invalid(format!("there is no node {}", ids[at])))?;
            children.insert(place);
            Ok(if is_leaf(place) { Next::Leaf(place) } else { Next::Node(place) })
        };
        let (yes, no) = (side(yes)?, side(no)?);
        let test = match &modes[at][..] {
            b"BRANCH_LEQ" | b"LEAF" => Test::LessOrEqual,
            b"BRANCH_LT" => Test::Less,
            b"BRANCH_GTE" => Test::GreaterOrEqual,
            b"BRANCH_GT" => Test::Greater,
            b"BRANCH_EQ" => Test::Equal,
            b"BRANCH_NEQ" => Test::NotEqual,
            other => return Err(call.unsupported(format!("node mode {}", String::from_utf8_lossy(other)))),
        };
        let feature = usize::try_from(features[at]).map_err(|_| call.invalid("a feature is negative"))?;
        let missing = missing.is_some_and(|missing| missing[at] != 0);
        branches.push(Branch { feature, test, split: splits[at], missing, yes, no });
    }
    // A tree starts with the node that is listed first.
    let (mut roots, mut seen) = (Vec::new(), HashSet::new());
    for at in (0..count).filter(|&at| seen.insert(trees[at])) {
        if children.contains(&at) {
            return Err(call.unsupported("trees that do not start with their root"));
        }
        roots.push(if is_leaf(at) { Next::Leaf(at) } else { Next::Node(at) });
    }
    let targets = target_count(call)?;
    let base = floats(call, "base_values")?;
    if !base.is_empty() && base.len() != targets {
        return Err(call.unsupported(format!("{} base values of {targets} targets", base.len())));
    }
    let aggregate = match call.node.string("aggregate_function").unwrap_or("SUM") {
        "AVERAGE" => Aggregate::Average,
        "SUM" => Aggregate::Sum,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        other => return Err(call.invalid(format!("there is no aggregate_function `{other}`"))),
    };
    let transform = transform(call, call.node.string("post_transform").unwrap_or("NONE"), targets)?;
    Forest { branches, roots, leaves, targets, aggregate, base, transform }.run(call, DType::F32)
}

fn linear_regressor(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (values, count, features) = rows(call)?;
    let targets = usize::try_from(call.node.int("targets").unwrap_or(1)).ok().filter(|&count| count > 0);
    let targets = targets.ok_or_else(|| call.invalid("`targets` is not positive"))?;
    let coefficients = call.node.floats("coefficients").unwrap_or(&[]);
    let intercepts = call.node.floats("intercepts").unwrap_or(&[]);
    if targets.checked_mul(features) != Some(coefficients.len())
        || !(intercepts.is_empty() || intercepts.len() == targets)
    {
        return Err(
            call.invalid(format!("its coefficients do not fit {features} features, {targets} targets"))
        );
    }
    let transform = transform(call, call.node.string("post_transform").unwrap_or("NONE"), targets)?;
    let shape = vec![count, targets];
    call.check_size(DType::F64, &shape)?;
    let mut result = Vec::new();
    for row in 0..count {
        let row = &values[row * features..(row + 1) * features];
        let mut scores: Vec<f64> = (0..targets)
            .map(|target| {
                let weights = &coefficients[target * features..(target + 1) * features];
                let sum: f64 = row.iter().zip(weights).map(|(x, weight)| x * f64::from(*weight)).sum();
                sum + intercepts.get(target).map_or(0.0, |&intercept| f64::from(intercept))
            })
            .collect();
        transform.apply(&mut scores);
        result.extend(scores);
    }
    Ok(vec![float_tensor(call, DType::F32, shape, &result)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn strings(texts: &[&str]) -> AttributeValue {
        AttributeValue::Strings(texts.iter().map(|text| text.as_bytes().to_vec().into()).collect())
    }

    fn tree(yes: i64, no: i64, feature: i64) -> Result<Vec<f64>, OpError> {
        let node = Node::new("TreeEnsembleRegressor", [])
            .with("nodes_treeids", vec![0i64, 0, 0])
            .with("nodes_nodeids", vec![0i64, 1, 2])
            .with("nodes_featureids", vec![feature, 0, 0])
            .with("nodes_modes", strings(&["BRANCH_GT", "LEAF", "LEAF"]))
            .with("nodes_values", vec![0.5f32, 0.0, 0.0])
            .with("nodes_truenodeids", vec![yes, 0, 0])
            .with("nodes_falsenodeids", vec![no, 0, 0])
            .with("target_treeids", vec![0i64, 0])
            .with("target_nodeids", vec![1i64, 2])
            .with("target_ids", vec![0i64, 0])
            .with("target_weights", vec![1.0f32, 2.0])
            .with("base_values", vec![0.25f32]);
        let x = Tensor::from_vec(vec![3, 2], vec![0.0f32, 1.0, 0.0, 0.5, 0.0, f32::NAN]);
        tree_regressor(&Call::new(&node, 1, &[Some(&x)])).map(|outputs| outputs[0].to_f64s().unwrap())
    }

    #[test]
    fn trees_give_what_onnxruntime_gives() {
        assert_eq!(tree(1, 2, 1).unwrap(), [1.25, 2.25, 2.25]);
        for (yes, no, feature) in [(0, 2, 1), (1, 7, 1), (1, 2, 2), (1, 2, -1)] {
            assert!(tree(yes, no, feature).is_err(), "{yes} {no} {feature}");
        }
    }

    #[test]
    fn cycles_are_found() {
        let branch = || Branch {
            feature: 0,
            test: Test::Less,
            split: 0.0,
            missing: false,
            yes: Next::Node(1),
            no: Next::Node(0),
        };
        let forest = Forest {
            branches: vec![branch(), branch()],
            roots: vec![Next::Node(0)],
            leaves: Vec::new(),
            targets: 1,
            aggregate: Aggregate::Sum,
            base: Vec::new(),
            transform: Transform::None,
        };
        let (node, x) = (Node::new("TreeEnsemble", []), Tensor::from_vec(vec![1, 1], vec![1f32]));
        assert!(forest.run(&Call::new(&node, 5, &[Some(&x)]), DType::F32).is_err());
    }
}
