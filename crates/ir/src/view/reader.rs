//! Attributes and inputs with their defaults.

use crate::dtype::DType;
use crate::ids::{NodeId, ValueId};
use crate::model::Model;
use crate::node::{AttributeValue, Node};

/// Something that is an attribute or an input, depending on the version, and may be left out.
#[derive(Clone, PartialEq, Debug)]
pub enum Parameter<T> {
    /// Left out.
    Absent,
    /// An attribute or a constant.
    Known(T),
    /// Computed.
    Dynamic(ValueId),
}

impl<T> Parameter<T> {
    /// What is known ahead.
    pub fn known(&self) -> Option<&T> {
        match self {
            Parameter::Known(value) => Some(value),
            _ => None,
        }
    }

    /// Whether it is left out.
    pub fn is_absent(&self) -> bool {
        matches!(self, Parameter::Absent)
    }

    /// What is known ahead, or `default` when it is left out; `None` when it is computed.
    pub fn known_or(self, default: T) -> Option<T> {
        match self {
            Parameter::Known(value) => Some(value),
            Parameter::Absent => Some(default),
            Parameter::Dynamic(_) => None,
        }
    }
}

/// Automatic padding of windows (`auto_pad`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AutoPad {
    /// As `pads` says.
    NotSet,
    /// As much as makes the output `ceil(input / stride)`; the odd one at the end.
    SameUpper,
    /// The same with the odd one at the begin.
    SameLower,
    /// None.
    Valid,
}

/// Reads one node. Methods give `None` for something that is there and is wrong.
pub(super) struct Reader<'a> {
    model: &'a Model,
    node: &'a Node,
    opset: i64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(model: &'a Model, id: NodeId, ops: &[&str]) -> Option<Self> {
        let node = model.node(id);
        if !ops.iter().any(|op| node.is(op)) {
            return None;
        }
        // Without an import the newest version is as good a guess as any; `verify` complains.
        Some(Reader { model, node, opset: model.opset_of(id).unwrap_or(i64::MAX) })
    }

    pub(super) fn opset(&self) -> i64 {
        self.opset
    }

    pub(super) fn op_type(&self) -> String {
        self.node.op_type.clone()
    }

    pub(super) fn input(&self, slot: usize) -> Option<ValueId> {
        self.node.input(slot)
    }

    pub(super) fn optional(&self, slot: usize) -> Option<ValueId> {
        self.node.input(slot)
    }

    pub(super) fn inputs(&self) -> Option<Vec<ValueId>> {
        self.node.inputs().iter().copied().collect()
    }

    pub(super) fn output(&self, slot: usize) -> Option<ValueId> {
        self.node.output(slot)
    }

    pub(super) fn outputs(&self) -> Vec<Option<ValueId>> {
        self.node.outputs().to_vec()
    }

    pub(super) fn rank(&self, value: ValueId) -> Option<usize> {
        let value = self.model.value(value);
        let constant = value.tensor().map(|tensor| tensor.rank());
        constant.or_else(|| Some(value.ty.as_ref()?.shape()?.len()))
    }

    pub(super) fn dtype(&self, value: ValueId) -> Option<DType> {
        let constant = self.model.constant(value).map(|tensor| tensor.dtype());
        constant.or_else(|| self.model.value(value).ty.as_ref()?.dtype())
    }

    pub(super) fn int(&self, name: &str, default: i64) -> Option<i64> {
        match self.node.attribute(name) {
            None => Some(default),
            Some(AttributeValue::Int(value)) => Some(*value),
            Some(_) => None,
        }
    }

    pub(super) fn float(&self, name: &str, default: f32) -> Option<f32> {
        match self.node.attribute(name) {
            None => Some(default),
            Some(AttributeValue::Float(value)) => Some(*value),
            Some(_) => None,
        }
    }

    pub(super) fn string(&self, name: &str, default: &str) -> Option<String> {
        match self.node.attribute(name) {
            None => Some(default.to_owned()),
            Some(AttributeValue::String(_)) => self.node.string(name).map(str::to_owned),
            Some(_) => None,
        }
    }

    pub(super) fn ints(&self, name: &str) -> Option<Option<Vec<i64>>> {
        match self.node.attribute(name) {
            None => Some(None),
            Some(AttributeValue::Ints(values)) => Some(Some(values.clone())),
            Some(_) => None,
        }
    }

    pub(super) fn auto_pad(&self) -> Option<AutoPad> {
        Some(match self.string("auto_pad", "NOTSET")?.as_str() {
            "NOTSET" | "" => AutoPad::NotSet,
            "SAME_UPPER" => AutoPad::SameUpper,
            "SAME_LOWER" => AutoPad::SameLower,
            "VALID" => AutoPad::Valid,
            _ => return None,
        })
    }

    pub(super) fn kernel_shape(&self, w: Option<ValueId>) -> Option<Vec<i64>> {
        if let Some(given) = self.ints("kernel_shape")? {
            return Some(given);
        }
        let shape = w.and_then(|w| {
            let value = self.model.value(w);
            let constant = value.tensor().map(|tensor| tensor.shape().to_vec());
            constant.or_else(|| value.ty.as_ref()?.fixed_shape())
        });
        Some(shape.map_or(Vec::new(), |shape| shape.iter().skip(2).map(|&size| size as i64).collect()))
    }

    /// A list with `each` entries for every spatial axis, all `default` when the node does not say it.
    pub(super) fn per_axis(
        &self,
        name: &str,
        default: i64,
        w: Option<ValueId>,
        each: usize,
    ) -> Option<Vec<i64>> {
        if let Some(given) = self.ints(name)? {
            return Some(given);
        }
        let kernel = self.kernel_shape(w)?.len();
        let listed = ["strides", "dilations", "output_padding"]
            .iter()
            .find_map(|name| self.node.ints(name).map(<[i64]>::len));
        let pads = self.node.ints("pads").map(|pads| pads.len() / 2);
        let of_value = |value: Option<ValueId>| self.rank(value?)?.checked_sub(2);
        let axes = Some(kernel).filter(|&axes| axes > 0).or(listed).or(pads);
        let axes = axes.or_else(|| of_value(w)).or_else(|| of_value(self.node.input(0)));
        Some(vec![default; axes.unwrap_or(0) * each])
    }

    /// Input `slot`, read if it is constant.
    fn parameter<T>(
        &self,
        slot: usize,
        read: impl FnOnce(&crate::Tensor) -> Option<T>,
    ) -> Option<Parameter<T>> {
        let Some(value) = self.node.input(slot) else { return Some(Parameter::Absent) };
        match self.model.constant(value) {
            None => Some(Parameter::Dynamic(value)),
            Some(tensor) => read(tensor).map(Parameter::Known),
        }
    }

    /// Integers that are the attribute `name` before version `since`, and input `slot` from then on.
    pub(super) fn list(&self, name: &str, since: i64, slot: usize) -> Option<Parameter<Vec<i64>>> {
        if self.opset < since {
            return Some(self.ints(name)?.map_or(Parameter::Absent, Parameter::Known));
        }
        self.parameter(slot, |tensor| tensor.to_i64s().ok())
    }

    /// A number that is the attribute `name` before version `since`, and input `slot` from then on.
    pub(super) fn number(&self, name: &str, since: i64, slot: usize) -> Option<Parameter<f64>> {
        if self.opset < since {
            return match self.node.attribute(name) {
                None => Some(Parameter::Absent),
                Some(AttributeValue::Float(value)) => Some(Parameter::Known(f64::from(*value))),
                Some(_) => None,
            };
        }
        self.parameter(slot, crate::Tensor::single)
    }

    /// Numbers that are input `slot`; none at all count as left out.
    pub(super) fn numbers(&self, slot: usize) -> Option<Parameter<Vec<f64>>> {
        let read = self.parameter(slot, |tensor| tensor.to_f64s().ok())?;
        Some(if read.known().is_some_and(Vec::is_empty) { Parameter::Absent } else { read })
    }

    /// Input `slot` as a truth value.
    pub(super) fn truth(&self, slot: usize) -> Option<Parameter<bool>> {
        let read = self.parameter(slot, |tensor| tensor.single().map(|value| value != 0.0))?;
        Some(if read.is_absent() { Parameter::Known(false) } else { read })
    }
}
