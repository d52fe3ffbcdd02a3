//! Samples through sessions: batches are prepared ahead on a thread of their own, several are at work at
//! once where the engine can share a loaded model, and results are shown in the order of the data.
//!
//! What is in memory is bounded: a batch is prepared only when an earlier one has been looked at. Results
//! do not depend on the number of threads, because the batches do not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use optix_base::CancelToken;
use optix_ir::{Model, Tensor, ValueId};
use optix_pipeline::{Batch, Bound, DataError, OracleError};

use crate::engine::{Engine, LoadOptions, Session};
use crate::engines::thread_count;
use crate::guard::guarded;
use crate::oracle::Inputs;
use crate::parts::AtOnce;

/// Batches that are ready or being prepared while the workers are busy.
const AHEAD: usize = 2;

/// How often a waiting stream looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(50);

/// A model in a stream: loaded, with the values that are looked at.
pub struct Lane<'m> {
    model: &'m Model,
    inputs: Inputs,
    wanted: Vec<ValueId>,
    /// The loaded model, with all threads.
    session: Hand,
    /// Sessions on the same loaded model, one a thread; empty where the engine has none.
    workers: Vec<Hand>,
}

/// A session, and how many samples it has had memory for.
struct Hand {
    session: Box<dyn Session>,
    at_once: AtOnce,
}

impl Hand {
    fn new(session: Box<dyn Session>) -> Hand {
        Hand { session, at_once: AtOnce::default() }
    }
}

impl<'m> Lane<'m> {
    /// Loads a model.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn new(
        engine: &dyn Engine,
        options: &LoadOptions,
        model: &'m Model,
        wanted: Vec<ValueId>,
    ) -> Result<Lane<'m>, OracleError> {
        let session = engine.load(model, options)?;
        let workers = match thread_count(options.threads) {
            1 => Vec::new(),
            threads => (0..threads).map_while(|_| session.fork().map(Hand::new)).collect(),
        };
        let session = Hand::new(session);
        Ok(Lane { model, inputs: Inputs::of(model), wanted, session, workers })
    }

    /// The values that are looked at, in the order of the results.
    pub fn wanted(&self) -> &[ValueId] {
        &self.wanted
    }

    /// Looks at other values from now on.
    pub fn want(&mut self, wanted: Vec<ValueId>) {
        self.wanted = wanted;
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// The wanted values of one batch.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run(&mut self, batch: &Batch) -> Result<Vec<Tensor>, OracleError> {
        run(&self.inputs, &self.wanted, &mut self.session, batch)
    }

    /// What a user should know of the runs so far: nodes that ran beside the device, batches that did not
    /// fit.
    pub fn remarks(&self) -> Vec<String> {
        let placement = self.session.session.placement().map(|placement| placement.to_string());
        placement.into_iter().chain(self.session.at_once.remark()).collect()
    }
}

fn run(
    inputs: &Inputs,
    wanted: &[ValueId],
    hand: &mut Hand,
    batch: &Batch,
) -> Result<Vec<Tensor>, OracleError> {
    let feeds = inputs.by_value(&batch.feeds)?;
    Ok(hand.at_once.run(&mut *hand.session, &feeds, wanted, batch.count)?)
}

/// A batch and what every lane gave for it, in the lanes' order.
pub type Outcome = (Batch, Vec<Vec<Tensor>>);

/// Looks at a batch and what every lane gave for it.
pub type Look<'a> = &'a mut dyn FnMut(&Batch, &[Vec<Tensor>]) -> Result<(), OracleError>;

/// Runs every lane over all batches and shows `look` each batch with its results, in order. `first` is the
/// first batch's outcome, where it is known already. Returns the number of samples.
///
/// # Errors
/// The first error in the order of the batches; [`OracleError::Interrupted`] when cancelled.
pub fn stream(
    lanes: &mut [Lane<'_>],
    bound: &Bound,
    first: Option<Outcome>,
    cancel: &CancelToken,
    look: Look<'_>,
) -> Result<u64, OracleError> {
    let mut batches = bound.batches()?;
    let mut samples = 0;
    if let Some((batch, outputs)) = first {
        if let Some(again) = batches.next() {
            again?;
        }
        look(&batch, &outputs)?;
        samples += batch.count as u64;
    }
    // Threads over samples, where there are enough batches to keep them busy to the end.
    let spread = lanes.iter().map(|lane| lane.workers.len()).min().unwrap_or(0);
    let left =
        bound.len().map_or(u64::MAX, |all| (all - samples.min(all)).div_ceil(bound.batch_size() as u64));
    let crews: Vec<Crew<'_>> = if spread > 1 && left >= 2 * spread as u64 {
        let mut crews: Vec<Crew<'_>> = (0..spread).map(|_| Vec::new()).collect();
        for lane in lanes {
            let parts = crews.iter_mut().zip(&mut lane.workers);
            parts.for_each(|(crew, session)| crew.push((&lane.inputs, &lane.wanted[..], session)));
        }
        crews
    } else {
        vec![lanes.iter_mut().map(|lane| (&lane.inputs, &lane.wanted[..], &mut lane.session)).collect()]
    };
    Ok(samples + spread_out(crews, batches, cancel, look)?)
}

/// A session of every lane.
type Crew<'s> = Vec<(&'s Inputs, &'s [ValueId], &'s mut Hand)>;

/// A batch's number and what came of it.
type Numbered = (u64, Result<Outcome, OracleError>);

fn spread_out(
    crews: Vec<Crew<'_>>,
    batches: impl Iterator<Item = Result<Batch, DataError>> + Send,
    cancel: &CancelToken,
    look: Look<'_>,
) -> Result<u64, OracleError> {
    let stop = AtomicBool::new(false);
    let (queue, tickets) = channel::<(u64, Batch)>();
    let tickets = Mutex::new(tickets);
    let (allow, allowed) = channel::<()>();
    let (results, finished) = channel::<Numbered>();
    let credits = crews.len() + AHEAD;
    std::thread::scope(|scope| {
        // Owned here: when this ends, in whatever way, those who wait for more are woken.
        let allow = allow;
        (0..credits).for_each(|_| _ = allow.send(()));
        let (stop, tickets) = (&stop, &tickets);
        let done = results.clone();
        scope.spawn(move || produce(batches, &allowed, &queue, &done, stop));
        for crew in crews {
            let done = results.clone();
            scope.spawn(move || work(crew, tickets, &done, stop));
        }
        drop(results);
        let seen = collect(&finished, &allow, cancel, look);
        stop.store(true, Ordering::Relaxed);
        seen
    })
}

/// Prepares batches as long as somebody wants more.
fn produce(
    mut batches: impl Iterator<Item = Result<Batch, DataError>>,
    allowed: &Receiver<()>,
    queue: &Sender<(u64, Batch)>,
    done: &Sender<Numbered>,
    stop: &AtomicBool,
) {
    let mut number = 0;
    while allowed.recv().is_ok() && !stop.load(Ordering::Relaxed) {
        let next = guarded(|| batches.next()).unwrap_or_else(|what| {
            let what = format!("while data were prepared: {what}");
            done.send((number, Err(OracleError::Internal { node: "the data".into(), what, case: None })))
                .ok();
            None
        });
        let sent = match next {
            Some(Ok(batch)) => queue.send((number, batch)).is_ok(),
            Some(Err(error)) => {
                done.send((number, Err(error.into()))).ok();
                false
            }
            None => false,
        };
        if !sent {
            return;
        }
        number += 1;
    }
}

/// Runs batches until there are no more.
fn work(
    mut crew: Crew<'_>,
    tickets: &Mutex<Receiver<(u64, Batch)>>,
    done: &Sender<Numbered>,
    stop: &AtomicBool,
) {
    loop {
        let next = tickets.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, batch)) = next else { return };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let outputs = guarded(|| {
            let parts = crew.iter_mut();
            parts.map(|(inputs, wanted, session)| run(inputs, wanted, session, &batch)).collect()
        });
        let outputs: Result<Vec<Vec<Tensor>>, OracleError> = outputs.unwrap_or_else(|what| {
            Err(OracleError::Internal { node: "the engine".into(), what, case: None })
        });
        if done.send((number, outputs.map(|outputs| (batch, outputs)))).is_err() {
            return;
        }
    }
}

/// Shows results in order.
fn collect(
    finished: &Receiver<Numbered>,
    allow: &Sender<()>,
    cancel: &CancelToken,
    look: Look<'_>,
) -> Result<u64, OracleError> {
    let (mut samples, mut next) = (0, 0);
    let mut waiting = BTreeMap::new();
    loop {
        if cancel.is_cancelled() {
            return Err(OracleError::Interrupted);
        }
        match finished.recv_timeout(LOOK) {
            Ok((number, result)) => {
                waiting.insert(number, result);
            }
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(samples),
        }
        while let Some(result) = waiting.remove(&next) {
            next += 1;
            let (batch, outputs) = result?;
            look(&batch, &outputs)?;
            samples += batch.count as u64;
            // Nobody there any more: everything is prepared.
            allow.send(()).ok();
        }
    }
}
