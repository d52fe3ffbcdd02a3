//! A model made ready to be trained: parameters are inputs, what they are to give is one too, and the gradients are
//! computed beside it.

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::infer::{self, Evaluator};
use optix_ir::{DType, Dim, Model, NodeId, Type, Use, ValueId, ValueInfo};

use crate::gradient::{self, GradientError};
use crate::loss::{self, Distance, Term};

/// A constant of a model that can be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The value in the model.
    pub value: ValueId,
    /// A node that reads it.
    pub node: NodeId,
    /// Whether it is multiplied with many elements of the input, as weights are; biases and scales are not.
    pub is_weight: bool,
}

/// Slots of constants that can be trained, by operator: those of weights, and the others.
const SLOTS: &[(&str, &[usize], &[usize])] = &[
    ("Conv", &[1], &[2]),
    ("ConvTranspose", &[1], &[2]),
    ("Gemm", &[0, 1], &[2]),
    ("MatMul", &[0, 1], &[]),
    ("Gather", &[0], &[]),
    ("PRelu", &[], &[1]),
    ("BatchNormalization", &[], &[1, 2]),
    ("LayerNormalization", &[], &[1, 2]),
    ("InstanceNormalization", &[], &[1, 2]),
    ("Add", &[], &[0, 1]),
    ("Sub", &[], &[0, 1]),
    ("Mul", &[], &[0, 1]),
];

/// The constants of the main graph that can be trained, in the order in which they are first read.
pub fn parameters(model: &Model) -> Vec<Parameter> {
    let mut known = BTreeSet::new();
    let mut found = Vec::new();
    for node in model.node_list(model.main()) {
        let (op_type, is_standard) =
            (model.node(node).op_type.as_str(), model.node(node).domain().is_empty());
        let Some((_, weights, others)) = SLOTS.iter().find(|(name, ..)| is_standard && *name == op_type)
        else {
            continue;
        };
        for &slot in weights.iter().chain(*others) {
            let Some(value) = model.node(node).input(slot) else { continue };
            let Some(tensor) = model.constant(value) else { continue };
            // Sums of rows that were taken several times need a newer set.
            if op_type == "Gather" && model.opset_of(node) < Some(16) {
                continue;
            }
            // Scales of weights that are stored in integers go with those.
            let is_scale = op_type == "Mul" && {
                let made_by =
                    |value: ValueId| model.value(value).producer().map(|(node, _)| model.node(node));
                let cast = model.node(node).input(1 - slot).and_then(made_by).filter(|node| node.is("Cast"));
                cast.and_then(|cast| cast.input(0)).is_some_and(|read| model.constant(read).is_some())
            };
            if is_scale {
                continue;
            }
            // What a node `Constant` gives is made an initializer by `fold-constants`.
            if model.value(value).producer().is_some() {
                continue;
            }
            // One number is part of a formula, not of what was learned.
            if tensor.dtype() == DType::F32 && tensor.len() > 1 && known.insert(value) {
                found.push(Parameter { value, node, is_weight: weights.contains(&slot) });
            }
        }
    }
    found
}

/// What is to be learned at a value.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    /// The value: an output, or one on the way.
    pub value: ValueId,
    /// How it is compared with the teacher's.
    pub distance: Distance,
    /// What it counts.
    pub weight: f32,
    /// Whether nodes behind it read the teacher's instead, so that no gradient passes from one side to the other: blocks
    /// then learn each for itself (Li et al. 2021, arXiv 2102.05426, BRECQ). Outputs of the model stay its own.
    pub is_border: bool,
}

/// A model with its loss and its gradients.
#[derive(Clone, Debug)]
pub struct Student {
    /// The model that computes them all.
    pub model: Model,
    /// For each aim the input that takes what the teacher gives.
    pub targets: Vec<ValueId>,
    /// For each parameter the input that takes its elements.
    pub inputs: Vec<ValueId>,
    /// The loss, one number.
    pub loss: ValueId,
    /// What each aim adds to it.
    pub terms: Vec<ValueId>,
    /// For each parameter its gradient; `None` where the loss does not depend on it.
    pub gradients: Vec<Option<ValueId>>,
    /// Nodes that gradients do not pass, each with the reason.
    pub frozen: Vec<(NodeId, String)>,
}

/// Why a model cannot be trained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StudentError {
    /// There are no gradients.
    #[error(transparent)]
    Gradient(#[from] GradientError),
    /// An output has a shape that depends on data, or that is not the teacher's.
    #[error("output `{output}` is {found} where the teacher gives {teacher}")]
    Output {
        /// Its name.
        output: String,
        /// Its shape for the samples at hand.
        found: String,
        /// The teacher's.
        teacher: String,
    },
}

impl Student {
    /// Makes a model ready for inputs of these shapes and for what a teacher gives: an aim's at its place.
    ///
    /// # Errors
    /// When outputs do not fit the teacher's, or nodes have no gradient and `freeze` is not set.
    pub fn new(
        model: &Model,
        shapes: &[(ValueId, Vec<usize>)],
        parameters: &[Parameter],
        aims: &[(Aim, Vec<usize>)],
        freeze: bool,
        evaluator: &dyn Evaluator,
    ) -> Result<Student, StudentError> {
        let mut model = with_shapes(model, shapes);
        let main = model.main();
        let fixed = |shape: &[usize]| Type::tensor(DType::F32, shape.iter().map(|&size| Dim::Fixed(size)));
        let mut inputs = Vec::new();
        for parameter in parameters {
            let shape =
                model.constant(parameter.value).map(|tensor| tensor.shape().to_vec()).unwrap_or_default();
            let input = model.add_fresh_value(main, "parameter");
            model.add_input(ValueInfo::new(input, Some(fixed(&shape))));
            model.replace_uses_where(parameter.value, input, |_, _| true);
            inputs.push(input);
        }
        infer::infer(&mut model, evaluator);
        let (mut targets, mut terms) = (Vec::new(), Vec::new());
        for (aim, shape) in aims {
            let student = aim.value;
            let teacher = model.add_fresh_value(main, "teacher");
            model.add_input(ValueInfo::new(teacher, Some(fixed(shape))));
            let own = model.value(student).ty.as_ref().and_then(Type::fixed_shape);
            if own.as_ref() != Some(shape) {
                return Err(StudentError::Output {
                    output: model.value(student).name().to_owned(),
                    found: own.map_or_else(|| "of no fixed shape".to_owned(), |own| format!("{own:?}")),
                    teacher: format!("{shape:?}"),
                });
            }
            if aim.is_border {
                model.replace_uses_where(student, teacher, |_, used| matches!(used, Use::Node(..)));
            }
            targets.push(teacher);
            terms.push(Term { student, teacher, distance: aim.distance, weight: aim.weight });
        }
        let (loss, terms) =
            loss::add(&mut model, &terms).expect("values of one fixed shape, as was just checked");
        let gradients = gradient::differentiate(&mut model, loss, &inputs, freeze)?;
        let (gradients, frozen) = (gradients.of, gradients.frozen);
        Ok(Student { targets, inputs, loss, terms, gradients, frozen, model })
    }

    /// For each aim the places of the parameters that it depends on, each at the first aim that does.
    pub fn by_term(&self) -> Vec<Vec<usize>> {
        let places: BTreeMap<ValueId, usize> =
            self.inputs.iter().enumerate().map(|(place, value)| (*value, place)).collect();
        let mut known = BTreeSet::new();
        let of_term = |term: &ValueId| {
            let (mut found, mut open, mut seen) = (Vec::new(), vec![*term], BTreeSet::new());
            while let Some(value) = open.pop() {
                if !seen.insert(value) {
                    continue;
                }
                found.extend(places.get(&value).copied().filter(|&place| known.insert(place)));
                if let Some((node, _)) = self.model.value(value).producer() {
                    open.extend(self.model.node(node).inputs().iter().flatten());
                }
            }
            found.sort_unstable();
            found
        };
        self.terms.iter().map(of_term).collect()
    }
}

/// A copy of a model with all shapes that follow from these of its inputs.
pub fn shaped(model: &Model, shapes: &[(ValueId, Vec<usize>)], evaluator: &dyn Evaluator) -> Model {
    let mut model = with_shapes(model, shapes);
    infer::infer(&mut model, evaluator);
    model
}

/// A copy of a model for inputs of these shapes, all other shapes forgotten.
fn with_shapes(model: &Model, shapes: &[(ValueId, Vec<usize>)]) -> Model {
    let mut model = model.clone();
    let main = model.main();
    let values: Vec<ValueId> = model.values().collect();
    for value in values {
        if model.constant(value).is_none() && !model.value(value).is_input() {
            model.value_mut(value).ty = None;
        }
    }
    for index in 0..model.graph(main).outputs().len() {
        if let Some(info) = model.output_info_mut(main, index) {
            info.ty = None;
        }
    }
    for (value, shape) in shapes {
        let dtype = model.value(*value).ty.as_ref().and_then(Type::dtype).unwrap_or(DType::F32);
        let ty = Type::tensor(dtype, shape.iter().map(|&size| Dim::Fixed(size)));
        let place = model.graph(main).inputs().iter().position(|input| input.value == *value);
        if let Some(info) = place.and_then(|place| model.input_info_mut(main, place)) {
            info.ty = Some(ty.clone());
        }
        model.value_mut(*value).ty = Some(ty);
    }
    model
}
