//! What a model costs when some of its channels are gone: operations of its layers, and numbers and bytes that it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use optix_ir::infer::infer;
use optix_ir::{Model, NodeId, Type, ValueId, ValueInfo};
use optix_pipeline::check::OpsEvaluator;
use optix_pipeline::{Cx, OracleError, PassError};

use super::groups::{Along, Group};
use super::places::{Axes, Held, Places};

/// A product of the sizes of axes, and a factor.
#[derive(Debug)]
pub(super) struct Term {
    pub(super) times: f64,
    pub(super) axes: Vec<Along>,
}

/// Costs as sums of such products.
#[derive(Debug, Default)]
pub(in crate::prune) struct Costs {
    operations: Vec<Term>,
    parameters: Vec<Term>,
    bytes: Vec<Term>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::prune) enum Measure {
    /// Multiplications and additions of layers.
    Operations,
    /// Numbers that are held.
    Parameters,
    /// Bytes of all constants.
    Bytes,
}

/// How many places are left along axes that can change.
pub(in crate::prune) type Sizes = BTreeMap<Along, usize>;

/// How many places there are along the axes of groups.
pub(in crate::prune) fn sizes(groups: &[Group], places: &Places) -> Sizes {
    let mut sizes = Sizes::new();
    for group in groups {
        for ((held, axis), _) in group.channels.iter().flat_map(|channel| &channel.members) {
            let known = places.known(*held).and_then(|axes| axes.get(*axis).copied().flatten());
            sizes.entry((*held, *axis)).or_insert(known.map_or(0, |axis| axis.size));
        }
    }
    sizes
}

impl Costs {
    /// The costs of a model's main graph. Sizes that it does not know are those of `shaped`, the same model with what
    /// it is fed, and count as 1 where that does not know them either.
    pub(in crate::prune) fn of(model: &Model, shaped: &Model, places: &Places, sizes: &Sizes) -> Costs {
        let mut costs = Costs::default();
        let mut counted: BTreeSet<Held> = BTreeSet::new();
        for node in model.nodes_of(model.main()) {
            let at = At { model, shaped, places, node };
            costs.operations.extend(at.operations(sizes).unwrap_or_default());
            for (slot, value) in model.node(node).inputs().iter().enumerate() {
                let Some(value) = *value else { continue };
                let Some(constant) = model.constant(value) else { continue };
                let reader = (constant.rank() < 2).then_some((node, slot));
                let held = Held { value, reader };
                // What no rule asked for never changes.
                let Some(axes) = places.known(held) else { continue };
                if constant.dtype().is_float() && counted.insert(Held { value, reader: None }) {
                    costs.parameters.push(at.term(1.0, [(held, axes, 0..axes.len())], sizes));
                    let each = constant.bytes().len() as f64 / constant.len().max(1) as f64;
                    costs.bytes.push(at.term(each, [(held, axes, 0..axes.len())], sizes));
                }
            }
        }
        // Those of bodies of control flow too: they are in the file, and stay.
        let is_other = |value: &ValueId| !counted.contains(&Held { value: *value, reader: None });
        let others = model.values().filter(is_other).filter_map(|value| model.constant(value));
        let bytes: usize = others.map(|constant| constant.bytes().len()).sum();
        costs.bytes.push(Term { times: bytes as f64, axes: Vec::new() });
        costs
    }

    pub(super) fn terms(&self, measure: Measure) -> &[Term] {
        match measure {
            Measure::Operations => &self.operations,
            Measure::Parameters => &self.parameters,
            Measure::Bytes => &self.bytes,
        }
    }

    /// What there is in all.
    pub(in crate::prune) fn total(&self, measure: Measure, sizes: &Sizes) -> f64 {
        let size = |along: &Along| sizes.get(along).map_or(1.0, |&size| size as f64);
        let of = |term: &Term| term.times * term.axes.iter().map(size).product::<f64>();
        self.terms(measure).iter().map(of).sum()
    }
}

struct At<'a> {
    model: &'a Model,
    shaped: &'a Model,
    places: &'a Places,
    node: NodeId,
}

impl At<'_> {
    /// The product of the sizes of some axes of some tensors.
    fn term<'a>(
        &self,
        times: f64,
        tensors: impl IntoIterator<Item = (Held, &'a Axes, Range<usize>)>,
        sizes: &Sizes,
    ) -> Term {
        let mut term = Term { times, axes: Vec::new() };
        for (held, axes, range) in tensors {
            let shape = self.shaped.value(held.value).ty.as_ref().and_then(|ty| ty.shape());
            let fed = |number: usize| shape.and_then(|shape| shape.get(number)?.fixed());
            for number in range {
                match axes.get(number).copied().flatten() {
                    Some(_) if sizes.contains_key(&(held, number)) => term.axes.push((held, number)),
                    Some(axis) => term.times *= axis.size as f64,
                    None => term.times *= fed(number).map_or(1.0, |size| size as f64),
                }
            }
        }
        term
    }

    fn read(&self, slot: usize) -> Option<(Held, &Axes)> {
        let held = Held { value: self.model.node(self.node).input(slot)?, reader: None };
        Some((held, self.places.known(held)?))
    }

    fn made(&self) -> Option<(Held, &Axes)> {
        let held = Held { value: self.model.node(self.node).output(0)?, reader: None };
        Some((held, self.places.known(held)?))
    }

    /// Operations of a layer; none for what is no layer.
    fn operations(&self, sizes: &Sizes) -> Option<Vec<Term>> {
        let node = self.model.node(self.node);
        if !node.domain().is_empty() {
            return None;
        }
        let one = |pairs: [(Held, &Axes, Range<usize>); 2]| Some(vec![self.term(2.0, pairs, sizes)]);
        match node.op_type.as_str() {
            "Conv" => {
                let ((w, of_w), (y, of_y)) = (self.read(1)?, self.made()?);
                one([(y, of_y, 0..of_y.len()), (w, of_w, 1..of_w.len())])
            }
            "ConvTranspose" => {
                let ((w, of_w), (x, of_x)) = (self.read(1)?, self.read(0)?);
                one([(x, of_x, 0..of_x.len()), (w, of_w, 1..of_w.len())])
            }
            "Gemm" => {
                let ((a, of_a), (y, of_y)) = (self.read(0)?, self.made()?);
                let inner = if node.int("transA").unwrap_or(0) != 0 { 0..1 } else { 1..2 };
                one([(y, of_y, 0..2), (a, of_a, inner)])
            }
            "MatMul" => {
                let ((a, of_a), (y, of_y)) = (self.read(0)?, self.made()?);
                one([(y, of_y, 0..of_y.len()), (a, of_a, of_a.len().checked_sub(1)?..of_a.len())])
            }
            "LSTM" | "GRU" | "RNN" => {
                let ((x, of_x), (w, of_w), (r, of_r)) = (self.read(0)?, self.read(1)?, self.read(2)?);
                let of = |(held, axes): (Held, &Axes)| {
                    // Each weight takes part once in every step of every sample.
                    let mut of_step = self.term(2.0, [(x, of_x, 0..2)], sizes);
                    let weights = self.term(1.0, [(held, axes, 0..axes.len())], sizes);
                    of_step.times *= weights.times;
                    of_step.axes.extend(weights.axes);
                    of_step
                };
                Some(vec![of((w, of_w)), of((r, of_r))])
            }
            _ => None,
        }
    }
}

/// A number of operations or weights, for people.
pub(in crate::prune) fn count(number: f64) -> String {
    match number {
        1e9.. => format!("{:.2} G", number / 1e9),
        1e6.. => format!("{:.2} M", number / 1e6),
        1e3.. => format!("{:.1} k", number / 1e3),
        _ => format!("{number:.0}"),
    }
}

/// Whether sizes of an input are not known.
pub(in crate::prune) fn has_unknown_sizes(input: &ValueInfo) -> bool {
    input.ty.as_ref().is_none_or(|ty| ty.fixed_shape().is_none())
}

/// The model with the shapes of a calibration sample, where there is one: for what it costs.
///
/// # Errors
/// When the data cannot be read.
pub(in crate::prune) fn fed(model: &Model, cx: &mut Cx<'_>) -> Result<Model, PassError> {
    let mut shaped = model.clone();
    if !cx.has_calibration() || !model.graph(model.main()).inputs().iter().any(has_unknown_sizes) {
        return Ok(shaped);
    }
    let (_, data) = cx.calibration()?;
    let first =
        data.batches(model).map_err(OracleError::from)?.next().transpose().map_err(OracleError::from)?;
    let Some(batch) = first else { return Ok(shaped) };
    let main = model.main();
    for (name, tensor) in &batch.sample(0).unwrap_or(batch).feeds {
        let inputs = model.graph(main).inputs();
        let Some(index) = inputs.iter().position(|info| model.value(info.value).name() == name) else {
            continue;
        };
        let ty = Some(Type::of(tensor));
        shaped.value_mut(inputs[index].value).ty.clone_from(&ty);
        if let Some(info) = shaped.input_info_mut(main, index) {
            info.ty = ty;
        }
    }
    infer(&mut shaped, &OpsEvaluator);
    Ok(shaped)
}
