//! Keeping equal constants once.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use optix_ir::{DType, Model, ValueId};
use optix_pipeline::{Cx, Family, Named, Pass, PassError, Promises};
use schemars::JsonSchema;
use serde::Deserialize;

/// Lets constants of one graph with equal type, shape and elements be one constant.
///
/// Constants that are inputs or outputs of the graph stay. Weights whose shape no other has are not
/// even looked at.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[N, 2] x) => (float[N, 2] y)
/// <float[2] a = {1, 2}, float[2] b = {1, 2}, float[2] c = {1, 3}>
/// {
///     d = Mul (x, a)
///     e = Add (d, b)
///     y = Sub (e, c)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[N, 2] x) => (float[N, 2] y)
/// <float[2] a = {1, 2}, float[2] c = {1, 3}>
/// {
///     d = Mul (x, a)
///     e = Add (d, a)
///     y = Sub (e, c)
/// }
/// ```
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct MergeInitializers {}

impl Named for MergeInitializers {
    const NAME: &'static str = "merge-initializers";
    const FAMILY: Family = Family::Clean;
}

impl Pass for MergeInitializers {
    fn promises(&self) -> Promises {
        Promises::CLEAN
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let graphs: Vec<_> = model.graphs().collect();
        for graph in graphs {
            let mut groups: BTreeMap<(DType, Vec<usize>), Vec<ValueId>> = BTreeMap::new();
            for &value in model.graph(graph).initializers() {
                if let Some(tensor) = model.value(value).constant() {
                    groups.entry((tensor.dtype(), tensor.shape().to_vec())).or_default().push(value);
                }
            }
            for values in groups.into_values().filter(|values| values.len() > 1) {
                let mut known: BTreeMap<u64, Vec<ValueId>> = BTreeMap::new();
                for value in values {
                    let Some(tensor) = model.value(value).constant() else { continue };
                    let mut hasher = DefaultHasher::new();
                    tensor.bytes().hash(&mut hasher);
                    let candidates = known.entry(hasher.finish()).or_default();
                    let twin = candidates.iter().copied().find(|&other| {
                        model.value(other).constant().is_some_and(|other| other.bytes() == tensor.bytes())
                    });
                    let Some(twin) = twin else {
                        candidates.push(value);
                        continue;
                    };
                    let bytes = tensor.bytes().len() as u64;
                    if model.check_replacement(value, twin).is_err() {
                        continue;
                    }
                    if !cx.may_edit("merge-constants") {
                        return Ok(());
                    }
                    model.replace_value(value, twin)?;
                    if model.remove_value(value) {
                        cx.count("constants merged", 1);
                        cx.count("bytes saved", bytes);
                    }
                }
            }
        }
        Ok(())
    }
}
