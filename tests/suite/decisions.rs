//! What passes decide: recorded as they run, repeated from the record without data or an engine.

use optix_ir::{Model, ModelBuilder};
use optix_pipeline::runner::{self, RunError, RunOptions};
use optix_pipeline::{
    Batch, Calibration, Cx, DataError, Decisions, Family, Named, NoOracle, PackedBits, PackedFloats, Pass,
    PassError, PassSpec, Promises, Recipe, Requires, Resources,
};
use optix_runtime::{Cpu, EngineOracle};
use schemars::JsonSchema;
use serde::Deserialize;

/// Renames a node to what data say.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Decider {
    /// What it does wrong.
    fault: String,
}

impl Named for Decider {
    const NAME: &'static str = "decider";
    const FAMILY: Family = Family::Clean;
}

/// What data and engine say of themselves.
fn look(cx: &mut Cx<'_>) -> Result<String, PassError> {
    let (oracle, data) = cx.calibration()?;
    Ok(format!("{} {}", oracle.describe(), data.describe()))
}

impl Pass for Decider {
    fn requires(&self) -> Requires {
        Requires { calibration: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises::CLEAN
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let node = model.walk().next().expect("there is one");
        match self.fault.as_str() {
            "data outside" => drop(look(cx)?),
            "engine outside" => {
                let feed = ("x".to_owned(), optix_ir::Tensor::from_vec(vec![2], vec![1f32, 2.0]));
                cx.oracle().outputs(model, &[feed])?;
            }
            "twice" => {
                cx.decide("name", |_| Ok(1))?;
            }
            "within" => {
                cx.decide("outer", |cx| cx.decide("inner", |_| Ok(1)))?;
            }
            "edits" => {
                cx.decide("edit", |cx| Ok(cx.may_edit("edit")))?;
            }
            "skips" => {
                cx.decide("skip", |cx| {
                    cx.skip(model, node, "a reason");
                    Ok(1)
                })?;
            }
            "nan" => {
                cx.decide("nan", |_| Ok(f64::NAN))?;
            }
            "too few" => {
                cx.decide_each("each", &["a".to_owned(), "b".to_owned()], |_| Ok(vec![1]))?;
            }
            "same name" => {
                cx.decide_each("each", &["a".to_owned(), "a".to_owned()], |_| Ok(vec![1, 2]))?;
            }
            _ => {}
        }
        let name = cx.decide("name", look)?;
        let names = ["a".to_owned(), "b/c".to_owned()];
        let each = cx.decide_each("each", &names, |cx| {
            cx.count("looked at", 2);
            Ok(vec![0.1f32, 1.0 / 3.0])
        })?;
        let bits = cx.decide("bits", |_| Ok(PackedBits(vec![true, false, true])))?;
        let floats = cx.decide("floats", |_| Ok(PackedFloats(vec![f32::NAN, -0.0])))?;
        let floats: Vec<u32> = floats.0.iter().map(|float| float.to_bits()).collect();
        model.node_mut(node).name = format!("{name} {each:?} {bits:?} {floats:?}");
        assert_eq!(cx.is_replaying(), cx.calibration().is_err());
        Ok(())
    }
}

static PASSES: &[PassSpec] = &[PassSpec::of::<Decider>()];

struct Data;

impl Calibration for Data {
    fn describe(&self) -> String {
        "some data".to_owned()
    }

    fn batches<'a>(
        &'a self,
        _: &Model,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>, DataError> {
        Ok(Box::new(std::iter::empty()))
    }
}

/// The name of the node, what was decided and what was counted.
type Done = (String, Decisions, u64);

fn run(fault: &str, replay: Option<Decisions>) -> Result<Done, RunError> {
    let text = format!("version = 1\n[[step]]\npass = \"decider\"\nfault = \"{fault}\"\n");
    let recipe = Recipe::parse(&text, "recipe", PASSES, &[]).expect("a recipe");
    let mut model = ModelBuilder::new(15)
        .input("x", "float[2]")
        .node("Relu", ["x"], ["y"])
        .output("y", "float[2]")
        .build();
    let mut engine = EngineOracle::new(Box::new(Cpu), optix_runtime::LoadOptions::default());
    let (is_replay, mut none) = (replay.is_some(), NoOracle);
    let mut resources = Resources {
        oracle: if is_replay { &mut none } else { &mut engine },
        calibration: if is_replay { None } else { Some(&Data) },
        ..Resources::default()
    };
    let replay = replay.map(|decisions| [("decider".to_owned(), decisions)].into());
    let options = RunOptions { replay, ..RunOptions::default() };
    let steps = runner::run(&recipe, &mut model, &mut resources, &options, &mut |_, _| {})?;
    let node = model.walk().next().expect("there is one");
    let counted = steps[0].changes.counters.get("looked at").copied().unwrap_or(0);
    Ok((model.node(node).name.clone(), steps[0].decisions.clone(), counted))
}

#[test]
fn decisions_are_repeated_without_data_or_engine() {
    let (name, decisions, counted) = run("", None).expect("it works");
    assert!(name.contains("some data") && name.contains("cpu optix"), "{name}");
    let keys: Vec<&str> = decisions.keys().collect();
    assert_eq!(keys, ["bits", "each/a", "each/b/c", "floats", "name"]);
    assert_eq!(decisions.get("each/b/c"), Some("0.33333334"));
    assert_eq!(counted, 2);
    // Through text, as in a lock.
    let text = serde_json::to_string(&decisions).expect("JSON");
    let again = run("", Some(serde_json::from_str(&text).expect("JSON"))).expect("it works");
    assert_eq!(again, (name, decisions, 0));
}

#[test]
fn what_a_lock_lacks_or_has_too_much_is_the_locks_fault() {
    let (_, decisions, _) = run("", None).expect("it works");
    let text = serde_json::to_string(&decisions).expect("JSON");
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        let error =
            run("", Some(serde_json::from_str(&text.replace(from, to)).expect("JSON"))).expect_err("changed");
        assert!(!error.is_internal(), "{error}");
        error.to_string()
    };
    assert!(changed("\"each/a\"", "\"each/d\"").contains("no decision `each/a`"));
    assert!(changed("{", "{\"other\": [1],").contains("nothing asks for"));
    assert!(changed("\"3:", "\"30:").contains("`bits` of the lock cannot be used"));
    assert!(changed("0.33333334", "true").contains("`each/b/c` of the lock cannot be used"));
    // A lock of another run: nothing of what is asked for.
    assert!(run("", Some(Decisions::default())).expect_err("empty").to_string().contains("no decision"));
}

#[test]
fn what_no_lock_could_repeat_is_a_fault_of_the_pass() {
    for (fault, says) in [
        ("twice", "made twice"),
        ("within", "within another decision"),
        ("edits", "edits the model"),
        ("skips", "left alone"),
        ("nan", "cannot be recorded"),
        ("too few", "1 decisions about 2 things"),
        ("same name", "made twice"),
    ] {
        let error = run(fault, None).expect_err(fault);
        assert!(error.is_internal() && error.to_string().contains(says), "{error}");
    }
    // In a run they have all they want; found out when a lock is applied.
    for fault in ["data outside", "engine outside"] {
        let (_, decisions, _) = run(fault, None).expect("it works");
        let error = run(fault, Some(decisions)).expect_err(fault);
        assert!(error.is_internal() && error.to_string().contains("outside of its decisions"), "{error}");
    }
}
