//! Operators as target profiles name them.

use optix_ir::{Model, NodeId, Tensor, ValueId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! operators {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum $name { $($(#[$about])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The name in ONNX's standard operator set.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => stringify!($variant),)* }
            }

            /// The one with that name.
            pub fn of(op_type: &str) -> Option<$name> {
                $name::ALL.iter().copied().find(|known| known.name() == op_type)
            }
        }
    };
}

operators! {
    /// Operators with constant weights.
    Weighted {
        /// Convolution.
        Conv,
        /// Transposed convolution.
        ConvTranspose,
        /// Matrix product with bias.
        Gemm,
        /// Matrix product with a constant on the right.
        MatMul,
    }
}

operators! {
    /// Products of two activations, as in attention.
    Product {
        /// Matrix product.
        MatMul,
    }
}

operators! {
    /// Operators that run in integers between integer neighbours, with a quantizer of their own behind them.
    Bridge {
        /// Sum.
        Add,
        /// Difference.
        Sub,
        /// Product, element by element.
        Mul,
        /// Quotient, element by element.
        Div,
        /// Joins along an axis.
        Concat,
        /// Average pool.
        AveragePool,
        /// Average over all places.
        GlobalAveragePool,
        /// Mean over axes.
        ReduceMean,
        /// Rectifier with a slope below zero.
        LeakyRelu,
        /// 1 / (1 + exp(-x)).
        Sigmoid,
        /// Hyperbolic tangent.
        Tanh,
        /// Exponentials normalized along an axis.
        Softmax,
    }
}

operators! {
    /// Operators whose output elements are elements of their first input, or lie between such: what is behind
    /// them has the quantizer of what is before them.
    Mover {
        /// Other shape, same elements.
        Reshape,
        /// Other shape, same elements.
        Flatten,
        /// Fewer axes.
        Squeeze,
        /// More axes.
        Unsqueeze,
        /// Another order of axes.
        Transpose,
        /// Greatest element of each window.
        MaxPool,
        /// A part.
        Slice,
        /// The same.
        Identity,
        /// Channels become places.
        DepthToSpace,
        /// Places become channels.
        SpaceToDepth,
        /// Copies along axes of size 1.
        Expand,
        /// Copies along axes.
        Tile,
        /// Nearest neighbours only: see `ResizeLinear`.
        Resize,
        /// `Resize` whose mode is linear.
        ResizeLinear,
        /// Rows of activations, where these come from integers.
        Gather,
        /// Elements of activations, where these come from integers.
        GatherElements,
    }
}

operators! {
    /// Activation functions that fold into the range of the quantizer behind them.
    Folded {
        /// Rectifier.
        Relu,
        /// Clipping to a constant range that holds 0.
        Clip,
    }
}

impl Mover {
    /// Which one a node is; none where it does more than move elements.
    pub(crate) fn of_node(model: &Model, id: NodeId) -> Option<Mover> {
        let node = model.node(id);
        // A pool that also returns indices has no integer form.
        if !node.domain().is_empty() || node.outputs().len() != 1 {
            return None;
        }
        if node.op_type != "Resize" {
            return Mover::of(&node.op_type).filter(|mover| *mover != Mover::ResizeLinear);
        }
        match node.string("mode").unwrap_or("nearest") {
            "nearest" => Some(Mover::Resize),
            // Beyond the edges an extrapolated value may lie outside the range.
            "linear" if node.string("coordinate_transformation_mode") != Some("tf_crop_and_resize") => {
                Some(Mover::ResizeLinear)
            }
            _ => None,
        }
    }

    /// Whether it may drop elements: a quantizer before it would then have more to do than one behind it, so
    /// that it is only passed where its input is in integers already.
    pub(crate) fn drops_elements(self) -> bool {
        matches!(self, Mover::Gather | Mover::GatherElements)
    }
}

impl Folded {
    /// The output of `id`, where it is such a function whose range holds zero, which every quantizer represents.
    pub(crate) fn output(self, model: &Model, id: NodeId) -> Option<ValueId> {
        let node = model.node(id);
        let bound = |slot: usize, name: &str| match node.input(slot) {
            Some(value) => model.constant(value).and_then(Tensor::single),
            None => Some(f64::from(node.float(name).unwrap_or(if slot == 1 { f32::MIN } else { f32::MAX }))),
        };
        let folds = node.is(self.name())
            && match self {
                Folded::Relu => true,
                Folded::Clip => {
                    bound(1, "min").is_some_and(|min| min <= 0.0)
                        && bound(2, "max").is_some_and(|max| max >= 0.0)
                }
            };
        if folds { node.output(0) } else { None }
    }
}
