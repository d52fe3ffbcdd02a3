//! Recipes tried in order of price until one loses little enough.
//!
//! What is lost is judged by an interval, not by a point: a candidate is good enough when even the upper end
//! of its interval is within what may be lost. The best candidate seen so far is always handed out to be kept,
//! so that a search that is cut short leaves a model.

use crate::report::Interval;

/// A candidate after it was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// What it is called.
    pub name: String,
    /// Points that are lost: of accuracy, or of agreement with the original. Negative where something is won.
    pub drop: Interval,
    /// Bytes of the model.
    pub bytes: u64,
    /// Seconds that trying it took.
    pub seconds: f64,
}

impl Trial {
    /// Whether it surely loses no more than `most` points.
    pub fn holds(&self, most: f64) -> bool {
        self.drop.high <= most
    }

    /// Whether it is worth more than another one: surely loses less, or as little with fewer bytes.
    fn is_better(&self, other: &Trial) -> bool {
        (self.drop.high, self.bytes) < (other.drop.high, other.bytes)
    }
}

/// Tries a candidate; see [`search`].
pub type Attempt<'a, C, M, E> = &'a mut dyn FnMut(&C) -> Result<Option<(Trial, M)>, E>;

/// What a search came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Search {
    /// Every candidate that could be tried, in order.
    pub trials: Vec<Trial>,
    /// The one that was kept last; none where nothing got smaller.
    pub kept: Option<usize>,
    /// Whether it holds.
    pub holds: bool,
}

/// Tries candidates in order until one loses no more than `most` points. One that is not smaller than `bytes`
/// is of no use. `attempt` tries one and gives what it made, or nothing where the candidate does not suit the
/// model; `keep` is called with each one that is better than all before.
///
/// # Errors
/// Those of `attempt` and `keep`.
pub fn search<C, M, E>(
    candidates: &[C],
    most: f64,
    bytes: u64,
    attempt: Attempt<'_, C, M, E>,
    keep: &mut dyn FnMut(&C, &Trial, M) -> Result<(), E>,
) -> Result<Search, E> {
    let mut found = Search::default();
    for candidate in candidates {
        let Some((trial, made)) = attempt(candidate)? else { continue };
        let is_useful = trial.bytes < bytes && trial.drop.high.is_finite();
        let best = found.kept.map(|kept| &found.trials[kept]);
        if is_useful && best.is_none_or(|best| trial.is_better(best)) {
            keep(candidate, &trial, made)?;
            found.kept = Some(found.trials.len());
            found.holds = trial.holds(most);
        }
        found.trials.push(trial);
        if found.holds {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(name: &str, low: f64, high: f64, bytes: u64) -> Trial {
        let drop = Interval { value: (low + high) / 2.0, low, high };
        Trial { name: name.to_owned(), drop, bytes, seconds: 0.0 }
    }

    /// Names in the order they were kept, and what came of it.
    fn searched(trials: &[Option<Trial>], most: f64) -> (Vec<String>, Search) {
        let mut kept = Vec::new();
        let found = search::<_, (), String>(
            trials,
            most,
            100,
            &mut |trial| Ok(trial.clone().map(|trial| (trial, ()))),
            &mut |_, trial, ()| {
                kept.push(trial.name.clone());
                Ok(())
            },
        );
        (kept, found.expect("nothing fails"))
    }

    #[test]
    fn the_first_that_surely_holds_ends_the_search() {
        let trials = [
            // Good at the middle of its interval is not enough.
            Some(trial("cheap", -0.5, 1.2, 30)),
            None,
            Some(trial("dearer", 0.1, 0.9, 30)),
            Some(trial("never tried", 0.0, 0.0, 30)),
        ];
        let (kept, found) = searched(&trials, 1.0);
        assert_eq!(kept, ["cheap", "dearer"]);
        assert!(found.holds);
        assert_eq!((found.kept, found.trials.len()), (Some(1), 2));
    }

    #[test]
    fn the_best_is_kept_where_none_holds() {
        let trials = [
            Some(trial("bad", 2.0, 4.0, 30)),
            Some(trial("best", 1.0, 2.0, 30)),
            Some(trial("worse", 1.5, 3.0, 20)),
            Some(trial("not smaller", 0.0, 0.0, 100)),
            Some(trial("broken", 0.0, f64::INFINITY, 10)),
            Some(trial("as good and smaller", 0.5, 2.0, 29)),
        ];
        let (kept, found) = searched(&trials, 1.0);
        assert_eq!(kept, ["bad", "best", "as good and smaller"]);
        assert!(!found.holds);
        assert_eq!(found.kept, Some(5));
        assert_eq!(searched(&[None, None], 1.0).1, Search::default());
    }
}
