//! One file a subcommand.

mod apply;
mod ceiling;
mod checkpoint;
mod compare;
mod data;
mod distill;
mod engines;
mod eval;
mod evaluation;
mod explain;
mod flags;
mod infer;
mod inspect;
mod latency;
mod lock;
mod memory;
mod pairs;
mod passes;
mod precision;
mod profile;
mod prune;
mod quantize;
mod quantize_auto;
mod recipes;
mod run;
mod scratch;
mod setup;
mod signatures;
mod statistics;
mod targets;

use anyhow::Context;
use clap::CommandFactory;

use optix::cli::{Cli, Command};

/// Runs the command that was typed.
pub fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    let global = &cli.global;
    match &cli.command {
        Command::Inspect { model, json, text } => inspect::inspect(global, model, *json, *text),
        Command::Run { recipe, model, set, output, data, debugging } => {
            run::run(global, recipe, model, set, output, data, debugging)
        }
        Command::Quantize(options) => quantize::quantize(global, options),
        Command::QuantizeAuto { model, max_drop, tune, tune_samples, exclude, output, data, debugging } => {
            let options = quantize_auto::Options {
                max_drop: *max_drop,
                tune: tune.as_deref(),
                tune_samples: *tune_samples,
                exclude,
            };
            quantize_auto::quantize_auto(global, model, &options, output, data, debugging)
        }
        Command::Apply { lock, model, output, in_place } => {
            apply::apply(global, lock, model, output.as_deref(), *in_place)
        }
        Command::Prune(options) => prune::prune(global, options),
        Command::Distill(options) => distill::distill(global, options),
        Command::Precision {
            model,
            float_type,
            weights_only,
            keep_io,
            include,
            include_operator,
            exclude,
            exclude_operator,
            min_sqnr_db,
            set,
            output,
            data,
            debugging,
        } => {
            let options = precision::Options {
                float_type: float_type.as_deref(),
                weights_only: *weights_only,
                keep_io: *keep_io,
                include,
                include_operators: include_operator,
                exclude,
                exclude_operators: exclude_operator,
                min_sqnr_db: *min_sqnr_db,
            };
            precision::precision(global, model, &options, set, output, data, debugging)
        }
        Command::Infer { model, data, output, want, samples, together } => {
            infer::infer(global, model, data, output, want, *samples, together.batch.0)
        }
        Command::Eval {
            model,
            data,
            metric,
            output,
            vs,
            train,
            samples,
            together,
            memory,
            require,
            report,
            json,
        } => {
            let options = eval::Options {
                model,
                data,
                metrics: metric,
                output: output.as_deref(),
                vs: vs.as_deref(),
                train: train.as_deref(),
                samples: *samples,
                batch: together.batch.0,
                ceiling: memory.max_memory.map(|size| ceiling::Ceiling { bytes: size.0 }),
                require,
                report,
                json: *json,
            };
            eval::eval(global, &options)
        }
        Command::Profile(options) => profile::profile(global, options),
        Command::Compare { a, b, data, vs_engine, samples, together, tolerance, json } => {
            let options = compare::Options {
                a,
                b: b.as_deref().unwrap_or(a),
                data,
                vs_engine: vs_engine.as_deref(),
                samples: *samples,
                batch: together.batch.0,
                tolerance: *tolerance,
                json: *json,
            };
            compare::compare(global, &options)
        }
        Command::Data { command } => data::data(global, command),
        Command::Passes { name } => passes::passes(name.as_deref()),
        Command::Recipes { name } => recipes::recipes(name.as_deref()),
        Command::Targets { command } => targets::targets(global, command.as_ref()),
        Command::Engines { json } => engines::engines(&cli.global, *json),
        Command::Explain { code } => explain::explain(code.as_deref()),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "optix", &mut text);
            crate::screen::result(&String::from_utf8(text).context("completions are text")?)
        }
    }
}
