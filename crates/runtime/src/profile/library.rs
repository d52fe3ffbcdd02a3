//! The profile that onnxruntime writes: a list of events in Chrome's trace format, one a kernel that ran.
//!
//! Events of graphs inside a node lie within its time and count inside it. What the library says of a
//! kernel is kept: its operator may be one of the library's own (`ReorderOutput`, `FusedConv`), and one
//! kernel may stand for several nodes of the model.

use std::collections::HashMap;

use optix_ir::{Model, Node, NodeId, ValueId};
use serde_json::Value;

use super::cost::{Shapes, flops};
use super::{NodeFacts, Ran, StepFacts, StepTimes, Times};

/// An event, in microseconds since the profile began.
struct Event<'a> {
    at: f64,
    duration: f64,
    name: &'a str,
    arguments: &'a Value,
}

impl Event<'_> {
    fn end(&self) -> f64 {
        self.at + self.duration
    }
}

/// What profiling adds to each event, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Overhead {
    /// Inside the duration that it reports.
    pub inside: f64,
    /// Around it: part of a node with bodies, when the event lies in one of them.
    pub around: f64,
}

/// Durations are cut to whole microseconds: on average so much is missing.
const CUT: f64 = 0.5;

/// The events of a profile, as far as they matter here: the runs, and the kernels in order.
pub(crate) struct Profile {
    document: Value,
}

impl Profile {
    /// Reads the text of a profile.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Profile, String> {
        let document = serde_json::from_str(text).map_err(|error| error.to_string())?;
        Ok(Profile { document })
    }

    fn events(&self, wanted: impl Fn(&str, &Value) -> bool) -> Vec<Event<'_>> {
        let all = self.document.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut events: Vec<Event<'_>> = all
            .iter()
            .filter_map(|event| {
                let (name, arguments) = (event.get("name")?.as_str()?, event.get("args")?);
                let (at, duration) = (event.get("ts")?.as_f64()?, event.get("dur")?.as_f64()?);
                wanted(name, arguments).then_some(Event { at, duration, name, arguments })
            })
            .collect();
        // An event comes before those inside it.
        events.sort_by(|a, b| a.at.total_cmp(&b.at).then(b.duration.total_cmp(&a.duration)));
        events
    }

    fn runs(&self) -> Vec<Event<'_>> {
        self.events(|name, _| name == "model_run")
    }

    fn kernels(&self) -> Vec<Event<'_>> {
        self.events(|name, arguments| name.ends_with("_kernel_time") && arguments.get("op_name").is_some())
    }

    /// Median duration of a kernel in seconds, as reported, and kernels a run: what overhead is judged by.
    pub(crate) fn typical(&self) -> Option<(f64, f64)> {
        let mut durations: Vec<f64> = self.kernels().iter().map(|event| event.duration).collect();
        let runs = self.runs().len();
        if durations.is_empty() || runs == 0 {
            return None;
        }
        let each = durations.len() as f64 / runs as f64;
        durations.sort_by(f64::total_cmp);
        Some(((durations[durations.len() / 2] + CUT) * 1e-6, each))
    }

    /// What the profile tells of a model's runs, the first `skipped` of them left out. `overhead` is taken
    /// off every kernel's time.
    pub(crate) fn times(&self, model: &Model, skipped: usize, overhead: Overhead) -> Times {
        let kernels = self.kernels();
        let names = Names::new(model);
        let mut times = Times { clock: overhead.inside, ..Times::default() };
        let mut known: HashMap<(&str, &str, usize), usize> = HashMap::new();
        let mut next = kernels.iter().peekable();
        let mut peak: Option<f64> = None;
        for (number, run) in self.runs().iter().enumerate() {
            let mut seen: HashMap<(&str, &str), usize> = HashMap::new();
            let mut in_use_before: Option<f64> = None;
            while next.peek().is_some_and(|event| event.at < run.at) {
                next.next();
            }
            while let Some(event) = next.next_if(|event| event.at < run.end()) {
                let mut inner = 0usize;
                while next.next_if(|inside| inside.at < event.end()).is_some() {
                    inner += 1;
                }
                let held = |key: &str| event.arguments.get(key)?.as_str()?.parse::<f64>().ok();
                let before =
                    held("mem_bytes_in_use").zip(held("mem_in_use_delta")).map(|(now, new)| now - new);
                let before = *in_use_before.get_or_insert(before.unwrap_or(f64::NAN));
                if let Some(most) = held("mem_in_use_peak").map(|most| most - before)
                    && most >= 0.0
                {
                    peak = Some(peak.map_or(most, |peak| peak.max(most)));
                }
                if number < skipped {
                    continue;
                }
                let index = event.arguments.get("node_index").and_then(Value::as_str).unwrap_or_default();
                let turn = seen.entry((event.name, index)).or_default();
                let place = *known.entry((event.name, index, *turn)).or_insert_with(|| {
                    let facts = facts(event, &names);
                    times.steps.push(StepTimes { facts, seconds: Vec::new(), at: Vec::new() });
                    times.steps.len() - 1
                });
                *turn += 1;
                let overhead = overhead.inside + inner as f64 * (overhead.inside + overhead.around);
                let step = &mut times.steps[place];
                // Runs that did not come here.
                step.seconds.resize(number - skipped, 0.0);
                step.at.resize(number - skipped, 0.0);
                step.seconds.push(((event.duration + CUT) * 1e-6 - overhead).max(0.0));
                step.at.push((event.at - run.at) * 1e-6);
            }
        }
        let count = self.runs().len().saturating_sub(skipped);
        for step in &mut times.steps {
            step.seconds.resize(count, 0.0);
            step.at.resize(count, 0.0);
        }
        times.activations = peak.map(|peak| peak as u64);
        times
    }
}

/// Nodes and values of a model by name.
struct Names<'m> {
    model: &'m Model,
    nodes: HashMap<&'m str, NodeId>,
    producers: HashMap<&'m str, NodeId>,
}

impl<'m> Names<'m> {
    fn new(model: &'m Model) -> Names<'m> {
        let nodes = model.walk().map(|id| (model.node(id).name.as_str(), id)).collect();
        let producers = model.values().filter_map(|id| {
            let value = model.value(id);
            Some((value.name(), value.producer()?.0))
        });
        Names { model, nodes, producers: producers.collect() }
    }

    /// The nodes that a kernel of that name and operator computes, the one with the weights first.
    fn of(&self, name: &str, op: &str) -> Vec<NodeId> {
        if let Some(&node) = self.nodes.get(name) {
            return vec![node];
        }
        // What the library adds to the names of nodes that it has rewritten or copied.
        let name = name.split_once("_token_").map_or(name, |(name, _)| name);
        let name = name.strip_prefix("fused ").unwrap_or(name);
        let name = ["/duplicated", "/MatMulAddFusion"]
            .iter()
            .fold(name, |name, end| name.strip_suffix(end).unwrap_or(name));
        if let Some(&node) = self.nodes.get(name) {
            return vec![node];
        }
        // Of the blocked layout: named after the value that comes out behind the fused activation.
        let Some(mut node) = name.strip_suffix("_nchwc").and_then(|value| self.producers.get(value)).copied()
        else {
            return Vec::new();
        };
        let mut fused = vec![node];
        while self.model.node(node).op_type != op {
            let above = self.model.node(node).input(0).and_then(|value| self.model.value(value).producer());
            match above {
                Some((above, _)) if fused.len() < 4 => node = above,
                _ => return vec![fused[0]],
            }
            fused.insert(0, node);
        }
        fused
    }

    fn shape(&self, value: ValueId) -> Option<Vec<usize>> {
        Some(self.model.value(value).constant()?.shape().to_vec())
    }
}

/// `[{"float": [1, 8]}, ...]` as type names and shapes.
fn tensors(list: Option<&Value>) -> Vec<(String, Vec<usize>)> {
    let list = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let tensor = |value: &Value| {
        let (name, shape) = value.as_object()?.iter().next()?;
        let sizes = shape.as_array()?.iter();
        let sizes = sizes.map(|size| usize::try_from(size.as_i64().unwrap_or(0)).unwrap_or(0)).collect();
        Some((name.clone(), sizes))
    };
    list.iter().filter_map(tensor).collect()
}

fn facts(event: &Event<'_>, names: &Names<'_>) -> StepFacts {
    let op = event.arguments.get("op_name").and_then(Value::as_str).unwrap_or_default();
    let name = event.name.trim_end_matches("_kernel_time");
    let ids = names.of(name, op);
    let node: Option<&Node> = ids.first().map(|&id| names.model.node(id)).filter(|node| node.op_type == op);
    let (inputs, outputs) =
        (tensors(event.arguments.get("input_type_shape")), tensors(event.arguments.get("output_type_shape")));
    let mut shapes: Vec<Option<Vec<usize>>> = inputs.iter().map(|(_, shape)| Some(shape.clone())).collect();
    // Weights that the library has packed are not listed; the model knows them.
    if let Some(node) = node.filter(|node| node.inputs().iter().flatten().count() > inputs.len()) {
        let first = shapes.first().cloned().flatten();
        shapes = node.inputs().iter().map(|input| input.and_then(|value| names.shape(value))).collect();
        if let Some(place) = shapes.first_mut().filter(|place| place.is_none()) {
            *place = first;
        }
    }
    let shapes_out: Vec<Option<Vec<usize>>> = outputs.iter().map(|(_, shape)| Some(shape.clone())).collect();
    let text = |(ty, shape): &(String, Vec<usize>)| format!("{ty}{shape:?}");
    let size = |key: &str| {
        event
            .arguments
            .get(key)
            .and_then(Value::as_str)
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let own = || NodeFacts { name: name.to_owned(), op_type: op.to_owned(), domain: String::new() };
    let nodes: Vec<NodeFacts> = ids
        .iter()
        .map(|&id| {
            let node = names.model.node(id);
            NodeFacts {
                name: node.name.clone(),
                op_type: node.op_type.clone(),
                domain: node.domain().to_owned(),
            }
        })
        .collect();
    StepFacts {
        nodes: if nodes.is_empty() { vec![own()] } else { nodes },
        op_type: op.to_owned(),
        ran: Ran::Library,
        inputs: inputs.iter().map(|tensor| Some(text(tensor))).collect(),
        outputs: outputs.iter().map(text).collect(),
        flops: flops(op, node, &Shapes { inputs: &shapes, outputs: &shapes_out }),
        bytes_read: size("activation_size").saturating_add(size("parameter_size")),
        bytes_written: size("output_size"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::{ModelBuilder, Tensor};

    fn event(name: &str, at: u32, duration: u32, op: &str) -> String {
        format!(
            "{{\"name\": \"{name}\", \"ts\": {at}, \"dur\": {duration}, \"args\": {}}}",
            match op {
                "" => "{}".to_owned(),
                op => format!(
                    "{{\"op_name\": \"{op}\", \"node_index\": \"3\", \"output_size\": \"24\", \
                     \"activation_size\": \"16\", \"parameter_size\": \"96\", \
                     \"input_type_shape\": [{{\"float\": [1, 4]}}], \
                     \"output_type_shape\": [{{\"float\": [1, 6]}}]}}"
                ),
            }
        )
    }

    #[test]
    fn kernels_are_found_in_their_runs_and_bodies_count_inside() {
        let model = ModelBuilder::new(18)
            .input("x", "float[1, 4]")
            .constant("w", Tensor::from_vec(vec![4, 6], vec![0f32; 24]))
            .node("MatMul", ["x", "w"], ["y"])
            .named("product")
            .node("Relu", ["y"], ["z"])
            .named("last")
            .output("z", "float[1, 6]")
            .build();
        let mut events = vec![event("model_loading_uri", 0, 50, "")];
        for run in 0..3u32 {
            let start = 100 + run * 100;
            events.push(event("product_kernel_time", start + 10, 20 + run, "MatMul"));
            // Inside the one that follows it in the file.
            events.push(event("deep_kernel_time", start + 45, 10, "Relu"));
            events.push(event("last_kernel_time", start + 40, 30, "Relu"));
            events.push(event("model_run", start, 90, ""));
        }
        let profile = Profile::parse(&format!("[{}]", events.join(","))).expect("it is JSON");
        let overhead = Overhead { inside: 2e-6, around: 1e-6 };
        let times = profile.times(&model, 1, overhead);
        assert_eq!(times.steps.len(), 2);
        let [product, last] = &times.steps[..] else { panic!("two steps") };
        assert_eq!((product.facts.nodes[0].name.as_str(), product.facts.flops), ("product", Some(48)));
        assert_eq!((product.facts.bytes_read, product.facts.bytes_written), (112, 24));
        assert_eq!(product.facts.outputs, ["float[1, 6]"]);
        let close = |found: &[f64], want: [f64; 2]| {
            assert!(found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?} {want:?}");
        };
        close(&product.seconds, [19.5e-6, 20.5e-6]);
        close(&product.at, [10e-6, 10e-6]);
        close(&last.seconds, [25.5e-6, 25.5e-6]);
        assert_eq!(profile.typical().map(|(_, each)| each), Some(3.0));
        assert!(Profile::parse("[{").is_err());
    }
}
