//! What a step decided, kept so that the step can be repeated without data or search.
//!
//! A pass hands everything that it learned from data, from an engine or by searching to
//! [`Cx::decide`](crate::Cx::decide). In a run that is recorded, and comes back as it reads back from the
//! record: nothing that the text of a lock could lose ever has an effect. When a lock is applied, the recorded
//! decisions come back and nothing is computed.

use std::collections::BTreeMap;

use optix_base::escape_for_terminal;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The decisions of one step: JSON by key.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Decisions(
    #[schemars(with = "BTreeMap<String, serde_json::Value>")] BTreeMap<String, Box<RawValue>>,
);

impl PartialEq for Decisions {
    fn eq(&self, other: &Decisions) -> bool {
        let texts = |all: &Decisions| -> Vec<(String, String)> {
            all.0.iter().map(|(key, value)| (key.clone(), value.get().to_owned())).collect()
        };
        texts(self) == texts(other)
    }
}

/// Why a decision could not be recorded or repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecisionError {
    /// The lock holds no decision of this key.
    #[error("the lock has no decision `{}`: it was changed, or made by another version of optix", shown(.0))]
    Missing(String),
    /// The lock holds decisions that the pass never asked for.
    #[error(
        "the lock has {} decisions that nothing asks for, such as `{}`: it was changed, or made by another version of optix",
        .count, shown(.first)
    )]
    Superfluous {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// The lock's decision is not of the kind that the pass wants.
    #[error("decision `{}` of the lock cannot be used: {}", shown(.key), shown(.what))]
    Unusable {
        /// Its key.
        key: String,
        /// What is the matter.
        what: String,
    },
    /// The pass decided in a way that cannot be repeated: a bug of the pass.
    #[error("decision `{}`: {what}", shown(.key))]
    Misused {
        /// Its key.
        key: String,
        /// What the pass did.
        what: String,
    },
}

impl DecisionError {
    /// Whether this is a fault of the pass and not of the lock.
    pub fn is_internal(&self) -> bool {
        matches!(self, DecisionError::Misused { .. })
    }

    pub(crate) fn misused(key: &str, what: impl Into<String>) -> DecisionError {
        DecisionError::Misused { key: key.to_owned(), what: what.into() }
    }
}

/// Foreign text made harmless; a long one is cut.
fn shown(text: &str) -> String {
    let start: String = text.chars().take(200).collect();
    escape_for_terminal(&start).into_owned()
}

impl Decisions {
    /// Number of decisions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was decided.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The JSON of a decision.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|value| value.get())
    }

    /// Records a decision and reads it back.
    pub(crate) fn record<T: Serialize + DeserializeOwned>(
        &mut self,
        key: &str,
        decision: &T,
    ) -> Result<T, DecisionError> {
        if self.0.contains_key(key) {
            return Err(DecisionError::misused(key, "it is made twice"));
        }
        let unrecorded =
            |error: serde_json::Error| DecisionError::misused(key, format!("it cannot be recorded: {error}"));
        let value = serde_json::value::to_raw_value(decision).map_err(unrecorded)?;
        let read = serde_json::from_str(value.get()).map_err(unrecorded)?;
        self.0.insert(key.to_owned(), value);
        Ok(read)
    }

    /// Takes a recorded decision out.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<T, DecisionError> {
        let value = self.0.remove(key).ok_or_else(|| DecisionError::Missing(key.to_owned()))?;
        serde_json::from_str(value.get())
            .map_err(|error| DecisionError::Unusable { key: key.to_owned(), what: error.to_string() })
    }

    /// Checks that all recorded decisions were taken.
    pub(crate) fn check_used(&self) -> Result<(), DecisionError> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(first) => Err(DecisionError::Superfluous { count: self.0.len(), first: first.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_to_the_bit() {
        let mut decisions = Decisions::default();
        // Of every magnitude, subnormal ones and both zeros among them.
        let bits = |index: u64| index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index << 23);
        let singles: Vec<f32> = (0..20_000).map(|index| f32::from_bits(bits(index) as u32)).collect();
        let doubles: Vec<f64> = (0..20_000).map(|index| f64::from_bits(bits(index))).collect();
        let mut singles: Vec<f32> = singles.into_iter().filter(|x| x.is_finite()).collect();
        let mut doubles: Vec<f64> = doubles.into_iter().filter(|x| x.is_finite()).collect();
        singles.extend([0.0, -0.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, 0.1]);
        doubles.extend([0.0, -0.0, f64::MIN_POSITIVE, 5e-324, f64::MAX, 0.1, 0.3, 2.0 / 3.0]);
        assert!(singles.len() > 19_000 && doubles.len() > 19_000);
        let read = decisions.record("singles", &singles).unwrap();
        assert!(read.iter().zip(&singles).all(|(a, b)| a.to_bits() == b.to_bits()));
        let read = decisions.record("doubles", &doubles).unwrap();
        assert!(read.iter().zip(&doubles).all(|(a, b)| a.to_bits() == b.to_bits()));
        // And so they do from the text of all decisions together.
        let text = serde_json::to_string_pretty(&decisions).unwrap();
        let mut again: Decisions = serde_json::from_str(&text).unwrap();
        assert_eq!(again, decisions);
        let read: Vec<f64> = again.take("doubles").unwrap();
        assert!(read.iter().zip(&doubles).all(|(a, b)| a.to_bits() == b.to_bits()));
        let read: Vec<f32> = again.take("singles").unwrap();
        assert!(read.iter().zip(&singles).all(|(a, b)| a.to_bits() == b.to_bits()));
        again.check_used().unwrap();
    }

    #[test]
    fn what_cannot_be_read_back_is_not_recorded() {
        let mut decisions = Decisions::default();
        let error = decisions.record("scale", &f32::NAN).unwrap_err();
        assert!(error.is_internal(), "{error}");
        assert!(decisions.is_empty());
        decisions.record("scale", &1.5f32).unwrap();
        assert!(decisions.record("scale", &1.5f32).unwrap_err().to_string().contains("twice"));
        assert_eq!((decisions.len(), decisions.get("scale")), (1, Some("1.5")));
    }

    #[test]
    fn what_the_lock_lacks_or_has_too_much_is_named() {
        let mut decisions: Decisions = serde_json::from_str(r#"{ "a": 1, "b\u001b": "x" }"#).unwrap();
        let error = decisions.take::<u8>("c").unwrap_err();
        assert!(error.to_string().contains("no decision `c`") && !error.is_internal(), "{error}");
        assert_eq!(decisions.take::<u8>("a"), Ok(1));
        let error = decisions.check_used().unwrap_err().to_string();
        assert!(error.contains("1 decisions") && !error.contains('\u{1b}'), "{error}");
        let error = decisions.take::<u8>("b\u{1b}").unwrap_err().to_string();
        assert!(error.contains("cannot be used") && !error.contains('\u{1b}'), "{error}");
    }
}
