//! What a checkpoint of training says beside its state: what the steps before it decided.
//!
//! A run that goes on repeats those decisions instead of making them anew: what was measured may come out otherwise a
//! second time, and the state of training would not fit another model.

use std::collections::BTreeMap;

use optix_ir::Model;
use serde::{Deserialize, Serialize};

use crate::context::{CheckpointStore, StatisticsStore};
use crate::decisions::Decisions;
use crate::fingerprint::{digest, fingerprint};
use crate::recipe::Recipe;

/// First bytes of a checkpoint.
const MAGIC: &[u8; 8] = b"optixck3";

/// What stands before the state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Front {
    /// Id of the step whose state it is.
    step: String,
    /// Decisions of the steps before it, by id.
    decided: BTreeMap<String, Decisions>,
    /// Of the calibration statistics that the run was given, where it was given any.
    statistics: Option<[u8; 32]>,
}

/// A run that keeps its state, and perhaps goes on from one that was kept.
pub(crate) struct Kept {
    identity: [u8; 32],
    statistics: Option<[u8; 32]>,
    found: Option<(Front, Vec<u8>)>,
    decided: BTreeMap<String, Decisions>,
}

/// What tells a run from all others, but for its data and engine, which training looks at itself.
fn identity(recipe: &Recipe, model: &Model) -> Result<[u8; 32], String> {
    let own = fingerprint(model).map_err(|error| format!("the model cannot be written: {error}"))?;
    Ok(digest([recipe.steps_toml().as_bytes(), env!("CARGO_PKG_VERSION").as_bytes(), &own]))
}

impl Kept {
    /// A run of this recipe over this model, with what the store holds of it.
    ///
    /// # Errors
    /// When that cannot be read, or belongs to another run.
    pub(crate) fn open(
        recipe: &Recipe,
        model: &Model,
        statistics: Option<&dyn StatisticsStore>,
        store: &mut dyn CheckpointStore,
    ) -> Result<Kept, String> {
        let identity = identity(recipe, model)?;
        let given = statistics.map(StatisticsStore::given).filter(|given| !given.is_empty());
        let statistics = given.map(|given| digest(given.iter().map(|(_, bytes)| &bytes[..])));
        let found = match store.load()? {
            None => None,
            Some(bytes) => {
                let help = "remove the file to start anew, or name another";
                let (front, state) = parsed(&bytes, &identity).map_err(|what| format!("{what}; {help}"))?;
                let place = recipe.steps.iter().position(|step| step.id == front.step);
                let before = &recipe.steps[..place.unwrap_or(0)];
                let is_whole = before.iter().all(|step| front.decided.contains_key(&step.id));
                // A run that was given none may have made some.
                if front.statistics.is_some() && front.statistics != statistics {
                    return Err(format!(
                        "it belongs to a training with other calibration statistics; {help}"
                    ));
                }
                if place.is_none() || !is_whole || front.decided.len() != before.len() {
                    return Err(format!("it is no checkpoint, or a part of one; {help}"));
                }
                Some((front, state))
            }
        };
        Ok(Kept { identity, statistics, found, decided: BTreeMap::new() })
    }

    /// What a step decided before the interruption, where another one after it was at work then.
    pub(crate) fn decisions(&mut self, step: &str) -> Option<Decisions> {
        self.found.as_mut()?.0.decided.remove(step)
    }

    /// What a step is to put before its state, and the state that it left.
    pub(crate) fn of_step(&mut self, step: &str) -> (Vec<u8>, Option<Vec<u8>>) {
        let state = self.found.take_if(|(front, _)| front.step == step).map(|(_, state)| state);
        let (step, decided) = (step.to_owned(), self.decided.clone());
        let front = Front { step, decided, statistics: self.statistics };
        let text = serde_json::to_vec(&front).unwrap_or_default();
        let length = (text.len() as u64).to_le_bytes();
        ([&MAGIC[..], &self.identity, &length, &text].concat(), state)
    }

    /// Keeps what a step decided for those behind it.
    pub(crate) fn done(&mut self, step: &str, decisions: &Decisions) {
        self.decided.insert(step.to_owned(), decisions.clone());
    }
}

fn parsed(bytes: &[u8], identity: &[u8; 32]) -> Result<(Front, Vec<u8>), String> {
    let broken = || "it is no checkpoint, or a part of one".to_owned();
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or_else(broken)?;
    let (own, rest) = rest.split_first_chunk::<32>().ok_or_else(broken)?;
    let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(broken)?;
    if magic != MAGIC {
        return Err(broken());
    }
    if own != identity {
        return Err("it belongs to a training of another model, seed, recipe or options".to_owned());
    }
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| broken())?;
    let (text, state) = rest.split_at_checked(length).ok_or_else(broken)?;
    let front = serde_json::from_slice(text).map_err(|_| broken())?;
    Ok((front, state.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decided_comes_back_and_what_is_broken_is_refused() {
        let mut decided = Decisions::default();
        decided.record("widths", &vec![8, 16]).expect("a decision");
        let own = |found| Kept { identity: [7; 32], statistics: None, found, decided: BTreeMap::new() };
        let mut kept = own(None);
        kept.done("prune", &decided);
        let (mut bytes, state) = kept.of_step("learn");
        assert!(state.is_none());
        bytes.extend_from_slice(b"state");
        let (front, state) = parsed(&bytes, &[7; 32]).expect("whole");
        assert_eq!(
            (front.step.as_str(), &front.decided["prune"], &state[..]),
            ("learn", &decided, &b"state"[..])
        );
        let mut kept = own(Some((front, state)));
        assert_eq!(kept.decisions("prune"), Some(decided));
        assert_eq!(kept.decisions("learn"), None);
        assert!(kept.of_step("other").1.is_none());
        assert_eq!(kept.of_step("learn").1.as_deref(), Some(&b"state"[..]));
        assert!(parsed(&bytes, &[8; 32]).err().is_some_and(|what| what.contains("another model")));
        for length in 0..bytes.len() - 5 {
            assert!(parsed(&bytes[..length], &[7; 32]).is_err(), "{length}");
        }
    }
}
