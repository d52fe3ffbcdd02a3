//! Which nodes are worth running in integers, on the engine the model is meant for.
//!
//! Integers are not always faster: a depthwise convolution may be slower, and a quantizer on each side of a
//! small layer takes longer than the layer saves. What every kernel takes is measured in the float model
//! and in the one with everything in integers; a minimum cut then finds the nodes that are cheapest in
//! integers with the quantizers at their borders counted in. Last, whole models decide.

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{Model, NodeId, Tensor, ValueId};
use optix_pipeline::{Deployment, Difference, KernelTime, OracleError, Ratio};

use super::observer::Observer;
use super::placement::Placement;
use crate::cut::{Cut, FIRST, NEVER, SECOND};

/// Seconds that comparing whole models takes at a time.
const SECONDS: f64 = 1.5;

/// Times that it is done on a machine too noisy to show a difference.
const ATTEMPTS: usize = 4;

/// What the engine says about a quantized model.
pub(super) struct Verdict {
    /// Nodes that stay float, each with the reason.
    pub(super) float: BTreeMap<NodeId, String>,
    /// The outcome in a sentence.
    pub(super) summary: String,
}

/// What is compared.
pub(super) struct Question<'a> {
    pub(super) float: &'a Model,
    pub(super) quantized: &'a Model,
    pub(super) placement: &'a Placement,
    pub(super) observers: &'a BTreeMap<ValueId, Observer>,
    pub(super) feeds: &'a [(String, Tensor)],
}

/// Seconds by node: of the kernels that compute it.
fn by_node(kernels: &[KernelTime], owner: &dyn Fn(NodeId) -> Option<NodeId>) -> BTreeMap<NodeId, f64> {
    let mut seconds = BTreeMap::new();
    for kernel in kernels {
        if let Some(node) = kernel.nodes.iter().find_map(|&node| owner(node)) {
            *seconds.entry(node).or_insert(0.0) += kernel.seconds;
        }
    }
    seconds
}

/// What quantizers and dequantizers take, measured where the engine ran them and estimated by size where it
/// did not.
struct Borders {
    quantize: BTreeMap<ValueId, f64>,
    dequantize: BTreeMap<ValueId, f64>,
    least: f64,
    by_element: f64,
}

impl Borders {
    fn new(question: &Question<'_>, kernels: &[KernelTime]) -> Borders {
        let model = question.quantized;
        let known: BTreeSet<ValueId> = question.placement.quantized.iter().map(|(value, _)| *value).collect();
        let (mut quantize, mut dequantize) = (BTreeMap::new(), BTreeMap::new());
        for kernel in kernels {
            let Some(&id) = kernel.nodes.first() else { continue };
            let node = model.node(id);
            let source = match node.op_type.as_str() {
                "QuantizeLinear" => node.input(0),
                "DequantizeLinear" => {
                    let producer = node.input(0).and_then(|value| model.value(value).producer());
                    producer.and_then(|(quantizer, _)| model.node(quantizer).input(0))
                }
                _ => None,
            };
            if let Some(value) = source.filter(|value| known.contains(value)) {
                let map = if node.op_type == "QuantizeLinear" { &mut quantize } else { &mut dequantize };
                *map.entry(value).or_insert(0.0) += kernel.seconds;
            }
        }
        let elements = |value: ValueId| elements(question, value);
        let measured: Vec<(f64, f64)> =
            quantize.iter().chain(&dequantize).map(|(value, seconds)| (elements(*value), *seconds)).collect();
        let least = measured.iter().map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
        let least = if least.is_finite() { least } else { 0.0 };
        let total: f64 = measured.iter().map(|(elements, _)| elements).sum();
        let above: f64 = measured.iter().map(|(_, seconds)| seconds - least).sum();
        Borders { quantize, dequantize, least, by_element: if total > 0.0 { above / total } else { 0.0 } }
    }

    fn quantize(&self, question: &Question<'_>, value: ValueId) -> f64 {
        self.quantize.get(&value).copied().unwrap_or(self.least + self.by_element * elements(question, value))
    }

    fn dequantize(&self, question: &Question<'_>, value: ValueId) -> f64 {
        self.dequantize
            .get(&value)
            .copied()
            .unwrap_or(self.least + self.by_element * elements(question, value))
    }
}

/// A number in proportion to a value's elements.
fn elements(question: &Question<'_>, value: ValueId) -> f64 {
    let root = question.placement.quantized.iter().find(|(own, _)| *own == value).map(|(_, root)| *root);
    root.and_then(|root| question.observers.get(&root)).map_or(0.0, |observer| observer.count() as f64)
}

/// Asks the engine. `build` makes the model in which the given nodes stay float; `None` when it can say
/// nothing.
///
/// # Errors
/// When the engine cannot run the models.
pub(super) fn ask(
    question: &Question<'_>,
    deployment: &mut dyn Deployment,
    build: &dyn Fn(&BTreeSet<NodeId>) -> Result<Model, String>,
) -> Result<Verdict, OracleError> {
    let candidates: BTreeSet<NodeId> = {
        let placement = question.placement;
        placement
            .weighted
            .iter()
            .map(|weighted| weighted.node)
            .chain(placement.products.iter().copied())
            .chain(placement.bridges.iter().copied())
            .collect()
    };
    let in_float = deployment.kernels(question.float, question.feeds)?;
    let in_integers = deployment.kernels(question.quantized, question.feeds)?;
    // An activation that is folded into a layer's range counts as part of it.
    let mut absorbed: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for weighted in &question.placement.weighted {
        if let Some((activation, _)) = question.float.value(weighted.output).producer() {
            absorbed.insert(activation, weighted.node);
        }
    }
    let owner = |node: NodeId| match candidates.contains(&node) {
        true => Some(node),
        false => absorbed.get(&node).copied(),
    };
    let float_seconds = by_node(&in_float, &owner);
    let integer_seconds = by_node(&in_integers, &|node| candidates.contains(&node).then_some(node));
    let borders = Borders::new(question, &in_integers);
    let stay = cheapest(question, &candidates, &float_seconds, &integer_seconds, &borders);
    let quantized = question.quantized;
    let partly = if stay.is_empty() || stay.len() == candidates.len() {
        None
    } else {
        Some(build(&stay).map_err(OracleError::Feeds)?)
    };
    let models: Vec<&Model> = [question.float, quantized].into_iter().chain(&partly).collect();
    let mut seconds = vec![Vec::new(); models.len()];
    let mut ratios: Vec<Option<Ratio>> = Vec::new();
    let mut best: Option<(usize, Ratio)> = None;
    for _ in 0..ATTEMPTS {
        for (all, new) in seconds.iter_mut().zip(deployment.latencies(&models, question.feeds, SECONDS)?) {
            all.extend(new);
        }
        ratios = (1..models.len()).map(|index| Ratio::of_pairs(&seconds[index], &seconds[0])).collect();
        let known = ratios.iter().enumerate().filter_map(|(index, ratio)| Some((index, (*ratio)?)));
        best = known.min_by(|(_, a), (_, b)| a.ratio.total_cmp(&b.ratio));
        if best.is_some_and(|(_, ratio)| ratio.difference() != Difference::NoneShown) {
            break;
        }
    }
    let engine = deployment.describe();
    let Some((index, ratio)) = best else {
        return Ok(Verdict { float: BTreeMap::new(), summary: "too few runs to tell".to_owned() });
    };
    let describe = |ratio: &Ratio| {
        format!("{:.2} (95% interval {:.2} to {:.2})", ratio.ratio, ratio.interval.low, ratio.interval.high)
    };
    // Not shown to be faster is not worth the loss of accuracy.
    if ratio.interval.high >= 1.0 {
        let reason =
            format!("in integers the model takes {} of its time in float ({engine})", describe(&ratio));
        let summary = format!("no part of the model is faster in integers: best ratio {}", describe(&ratio));
        return Ok(Verdict {
            float: candidates.into_iter().map(|node| (node, reason.clone())).collect(),
            summary,
        });
    }
    if index == 0 {
        let summary = format!("all of it in integers takes {} of the time in float", describe(&ratio));
        return Ok(Verdict { float: BTreeMap::new(), summary });
    }
    let all =
        ratios[0].as_ref().map_or_else(String::new, |all| format!(", {} with all of it", describe(all)));
    let summary = format!(
        "{} nodes stay float: the model takes {} of the time in float{all}",
        stay.len(),
        describe(&ratio)
    );
    let reason = |node: NodeId| {
        let micro = |map: &BTreeMap<NodeId, f64>| map.get(&node).map(|seconds| seconds * 1e6);
        match (micro(&integer_seconds), micro(&float_seconds)) {
            (Some(integers), Some(float)) if integers >= float => {
                format!("faster in float: {float:.0} us, in integers {integers:.0} us ({engine})")
            }
            (Some(integers), Some(float)) => format!(
                "faster in float with the quantizers around it: {float:.0} us, in integers {integers:.0} us and \
                 the quantizers ({engine})"
            ),
            _ => format!("its neighbours are faster in float ({engine})"),
        }
    };
    Ok(Verdict { float: stay.into_iter().map(|node| (node, reason(node))).collect(), summary })
}

/// A time as a cost: whole numbers, finer than any clock.
fn picoseconds(seconds: f64) -> u64 {
    (seconds * 1e12) as u64
}

/// The nodes that are cheaper in float. Nodes of which nothing was seen cost nothing themselves.
fn cheapest(
    question: &Question<'_>,
    candidates: &BTreeSet<NodeId>,
    float_seconds: &BTreeMap<NodeId, f64>,
    integer_seconds: &BTreeMap<NodeId, f64>,
    borders: &Borders,
) -> BTreeSet<NodeId> {
    // The first label is "integers".
    let mut cut = Cut::default();
    let places: BTreeMap<NodeId, usize> = candidates.iter().map(|&node| (node, cut.node())).collect();
    for (node, &place) in &places {
        cut.cost(FIRST, place, picoseconds(float_seconds.get(node).copied().unwrap_or(0.0)));
        cut.cost(place, SECOND, picoseconds(integer_seconds.get(node).copied().unwrap_or(0.0)));
    }
    let model = question.float;
    // The label of what computes each quantized value: a candidate's, that of what is moved, or float.
    let mut makers: BTreeMap<ValueId, usize> = BTreeMap::new();
    for weighted in &question.placement.weighted {
        // Products give floats: in onnxruntime only convolutions end in a quantizer of their own.
        if question.placement.resident.contains(&weighted.output) {
            makers.insert(weighted.output, places[&weighted.node]);
        }
    }
    for other in question.placement.bridges.iter().chain(&question.placement.products) {
        let output = model.node(*other).output(0);
        if let Some(output) = output.filter(|output| question.placement.resident.contains(output)) {
            makers.insert(output, places[other]);
        }
    }
    let roots: BTreeMap<ValueId, ValueId> = question.placement.quantized.iter().copied().collect();
    let mut readers: BTreeMap<ValueId, Vec<Option<usize>>> = BTreeMap::new();
    for (&value, &root) in &roots {
        for used in model.value(value).uses() {
            let reader = match used {
                optix_ir::Use::Node(node, _) => {
                    // What only moves elements is looked through: its result is listed itself.
                    let output = model.node(*node).output(0);
                    let moves =
                        output.is_some_and(|output| output != value && roots.get(&output) == Some(&root));
                    if moves {
                        continue;
                    }
                    places.get(node).copied()
                }
                optix_ir::Use::Output(..) => None,
            };
            readers.entry(root).or_default().push(reader);
        }
    }
    for (&root, readers) in &readers {
        let maker = makers.get(&root).copied().unwrap_or(SECOND);
        // Quantized once, when it is made in float and somebody wants integers.
        let wanted = cut.node();
        cut.cost(wanted, maker, picoseconds(borders.quantize(question, root)));
        // Dequantized once, when it is made in integers and somebody wants floats.
        let kept = cut.node();
        cut.cost(maker, kept, picoseconds(borders.dequantize(question, root)));
        for reader in readers {
            let reader = reader.unwrap_or(SECOND);
            cut.cost(reader, wanted, NEVER);
            cut.cost(kept, reader, NEVER);
        }
    }
    let first = cut.solve();
    places.into_iter().filter(|(_, place)| !first[*place]).map(|(node, _)| node).collect()
}
