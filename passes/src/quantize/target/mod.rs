//! Target profiles: what an engine runs in integers, as data.
//!
//! A profile is a TOML file. Those of `targets/` are part of the program; docs/targets.md tells how to write
//! one, and `optix targets probe` makes one by asking the engine.

mod choice;
pub mod operators;

use optix_ir::{DType, Model};
use optix_pipeline::{Cx, PassError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::types::{ActivationType, Saturation, WeightType};
pub use choice::TargetChoice;
use operators::{Bridge, Folded, Mover, Product, Weighted};

/// Profiles larger than this are refused unread.
pub const MAX_TARGET_BYTES: usize = 1 << 20;

/// The target that is meant where none is named.
pub const DEFAULT_TARGET: &str = "ort-cpu";

/// Name and text of every built-in profile, the default first.
pub const TARGETS: &[(&str, &str)] = &[
    (DEFAULT_TARGET, include_str!("../../../../targets/ort-cpu.toml")),
    ("ort-cpu-avx2", include_str!("../../../../targets/ort-cpu-avx2.toml")),
    ("ort-cpu-vnni", include_str!("../../../../targets/ort-cpu-vnni.toml")),
    ("openvino", include_str!("../../../../targets/openvino.toml")),
    ("tensorrt", include_str!("../../../../targets/tensorrt.toml")),
    ("generic", include_str!("../../../../targets/generic.toml")),
];

/// What an engine runs in integers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Target {
    /// Version of the form of profiles: 1.
    pub version: u32,
    /// Its name.
    pub name: String,
    /// What it is for, in a sentence.
    pub about: String,
    /// The engine. Layers are timed only for `onnxruntime`: what another engine takes is not known here.
    pub engine: String,
    /// Where the facts come from.
    pub source: Source,
    /// Versions of the standard operator set that the engine reads.
    pub operator_sets: OperatorSets,
    /// Activations.
    pub activations: Activations,
    /// Weights.
    pub weights: Weights,
    /// Where quantizers go.
    pub operators: Operators,
    /// Operators that have an integer kernel and stay float all the same, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_float: Vec<LeftFloat>,
    /// What a probe saw, for people.
    #[serde(default, skip_serializing_if = "Measurements::is_empty")]
    pub measured: Measurements,
}

/// Where the facts of a profile come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Source {
    /// How they were found: by a probe, or from documents.
    pub how: String,
    /// Version of the engine that they hold for.
    pub engine: String,
    /// The processor or device, where it matters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub processor: String,
    /// The day, year first.
    pub date: String,
    /// Documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub documents: Vec<String>,
}

/// Versions of the standard operator set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OperatorSets {
    /// The oldest that its quantized models may be written in.
    pub least: i64,
    /// The newest that the engine reads.
    pub greatest: i64,
}

/// What activations may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Activations {
    /// Types that kernels compute with; the first is the default.
    pub native: Vec<ActivationType>,
    /// Types that load and run, computed in float.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emulated: Vec<ActivationType>,
    /// Whether zero points must be 0.
    pub symmetric: bool,
}

/// What weights may be. They always are symmetric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Weights {
    /// Types that kernels compute with.
    pub native: Vec<ActivationType>,
    /// Types that load and run, computed in float.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emulated: Vec<ActivationType>,
    /// Whether every output channel may have a scale of its own.
    pub per_channel: bool,
    /// What becomes of biases.
    pub bias: Bias,
    /// Whether kernels clip sums of two products to int16, so that weights have to avoid it.
    pub saturation: Saturation,
}

/// What becomes of a constant bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Bias {
    /// int32 with the product of the scales of input and weights.
    Int32,
    /// It stays float.
    Float,
}

/// Where quantizers go; the rules are those of docs/targets.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Operators {
    /// Operators with constant weights: their input and weights are quantized.
    pub weighted: Vec<Weighted>,
    /// Operators whose two inputs are activations and are both quantized.
    pub products: Vec<Product>,
    /// Those of the two lists above that run in integers only with a quantizer behind them too.
    pub quantized_output: Vec<Weighted>,
    /// Those whose result a bridge behind them may take in integers.
    pub integer_output: Vec<Weighted>,
    /// Operators that run in integers between integer neighbours.
    pub bridges: Vec<Bridge>,
    /// Operators that a quantizer passes through unchanged.
    pub movers: Vec<Mover>,
    /// Activation functions that fold into the quantizer behind them.
    pub folded: Vec<Folded>,
}

/// An operator that stays float although it could run in integers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LeftFloat {
    /// The operator.
    pub operator: String,
    /// Why.
    pub why: String,
}

/// What a probe saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Measurements {
    /// One for each pattern and pair of types.
    pub rows: Vec<Measured>,
}

impl Measurements {
    fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// What a probe saw of one pattern with one pair of types.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Measured {
    /// Operators, those that follow one another with `+` between them.
    pub pattern: String,
    /// Type of activations.
    pub activations: ActivationType,
    /// Type of weights, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<ActivationType>,
    /// Whether it was computed with integers.
    pub integers: bool,
    /// The kernels that ran beside quantizers and changes of layout.
    pub kernels: Vec<String>,
    /// Quantizers and dequantizers that were left within the pattern.
    pub quantizers_left: u32,
    /// Time of those kernels over that of the float kernels, where it was computed with integers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ratio: Option<f64>,
}

impl ActivationType {
    /// Type of the weights that go with such activations.
    pub fn weights(self) -> ActivationType {
        match self {
            ActivationType::Float8e4m3fn | ActivationType::Float8e5m2 => self,
            _ => ActivationType::Int8,
        }
    }

    /// The oldest operator set whose quantizers know the type. Those to floats that are computed in float say it
    /// without a zero point, which came later.
    pub fn least_operator_set(self, runs: Runs) -> i64 {
        match self {
            ActivationType::Uint8 | ActivationType::Int8 => 10,
            _ if self.is_float() && runs == Runs::Natively => 19,
            ActivationType::Float8e4m3fn | ActivationType::Float8e5m2 => 21,
            ActivationType::Uint16 | ActivationType::Int16 => 21,
        }
    }
}

/// How a target runs a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// With kernels for it.
    Natively,
    /// In float: the results are those of the type, the speed is not.
    Emulated,
}

impl Target {
    /// Reads a profile.
    ///
    /// # Errors
    /// What is wrong with it, with line and column where that is known.
    pub fn parse(text: &str) -> Result<Target, String> {
        if text.len() > MAX_TARGET_BYTES {
            return Err(format!("{} bytes are too many for a target profile", text.len()));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let target: Target = toml::from_str(text).map_err(|error| explained(text, &error))?;
        target.check()?;
        Ok(target)
    }

    /// A built-in profile; none of that name is none.
    pub fn built_in(name: &str) -> Option<Target> {
        let (_, text) = TARGETS.iter().find(|(known, _)| *known == name)?;
        // A test reads them all.
        Target::parse(text).ok()
    }

    /// Checks what its types cannot say.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn check(&self) -> Result<(), String> {
        if self.version != 1 {
            let version = self.version;
            return Err(format!("version {version} of target profiles is not known; this program reads 1"));
        }
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._@".contains(c);
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(is_name) {
            return Err("`name` must be up to 64 lower-case letters, digits, `-`, `.`, `_` and `@`".into());
        }
        let OperatorSets { least, greatest } = self.operator_sets;
        if least < 1 || greatest < least {
            return Err(format!("`operator-sets`: {least} to {greatest} is no range of versions"));
        }
        if self.activations.native.is_empty() {
            return Err("`activations.native` is empty: then there is nothing to quantize to".into());
        }
        if let Some(dtype) = self.activations.emulated.iter().find(|&t| self.activations.native.contains(t)) {
            return Err(format!("`{}` cannot be both native and emulated", dtype.name()));
        }
        let mut all = self.activations.native.iter().chain(&self.activations.emulated);
        if self.activations.symmetric
            && let Some(dtype) = all.find(|dtype| !dtype.has_negative())
        {
            return Err(format!("`{}` has no negative numbers: it cannot be symmetric", dtype.name()));
        }
        let ratio = |measured: &Measured| measured.time_ratio;
        if self.measured.rows.iter().filter_map(ratio).any(|ratio| !ratio.is_finite() || ratio < 0.0) {
            return Err("`measured`: a time ratio is a number from 0 on".into());
        }
        Ok(())
    }

    /// The type that activations get where none is asked for.
    pub fn default_activations(&self) -> ActivationType {
        self.activations.native.first().copied().unwrap_or_default()
    }

    /// How it runs activations of a type with the weights that go with them; none where it cannot.
    pub fn runs(&self, activations: ActivationType) -> Option<Runs> {
        let weights = activations.weights();
        let knows = |dtype: ActivationType, native: &[ActivationType], emulated: &[ActivationType]| match (
            native.contains(&dtype),
            emulated.contains(&dtype),
        ) {
            (true, _) => Some(Runs::Natively),
            (false, true) => Some(Runs::Emulated),
            _ => None,
        };
        let of_activations = knows(activations, &self.activations.native, &self.activations.emulated)?;
        let of_weights = knows(weights, &self.weights.native, &self.weights.emulated)?;
        let is_native = of_activations == Runs::Natively && of_weights == Runs::Natively;
        Some(if is_native { Runs::Natively } else { Runs::Emulated })
    }

    /// The same without what is only for people: what a lock keeps.
    pub fn decided(&self) -> Target {
        Target { measured: Measurements::default(), left_float: Vec::new(), ..self.clone() }
    }

    /// Text that reads back to the same profile: one line a measurement.
    pub fn to_toml(&self) -> String {
        let plain = Target { measured: Measurements::default(), ..self.clone() };
        let mut text = format!("# {}\n", self.about.replace(['\n', '\r'], " "));
        text.push_str(&toml::to_string(&plain).unwrap_or_default());
        if !self.measured.is_empty() {
            text.push_str("\n[measured]\nrows = [\n");
            let rows = self.measured.rows.iter().filter_map(|row| toml::Value::try_from(row).ok());
            rows.for_each(|row| text.push_str(&format!("    {row},\n")));
            text.push_str("]\n");
        }
        text
    }
}

/// The target that a pass works for: what was asked for, recorded; or what a lock says.
///
/// # Errors
/// When there is none of that name, or when what a lock says is no profile.
pub(super) fn decide(choice: &TargetChoice, cx: &mut Cx<'_>) -> Result<Target, PassError> {
    let target =
        cx.decide("target", |_| choice.resolve().map(|target| target.decided()).map_err(PassError::Options))?;
    target.check().map_err(|what| {
        PassError::Decision(optix_pipeline::DecisionError::Unusable { key: "target".to_owned(), what })
    })?;
    Ok(target)
}

/// How `target` runs what is asked for.
///
/// # Errors
/// When it cannot; says which targets can.
pub(super) fn check_type(target: &Target, asked: ActivationType) -> Result<Runs, PassError> {
    if let Some(runs) = target.runs(asked) {
        return Ok(runs);
    }
    let able: Vec<String> = TARGETS
        .iter()
        .filter_map(|(name, _)| {
            let runs = Target::built_in(name)?.runs(asked)?;
            let how = if runs == Runs::Emulated { " (computed in float)" } else { "" };
            Some(format!("{name}{how}"))
        })
        .collect();
    let all: Vec<&str> = target
        .activations
        .native
        .iter()
        .chain(&target.activations.emulated)
        .map(|known| known.name())
        .collect();
    Err(PassError::Options(format!(
        "target `{}` cannot run {} activations, only {}; these targets can: {}",
        target.name,
        asked.name(),
        all.join(", "),
        if able.is_empty() { "none".to_owned() } else { able.join(", ") }
    )))
}

/// Checks that int4 weights can be written, and says what they are good for.
///
/// # Errors
/// Says what to raise the operator set to.
pub(super) fn check_small_weights(target: &Target, model: &Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
    const NEEDED: i64 = WeightType::LEAST_OF_INT4;
    let version = model.opset_version(model.main(), "").unwrap_or(0);
    if version < NEEDED {
        return Err(PassError::Options(format!(
            "int4 weights need operator set {NEEDED} and the model is written in {version}: raise it with a step \
             `convert-opset` whose `version` is {NEEDED}"
        )));
    }
    let engine = &target.engine;
    cx.note(format!(
        "int4 weights make the file smaller: {engine} is not known to compute with them, and makes floats of them"
    ));
    Ok(())
}

/// Checks that a model is written in an operator set whose quantizers know the type, and warns where it is newer
/// than what the target is known to read.
///
/// # Errors
/// Says what to raise it to.
pub(super) fn check_operator_set(
    target: &Target,
    activations: ActivationType,
    runs: Runs,
    model: &Model,
    cx: &mut Cx<'_>,
) -> Result<(), PassError> {
    let version = model.opset_version(model.main(), "").unwrap_or(0);
    let OperatorSets { least, greatest } = target.operator_sets;
    let needed = activations.least_operator_set(runs).max(least);
    if version < needed {
        return Err(PassError::Options(format!(
            "{} activations for `{}` need operator set {needed} and the model is written in {version}: raise it \
             with a step `convert-opset` whose `version` is {needed}",
            activations.name(),
            target.name
        )));
    }
    if version > greatest {
        cx.warn(format!(
            "the model is written in operator set {version}, and {} is known to read up to {greatest}",
            target.source.engine
        ));
    }
    Ok(())
}

/// An error of the parser with its place and, for a wrong word, the one that may be meant.
fn explained(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim();
    let wrong = message.strip_prefix("unknown field `").or_else(|| message.strip_prefix("unknown variant `"));
    let hint = wrong.and_then(|rest| rest.split_once('`')).map_or_else(String::new, |(name, rest)| {
        optix_pipeline::did_you_mean(name, rest.split('`').skip(1).step_by(2))
    });
    let Some(span) = error.span() else { return format!("{message}{hint}") };
    let at = (0..=span.start.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let (line, column) = (text[..at].matches('\n').count() + 1, text[start..at].chars().count() + 1);
    let shown: String = text[start..].lines().next().unwrap_or_default().chars().take(160).collect();
    let shown = optix_base::escape_for_terminal(&shown).into_owned();
    format!("line {line}, column {column}: {message}{hint}\n  {line} | {shown}")
}

impl ActivationType {
    /// Every type, in the order of lists.
    pub const ALL: &'static [ActivationType] = &[
        ActivationType::Uint8,
        ActivationType::Int8,
        ActivationType::Uint16,
        ActivationType::Int16,
        ActivationType::Float8e4m3fn,
        ActivationType::Float8e5m2,
    ];

    /// The type of that name.
    pub fn named(name: &str) -> Option<ActivationType> {
        ActivationType::ALL.iter().copied().find(|known| known.name() == name)
    }

    /// ONNX's name, as recipes and profiles have it.
    pub fn name(self) -> &'static str {
        self.dtype().name()
    }

    /// Whether it has negative numbers.
    pub fn has_negative(self) -> bool {
        !matches!(self, ActivationType::Uint8 | ActivationType::Uint16)
    }

    /// Whether it is one of floats.
    pub fn is_float(self) -> bool {
        self.dtype().is_float()
    }

    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            ActivationType::Uint8 => DType::U8,
            ActivationType::Int8 => DType::I8,
            ActivationType::Uint16 => DType::U16,
            ActivationType::Int16 => DType::I16,
            ActivationType::Float8e4m3fn => DType::F8E4M3FN,
            ActivationType::Float8e5m2 => DType::F8E5M2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_profile_reads_and_says_its_name() {
        for (name, text) in TARGETS {
            let target = Target::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(target.name, *name);
            assert!(text.starts_with("# "), "{name} opens with what it is for");
            assert_eq!(target.runs(target.default_activations()), Some(Runs::Natively), "{name}");
            assert!(!target.source.date.is_empty() && !target.source.engine.is_empty(), "{name}");
            assert_eq!(Target::parse(&target.to_toml()), Ok(target.clone()), "{name}");
            assert!(target.decided().measured.is_empty() && target.decided().operators == target.operators);
        }
    }

    #[test]
    fn onnxruntime_is_the_same_on_all_processors_but_for_saturation() {
        let [plain, avx2, vnni] = ["ort-cpu", "ort-cpu-avx2", "ort-cpu-vnni"]
            .map(|name| Target::built_in(name).expect("it is built in"));
        assert_eq!(avx2.weights.saturation, Saturation::Avoid);
        assert_eq!(vnni.weights.saturation, Saturation::Allow);
        for other in [&avx2, &vnni] {
            assert_eq!(other.operators, plain.operators);
            assert_eq!(other.activations, plain.activations);
            let weights = Weights { saturation: plain.weights.saturation, ..other.weights.clone() };
            assert_eq!(weights, plain.weights);
            assert_eq!(other.operator_sets, plain.operator_sets);
        }
    }

    #[test]
    fn damage_is_named_with_its_line() {
        let (_, text) = TARGETS[0];
        for (from, to, expected) in [
            ("weighted = [", "weighted = [\"Convv\", ", "did you mean `Conv`?"),
            ("symmetric = ", "symetric = ", "did you mean `symmetric`?"),
            ("version = 1", "version = 7", "version 7 of target profiles"),
            ("engine = \"onnxruntime\"", "engine = ", "line "),
            ("native = [\"uint8\"", "native = [\"uint9\"", "did you mean `uint8`?"),
            ("name = \"ort-cpu\"", "name = \"Ort Cpu\"", "`name` must be"),
            ("least = ", "least = 99 # ", "99 to "),
        ] {
            assert!(text.contains(from), "{from}");
            let error = Target::parse(&text.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(expected), "{from}: {error}");
            if expected.starts_with("did") {
                let line = text[..text.find(from).unwrap()].matches('\n').count() + 1;
                assert!(error.contains(&format!("line {line}, column ")), "{error}");
            }
        }
        for length in (0..text.len()).step_by(97).filter(|&length| text.is_char_boundary(length)) {
            // Cut short, it is an error or misses what is only for people.
            let _ = Target::parse(&text[..length]);
        }
        assert!(Target::parse("").is_err());
        assert!(Target::parse("\u{feff}x = \u{1b}").unwrap_err().contains("line 1"));
    }

    #[test]
    fn a_type_that_a_target_lacks_is_refused_with_those_that_have_it() {
        let tensorrt = Target::built_in("tensorrt").unwrap();
        let error = check_type(&tensorrt, ActivationType::Uint16).unwrap_err().to_string();
        assert!(
            error.contains("cannot run uint16") && error.contains("ort-cpu (computed in float)"),
            "{error}"
        );
        assert_eq!(check_type(&tensorrt, ActivationType::Int8).unwrap(), Runs::Natively);
        let plain = Target::built_in(DEFAULT_TARGET).unwrap();
        for (asked, runs) in [
            (ActivationType::Uint8, Runs::Natively),
            (ActivationType::Int8, Runs::Natively),
            (ActivationType::Uint16, Runs::Emulated),
            (ActivationType::Int16, Runs::Emulated),
            (ActivationType::Float8e4m3fn, Runs::Emulated),
            (ActivationType::Float8e5m2, Runs::Emulated),
        ] {
            assert_eq!(check_type(&plain, asked).unwrap(), runs, "{asked:?}");
        }
    }
}
