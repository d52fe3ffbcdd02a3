//! What a pass is.
//!
//! A pass is one file whose struct is its options, whose doc comment is its manual and whose example is
//! its test. It only transforms: the runner verifies, times, counts, dumps and names.

use std::fmt::{Debug, Display};

use optix_ir::Model;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::context::Cx;
use crate::decisions::DecisionError;
use crate::oracle::OracleError;

/// A transformation of a model.
pub trait Pass: Debug + Send + Sync {
    /// What must be there before it runs. Checked for all steps of a recipe before the first runs.
    fn requires(&self) -> Requires {
        Requires::default()
    }

    /// What it keeps to. Checked by the runner afterwards.
    fn promises(&self) -> Promises;

    /// Whether kept calibration statistics do for it where there are no data.
    fn reads_statistics(&self) -> bool {
        false
    }

    /// Whether it compares with the model before its numbers were made coarser:
    /// [`Cx::float`](crate::Cx::float).
    fn wants_float(&self) -> bool {
        false
    }

    /// Whether it learns from another model: [`Cx::teacher`](crate::Cx::teacher).
    fn wants_teacher(&self) -> bool {
        false
    }

    /// Transforms the model. What it did, and what it left alone and why, goes to `cx`.
    ///
    /// # Errors
    /// When it cannot do its work; the model is then thrown away.
    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError>;
}

/// A pass with a name, whose struct is its options.
///
/// The struct derives `Deserialize` with `deny_unknown_fields`, `default` and `rename_all =
/// "kebab-case"`, and `JsonSchema`; its doc comment is the manual that `optix passes NAME` shows.
pub trait Named: Pass + Default + DeserializeOwned + JsonSchema + 'static {
    /// The name recipes know it by: lower-case words joined by `-`.
    const NAME: &'static str;
    /// The family it belongs to.
    const FAMILY: Family;
}

/// What passes are for; the subcommand that offers them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// Clean-up that changes no result.
    Clean,
    /// Fewer bits.
    Quantize,
    /// Fewer weights.
    Prune,
    /// Learning from a teacher.
    Distill,
    /// Other floating-point types.
    Precision,
}

impl Family {
    /// The family's name.
    pub fn name(self) -> &'static str {
        match self {
            Family::Clean => "clean",
            Family::Quantize => "quantize",
            Family::Prune => "prune",
            Family::Distill => "distill",
            Family::Precision => "precision",
        }
    }
}

/// What a pass needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Requires {
    /// Calibration data (`--calib`).
    pub calibration: bool,
    /// Types and shapes inferred before it runs.
    pub inferred_types: bool,
    /// The oldest version of the standard operator set its output can be written in. The runner refuses
    /// older models, naming the version.
    pub opset: i64,
}

/// How far results may move.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Numerics {
    /// Every output is the same to the bit.
    Exact,
    /// max|difference| / max|reference| of every output stays within this.
    Within(f64),
    /// Results change; the report says by how much.
    Lossy,
}

/// What becomes of the model's inputs and outputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interface {
    /// Names, order, element types and shapes stay.
    Kept,
    /// Names and order stay.
    Retyped,
}

/// What becomes of the graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topology {
    /// Same nodes, same connections: only weights and attributes change.
    Kept,
    /// Nodes come and go.
    Changed,
}

/// What a pass keeps to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Promises {
    /// How far results may move.
    pub numerics: Numerics,
    /// What becomes of inputs and outputs.
    pub interface: Interface,
    /// What becomes of the graph.
    pub topology: Topology,
}

impl Promises {
    /// Same results, same interface, another graph: what clean-up promises.
    pub const CLEAN: Promises =
        Promises { numerics: Numerics::Exact, interface: Interface::Kept, topology: Topology::Changed };
}

impl Display for Promises {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.numerics {
            Numerics::Exact => f.write_str("the same results to the bit")?,
            Numerics::Within(bound) => {
                write!(f, "results within {bound:e} of the greatest one of each output")?;
            }
            Numerics::Lossy => f.write_str("other results, by as much as the report says")?,
        }
        f.write_str(match self.interface {
            Interface::Kept => "; inputs and outputs as they were",
            Interface::Retyped => "; inputs and outputs of the same names",
        })?;
        f.write_str(match self.topology {
            Topology::Kept => "; the same nodes",
            Topology::Changed => "",
        })
    }
}

/// Why a pass gave up.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The options do not fit each other or the model.
    #[error("{0}")]
    Options(String),
    /// The model cannot be treated.
    #[error("{place}: {what}")]
    Model {
        /// The node or value.
        place: String,
        /// What is the matter and what helps.
        what: String,
    },
    /// Nothing in the model is of the kind the pass works on.
    #[error("nothing to do: {0}")]
    NothingToDo(String),
    /// A rewrite was refused.
    #[error("internal error: {0}")]
    Patch(#[from] optix_ir::patch::PatchError),
    /// An edit was refused.
    #[error("internal error: {0}")]
    Edit(#[from] optix_ir::EditError),
    /// Running the model failed.
    #[error(transparent)]
    Oracle(#[from] OracleError),
    /// A decision cannot be recorded, or not be repeated from a lock.
    #[error(transparent)]
    Decision(#[from] DecisionError),
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
}

/// A pass as the registry lists it.
pub struct PassSpec {
    /// The name recipes know it by.
    pub name: &'static str,
    /// The family it belongs to.
    pub family: Family,
    /// JSON schema of its options, its manual included.
    pub schema: fn() -> schemars::Schema,
    /// Reads its options out of a TOML value.
    pub parse: fn(toml::de::ValueDeserializer<'_>) -> Result<Box<dyn Pass>, toml::de::Error>,
    /// The pass with default options.
    pub default: fn() -> Box<dyn Pass>,
}

impl PassSpec {
    /// The entry of a pass type.
    pub const fn of<P: Named>() -> PassSpec {
        PassSpec {
            name: P::NAME,
            family: P::FAMILY,
            schema: || schemars::schema_for!(P),
            parse: |value| P::deserialize(value).map(|pass| Box::new(pass) as Box<dyn Pass>),
            default: || Box::new(P::default()),
        }
    }

    /// The manual: the doc comment of the options struct.
    pub fn manual(&self) -> String {
        let schema = (self.schema)();
        schema.get("description").and_then(|text| text.as_str()).unwrap_or_default().to_owned()
    }

    /// The first paragraph of the manual, as one line.
    pub fn summary(&self) -> String {
        let manual = self.manual();
        manual.split("\n\n").next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Its options: name, type, default and help, in alphabetical order.
    pub fn options(&self) -> Vec<OptionHelp> {
        let schema = (self.schema)();
        let Some(properties) = schema.get("properties").and_then(|value| value.as_object()) else {
            return Vec::new();
        };
        properties
            .iter()
            .map(|(name, property)| OptionHelp {
                name: name.clone(),
                kind: kind_of(property, &schema),
                default: property.get("default").map(|value| value.to_string()).unwrap_or_default(),
                help: property
                    .get("description")
                    .and_then(|text| text.as_str())
                    .unwrap_or_default()
                    .to_owned(),
            })
            .collect()
    }
}

impl Debug for PassSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PassSpec").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An option of a pass, for people.
#[derive(Clone, PartialEq, Debug)]
pub struct OptionHelp {
    /// Name in recipes; `--NAME` on the command line.
    pub name: String,
    /// What it takes: `integer`, `boolean`, `"min-max" | "mse"`, ...
    pub kind: String,
    /// Its default, as JSON.
    pub default: String,
    /// Its doc comment.
    pub help: String,
}

fn kind_of(property: &serde_json::Value, schema: &schemars::Schema) -> String {
    if let Some(reference) = property.get("$ref").and_then(|value| value.as_str()) {
        let pointed = reference.strip_prefix('#').and_then(|path| schema.as_value().pointer(path));
        return pointed.map_or_else(|| "value".to_owned(), |pointed| kind_of(pointed, schema));
    }
    let alternatives = ["oneOf", "anyOf"].iter().find_map(|key| property.get(*key)?.as_array());
    if let Some(alternatives) = alternatives {
        let kinds: Vec<String> =
            alternatives.iter().map(|one| kind_of(one, schema)).filter(|k| k != "null").collect();
        return kinds.join(" | ");
    }
    if let Some(constant) = property.get("const") {
        return constant.to_string();
    }
    if let Some(values) = property.get("enum").and_then(|value| value.as_array()) {
        return values.iter().map(|value| value.to_string()).collect::<Vec<_>>().join(" | ");
    }
    match property.get("type") {
        Some(serde_json::Value::String(kind)) => kind.clone(),
        Some(serde_json::Value::Array(kinds)) => {
            let kinds: Vec<&str> =
                kinds.iter().filter_map(|kind| kind.as_str()).filter(|k| *k != "null").collect();
            kinds.join(" | ")
        }
        _ => "value".to_owned(),
    }
}
