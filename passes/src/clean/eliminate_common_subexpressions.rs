//! Computing the same thing once.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use optix_ir::{AttributeValue, Model, Node, NodeId};
use optix_pipeline::{Cx, Family, Named, Pass, PassError, Promises};
use schemars::JsonSchema;
use serde::Deserialize;

/// Lets nodes that apply the same operator with the same attributes to the same inputs be one node.
///
/// Operators that draw random numbers, hold subgraphs or belong to unknown domains are left alone. Weights
/// with equal elements under two names are two inputs: `merge-initializers` makes them one.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// twice (float[N] x) => (float[N] y)
/// {
///     a = Exp (x)
///     b = Exp (x)
///     c = LeakyRelu <alpha = 0.1> (a)
///     d = LeakyRelu <alpha = 0.2> (b)
///     y = Add (c, d)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// twice (float[N] x) => (float[N] y)
/// {
///     a = Exp (x)
///     c = LeakyRelu <alpha = 0.1> (a)
///     d = LeakyRelu <alpha = 0.2> (a)
///     y = Add (c, d)
/// }
/// ```
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct EliminateCommonSubexpressions {}

impl Named for EliminateCommonSubexpressions {
    const NAME: &'static str = "eliminate-common-subexpressions";
    const FAMILY: Family = Family::Clean;
}

impl Pass for EliminateCommonSubexpressions {
    fn promises(&self) -> Promises {
        Promises::CLEAN
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let graphs: Vec<_> = model.graphs().collect();
        for graph in graphs {
            // In execution order, so the node that stays is before all users of the ones that go.
            let mut known: HashMap<u64, Vec<NodeId>> = HashMap::new();
            for id in model.node_list(graph) {
                let node = model.node(id);
                if !super::is_pure(model, node) || node.subgraphs().next().is_some() {
                    continue;
                }
                let key = fingerprint(node);
                let twin = known.get(&key).and_then(|candidates| {
                    candidates.iter().copied().find(|&other| is_same(model.node(other), node))
                });
                let Some(twin) = twin else {
                    known.entry(key).or_default().push(id);
                    continue;
                };
                let pairs: Vec<_> =
                    node.outputs().iter().zip(model.node(twin).outputs()).map(|(a, b)| (*a, *b)).collect();
                let longer = node.outputs().len() > model.node(twin).outputs().len();
                let replaceable = pairs.iter().all(|&pair| match pair {
                    (None, _) => true,
                    (Some(gone), None) => model.value(gone).uses().is_empty(),
                    (Some(gone), Some(stays)) => model.check_replacement(gone, stays).is_ok(),
                });
                if longer || !replaceable {
                    cx.skip(model, id, "both it and its twin are outputs of the model");
                    continue;
                }
                if !cx.may_edit("merge-nodes") {
                    return Ok(());
                }
                for pair in pairs {
                    if let (Some(gone), Some(stays)) = pair {
                        model.replace_value(gone, stays)?;
                    }
                }
                cx.count("nodes merged", 1);
                model.remove_node(id)?;
            }
        }
        Ok(())
    }
}

fn fingerprint(node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.op_type.hash(&mut hasher);
    node.inputs().hash(&mut hasher);
    node.attributes.len().hash(&mut hasher);
    for attribute in &node.attributes {
        attribute.name.hash(&mut hasher);
        match &attribute.value {
            AttributeValue::Int(value) => value.hash(&mut hasher),
            AttributeValue::Ints(values) => values.hash(&mut hasher),
            AttributeValue::String(text) => text.hash(&mut hasher),
            AttributeValue::Tensor(stored) => stored.tensor.bytes().len().hash(&mut hasher),
            _ => {}
        }
    }
    hasher.finish()
}

fn is_same(a: &Node, b: &Node) -> bool {
    a.op_type == b.op_type
        && a.domain() == b.domain()
        && a.inputs() == b.inputs()
        && a.attributes.len() == b.attributes.len()
        && a.attributes.iter().all(|attribute| {
            b.attribute(&attribute.name).is_some_and(|other| match (&attribute.value, other) {
                (AttributeValue::Tensor(a), AttributeValue::Tensor(b)) => a.tensor == b.tensor,
                (AttributeValue::Float(a), AttributeValue::Float(b)) => a.to_bits() == b.to_bits(),
                (a, b) => a == b,
            })
        })
}
