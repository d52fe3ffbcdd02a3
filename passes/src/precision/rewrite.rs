//! Writing a choice into the model: constants, attributes, casts, declared types.

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{DType, EditError, GraphId, Model, Node, NodeId, Position, Tensor, Type, Use, ValueId};

use super::graph::{Source, Unit};
use super::plan::{Fate, Plan, Problem, Want};
use super::weights::Rounded;

/// What was done, for the report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    /// Casts put in.
    pub casts: u64,
    /// Casts of the model that had nothing left to do.
    pub casts_removed: u64,
    /// Constants that became 16-bit ones.
    pub constants: u64,
}

/// Everything that is decided before the first edit: uses move while the model is edited.
struct Work {
    /// Values that change their type where they are made.
    retyped: Vec<ValueId>,
    /// Values, the type some readers want instead, and these readers.
    casts: Vec<(ValueId, DType, Vec<Use>)>,
    constants: Vec<(ValueId, Fate, Vec<Use>)>,
}

fn decide(problem: &Problem<'_>, plan: &Plan) -> Work {
    let (model, flow, low) = (problem.model, problem.flow, problem.weights.low);
    let mut work = Work { retyped: Vec::new(), casts: Vec::new(), constants: Vec::new() };
    for (&value, &source) in &flow.sources {
        // In the order of the graph, not of the edits that made the list.
        let mut uses = model.value(value).uses().to_vec();
        uses.sort_unstable();
        if source == Source::Constant {
            let fate = plan.constant(problem, value);
            uses.retain(|&used| {
                (plan.want(model, flow, used) == Want::Low) == matches!(fate, Fate::Cast | Fate::Copied)
            });
            work.constants.push((value, fate, uses));
            continue;
        }
        let is_low = plan.is_low(source);
        if is_low {
            work.retyped.push(value);
        }
        uses.retain(|&used| (plan.want(model, flow, used) == Want::Low) != is_low);
        if !uses.is_empty() {
            work.casts.push((value, if is_low { DType::F32 } else { low }, uses));
        }
    }
    work
}

/// Converts the model as planned.
///
/// # Errors
/// When an edit is refused: a bug.
pub(super) fn rewrite(model: &mut Model, problem: &Problem<'_>, plan: &Plan) -> Result<Done, EditError> {
    let low = problem.weights.low;
    let work = decide(problem, plan);
    let mut done = Done::default();
    let mut retyped: BTreeSet<ValueId> = BTreeSet::new();
    for value in work.retyped {
        set_dtype(model, value, low);
        retyped.insert(value);
    }
    // Inputs of the model that have defaults change those with them.
    for &value in &retyped {
        if let Some(tensor) = model.value(value).tensor().filter(|tensor| tensor.dtype() == DType::F32)
            && let Some(rounded) = Rounded::of(tensor, low, true)
        {
            model.set_tensor(value, rounded.tensor);
        }
    }
    for (value, fate, uses) in work.constants {
        let Some(rounded) = problem.weights.get(value) else { continue };
        match fate {
            Fate::Kept => {}
            Fate::Low | Fate::Stored => {
                replace_constant(model, value, rounded.tensor.clone());
                retyped.insert(value);
                done.constants += 1;
                if fate == Fate::Stored && !uses.is_empty() {
                    cast(model, value, DType::F32, &uses)?;
                    done.casts += 1;
                }
            }
            Fate::Cast => {
                cast(model, value, low, &uses)?;
                done.casts += 1;
            }
            Fate::Copied => {
                let (graph, name) = (model.value(value).graph(), model.value(value).name().to_owned());
                let copy =
                    model.add_constant(graph, &format!("{name}_{}", short(low)), rounded.tensor.clone());
                move_uses(model, value, copy, &uses)?;
                done.constants += 1;
            }
        }
    }
    for (value, dtype, uses) in work.casts {
        cast(model, value, dtype, &uses)?;
        done.casts += 1;
    }
    for (unit, what) in problem.flow.units.iter().enumerate() {
        if let (Unit::Node(id), true) = (*what, plan.low[unit]) {
            attributes(model, id, low);
        }
    }
    declare(model, &retyped, low);
    done.casts_removed = remove_idle_casts(model, problem, plan)?;
    Ok(done)
}

/// Changes the element type of what is known of a value.
fn set_dtype(model: &mut Model, value: ValueId, dtype: DType) {
    if let Some(Type::Tensor(tensor)) = &mut model.value_mut(value).ty {
        tensor.dtype = Some(dtype);
    }
}

/// Gives a constant another tensor, whichever way the model holds it.
fn replace_constant(model: &mut Model, value: ValueId, tensor: Tensor) {
    set_dtype(model, value, tensor.dtype());
    match model.value(value).producer() {
        None => model.set_tensor(value, tensor),
        Some((node, _)) => {
            let node = model.node_mut(node);
            node.remove_attribute("value_float");
            node.remove_attribute("value_floats");
            node.set_attribute("value", tensor);
        }
    }
}

/// Lets those uses of `old` be uses of `new`. Outputs of the model keep their names.
fn move_uses(model: &mut Model, old: ValueId, new: ValueId, uses: &[Use]) -> Result<(), EditError> {
    let main = model.main();
    let named = uses.iter().any(|used| matches!(used, Use::Output(graph, _) if *graph == main));
    if named {
        let kept: Vec<Use> =
            model.value(old).uses().iter().copied().filter(|used| !uses.contains(used)).collect();
        model.replace_value(old, new)?;
        model.replace_uses_where(new, old, |_, used| kept.contains(&used));
    } else {
        model.replace_uses_where(old, new, |_, used| uses.contains(&used));
    }
    Ok(())
}

/// Where a node that reads a value may be put first.
fn behind(model: &Model, value: ValueId) -> Position {
    model.value(value).producer().map_or(Position::Start, |(node, _)| Position::After(node))
}

/// Puts a cast behind a value for those uses.
fn cast(model: &mut Model, value: ValueId, to: DType, uses: &[Use]) -> Result<ValueId, EditError> {
    let (graph, position) = (model.value(value).graph(), behind(model, value));
    let new = add_cast(model, graph, position, value, to);
    move_uses(model, value, new, uses)?;
    Ok(new)
}

fn add_cast(model: &mut Model, graph: GraphId, position: Position, value: ValueId, to: DType) -> ValueId {
    // Short, and the node without a name: in small files names are most of what a cast costs.
    let hint = format!("{}_{}", model.value(value).name(), short(to));
    let node = Node::new("Cast", [value]).with("to", i64::from(to.onnx()));
    let (_, new) = model.add_node(graph, position, node, &hint);
    model.value_mut(new).ty = model.value(value).ty.clone();
    set_dtype(model, new, to);
    new
}

/// A short name of a type, for names of values.
fn short(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        _ => "f32",
    }
}

/// Attributes that say what type a node gives.
fn attributes(model: &mut Model, id: NodeId, low: DType) {
    let float = i64::from(DType::F32.onnx());
    let gives_low = {
        let node = model.node(id);
        node.output(0).and_then(|output| model.value(output).ty.as_ref()?.dtype()) == Some(low)
    };
    if !gives_low {
        return;
    }
    let node = model.node_mut(id);
    match node.op_type.as_str() {
        "ConstantOfShape" => {
            let value = match node.tensor("value") {
                Some(tensor) => Rounded::of(tensor, low, true).map(|rounded| rounded.tensor),
                None => Tensor::zeros(low, vec![1]).ok(),
            };
            if let Some(value) = value {
                node.set_attribute("value", value);
            }
        }
        // Their type is float32 unless they say otherwise.
        "RandomNormal" | "RandomUniform" => node.set_attribute("dtype", i64::from(low.onnx())),
        _ => {
            for name in ["to", "dtype"] {
                if node.int(name) == Some(float) {
                    node.set_attribute(name, i64::from(low.onnx()));
                }
            }
        }
    }
}

/// Declarations follow what the values have become.
fn declare(model: &mut Model, retyped: &BTreeSet<ValueId>, low: DType) {
    let graphs: Vec<GraphId> = model.graphs().collect();
    for graph in graphs {
        let retype = |info: &mut optix_ir::ValueInfo| {
            if let Some(Type::Tensor(tensor)) = &mut info.ty
                && retyped.contains(&info.value)
            {
                tensor.dtype = Some(low);
            }
        };
        model.graph_mut(graph).value_infos.iter_mut().for_each(retype);
        let (inputs, outputs) = (model.graph(graph).inputs().len(), model.graph(graph).outputs().len());
        for index in 0..inputs {
            model.input_info_mut(graph, index).into_iter().for_each(retype);
        }
        for index in 0..outputs {
            // What a cast made for this very output is in none of the lists and has its type already.
            let ty = model.value(model.graph(graph).outputs()[index].value).ty.as_ref().and_then(Type::dtype);
            if let Some(info) = model.output_info_mut(graph, index)
                && let Some(Type::Tensor(tensor)) = &mut info.ty
                && tensor.dtype.is_some()
                && ty.is_some()
            {
                tensor.dtype = ty;
            }
        }
    }
}

/// Casts of the model itself whose two sides have one type now.
fn remove_idle_casts(model: &mut Model, problem: &Problem<'_>, plan: &Plan) -> Result<u64, EditError> {
    let mut removed = 0;
    for (unit, what) in problem.flow.units.iter().enumerate() {
        let (Unit::Node(id), true) = (*what, plan.low[unit]) else { continue };
        let Some(node) = model.get_node(id).filter(|node| node.is("Cast")) else { continue };
        let (Some(input), Some(output)) = (node.input(0), node.output(0)) else { continue };
        let dtype = |value: ValueId| model.value(value).ty.as_ref().and_then(Type::dtype);
        let is_constant = model.value(input).initializer().is_some();
        let is_output = model.value(output).uses().iter().any(|used| matches!(used, Use::Output(..)));
        if dtype(input) == dtype(output)
            && !(is_constant && is_output)
            && model.check_replacement(output, input).is_ok()
        {
            model.replace_value(output, input)?;
            model.remove_node(id)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The model with all roundings of the plan and every node computing in float32: what an engine gives that
/// widens, computes and narrows again, as onnxruntime's CPU provider does, and as fast as the float model.
///
/// # Errors
/// When an edit is refused: a bug.
pub(super) fn emulate(problem: &Problem<'_>, plan: &Plan) -> Result<Model, EditError> {
    let (mut model, low) = (problem.model.clone(), problem.weights.low);
    let work = decide(problem, plan);
    let mut wide: BTreeMap<ValueId, Tensor> = BTreeMap::new();
    for (value, fate, uses) in work.constants {
        let Some(rounded) = problem.weights.get(value) else { continue };
        if fate == Fate::Kept || rounded.exact && !rounded.clamped {
            continue;
        }
        let tensor = wide.entry(value).or_insert_with(|| widen(&rounded.tensor)).clone();
        if matches!(fate, Fate::Low | Fate::Stored) {
            replace_constant(&mut model, value, tensor);
        } else {
            let (graph, name) = (model.value(value).graph(), model.value(value).name().to_owned());
            let copy = model.add_constant(graph, &format!("{name}_rounded"), tensor);
            move_uses(&mut model, value, copy, &uses)?;
        }
    }
    let rounded = |model: &mut Model, value: ValueId, uses: &[Use]| -> Result<(), EditError> {
        let (graph, position) = (model.value(value).graph(), behind(model, value));
        let narrow = add_cast(model, graph, position, value, low);
        let back = behind(model, narrow);
        let new = add_cast(model, graph, back, narrow, DType::F32);
        move_uses(model, value, new, uses)
    };
    for (value, dtype, uses) in work.casts {
        if dtype == low {
            rounded(&mut model, value, &uses)?;
        }
    }
    for value in work.retyped {
        let makes = problem.model.value(value).producer().map(|(node, _)| problem.model.node(node));
        // What is moved was rounded where it was made.
        let moved = makes.is_some_and(|node| {
            node.subgraphs().next().is_some()
                || super::operators::kind(&node.op_type) == super::operators::Kind::Moves && !node.is("Cast")
        });
        let of_body = makes.is_none() && model.value(value).graph() != model.main();
        if !moved && !of_body {
            let uses = model.value(value).uses().to_vec();
            rounded(&mut model, value, &uses)?;
        }
    }
    Ok(model)
}

/// A 16-bit tensor as float32.
pub(super) fn widen(tensor: &Tensor) -> Tensor {
    use half::slice::HalfFloatSliceExt;
    let mut floats = vec![0f32; tensor.len()];
    if let Ok(halves) = tensor.to_slice::<half::f16>() {
        halves.convert_to_f32_slice(&mut floats);
    } else if let Ok(halves) = tensor.to_slice::<half::bf16>() {
        halves.convert_to_f32_slice(&mut floats);
    }
    Tensor::from_vec(tensor.shape().to_vec(), floats)
}
