//! Time on the engine that a model is meant for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use optix_ir::{Model, NodeId, Tensor, ValueId};
use optix_pipeline::{Deployment, KernelTime, OracleError};
use rustix::time::{ClockId, clock_gettime};

use crate::engine::{Engine, LoadOptions, Session};
use crate::error::RuntimeError;
use crate::onnxruntime::median;
use crate::oracle::Inputs;

/// Figures that every model gets at least, and at most so many seconds for that; the fewest that an interval
/// can be made of come first.
const FIGURES: (usize, usize) = (6, 12);
const FIGURES_SECONDS: f64 = 6.0;

/// Seconds of the runs behind one figure: several when they are short.
const BLOCK: f64 = 0.01;

/// Runs with a clock around every kernel.
const TIMED: (usize, usize) = (5, 40);

/// Seconds that they may take, once there are the fewest.
const TIMED_SECONDS: f64 = 0.4;

/// CPU seconds of this process so far, all threads.
pub fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Waits until the threads of whatever ran last have come to rest, half a second at most: what is measured
/// next has the machine for itself.
pub fn settle() {
    const STEP: Duration = Duration::from_millis(4);
    for _ in 0..125 {
        let (wall, cpu) = (Instant::now(), cpu_seconds());
        std::thread::sleep(STEP);
        if cpu_seconds() - cpu < 0.1 * wall.elapsed().as_secs_f64() {
            return;
        }
    }
}

/// An engine as passes that care for speed see it.
pub struct EngineDeployment {
    engine: Box<dyn Engine>,
    options: LoadOptions,
}

/// A model ready to run.
struct Ready {
    session: Box<dyn Session>,
    feeds: Vec<(ValueId, Tensor)>,
    wanted: Vec<ValueId>,
    /// Seconds of a run, roughly.
    rough: f64,
}

impl Ready {
    fn run(&mut self) -> Result<f64, RuntimeError> {
        let start = Instant::now();
        self.session.execute(&self.feeds, &self.wanted)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Median seconds of some runs one after the other.
    fn block(&mut self) -> Result<f64, RuntimeError> {
        let runs = (BLOCK / self.rough.max(1e-9)).ceil().clamp(1.0, 100.0) as usize;
        let mut seconds = (0..runs).map(|_| self.run()).collect::<Result<Vec<f64>, _>>()?;
        Ok(median(&mut seconds))
    }
}

impl EngineDeployment {
    /// An engine for its time; models are loaded with `options`.
    pub fn new(engine: Box<dyn Engine>, options: LoadOptions) -> EngineDeployment {
        EngineDeployment { engine, options }
    }

    fn ready(&self, model: &Model, feeds: &[(String, Tensor)]) -> Result<Ready, OracleError> {
        let session = self.engine.load(model, &self.options)?;
        let wanted = model.graph(model.main()).outputs().iter().map(|output| output.value).collect();
        let feeds = Inputs::of(model).by_value(feeds)?;
        let mut ready = Ready { session, feeds, wanted, rough: 0.0 };
        let mut warm_up = (0..3).map(|_| ready.run()).collect::<Result<Vec<f64>, _>>()?;
        ready.rough = median(&mut warm_up);
        Ok(ready)
    }
}

impl Deployment for EngineDeployment {
    fn describe(&self) -> String {
        let threads = match self.options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        format!("{}, {threads} threads", self.engine.version())
    }

    fn latencies(
        &mut self,
        models: &[&Model],
        feeds: &[(String, Tensor)],
        seconds: f64,
    ) -> Result<Vec<Vec<f64>>, OracleError> {
        let mut ready = models.iter().map(|model| self.ready(model, feeds)).collect::<Result<Vec<_>, _>>()?;
        let mut figures = vec![Vec::new(); ready.len()];
        let spinning = self.engine.keeps_spinning() && self.options.threads != 1;
        let start = Instant::now();
        for round in 0.. {
            let elapsed = start.elapsed().as_secs_f64();
            let enough = if elapsed < FIGURES_SECONDS { FIGURES.1 } else { FIGURES.0 };
            if round >= enough && elapsed >= seconds {
                break;
            }
            // Each model is first, second, ... equally often: whatever disturbs meets all alike.
            for turn in 0..ready.len() {
                let index = (round + turn) % ready.len();
                if spinning {
                    settle();
                }
                // The other models' data are in the caches.
                ready[index].run()?;
                let figure = ready[index].block()?;
                figures[index].push(figure);
            }
        }
        Ok(figures)
    }

    fn kernels(&mut self, model: &Model, feeds: &[(String, Tensor)]) -> Result<Vec<KernelTime>, OracleError> {
        let mut ready = self.ready(model, feeds)?;
        let mut plain = Vec::new();
        let start = Instant::now();
        let mut timed = 0;
        while timed < TIMED.0 || (timed < TIMED.1 && start.elapsed().as_secs_f64() < TIMED_SECONDS) {
            plain.push(ready.run()?);
            ready.session.run_timed(&ready.feeds, &ready.wanted)?;
            timed += 1;
        }
        let times = ready.session.take_times(median(&mut plain))?;
        let mut nodes: HashMap<String, NodeId> = HashMap::new();
        for id in model.walk() {
            let name = &model.node(id).name;
            let name = if name.is_empty() { model.describe(id) } else { name.clone() };
            nodes.entry(name).or_insert(id);
        }
        let kernel = |mut step: crate::profile::StepTimes| KernelTime {
            nodes: step.facts.nodes.iter().filter_map(|node| nodes.get(&node.name).copied()).collect(),
            op_type: step.facts.op_type,
            seconds: median(&mut step.seconds),
        };
        Ok(times.steps.into_iter().map(kernel).collect())
    }
}
