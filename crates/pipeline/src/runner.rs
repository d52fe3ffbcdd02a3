//! The runner: checks what passes need, runs them, and holds them to their promises.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use optix_base::Limits;
use optix_ir::{Model, NodeId};

use crate::check;
use crate::checkpoint::Kept;
use crate::context::{Cx, Resources};
use crate::decisions::Decisions;
use crate::oracle::OracleError;
use crate::pass::{Interface, Numerics, PassError, Topology};
use crate::recipe::{Recipe, Step};
use crate::report::StepReport;

/// How to run; the command line's global flags.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Verify the model after every pass.
    pub verify_each: bool,
    /// Compare results on random inputs after every pass that promises numerics.
    pub check: bool,
    /// Print the model's text after this pass (by id), or after `all`.
    pub print_after: Option<String>,
    /// Write the model after every pass into this directory, `NN-id.onnx`.
    pub dump_dir: Option<PathBuf>,
    /// Apply only so many rewrites over all steps, to bisect.
    pub stop_after_patch: Option<u64>,
    /// Where to leave a reproducer when a pass is at fault (never for bad input); none to leave none.
    pub reproducer_dir: Option<PathBuf>,
    /// The command line, for the reproducer.
    pub command: String,
    /// Limits on what the model may make a pass do.
    pub limits: Limits,
    /// Decisions by id of the step, to be repeated instead of made anew: no step needs data or an engine then.
    pub replay: Option<BTreeMap<String, Decisions>>,
}

impl Default for RunOptions {
    fn default() -> Self {
        RunOptions {
            verify_each: true,
            check: false,
            print_after: None,
            dump_dir: None,
            stop_after_patch: None,
            reproducer_dir: None,
            command: String::new(),
            limits: Limits::default(),
            replay: None,
        }
    }
}

/// What went wrong with a step.
#[derive(Debug, thiserror::Error)]
pub enum StepFault {
    /// The pass gave up.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// What the pass needs is not there.
    #[error("{0}")]
    Requires(String),
    /// The model is not valid after the pass: a bug of the pass.
    #[error("the model is invalid after this pass:\n  {}", .0.join("\n  "))]
    Invalid(Vec<String>),
    /// The pass broke a promise: a bug of the pass.
    #[error("the pass broke its promise: {0}")]
    Promise(String),
    /// Checking its results failed.
    #[error("checking results: {0}")]
    Check(#[from] OracleError),
    /// The model could not be written to the dump directory.
    #[error("writing a dump: {0}")]
    Dump(#[from] optix_io::IoError),
    /// The dump directory cannot be made.
    #[error("the dump directory {0} cannot be made: {1}")]
    Directory(String, std::io::Error),
}

/// A run that failed.
#[derive(Debug, thiserror::Error)]
#[error("step `{step}`: {fault}{}", reproducer_note(.reproducer))]
pub struct RunError {
    /// Id of the step.
    pub step: String,
    /// What went wrong.
    pub fault: Box<StepFault>,
    /// Directory with what it takes to see it again.
    pub reproducer: Option<PathBuf>,
}

fn reproducer_note(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or_else(String::new, |path| {
        format!("\n  to see it again: {} (model, recipe, command line)", path.display())
    })
}

impl RunError {
    /// Whether this is a fault of optix and not of the input.
    pub fn is_internal(&self) -> bool {
        self.fault.is_internal()
    }
}

impl StepFault {
    fn is_internal(&self) -> bool {
        matches!(
            self,
            StepFault::Invalid(_)
                | StepFault::Promise(_)
                | StepFault::Pass(
                    PassError::Patch(_)
                        | PassError::Edit(_)
                        | PassError::Oracle(OracleError::Internal { .. } | OracleError::Replaying)
                )
                | StepFault::Check(OracleError::Internal { .. })
        ) || matches!(self, StepFault::Pass(PassError::Decision(error)) if error.is_internal())
    }
}

/// Runs all steps of a recipe over a model.
///
/// `printed` gets the text of the model where `--print-after` asks for it.
///
/// # Errors
/// At the first step that fails; the model is then in the state before that step.
pub fn run(
    recipe: &Recipe,
    model: &mut Model,
    resources: &mut Resources<'_>,
    options: &RunOptions,
    printed: &mut dyn FnMut(&str, String),
) -> Result<Vec<StepReport>, RunError> {
    let fail = |step: &Step, fault: StepFault| RunError {
        step: step.id.clone(),
        fault: Box::new(fault),
        reproducer: None,
    };
    for step in &recipe.steps {
        check_requires(step, resources, options).map_err(|what| fail(step, StepFault::Requires(what)))?;
    }
    let mut patches_left = options.stop_after_patch.unwrap_or(u64::MAX);
    let mut reports = Vec::new();
    let mut float: Option<Model> = None;
    // Whoever learns without a teacher of its own learns from what came in.
    let learner = recipe.steps.iter().find(|step| step.pass.wants_teacher());
    let original = (learner.is_some() && resources.teacher.is_none()).then(|| model.clone());
    let mut checkpoint = match (&mut resources.checkpoint, learner) {
        (Some(store), Some(learner)) => Some(
            Kept::open(recipe, model, resources.statistics.as_deref(), &mut **store)
                .map_err(|what| fail(learner, StepFault::Requires(format!("--checkpoint: {what}"))))?,
        ),
        _ => None,
    };
    for (index, step) in recipe.steps.iter().enumerate() {
        let before = model.clone();
        // Kept no longer than it is wanted.
        let is_wanted = recipe.steps[index..].iter().any(|step| step.pass.wants_float());
        let kept = (&mut float, is_wanted && options.replay.is_none());
        let behind = (&mut checkpoint, original.as_ref());
        match run_step(step, model, behind, resources, options, &mut patches_left, kept) {
            Ok(report) => reports.push(report),
            Err(fault) => {
                // Bad data or options need no reproducer: whoever gave them has them.
                let reproducer = options
                    .reproducer_dir
                    .as_deref()
                    .filter(|_| fault.is_internal())
                    .and_then(|dir| write_reproducer(dir, recipe, step, &before, &options.command).ok());
                *model = before;
                return Err(RunError { step: step.id.clone(), fault: Box::new(fault), reproducer });
            }
        }
        if let Some(dir) = &options.dump_dir {
            let name: String =
                step.id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            let path = dir.join(format!("{index:02}-{name}.onnx"));
            std::fs::create_dir_all(dir)
                .map_err(|error| StepFault::Directory(dir.display().to_string(), error))
                .and_then(|()| Ok(optix_io::save(model, &path, &optix_io::SaveOptions::default())?))
                .map_err(|fault| fail(step, fault))?;
        }
        if options.print_after.as_deref().is_some_and(|wanted| wanted == "all" || wanted == step.id) {
            printed(&step.id, optix_ir::text::print(model));
        }
    }
    Ok(reports)
}

fn check_requires(step: &Step, resources: &Resources<'_>, options: &RunOptions) -> Result<(), String> {
    let has_decisions = options.replay.is_some();
    let has_statistics = resources.statistics.as_ref().is_some_and(|kept| !kept.given().is_empty());
    let has_data =
        resources.calibration.is_some() || has_decisions || (has_statistics && step.pass.reads_statistics());
    if step.pass.requires().calibration && !has_data {
        if has_statistics {
            return Err(format!(
                "pass `{}` looks at calibration data themselves, statistics of them do not do: give `--calib PATH` too",
                step.spec.name
            ));
        }
        return Err(format!(
            "pass `{}` needs calibration data: give `--calib PATH` or `[data] calib` in the recipe",
            step.spec.name
        ));
    }
    Ok(())
}

fn run_step(
    step: &Step,
    model: &mut Model,
    (checkpoint, original): (&mut Option<Kept>, Option<&Model>),
    resources: &mut Resources<'_>,
    options: &RunOptions,
    patches_left: &mut u64,
    (float, is_wanted): (&mut Option<Model>, bool),
) -> Result<StepReport, StepFault> {
    let started = Instant::now();
    let before = model.clone();
    let requires = step.pass.requires();
    if requires.opset > 0 {
        let version = model.opset_version(model.main(), "").unwrap_or(0);
        if version < requires.opset {
            return Err(StepFault::Requires(format!(
                "pass `{}` needs operator set {} and the model is written in {version}: put a step `convert-opset` before it",
                step.spec.name, requires.opset
            )));
        }
    }
    if requires.inferred_types {
        optix_ir::infer::infer(model, &check::OpsEvaluator);
    }
    let (changes, decisions) = {
        let mut cx = Cx::new(resources, options.limits, patches_left);
        cx.lend_teacher(original);
        if let Some(decisions) = &options.replay {
            cx.replay(decisions.get(&step.id).cloned().unwrap_or_default());
        }
        let mut is_resumed = false;
        if let Some(checkpoint) = checkpoint {
            match checkpoint.decisions(&step.id) {
                Some(decisions) => {
                    if !decisions.is_empty() {
                        cx.note("what it decided before the interruption was taken from the checkpoint");
                    }
                    cx.replay(decisions);
                    is_resumed = true;
                }
                None if step.pass.wants_teacher() => cx.lend_checkpoint(checkpoint.of_step(&step.id)),
                None => {}
            }
        }
        cx.lend_float(float.take().filter(|_| is_wanted), is_wanted);
        let run = step.pass.run(model, &mut cx);
        let finished = run.and_then(|()| cx.finish().map_err(PassError::from));
        let (changes, decisions, kept) = finished.map_err(|error| match error {
            PassError::Decision(error) if is_resumed && !error.is_internal() => StepFault::Requires(format!(
                "--checkpoint: {}; remove the file to start anew, or name another",
                error.to_string().replace("the lock", "the checkpoint")
            )),
            error => error.into(),
        })?;
        *float = kept;
        if let Some(checkpoint) = checkpoint {
            checkpoint.done(&step.id, &decisions);
        }
        (changes, decisions)
    };
    if options.verify_each {
        let violations = optix_ir::verify::verify(model);
        if !violations.is_empty() {
            return Err(StepFault::Invalid(violations.iter().take(20).map(ToString::to_string).collect()));
        }
    }
    let promises = step.pass.promises();
    check_interface(&before, model, promises.interface).map_err(StepFault::Promise)?;
    if promises.topology == Topology::Kept {
        check_topology(&before, model).map_err(StepFault::Promise)?;
    }
    // The check is not the pass's time.
    let seconds = started.elapsed().as_secs_f64();
    let mut checked_difference = None;
    if options.check {
        let bound = match promises.numerics {
            Numerics::Exact => Some(0.0),
            Numerics::Within(bound) => Some(bound),
            Numerics::Lossy => None,
        };
        if let Some(bound) = bound {
            let difference = check::difference(resources.oracle, &before, model, resources.seed);
            let difference = difference.map_err(|error| match error {
                OracleError::Node { node, what } => StepFault::Promise(format!(
                    "on random inputs that the model before it takes, node {node} fails: {what}"
                )),
                error => StepFault::Check(error),
            })?;
            checked_difference = Some(difference);
            if difference > bound {
                return Err(StepFault::Promise(format!(
                    "outputs on random inputs differ by {difference:.3e} of the greatest, the promise is {bound:.0e}"
                )));
            }
        }
    }
    Ok(StepReport {
        id: step.id.clone(),
        pass: step.spec.name.to_owned(),
        changes,
        nodes: [before.walk().count() as u64, model.walk().count() as u64],
        tensor_bytes: [before.tensor_bytes(), model.tensor_bytes()],
        seconds,
        checked_difference,
        decisions,
    })
}

fn check_interface(before: &Model, after: &Model, promise: Interface) -> Result<(), String> {
    let list = |model: &Model| {
        let graph = model.graph(model.main());
        let all = graph
            .inputs()
            .iter()
            .map(|info| ("input", info))
            .chain(graph.outputs().iter().map(|info| ("output", info)));
        // Files of IR version 3 had to list constants as inputs: their types are no interface.
        let is_constant = |value| before.ir_version < 4 && model.value(value).initializer().is_some();
        all.map(|(kind, info)| {
            let ty = info.ty.clone().filter(|_| !is_constant(info.value));
            (kind, model.value(info.value).name().to_owned(), ty)
        })
        .collect::<Vec<_>>()
    };
    let (old, new) = (list(before), list(after));
    if old.len() != new.len() {
        return Err(format!("the model had {} inputs and outputs and has {}", old.len(), new.len()));
    }
    for (old, new) in old.iter().zip(&new) {
        if (old.0, &old.1) != (new.0, &new.1) {
            return Err(format!("{} `{}` became {} `{}`", old.0, old.1, new.0, new.1));
        }
        if promise == Interface::Kept && old.2 != new.2 {
            return Err(format!("the type of {} `{}` changed", old.0, old.1));
        }
    }
    Ok(())
}

fn check_topology(before: &Model, after: &Model) -> Result<(), String> {
    let list = |model: &Model| -> Vec<NodeId> { model.walk().collect() };
    let (old, new) = (list(before), list(after));
    let same = old.len() == new.len()
        && old.iter().zip(&new).all(|(&a, &b)| {
            let (a, b) = (before.node(a), after.node(b));
            a.op_type == b.op_type && a.domain() == b.domain() && a.inputs().len() == b.inputs().len()
        });
    if same { Ok(()) } else { Err("nodes changed, though only weights were to".to_owned()) }
}

/// Writes what it takes to see a failure again: the model, a recipe of one step, the command line.
fn write_reproducer(
    dir: &Path,
    recipe: &Recipe,
    step: &Step,
    model: &Model,
    command: &str,
) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let name: String = step.id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let mut number = 1;
    let target = loop {
        let target = dir.join(format!("optix-reproducer-{name}-{number}"));
        if !target.exists() {
            break target;
        }
        number += 1;
    };
    std::fs::create_dir_all(&target)?;
    optix_io::save(model, &target.join("model.onnx"), &optix_io::SaveOptions::default())?;
    std::fs::write(target.join("recipe.toml"), recipe.step_toml(step))?;
    std::fs::write(target.join("command.txt"), format!("{command}\n"))?;
    Ok(target)
}
