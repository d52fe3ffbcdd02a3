//! Running models in turn and timing them.
//!
//! Measurements are blocks of runs: long enough that going from one session to another does not count.
//! Blocks of what is compared alternate, and who goes first alternates too, so that whatever else happens
//! on the machine meets both alike.

use std::time::Instant;

use anyhow::bail;
use optix_base::CancelToken;
use optix_data::Latencies;
use optix_ir::{Model, Tensor, ValueId};
use optix_pipeline::{OracleError, Progress};
use optix_runtime::{Engine, LoadOptions, Session, Times, cpu_seconds, settle, value_bytes};

use super::inputs::Feeds;
use crate::command::memory;

/// A model on an engine, ready to be measured.
pub struct Subject {
    pub engine: Box<dyn Engine>,
    pub options: LoadOptions,
    pub model: Model,
    pub feeds: Feeds,
    pub wanted: Vec<ValueId>,
    pub session: Box<dyn Session>,
    /// Seconds that loading took.
    pub load_seconds: f64,
    /// Growth of the process while it was loaded.
    pub load_growth: Option<u64>,
    /// Most bytes that computed values take at once, worked out before the first run.
    pub predicted: Option<u64>,
    /// Growth of the process at the peak of the first run.
    pub run_growth: Option<u64>,
    /// Seconds of a run, roughly.
    pub rough: f64,
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub enum Effort {
    Seconds(f64),
    Runs(u64),
}

/// Rounds that a measurement has at least.
const FEWEST_ROUNDS: usize = 6;

/// Pairs that a comparison has at least.
const FEWEST_PAIRS: usize = 10;

/// Seconds of a block: several runs when they are short.
const BLOCK: f64 = 0.01;

/// The same where changing sessions means waiting for threads to come to rest.
const LONG_BLOCK: f64 = 0.05;

/// Most timed runs: an engine may keep every event of them.
const MOST_TIMED: usize = 400;

fn check(cancel: &CancelToken) -> anyhow::Result<()> {
    if cancel.is_cancelled() { Err(OracleError::Interrupted.into()) } else { Ok(()) }
}

impl Subject {
    /// Loads a model and runs it a few times, watching memory.
    pub fn load(
        engine: Box<dyn Engine>,
        options: &LoadOptions,
        model: Model,
        feeds: Feeds,
    ) -> anyhow::Result<Subject> {
        let graph = model.graph(model.main());
        let wanted: Vec<ValueId> = graph.outputs().iter().map(|info| info.value).collect();
        if wanted.is_empty() {
            bail!("the model has no output: nothing would be computed");
        }
        let start = Instant::now();
        let (session, load_growth) = memory::growth(|| engine.load(&model, options));
        let session = session.map_err(OracleError::from)?;
        let load_seconds = start.elapsed().as_secs_f64();
        let mut subject = Subject {
            engine,
            options: options.clone(),
            model,
            feeds,
            wanted,
            session,
            load_seconds,
            load_growth: load_growth.map(|(end, _)| end),
            predicted: None,
            run_growth: None,
            rough: 0.0,
        };
        let named = |(value, tensor): &(ValueId, Tensor)| {
            (subject.model.value(*value).name().to_owned(), tensor.clone())
        };
        let sizes = value_bytes(&subject.model, &subject.feeds.feeds.iter().map(named).collect::<Vec<_>>());
        subject.predicted =
            subject.session.predicted_peak(&sizes, &subject.wanted).map_err(OracleError::from)?;
        let (first, run_growth) = memory::growth(|| subject.run());
        first?;
        subject.run_growth = run_growth.map(|(_, peak)| peak);
        subject.warm_up()?;
        Ok(subject)
    }

    /// Some runs that do not count: caches fill, pages are made, threads start.
    fn warm_up(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut seconds = Vec::new();
        while seconds.is_empty() || (seconds.len() < 20 && start.elapsed().as_secs_f64() < 0.2) {
            seconds.push(self.run()?);
        }
        self.rough = Latencies::new(seconds).median();
        Ok(())
    }

    /// Loads the model anew: where things lie in memory changes.
    fn reload(&mut self) -> anyhow::Result<()> {
        self.session = self.engine.load(&self.model, &self.options).map_err(OracleError::from)?;
        self.run()?;
        self.run()?;
        Ok(())
    }

    /// One run; its seconds.
    pub fn run(&mut self) -> anyhow::Result<f64> {
        let start = Instant::now();
        self.session.execute(&self.feeds.feeds, &self.wanted).map_err(OracleError::from)?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn run_timed(&mut self) -> anyhow::Result<()> {
        Ok(self.session.run_timed(&self.feeds.feeds, &self.wanted).map_err(OracleError::from)?)
    }

    /// Runs of a block.
    fn block_size(&self) -> usize {
        let seconds = if self.engine.keeps_spinning() { LONG_BLOCK } else { BLOCK };
        (seconds / self.rough.max(1e-9)).ceil().clamp(1.0, 200.0) as usize
    }

    /// Makes ready for a block after another session ran.
    fn take_turn(&mut self, spinning: bool) -> anyhow::Result<()> {
        if spinning {
            settle();
            self.run()?;
        }
        Ok(())
    }
}

/// What measuring one model gave.
pub struct Measured {
    /// Seconds of each plain run.
    pub plain: Latencies,
    /// CPU seconds of a run.
    pub cpu: f64,
    /// Node by node.
    pub times: Times,
}

/// Measures a model: blocks of plain runs and of runs with a clock around every node, in turn.
pub fn measure(
    subject: &mut Subject,
    effort: Effort,
    progress: &dyn Progress,
    cancel: &CancelToken,
) -> anyhow::Result<Measured> {
    let spinning = subject.engine.keeps_spinning();
    let size = match effort {
        Effort::Seconds(_) => subject.block_size(),
        Effort::Runs(runs) => {
            subject.block_size().min(usize::try_from(runs).unwrap_or(usize::MAX).div_ceil(FEWEST_ROUNDS))
        }
    }
    .max(1);
    let timed_size = size.div_ceil(4);
    // Its first timed run opens a second session, keeps accounts, allocates.
    subject.run_timed()?;
    let (mut plain, mut cpu, mut timed) = (Vec::new(), Vec::new(), 0);
    let start = Instant::now();
    let mut rounds = 0usize;
    loop {
        check(cancel)?;
        let done = match effort {
            Effort::Seconds(seconds) => {
                let elapsed = start.elapsed().as_secs_f64();
                progress.tick("measuring", (elapsed * 10.0) as u64, (seconds * 10.0) as u64);
                rounds >= FEWEST_ROUNDS && elapsed >= seconds
            }
            Effort::Runs(runs) => {
                progress.tick("measuring", plain.len() as u64, runs);
                plain.len() as u64 >= runs
            }
        };
        if done {
            break;
        }
        for part in [rounds % 2, (rounds + 1) % 2] {
            if part == 0 {
                subject.take_turn(spinning)?;
                let used = cpu_seconds();
                for _ in 0..size {
                    plain.push(subject.run()?);
                }
                cpu.push((cpu_seconds() - used) / size as f64);
            } else if timed < MOST_TIMED {
                if spinning {
                    settle();
                }
                for _ in 0..timed_size {
                    subject.run_timed()?;
                }
                timed += timed_size;
            }
        }
        rounds += 1;
    }
    let plain = Latencies::new(plain);
    let times = subject.session.take_times(plain.median()).map_err(OracleError::from)?;
    Ok(Measured { plain, cpu: Latencies::new(cpu).median(), times })
}

/// Seconds of two models' runs, in pairs of blocks one right after the other.
pub fn compare(
    first: &mut Subject,
    second: &mut Subject,
    effort: Effort,
    progress: &dyn Progress,
    cancel: &CancelToken,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let spinning = first.engine.keeps_spinning() || second.engine.keeps_spinning();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let sizes = [first.block_size(), second.block_size()];
    let mut subjects = [first, second];
    // Where its data lie makes a model a little faster or slower than its twin: that is no difference
    // between the models, so both are loaded anew as often as it can be afforded.
    let loads: f64 = subjects.iter().map(|subject| subject.load_seconds).sum();
    let seconds = match effort {
        Effort::Seconds(seconds) => seconds,
        Effort::Runs(runs) => runs as f64 * subjects.iter().map(|subject| subject.rough).sum::<f64>(),
    };
    let reloads = ((0.3 * seconds / loads.max(1e-6)) as usize).min(FEWEST_PAIRS - 1);
    let mut reloaded = 0;
    let start = Instant::now();
    let mut runs = 0u64;
    loop {
        check(cancel)?;
        let elapsed = start.elapsed().as_secs_f64();
        let share = match effort {
            Effort::Seconds(seconds) => elapsed / seconds.max(1e-9),
            Effort::Runs(wanted) => runs as f64 / wanted.max(1) as f64,
        };
        progress.tick("comparing", (share * 100.0).min(100.0) as u64, 100);
        if a.len() >= FEWEST_PAIRS && share >= 1.0 {
            return Ok((a, b));
        }
        if (share * (reloads + 1) as f64) as usize > reloaded && reloaded < reloads {
            reloaded += 1;
            // Alternately in either order: who comes first may get the better place.
            for index in if reloaded % 2 == 0 { [0, 1] } else { [1, 0] } {
                subjects[index].reload()?;
            }
        }
        let order = if a.len() % 2 == 0 { [0, 1] } else { [1, 0] };
        let mut pair = [0.0; 2];
        for index in order {
            let subject = &mut subjects[index];
            if spinning {
                settle();
            }
            // The other model's data are in the caches.
            subject.run()?;
            let mut block = Vec::with_capacity(sizes[index]);
            for _ in 0..sizes[index] {
                block.push(subject.run()?);
            }
            pair[index] = Latencies::new(block).median();
        }
        runs += sizes.iter().sum::<usize>() as u64 / 2;
        a.push(pair[0]);
        b.push(pair[1]);
    }
}
