//! Kinds of load: one run after the other, several at a time, queries that arrive when they like, and as
//! much as the machine can do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use optix_base::CancelToken;
use optix_data::Latencies;
use optix_pipeline::OracleError;
use optix_pipeline::profile::Scenario;
use optix_runtime::{LoadOptions, RuntimeError, Session};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::inputs::Feeds;
use super::measure::Subject;
use super::report::latency;
use optix::cli::Load;

/// What all scenarios of a model share.
pub struct Setting<'a> {
    pub subject: &'a Subject,
    /// Path of the model.
    pub name: &'a str,
    /// Threads in all.
    pub threads: usize,
    /// Runs at the same time; one a thread unless the user says otherwise.
    pub streams: Option<usize>,
    /// Queries a second that the user asked for.
    pub arrivals: Option<f64>,
    /// How long each scenario lasts.
    pub seconds: f64,
    pub seed: u64,
    /// Feeds of the offline scenario: a batch.
    pub offline: &'a Feeds,
    pub cancel: &'a CancelToken,
}

/// Share of what the machine can do that arrives in the server scenario unless the user says otherwise.
const LOAD: f64 = 0.6;

/// Most queries of a server scenario.
const MOST_QUERIES: usize = 2_000_000;

/// What a number of streams did.
struct Outcome {
    /// Seconds of each query.
    seconds: Vec<f64>,
    /// From the start to the last answer.
    elapsed: f64,
}

impl Setting<'_> {
    /// Runs a scenario.
    pub fn run(&self, load: Load) -> anyhow::Result<Scenario> {
        let streams = self.streams.unwrap_or(self.threads).max(1);
        let each = (self.threads / streams).max(1);
        let own = &self.subject.feeds;
        match load {
            Load::SingleStream => {
                let outcome = self.closed(own, 1, self.threads, self.seconds)?;
                Ok(self.scenario("single-stream", own, 1, self.threads, None, &outcome))
            }
            Load::MultiStream => {
                let outcome = self.closed(own, streams, each, self.seconds)?;
                Ok(self.scenario("multi-stream", own, streams, each, None, &outcome))
            }
            Load::Offline => {
                let outcome = self.closed(self.offline, 1, self.threads, self.seconds)?;
                Ok(self.scenario("offline", self.offline, 1, self.threads, None, &outcome))
            }
            Load::Server => {
                let rate = match self.arrivals {
                    Some(rate) => rate,
                    None => {
                        let most = self.closed(own, streams, each, (self.seconds / 4.0).min(2.0))?;
                        LOAD * most.seconds.len() as f64 / most.elapsed.max(1e-9)
                    }
                };
                let (outcome, mut notes) = self.open(own, streams, each, rate)?;
                let mut scenario = self.scenario("server", own, streams, each, Some(rate), &outcome);
                scenario.notes.append(&mut notes);
                Ok(scenario)
            }
        }
    }

    fn scenario(
        &self,
        name: &str,
        feeds: &Feeds,
        streams: usize,
        threads: usize,
        arrivals: Option<f64>,
        outcome: &Outcome,
    ) -> Scenario {
        let batch = feeds.batch.unwrap_or(1);
        let samples = outcome.seconds.len() as f64 * batch as f64;
        Scenario {
            name: name.to_owned(),
            model: self.name.to_owned(),
            streams: streams as u64,
            threads: threads as u64,
            batch,
            arrivals_per_second: arrivals,
            samples_per_second: samples / outcome.elapsed.max(1e-9),
            latency: latency(&Latencies::new(outcome.seconds.iter().copied())),
            notes: Vec::new(),
        }
    }

    /// A session a stream, warm.
    fn sessions(
        &self,
        feeds: &Feeds,
        streams: usize,
        threads: usize,
    ) -> anyhow::Result<Vec<Box<dyn Session>>> {
        let subject = self.subject;
        let options = LoadOptions { threads, ..subject.options.clone() };
        let mut sessions = Vec::new();
        for _ in 0..streams {
            let mut session = subject.engine.load(&subject.model, &options).map_err(OracleError::from)?;
            for _ in 0..3 {
                session.execute(&feeds.feeds, &subject.wanted).map_err(OracleError::from)?;
            }
            sessions.push(session);
        }
        Ok(sessions)
    }

    /// Every stream starts its next run as soon as the last one is done.
    fn closed(&self, feeds: &Feeds, streams: usize, threads: usize, seconds: f64) -> anyhow::Result<Outcome> {
        let sessions = self.sessions(feeds, streams, threads)?;
        let (wanted, cancel) = (&self.subject.wanted, self.cancel);
        let start = Instant::now();
        let work = |mut session: Box<dyn Session>| {
            let mut own = Vec::new();
            // A few runs however long they take: one is no distribution.
            while (own.len() < 5 || start.elapsed().as_secs_f64() < seconds) && !cancel.is_cancelled() {
                let begin = Instant::now();
                session.execute(&feeds.feeds, wanted)?;
                own.push(begin.elapsed().as_secs_f64());
            }
            Ok(own)
        };
        let seconds = side_by_side(sessions, work)?;
        self.finish(seconds, start)
    }

    /// Queries arrive at random times, whoever is free takes the oldest.
    fn open(
        &self,
        feeds: &Feeds,
        streams: usize,
        threads: usize,
        rate: f64,
    ) -> anyhow::Result<(Outcome, Vec<String>)> {
        let due = arrivals(rate, self.seconds, self.seed);
        let sessions = self.sessions(feeds, streams, threads)?;
        let (wanted, cancel) = (&self.subject.wanted, self.cancel);
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        let work = |mut session: Box<dyn Session>| {
            let mut own = Vec::new();
            while let Some(&due) = due.get(next.fetch_add(1, Ordering::Relaxed)) {
                wait_until(start, due);
                if cancel.is_cancelled() {
                    break;
                }
                session.execute(&feeds.feeds, wanted)?;
                own.push(start.elapsed().as_secs_f64() - due);
            }
            Ok(own)
        };
        let outcome = self.finish(side_by_side(sessions, work)?, start)?;
        let mut notes = Vec::new();
        let behind = outcome.elapsed / due.last().copied().unwrap_or(1.0).max(1e-9);
        if behind > 1.1 && outcome.elapsed > self.seconds + 0.2 {
            notes.push(
                "queries arrived faster than they were answered: latencies grow with the time measured"
                    .to_owned(),
            );
        }
        Ok((outcome, notes))
    }

    fn finish(&self, seconds: Vec<f64>, start: Instant) -> anyhow::Result<Outcome> {
        if self.cancel.is_cancelled() {
            return Err(OracleError::Interrupted.into());
        }
        Ok(Outcome { seconds, elapsed: start.elapsed().as_secs_f64() })
    }
}

/// Runs `work` with each session on a thread of its own; all the seconds they measured.
fn side_by_side(
    sessions: Vec<Box<dyn Session>>,
    work: impl Fn(Box<dyn Session>) -> Result<Vec<f64>, RuntimeError> + Sync,
) -> anyhow::Result<Vec<f64>> {
    let work = &work;
    let results: Vec<Result<Vec<f64>, RuntimeError>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            sessions.into_iter().map(|session| scope.spawn(move || work(session))).collect();
        let failed = |_| Err(RuntimeError::Environment("a stream ended with a panic".into()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(failed)).collect()
    });
    let mut all = Vec::new();
    for result in results {
        all.extend(result.map_err(OracleError::from)?);
    }
    Ok(all)
}

/// When queries are due, in seconds from the start: a Poisson process of `rate` a second.
fn arrivals(rate: f64, seconds: f64, seed: u64) -> Vec<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut due = Vec::new();
    let mut at = 0.0;
    while due.len() < MOST_QUERIES {
        // In 0..1, never 1: the logarithm is finite.
        let unit = random.next_u32() as f64 / 4_294_967_296.0;
        at -= (1.0 - unit).ln() / rate;
        if at > seconds && !due.is_empty() {
            break;
        }
        due.push(at);
    }
    due
}

/// Sleeps until shortly before, then looks at the clock: sleeping is not exact.
fn wait_until(start: Instant, due: f64) {
    loop {
        let left = due - start.elapsed().as_secs_f64();
        if left <= 0.0 {
            return;
        }
        if left > 0.000_3 {
            std::thread::sleep(Duration::from_secs_f64(left - 0.000_2));
        } else {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_a_poisson_process() {
        let due = arrivals(1000.0, 20.0, 1);
        assert!((19_000..21_000).contains(&due.len()), "{}", due.len());
        let gaps: Vec<f64> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap >= 0.0));
        // An exponential distribution: as wide as its mean, and 1/e of it beyond the mean.
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let beyond = gaps.iter().filter(|gap| **gap > mean).count() as f64 / gaps.len() as f64;
        assert!((mean - 0.001).abs() < 0.000_05 && (beyond - 0.368).abs() < 0.02, "{mean} {beyond}");
        assert_eq!(due, arrivals(1000.0, 20.0, 1));
        assert_ne!(due, arrivals(1000.0, 20.0, 2));
    }
}
