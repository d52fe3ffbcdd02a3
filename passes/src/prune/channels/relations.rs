//! What operators make of the places along axes (onnx/docs/Operators.md): which places of what goes in and what
//! comes out stand or fall together, and which must stay. What is not listed here stays.

use optix_ir::view::{self, Parameter};
use optix_ir::{Model, NodeId, Use, ValueId};

use super::places::{Axes, Axis, Lock, Places};
use super::{movements, shapes};

/// Finds out which places of a model's main graph belong together.
pub(in crate::prune) fn relate(model: &Model) -> Places {
    let mut places = Places::default();
    let graph = model.graph(model.main());
    for info in graph.inputs().iter().chain(graph.outputs()) {
        let axes = places.axes(model, info.value, None);
        let lock = Lock { node: None, why: "it is an input or output of the model" };
        axes.into_iter().flatten().for_each(|axis| places.lock(axis, &lock));
    }
    for node in model.walk() {
        let mut at = At { model, places: &mut places, node };
        let related = match model.node(node).graph() == model.main() {
            true => at.relate(),
            false => Err("a body of control flow reads it"),
        };
        if let Err(why) = related {
            at.lock_all(why);
        }
    }
    places
}

/// A node whose axes are being related.
pub(in crate::prune) struct At<'a> {
    pub(in crate::prune) model: &'a Model,
    places: &'a mut Places,
    pub(in crate::prune) node: NodeId,
}

/// Nothing, or why everything that a node touches stays.
pub(in crate::prune) type Related = Result<(), &'static str>;

pub(super) const UNKNOWN: &str = "the shapes at it are not known";

/// An axis counted from the front.
pub(in crate::prune) fn axis_of(axis: i64, rank: usize) -> Result<usize, &'static str> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_front).ok().filter(|&axis| axis < rank).ok_or("its axis is not one")
}

impl At<'_> {
    pub(in crate::prune) fn has(&self, slot: usize) -> bool {
        self.model.node(self.node).input(slot).is_some()
    }

    /// The axes of an input.
    pub(in crate::prune) fn input(&mut self, slot: usize) -> Result<Axes, &'static str> {
        let value = self.model.node(self.node).input(slot).ok_or(UNKNOWN)?;
        self.places.axes(self.model, value, Some((self.node, slot))).ok_or(UNKNOWN)
    }

    /// The axes of an output.
    pub(in crate::prune) fn output(&mut self, slot: usize) -> Result<Axes, &'static str> {
        let value = self.model.node(self.node).output(slot).ok_or(UNKNOWN)?;
        self.places.axes(self.model, value, None).ok_or(UNKNOWN)
    }

    fn reason(&self, why: &'static str) -> Lock {
        Lock { node: Some(self.node), why }
    }

    pub(in crate::prune) fn same(&mut self, a: Option<Axis>, b: Option<Axis>) {
        let lock = self.reason("sizes along it are not the same, or not known");
        self.places.same(a, b, &lock);
    }

    pub(in crate::prune) fn unite(&mut self, a: usize, b: usize) {
        self.places.unite(a, b);
    }

    pub(in crate::prune) fn lock(&mut self, axis: Option<Axis>, why: &'static str) {
        let lock = self.reason(why);
        self.places.lock(axis, &lock);
    }

    /// Everything that the node touches stays.
    fn lock_all(&mut self, why: &'static str) {
        let (model, node) = (self.model, self.node);
        let read = model.node(node).inputs().iter().enumerate();
        let read: Vec<(ValueId, Option<(NodeId, usize)>)> =
            read.filter_map(|(slot, value)| Some(((*value)?, Some((node, slot))))).collect();
        let made = model.node(node).outputs().iter().flatten().map(|&value| (value, None));
        for (value, reader) in read.into_iter().chain(made) {
            for axis in self.places.axes(model, value, reader).into_iter().flatten() {
                self.lock(axis, why);
            }
        }
    }

    fn relate(&mut self) -> Related {
        let node = self.model.node(self.node);
        if !node.domain().is_empty() {
            return Err("its operator is not one of the standard's");
        }
        match node.op_type.as_str() {
            "Conv" => self.conv(false),
            "ConvTranspose" => self.conv(true),
            "Gemm" => self.gemm(),
            "MatMul" => self.matmul(),
            "BatchNormalization" | "InstanceNormalization" => self.per_channel(),
            "LayerNormalization" => self.layer_normalization(),
            "LRN" => self.channels_stay("it compares neighbouring channels"),
            "MaxPool" | "AveragePool" | "LpPool" | "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => {
                self.pool()
            }
            "Resize" | "Upsample" => self.pool(),
            "Softmax" | "LogSoftmax" => self.softmax(),
            "Concat" => movements::concat(self),
            "Split" => movements::split(self),
            "Slice" => movements::slice(self),
            "Gather" => movements::gather(self),
            "Pad" => movements::pad(self),
            "Transpose" => movements::transpose(self),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => shapes::reshape(self),
            "Shape" => shapes::shape(self),
            "LSTM" => self.recurrent(4),
            "GRU" => self.recurrent(3),
            "RNN" => self.recurrent(1),
            op if op.starts_with("Reduce") => self.reduce(),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "PRelu" | "Sum" | "Max" | "Min" | "Mean" | "Where"
            | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "And" | "Or" | "Xor"
            | "Mod" => self.elementwise(),
            "Abs" | "Acos" | "Asin" | "Atan" | "Cast" | "Ceil" | "Celu" | "Clip" | "Cos" | "Dropout"
            | "Elu" | "Erf" | "Exp" | "Floor" | "Gelu" | "HardSigmoid" | "HardSwish" | "Identity"
            | "IsInf" | "IsNaN" | "LeakyRelu" | "Log" | "Mish" | "Neg" | "Not" | "Reciprocal" | "Relu"
            | "Round" | "Selu" | "Sigmoid" | "Sign" | "Sin" | "Sinh" | "Softplus" | "Softsign" | "Sqrt"
            | "Swish" | "Tan" | "Tanh" | "ThresholdedRelu" => self.unary(),
            _ => Err("what its operator does to channels is not known here"),
        }
    }

    /// Each element of the outputs comes from that of the first input; other inputs are settings.
    fn unary(&mut self) -> Related {
        let input = self.input(0)?;
        for slot in 0..self.model.node(self.node).outputs().len() {
            if self.model.node(self.node).output(slot).is_some() {
                let output = self.output(slot)?;
                if output.len() != input.len() {
                    return Err(UNKNOWN);
                }
                input.iter().zip(output).for_each(|(&a, b)| self.same(a, b));
            }
        }
        Ok(())
    }

    /// What is stretched to another shape, from the last axis on (broadcast): lone places serve all of an axis.
    fn stretch(&mut self, own: &[Option<Axis>], whole: &[Option<Axis>]) {
        for (&a, &b) in own.iter().rev().zip(whole.iter().rev()) {
            let is_lone = a.is_some_and(|axis| axis.size == 1) && b.is_none_or(|axis| axis.size != 1);
            if !is_lone {
                self.same(a, b);
            }
        }
    }

    /// Inputs are stretched to a common shape.
    fn elementwise(&mut self) -> Related {
        let output = self.output(0)?;
        for slot in 0..self.model.node(self.node).inputs().len() {
            if !self.has(slot) {
                continue;
            }
            let input = self.input(slot)?;
            if input.len() > output.len() {
                return Err(UNKNOWN);
            }
            self.stretch(&input, &output);
        }
        Ok(())
    }

    /// `Conv`, and `ConvTranspose`, whose weights lie the other way round.
    fn conv(&mut self, is_transposed: bool) -> Related {
        let (x, w, y) = (self.input(0)?, self.input(1)?, self.output(0)?);
        if x.len() != w.len() || y.len() != w.len() || w.len() < 3 {
            return Err(UNKNOWN);
        }
        self.same(x[0], y[0]);
        [&x, &w, &y].into_iter().for_each(|axes| self.spatial(&axes[2..]));
        let (split, whole) = if is_transposed { (y[1], x[1]) } else { (x[1], y[1]) };
        self.same(whole, w[0]);
        if self.has(2) {
            let bias = self.input(2)?;
            self.same(bias.first().copied().flatten(), y[1]);
        }
        self.grouped(split, w[1], w[0])
    }

    /// A layer whose channels of one side lie in its weights as they are (`whole`), and of the other side once for
    /// all groups (`within`): what is whole and what is within a group of `split` stand or fall with them.
    fn grouped(&mut self, split: Option<Axis>, within: Option<Axis>, whole: Option<Axis>) -> Related {
        let groups = self.model.node(self.node).int("group").unwrap_or(1);
        let (Some(split), Some(within), Some(whole)) = (split, within, whole) else { return Err(UNKNOWN) };
        let groups = usize::try_from(groups).map_err(|_| UNKNOWN)?.max(1);
        if within.size * groups != split.size || whole.size % groups != 0 {
            return Err("its groups do not fit its channels");
        }
        if groups == 1 {
            self.same(Some(split), Some(within));
            return Ok(());
        }
        let rows = whole.size / groups;
        // Few large groups become smaller alike; many small ones go as a whole.
        if groups <= within.size.min(rows) {
            for group in 0..groups {
                (0..within.size).for_each(|at| self.unite(split.at(group * within.size + at), within.at(at)));
                (0..rows).for_each(|at| self.unite(whole.at(group * rows + at), whole.at(at)));
            }
            return Ok(());
        }
        for group in 0..groups {
            let first = split.at(group * within.size);
            (1..within.size).for_each(|at| self.unite(first, first + at));
            (0..rows).for_each(|at| self.unite(first, whole.at(group * rows + at)));
        }
        self.lock(Some(within), "whole groups of it go, not channels within them");
        Ok(())
    }

    fn spatial(&mut self, axes: &[Option<Axis>]) {
        for &axis in axes {
            self.lock(axis, "it is an axis of positions, not of channels");
        }
    }

    fn gemm(&mut self) -> Related {
        let (a, b, y) = (self.input(0)?, self.input(1)?, self.output(0)?);
        if a.len() != 2 || b.len() != 2 || y.len() != 2 {
            return Err(UNKNOWN);
        }
        let node = self.model.node(self.node);
        let swapped = |name: &str| node.int(name).unwrap_or(0) != 0;
        let (m, k) = if swapped("transA") { (a[1], a[0]) } else { (a[0], a[1]) };
        let (k_too, n) = if swapped("transB") { (b[1], b[0]) } else { (b[0], b[1]) };
        self.same(k, k_too);
        self.same(m, y[0]);
        self.same(n, y[1]);
        if self.has(2) {
            let c = self.input(2)?;
            self.stretch(&c, &y);
        }
        Ok(())
    }

    fn matmul(&mut self) -> Related {
        let (a, b, y) = (self.input(0)?, self.input(1)?, self.output(0)?);
        if a.len() < 2 || b.len() < 2 || y.len() != a.len().max(b.len()) {
            return Err("one of its inputs is a vector");
        }
        let (rows, inner) = (a[a.len() - 2], a[a.len() - 1]);
        let (inner_too, columns) = (b[b.len() - 2], b[b.len() - 1]);
        self.same(inner, inner_too);
        self.same(rows, y[y.len() - 2]);
        self.same(columns, y[y.len() - 1]);
        let batch = &y[..y.len() - 2];
        [&a, &b].into_iter().for_each(|side| self.stretch(&side[..side.len() - 2], batch));
        Ok(())
    }

    /// Inputs behind the first have one number for each channel of that.
    fn per_channel(&mut self) -> Related {
        let node = self.model.node(self.node);
        if node.outputs().iter().skip(1).any(Option::is_some) {
            return Err("it gives statistics besides");
        }
        let is_instance = node.is("InstanceNormalization");
        let (x, y) = (self.input(0)?, self.output(0)?);
        if x.len() != y.len() || x.len() < 2 {
            return Err(UNKNOWN);
        }
        x.iter().zip(&y).for_each(|(&a, &b)| self.same(a, b));
        if is_instance {
            self.spatial(&x[2..]);
        }
        for slot in 1..self.model.node(self.node).inputs().len() {
            if self.has(slot) {
                let own = self.input(slot)?;
                self.same(own.first().copied().flatten(), x[1]);
            }
        }
        Ok(())
    }

    fn layer_normalization(&mut self) -> Related {
        let node = self.model.node(self.node);
        if node.outputs().iter().skip(1).any(Option::is_some) {
            return Err("it gives statistics besides");
        }
        let axis = node.int("axis").unwrap_or(-1);
        self.unary()?;
        let x = self.input(0)?;
        let axis = axis_of(axis, x.len())?;
        for slot in 1..self.model.node(self.node).inputs().len() {
            if self.has(slot) {
                let own = self.input(slot)?;
                own.iter().rev().zip(x.iter().rev()).for_each(|(&a, &b)| self.same(a, b));
            }
        }
        x[axis..]
            .iter()
            .for_each(|&own| self.lock(own, "its mean and variance are taken over these channels"));
        Ok(())
    }

    fn channels_stay(&mut self, why: &'static str) -> Related {
        self.unary()?;
        let x = self.input(0)?;
        self.lock(x.get(1).copied().flatten(), why);
        Ok(())
    }

    /// Batch and channels stay what they are, the other axes are positions.
    fn pool(&mut self) -> Related {
        let (x, y) = (self.input(0)?, self.output(0)?);
        if x.len() != y.len() || x.len() < 3 {
            return Err(UNKNOWN);
        }
        let is_resize = matches!(self.model.node(self.node).op_type.as_str(), "Resize" | "Upsample");
        if is_resize && self.model.node(self.node).ints("axes").is_none() && self.has(3) {
            // Sizes of all axes, channels among them.
            self.lock(x[1], "the sizes that it makes are written down");
        }
        self.same(x[0], y[0]);
        self.same(x[1], y[1]);
        self.spatial(&x[2..]);
        self.spatial(&y[2..]);
        if self.model.node(self.node).output(1).is_some() {
            return Err("it gives the places of maxima besides");
        }
        Ok(())
    }

    fn softmax(&mut self) -> Related {
        self.unary()?;
        let softmax = view::Softmax::view(self.model, self.node);
        let x = self.input(0)?;
        let (axis, is_flattened) = match (&softmax, self.model.opset_of(self.node).unwrap_or(13) >= 13) {
            (Some(softmax), _) => (softmax.axis, softmax.is_flattened),
            (None, is_new) => {
                let missing = if is_new { -1 } else { 1 };
                (self.model.node(self.node).int("axis").unwrap_or(missing), !is_new)
            }
        };
        let axis = axis_of(axis, x.len())?;
        let normalized = if is_flattened { &x[axis..] } else { &x[axis..=axis] };
        normalized.iter().for_each(|&own| self.lock(own, "it divides by the sum over these channels"));
        Ok(())
    }

    fn reduce(&mut self) -> Related {
        let reduce =
            view::Reduce::view(self.model, self.node).ok_or("what it reduces over is not known here")?;
        let (x, y) = (self.input(0)?, self.output(0)?);
        let axes = match reduce.axes {
            Parameter::Known(axes) => axes,
            Parameter::Absent if reduce.noop_with_empty_axes => Vec::new(),
            Parameter::Absent => (0..x.len() as i64).collect(),
            Parameter::Dynamic(_) => return Err("the axes that it reduces are computed"),
        };
        let mut is_reduced = vec![false; x.len()];
        for axis in axes {
            is_reduced[axis_of(axis, x.len())?] = true;
        }
        let mut left = y.into_iter();
        for (&own, is_reduced) in x.iter().zip(is_reduced) {
            if is_reduced {
                self.lock(own, "it is computed over these channels");
            }
            if !is_reduced || reduce.keepdims {
                let of = left.next().ok_or(UNKNOWN)?;
                if !is_reduced {
                    self.same(own, of);
                }
            }
        }
        Ok(())
    }

    /// LSTM, GRU and RNN: so many gates behind each other, each with a row for every hidden unit.
    fn recurrent(&mut self, gates: usize) -> Related {
        let node = self.model.node(self.node);
        if node.int("layout").unwrap_or(0) != 0 || node.attribute("activation_alpha").is_some() {
            return Err("its layout or its activations are not the usual ones");
        }
        let (x, w, r) = (self.input(0)?, self.input(1)?, self.input(2)?);
        if x.len() != 3 || w.len() != 3 || r.len() != 3 {
            return Err(UNKNOWN);
        }
        self.same(x[2], w[2]);
        let others = [x[0], x[1], w[0], r[0]];
        others.into_iter().for_each(|axis| self.lock(axis, "it is an axis of steps, samples or directions"));
        let (Some(rows), Some(again), Some(units)) = (w[1], r[1], r[2]) else { return Err(UNKNOWN) };
        if rows.size != gates * units.size || again.size != rows.size {
            return Err("its gates do not fit its hidden units");
        }
        let mut tied: Vec<(Axis, usize)> = vec![(rows, gates), (again, gates)];
        // Bias of input and of state, one behind the other; peepholes of three gates.
        for (slot, times) in [(3, 2 * gates), (7, 3)] {
            if self.has(slot) {
                let own = self.input(slot)?;
                own.iter()
                    .take(own.len().saturating_sub(1))
                    .for_each(|&axis| self.lock(axis, "it is an axis of directions"));
                let own = own.last().copied().flatten().filter(|own| own.size == times * units.size);
                tied.push((own.ok_or("its bias does not fit its hidden units")?, times));
            }
        }
        for (axis, times) in tied {
            for gate in 0..times {
                (0..units.size)
                    .for_each(|unit| self.unite(axis.at(gate * units.size + unit), units.at(unit)));
            }
        }
        let mut states: Vec<Axes> = Vec::new();
        for slot in [5, 6] {
            if self.has(slot) {
                states.push(self.input(slot)?);
            }
        }
        for slot in 0..self.model.node(self.node).outputs().len() {
            if self.model.node(self.node).output(slot).is_some() {
                states.push(self.output(slot)?);
            }
        }
        for state in states {
            let (last, others) = state.split_last().ok_or(UNKNOWN)?;
            self.same(*last, Some(units));
            for &axis in others {
                self.lock(axis, "it is an axis of steps, samples or directions");
            }
        }
        Ok(())
    }
}

/// Whether the graph alone reads a value here: no body of control flow, and it is no output.
pub(in crate::prune) fn is_read_by_nodes_alone(model: &Model, value: ValueId) -> bool {
    model.value(value).uses().iter().all(|&used| match used {
        Use::Node(node, _) => model.node(node).graph() == model.main(),
        Use::Output(..) => false,
    })
}
