//! Whole blocks beside a residual connection are taken out.

use std::collections::BTreeSet;

use optix_ir::{Model, NodeId, Use, ValueId};
use optix_pipeline::{
    Cx, Family, Interface, Layer, Named, Numerics, Pass, PassError, Promises, Requires, Topology, naming,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::channels::{self, Costs, Measure, Sizes, count, fed};
use super::fitting::{fit, unusable};
use crate::judge::Judge;
use crate::names::{check_patterns, not_excluded};
use crate::samples;

/// Takes blocks out that lie beside a residual connection: what is added to a value becomes nothing, and the value goes
/// on by itself. Such are the attention and the feed-forward parts of transformers, and the blocks of residual
/// networks that keep their shape.
///
/// Which blocks the outputs miss least is measured on calibration data, one block after the other, each with those gone
/// that were chosen before it (Men et al. 2024, ShortGPT, measure redundancy within; here the outputs decide). Then the
/// layers behind are fitted, by least squares, to what they gave before.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PruneLayers {
    /// How many blocks go. 1 when no budget is given.
    pub blocks: Option<usize>,
    /// Share of the multiplications and additions of layers that stays.
    pub flops: Option<f64>,
    /// Whether the layers behind are fitted to what they gave before.
    pub recover: bool,
    /// Calibration samples that are looked at, taken evenly from the data.
    pub samples: usize,
    /// Leave blocks that hold these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for PruneLayers {
    fn default() -> Self {
        PruneLayers { blocks: None, flops: None, recover: true, samples: 256, exclude: Vec::new() }
    }
}

impl Named for PruneLayers {
    const NAME: &'static str = "prune-layers";
    const FAMILY: Family = Family::Prune;
}

/// Samples on which it is measured what outputs lose.
const MEASURED: usize = 16;

/// A block beside a residual connection.
#[derive(Clone, Debug)]
struct Block {
    /// The node that adds it.
    add: NodeId,
    /// What goes on without it.
    skip: ValueId,
    /// What computes it, and nothing else, in order.
    nodes: Vec<NodeId>,
    /// The first layer in it, by name.
    name: String,
}

/// Layers of a block: nodes with constant weights.
fn layers<'a>(model: &'a Model, nodes: &'a [NodeId]) -> impl Iterator<Item = NodeId> + 'a {
    nodes.iter().copied().filter(|&node| channels::row_axis(model, node).is_some())
}

/// The block that `add` adds to input `slot`, when it is one.
fn block(model: &Model, order: &[NodeId], add: NodeId, slot: usize) -> Option<Block> {
    let node = model.node(add);
    let (skip, branch) = (node.input(slot)?, node.input(1 - slot)?);
    let shape = |value: ValueId| model.value(value).ty.as_ref()?.shape();
    let is_constant = model.constant(skip).is_some() || model.constant(branch).is_some();
    let sum = node.output(0)?;
    if is_constant || skip == branch || shape(skip)? != shape(sum)? {
        return None;
    }
    // An output keeps its name only while something computes it.
    if model.value(sum).uses().iter().any(|used| matches!(used, Use::Output(..))) {
        return None;
    }
    let mut own: BTreeSet<NodeId> = BTreeSet::new();
    let end = order.iter().position(|&id| id == add)?;
    for &id in order[..end].iter().rev() {
        let outputs = model.node(id).outputs();
        let is_own = |&used: &Use| match used {
            Use::Node(reader, at) if reader == add => at as usize == 1 - slot,
            Use::Node(reader, _) => own.contains(&reader),
            Use::Output(..) => false,
        };
        let is_read = outputs.iter().flatten().any(|&output| !model.value(output).uses().is_empty());
        let all = outputs.iter().flatten().flat_map(|&output| model.value(output).uses()).all(is_own);
        if is_read && all {
            own.insert(id);
        }
    }
    let nodes: Vec<NodeId> = order[..end].iter().copied().filter(|id| own.contains(id)).collect();
    // A block reads what it is added to; otherwise both sides are of equal standing.
    let reads_skip = nodes.iter().any(|&id| model.node(id).inputs().contains(&Some(skip)));
    let first = layers(model, &nodes).next()?;
    let name = naming::node_and_op(model, first).0;
    reads_skip.then_some(Block { add, skip, nodes, name })
}

/// All blocks of the main graph, in order.
fn blocks(model: &Model) -> Vec<Block> {
    let order = model.node_list(model.main());
    let is_add = |id: &&NodeId| model.node(**id).is("Add") && model.node(**id).domain().is_empty();
    let of = |&add: &NodeId| (0..2).find_map(|slot| block(model, &order, add, slot));
    order.iter().filter(is_add).filter_map(of).collect()
}

/// Takes a block out, unless it has gone with another that holds it.
fn take_out(model: &mut Model, block: &Block) -> Result<(), PassError> {
    let Some(sum) = model.get_node(block.add).and_then(|add| add.output(0)) else { return Ok(()) };
    model.replace_value(sum, block.skip)?;
    model.remove_node(block.add)?;
    let mut constants: BTreeSet<ValueId> = BTreeSet::new();
    for &node in block.nodes.iter().rev() {
        constants.extend(model.node(node).inputs().iter().flatten().copied());
        model.remove_node(node)?;
    }
    for value in constants {
        let is_left =
            model.get_value(value).is_some_and(|held| held.uses().is_empty() && held.producer().is_none());
        if is_left && !model.value(value).is_input() {
            model.remove_value(value);
        }
    }
    Ok(())
}

/// Multiplications and additions of a model's layers, with the shapes of `shaped`.
fn operations(model: &Model, shaped: &Model) -> f64 {
    let sizes = Sizes::new();
    Costs::of(model, shaped, &channels::relate(model), &sizes).total(Measure::Operations, &sizes)
}

/// Blocks by their places, in the order of the graph.
fn chosen(blocks: &[Block], places: impl Iterator<Item = usize>) -> Vec<&Block> {
    places.collect::<BTreeSet<usize>>().into_iter().map(|place| &blocks[place]).collect()
}

/// A model without some of its blocks, which are in the order of the graph.
fn without(model: &Model, gone: &[&Block]) -> Result<Model, PassError> {
    let mut left = model.clone();
    // What a later block is added to may be the sum of an earlier one.
    for block in gone.iter().rev() {
        take_out(&mut left, block)?;
    }
    Ok(left)
}

impl PruneLayers {
    /// Whether enough is gone.
    fn holds(&self, gone: usize, share: f64) -> bool {
        match (self.blocks, self.flops) {
            (_, Some(flops)) => share <= flops,
            (blocks, None) => gone >= blocks.unwrap_or(1),
        }
    }

    fn check(&self, model: &Model) -> Result<(), PassError> {
        if self.blocks.is_some() && self.flops.is_some() {
            return Err(PassError::Options("give one of `blocks` and `flops`, not both".to_owned()));
        }
        if let Some(share) = self.flops.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            let what = format!("`flops` {share}: the share that stays, above 0 and up to 1");
            return Err(PassError::Options(what));
        }
        check_patterns(model, &self.exclude)
    }

    /// Places of the blocks that go, in the order in which they were chosen.
    fn search(&self, model: &Model, blocks: &[Block], cx: &mut Cx<'_>) -> Result<Vec<usize>, PassError> {
        let shaped = fed(model, cx)?;
        let all = operations(model, &shaped).max(1.0);
        let samples = samples::divide(model, MEASURED, MEASURED, cx)?.judged;
        let judge = Judge::new(model, Vec::new(), &samples, cx)?;
        let mut gone: Vec<usize> = Vec::new();
        let mut share = 1.0;
        while !self.holds(gone.len(), share) {
            let is_left = |place: &usize| {
                let add = blocks[*place].add;
                !gone.iter().any(|&other| other == *place || blocks[other].nodes.contains(&add))
            };
            let left: Vec<usize> = (0..blocks.len()).filter(is_left).collect();
            let mut best: Option<(f64, usize)> = None;
            for (done, &place) in left.iter().enumerate() {
                cx.progress("measuring what outputs lose with each block", done as u64, left.len() as u64)?;
                let smaller = without(model, &chosen(blocks, gone.iter().copied().chain([place])))?;
                let lost = judge.errors(&smaller, cx)?.typical();
                if best.is_none_or(|(least, _)| lost < least) {
                    best = Some((lost, place));
                }
            }
            let Some((_, place)) = best else {
                return Err(PassError::Options(format!(
                    "the budget cannot be reached: with all {} blocks gone, {share:.3} of the operations is left",
                    blocks.len()
                )));
            };
            gone.push(place);
            share = operations(&without(model, &chosen(blocks, gone.iter().copied()))?, &shaped) / all;
        }
        Ok(gone)
    }
}

impl Pass for PruneLayers {
    fn requires(&self) -> Requires {
        Requires { calibration: true, inferred_types: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        self.check(model)?;
        let (mut found, mut excluded) = (Vec::new(), 0u64);
        for block in blocks(model) {
            let reason =
                layers(model, &block.nodes).find_map(|node| not_excluded(model, node, &self.exclude).err());
            match reason {
                None => found.push(block),
                Some(reason) => {
                    cx.skip(model, block.add, reason);
                    excluded += 1;
                }
            }
        }
        if found.is_empty() {
            let why = if excluded > 0 {
                "all blocks are excluded"
            } else {
                "no block lies beside a residual connection"
            };
            return Err(PassError::NothingToDo(why.to_owned()));
        }
        let gone: Vec<usize> = cx.decide("blocks", |cx| self.search(model, &found, cx))?;
        if gone.iter().collect::<BTreeSet<_>>().len() != gone.len()
            || gone.iter().any(|&place| place >= found.len())
        {
            return Err(unusable("blocks", "they are not those of this model".to_owned()).into());
        }
        if !cx.may_edit("prune-layers") {
            return Ok(());
        }
        let original = model.clone();
        let chosen = chosen(&found, gone.iter().copied());
        *model = without(model, &chosen)?;
        cx.count("blocks", found.len() as u64);
        cx.count("blocks taken out", gone.len() as u64);
        for (number, &place) in gone.iter().enumerate() {
            let Block { name, nodes, .. } = &found[place];
            let many = layers(&original, nodes).count();
            cx.note(format!(
                "block {} of {} taken out: the one that begins with `{name}`, {many} layers",
                number + 1,
                gone.len()
            ));
        }
        let (was, is) = (operations(&original, &original), operations(model, model));
        cx.note(format!(
            "left are {} of {} ({:.1}%) operations of layers",
            count(is),
            count(was),
            100.0 * is / was.max(1.0)
        ));
        for block in &chosen {
            for layer in layers(&original, &block.nodes) {
                let (node, op) = naming::node_and_op(&original, layer);
                let weights = original.node(layer).input(1).and_then(|value| original.constant(value));
                let bytes_before = weights.map_or(0, |weights| weights.bytes().len() as u64);
                cx.layer(Layer {
                    node,
                    op,
                    action: "taken out".to_owned(),
                    bytes_before,
                    ..Layer::default()
                });
            }
        }
        if self.recover
            && let Some(first) = chosen.first()
        {
            let whole = |node: NodeId| {
                let is_behind = original.is_before(first.add, node);
                channels::all_channels(&original, node).filter(|_| is_behind)
            };
            let layers = channels::layers(model, &whole);
            fit(&original, model, &layers, self.samples, cx)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use optix_ir::Tensor;
    use optix_ir::infer::{NoEvaluator, infer};
    use optix_ops::Datum;

    use super::*;

    /// Two blocks, the second one with a block of its own; what is added last is no block: nothing reads it on.
    const NET: &str = r#"<ir_version: 8, opset_import: ["" : 17]> net (float[1, 2] x) => (float[1, 2] y)
        <float[2, 2] a = {1, 2, 3, 4}, float[2, 2] b = {2, -1, 1, 1}, float[2, 2] c = {1, 1, -1, 2}, float[2] k = {1, 1}> {
            start = Relu (x)
            m1 = MatMul (start, a)
            s1 = Add (start, m1)
            m2 = MatMul (s1, b)
            m3 = MatMul (m2, c)
            inner = Add (m3, m2)
            s2 = Add (inner, s1)
            shifted = Add (s2, k)
            y = Relu (shifted)
        }"#;

    fn net() -> Model {
        let mut model = optix_ir::text::parse(NET).expect("the text is a model");
        infer(&mut model, &NoEvaluator);
        model
    }

    fn outputs(model: &Model) -> Vec<f32> {
        let x = Tensor::from_vec(vec![1, 2], vec![1f32, 2.0]);
        let found = optix_ops::interpret(model, vec![Some(Datum::Tensor(x))]).expect("it runs");
        found[0].as_tensor().expect("a tensor").to_slice::<f32>().expect("floats").into_owned()
    }

    #[test]
    fn blocks_are_what_is_added_to_what_they_read() {
        let model = net();
        let found = blocks(&model);
        let adds: Vec<&str> = found
            .iter()
            .map(|block| model.value(model.node(block.add).output(0).expect("a sum")).name())
            .collect();
        assert_eq!(adds, ["s1", "inner", "s2"]);
        assert_eq!(found.iter().map(|block| block.nodes.len()).collect::<Vec<_>>(), [1, 1, 3]);
        // x = (1, 2): m1 = (7, 10), s1 = (8, 12), m2 = (28, 4), m3 = (24, 36), s2 = (8 + 24 + 28, ...).
        assert_eq!(outputs(&model), [61.0, 53.0]);
        let gone = |places: &[usize]| {
            let chosen: Vec<&Block> = places.iter().map(|&place| &found[place]).collect();
            let left = without(&model, &chosen).expect("they can go");
            assert!(optix_ir::verify::verify(&left).is_empty());
            (outputs(&left), left.nodes_of(left.main()).count())
        };
        assert_eq!(gone(&[2]), (vec![9.0, 13.0], 5));
        assert_eq!(gone(&[1]), (vec![37.0, 17.0], 7));
        // What is inside goes with the block; all of them leave (1, 2) + 1.
        assert_eq!(gone(&[1, 2]), gone(&[2]));
        assert_eq!(gone(&[0, 1, 2]), (vec![2.0, 3.0], 3));
    }
}
