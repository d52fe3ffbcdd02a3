//! What a student gives on the way, beside what its teacher gives there.
//!
//! Widths may differ: then an adapter, a product over the channels that is trained along and thrown away afterwards, stands
//! between (Romero et al. 2015, "FitNets: Hints for Thin Deep Nets").

use std::collections::BTreeSet;

use optix_ir::{DType, Model, Node, NodeId, Position, Tensor, Type, Use, ValueId};
use optix_pipeline::PassError;
use optix_pipeline::check::OpsEvaluator;
use optix_training::optimizer::Trained;
use optix_training::{Parameter, shaped};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use crate::names::matches_glob;

/// Pairs that are chosen at most where none are named.
const MOST: usize = 4;

/// The word for pairs that are chosen.
const AUTO: &str = "auto";

/// A value of the student that is to be what one of the teacher is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Feature {
    pub(super) teacher: ValueId,
    pub(super) student: ValueId,
}

/// A value on the way, with its shape.
#[derive(Clone, Debug)]
struct Seen {
    value: ValueId,
    name: String,
    shape: Vec<usize>,
    /// Whether two values on the way that weights have had to do with are added to it: what blocks end with.
    is_sum: bool,
    /// Whether a layer reads it.
    is_read: bool,
}

/// Operators that leave values in their places.
const PASSED: &[&str] = &["QuantizeLinear", "DequantizeLinear", "Identity", "Cast", "Reshape"];

/// Whether a Softmax reads a value: it is a score, with a mask in it perhaps that outweighs everything.
fn is_score(model: &Model, value: ValueId) -> bool {
    model.value(value).uses().iter().any(|used| {
        let Use::Node(node, 0) = *used else { return false };
        let reader = model.node(node);
        let passes = PASSED.iter().any(|op| reader.is(op));
        reader.is("Softmax") || (passes && reader.output(0).is_some_and(|value| is_score(model, value)))
    })
}

/// Values that follow from weights, and not from inputs and single numbers alone as masks do.
fn weighted(model: &Model) -> BTreeSet<ValueId> {
    let mut known = BTreeSet::new();
    for node in model.nodes_of(model.main()) {
        let is_own = |value: ValueId| {
            let is_weight = |held: &Tensor| held.dtype().is_float() && held.rank() > 1 && held.len() > 1;
            known.contains(&value) || model.constant(value).is_some_and(is_weight)
        };
        if model.node(node).inputs().iter().flatten().any(|&value| is_own(value)) {
            known.extend(model.node(node).outputs().iter().flatten().copied());
        }
    }
    known
}

/// The value of the teacher that stands for one of the same name in a student whose normalizations and added constants have
/// become part of the layers before them.
fn settled(teacher: &Model, student: &Model, value: ValueId, own: ValueId) -> ValueId {
    let reader = |model: &Model, value: ValueId| match *model.value(value).uses() {
        [Use::Node(node, 0 | 1)] => Some(node),
        _ => None,
    };
    let folds = |model: &Model, node: NodeId| {
        let read = model.node(node);
        let constant = |slot: usize| read.input(slot).is_some_and(|input| model.constant(input).is_some());
        read.is("BatchNormalization") || (read.is("Add") && (constant(0) || constant(1)))
    };
    let is_folded = !reader(student, own).is_some_and(|node| folds(student, node));
    let mut value = value;
    while let Some(node) = reader(teacher, value).filter(|&node| is_folded && folds(teacher, node)) {
        let Some(next) = teacher.node(node).output(0) else { break };
        value = next;
    }
    value
}

/// Which axis counts channels.
fn channels(shape: &[usize]) -> usize {
    if shape.len() == 4 { 1 } else { shape.len() - 1 }
}

/// Float values of the main graph that nodes compute, of known shapes.
fn seen(model: &Model) -> Vec<Seen> {
    let outputs = |node: NodeId| model.node(node).outputs().iter().flatten().copied();
    let values = model.nodes_of(model.main()).flat_map(|node| outputs(node).map(move |value| (node, value)));
    let weighted = weighted(model);
    let of = |(node, value): (NodeId, ValueId)| {
        let ty = model.value(value).ty.as_ref()?;
        let shape = ty.fixed_shape().filter(|_| ty.dtype() == Some(DType::F32))?;
        let read = model.node(node);
        let follows = |slot: usize| read.input(slot).is_some_and(|input| weighted.contains(&input));
        let is_sum = read.is("Add") && follows(0) && follows(1) && !is_score(model, value);
        let is_read = weighted.contains(&value)
            && model.value(value).uses().iter().any(|used| match *used {
                Use::Node(node, 0) => {
                    ["Conv", "ConvTranspose", "Gemm", "MatMul"].iter().any(|op| model.node(node).is(op))
                }
                _ => false,
            });
        let name = model.value(value).name().to_owned();
        (shape.len() > 1).then_some(Seen { value, name, shape, is_sum, is_read })
    };
    values.filter_map(of).collect()
}

/// Whether an adapter can make one of the other: all axes but that of channels are the same.
fn fit(teacher: &Seen, student: &Seen) -> bool {
    let (a, b) = (&teacher.shape, &student.shape);
    a.len() == b.len()
        && a.iter().zip(b).enumerate().all(|(axis, (x, y))| x == y || axis == channels(a))
        && (a == b || a.len() < 5)
}

/// Pairs of the values that blocks end with, or of all of pictures and sequences where nothing is added: by name where names
/// are the same, otherwise by shape and place. Borders of blocks are all that have the same names and shapes, and what layers read
/// where nothing is added.
fn chosen(teachers: &[Seen], students: &[Seen], is_border: bool) -> Vec<Feature> {
    let wanted = |all: &[Seen]| -> Vec<Seen> {
        let is_deep = |one: &&Seen| is_border || (3..=4).contains(&one.shape.len());
        let deep: Vec<Seen> = all.iter().filter(is_deep).cloned().collect();
        let sums: Vec<Seen> = deep.iter().filter(|one| one.is_sum).cloned().collect();
        match sums.is_empty() {
            // Layer by layer.
            true => deep.into_iter().filter(|one| !is_border || one.is_read).collect(),
            false => sums,
        }
    };
    let (teachers, students) = (wanted(teachers), wanted(students));
    let place = |at: usize, count: usize| (at as f64 + 1.0) / count as f64;
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    for (at, student) in students.iter().enumerate() {
        let fit =
            |teacher: &Seen| if is_border { teacher.shape == student.shape } else { fit(teacher, student) };
        let same = teachers.iter().position(|teacher| teacher.name == student.name && fit(teacher));
        let near = || {
            let own = place(at, students.len());
            let apart = |&other: &usize| (place(other, teachers.len()) - own).abs();
            let fitting = (0..teachers.len()).filter(|&other| !is_border && fit(&teachers[other]));
            fitting.min_by(|a, b| apart(a).total_cmp(&apart(b)))
        };
        if let Some(other) = same.or_else(near) {
            pairs.push((other, at));
        }
    }
    // Evenly, the last one in any case.
    let most = if is_border { usize::MAX } else { MOST };
    let (count, all) = (pairs.len().min(most), pairs.len());
    let picked = (1..=count).map(|number| pairs[number * all / count - 1]);
    picked.map(|(a, b)| Feature { teacher: teachers[a].value, student: students[b].value }).collect()
}

/// The pairs that names, with `*` for any run of characters, ask for; `auto` for pairs that are chosen. Those of `blocks`
/// have the same shapes and are no outputs.
///
/// # Errors
/// When a name is none of a value in both models, or the two have shapes that do not fit.
pub(super) fn pairs(
    teacher: (&Model, &[(ValueId, Vec<usize>)]),
    student: (&Model, &[(ValueId, Vec<usize>)]),
    names: &[String],
    blocks: bool,
) -> Result<Vec<Feature>, PassError> {
    let auto = [AUTO.to_owned()];
    let names = if blocks && names.is_empty() { &auto[..] } else { names };
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let refuse = |what: String| Err(PassError::Options(what));
    let of =
        |(model, shapes): (&Model, &[(ValueId, Vec<usize>)])| seen(&shaped(model, shapes, &OpsEvaluator));
    let (teachers, students) = (of(teacher), of(student));
    let mut found: Vec<Feature> = Vec::new();
    for name in names {
        if name == AUTO {
            let chosen = chosen(&teachers, &students, blocks);
            if chosen.is_empty() && !blocks {
                return refuse(
                    "`features` \"auto\": nothing on the way has the same shape in both models".to_owned(),
                );
            }
            found.extend(chosen);
            continue;
        }
        let before = found.len();
        for student in students.iter().filter(|one| matches_glob(name, &one.name)) {
            let Some(teacher) = teachers.iter().find(|one| one.name == student.name) else { continue };
            if blocks && teacher.shape != student.shape {
                return refuse(format!(
                    "`blocks`: `{}` is {:?} in the student and {:?} in the teacher, and can be no end of a block",
                    student.name, student.shape, teacher.shape
                ));
            }
            if !fit(teacher, student) {
                return refuse(format!(
                    "`features`: `{}` is {:?} in the student and {:?} in the teacher, and no adapter fits between them",
                    student.name, student.shape, teacher.shape
                ));
            }
            found.push(Feature { teacher: teacher.value, student: student.value });
        }
        if found.len() == before {
            let names = students.iter().map(|one| one.name.as_str());
            let hint = optix_pipeline::did_you_mean(name, names);
            return refuse(format!("`features`: no float value is called `{name}` in both models{hint}"));
        }
    }
    let mut distinct: Vec<Feature> = Vec::new();
    for mut feature in found {
        feature.teacher = settled(teacher.0, student.0, feature.teacher, feature.student);
        let is_output =
            || student.0.value(feature.student).uses().iter().any(|used| matches!(used, Use::Output(..)));
        if !(distinct.contains(&feature) || blocks && is_output()) {
            distinct.push(feature);
        }
    }
    match blocks && distinct.is_empty() {
        true => refuse(
            "`blocks`: nothing on the way but outputs has the same name and shape in both models".to_owned(),
        ),
        false => Ok(distinct),
    }
}

/// Puts adapters behind values whose teachers' shapes, in `given`, are others: the features then are what adapters give.
/// Returns what is trained along.
pub(super) fn adapt(
    model: &mut Model,
    features: &mut [Feature],
    given: &[Vec<usize>],
    shapes: &[(ValueId, Vec<usize>)],
    random: &mut ChaCha8Rng,
) -> Vec<(Parameter, Trained)> {
    let known = shaped(model, shapes, &OpsEvaluator);
    let main = model.main();
    let mut adapters = Vec::new();
    for (feature, given) in features.iter_mut().zip(given) {
        let own = known.value(feature.student).ty.as_ref().and_then(Type::fixed_shape).unwrap_or_default();
        if own == *given || own.len() != given.len() || own.len() < 2 {
            continue;
        }
        let axis = channels(given);
        let (from, to) = (own[axis], given[axis]);
        let reach = (3.0 / from.max(1) as f32).sqrt();
        let mut number = || ((random.next_u32() >> 8) as f32 / (1u32 << 23) as f32 - 1.0) * reach;
        let elements: Vec<f32> = (0..from * to).map(|_| number()).collect();
        let (op, shape) = match given.len() {
            4 => ("Conv", vec![to, from, 1, 1]),
            _ => ("MatMul", vec![from, to]),
        };
        let name = model.value(feature.student).name().to_owned();
        let held = Tensor::from_vec(shape, elements.clone());
        let value = model.add_constant(main, &format!("{name}_adapter"), held);
        let behind = model
            .value(feature.student)
            .producer()
            .map_or(Position::Start, |(node, _)| Position::After(node));
        let node = Node::new(op, [feature.student, value]);
        let (node, adapted) = model.add_node(main, behind, node, &format!("{name}_adapted"));
        feature.student = adapted;
        adapters.push((Parameter { value, node, is_weight: true }, Trained::new(elements, true, false)));
    }
    adapters
}

#[cfg(test)]
mod tests {
    use optix_ir::text;

    use super::*;

    fn names(source: &str, blocks: bool) -> Vec<String> {
        let model = text::parse(source).unwrap_or_else(|error| panic!("{error}"));
        let model = shaped(&model, &[], &OpsEvaluator);
        let all = [AUTO.to_owned()];
        let found =
            pairs((&model, &[]), (&model, &[]), &all, blocks).unwrap_or_else(|error| panic!("{error}"));
        found.iter().map(|feature| model.value(feature.student).name().to_owned()).collect()
    }

    #[test]
    fn scores_with_masks_are_no_ends_of_blocks() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            net (float[2, 3, 2] x, float[2, 1, 3] attended) => (float[2, 3, 2] y)
            <float[2, 2] w = {1, 2, 3, 4}, float one = {1}, float far = {-10000}> {
                q = MatMul (x, w)
                k = Transpose <perm = [0, 2, 1]> (q)
                scores = MatMul (q, k)
                away = Sub (one, attended)
                mask = Mul (away, far)
                masked = Add (scores, mask)
                shares = Softmax (masked)
                mixed = MatMul (shares, q)
                first = Add (q, mixed)
                again = MatMul (first, w)
                y = Add (first, again)
            }"#;
        assert_eq!(names(source, true), ["first"]);
        assert_eq!(names(source, false), ["first", "y"]);
    }

    #[test]
    fn where_nothing_is_added_blocks_are_layers() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            net (float[2, 3] x) => (float[2, 3] y) <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
                a = MatMul (x, w)
                b = Relu (a)
                c = MatMul (b, w)
                d = Sigmoid (c)
                y = MatMul (d, w)
            }"#;
        assert_eq!(names(source, true), ["b", "d"]);
        // Sums of rows end blocks too.
        let source = source.replace("d = Sigmoid (c)", "d = Add (b, c)");
        assert_eq!(names(&source, true), ["d"]);
    }
}
