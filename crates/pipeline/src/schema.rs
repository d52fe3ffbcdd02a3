//! The JSON schema of recipes, for editors that complete and check TOML.

use serde_json::{Map, Value, json};

use crate::pass::PassSpec;
use crate::recipe::Head;

/// The schema of a recipe whose steps may be any of `passes`.
pub fn recipe_schema(passes: &[PassSpec]) -> Value {
    let mut root = schemars::schema_for!(Head).to_value();
    let mut definitions = take_map(&mut root, "$defs");
    let steps: Vec<Value> = passes.iter().map(|spec| step_schema(spec, &mut definitions)).collect();
    root["title"] = json!("optix recipe");
    root["properties"]["step"] = json!({
        "description": "The steps, in the order in which they run.",
        "type": "array",
        "items": { "oneOf": steps },
    });
    root["$defs"] = Value::Object(definitions);
    root
}

/// A step is the options of its pass, and the two keys of the pipeline.
fn step_schema(spec: &PassSpec, definitions: &mut Map<String, Value>) -> Value {
    let mut step = (spec.schema)().to_value();
    if let Some(object) = step.as_object_mut() {
        object.remove("$schema");
    }
    // Two passes may call different things by one name.
    prefix_references(&mut step, spec.name);
    for (name, definition) in take_map(&mut step, "$defs") {
        definitions.insert(format!("{}.{name}", spec.name), definition);
    }
    let mut properties = take_map(&mut step, "properties");
    properties.insert("pass".into(), json!({ "description": "The pass.", "const": spec.name }));
    let about = "Name of the step in reports and in `--set`; the pass's name unless given.";
    properties.insert("id".into(), json!({ "description": about, "type": "string" }));
    step["title"] = json!(spec.name);
    step["properties"] = Value::Object(properties);
    step["required"] = json!(["pass"]);
    step["additionalProperties"] = json!(false);
    step
}

/// Takes an object out of an object; empty when there is none.
fn take_map(value: &mut Value, key: &str) -> Map<String, Value> {
    match value.as_object_mut().and_then(|object| object.remove(key)) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Lets `#/$defs/Name` be `#/$defs/prefix.Name`.
fn prefix_references(value: &mut Value, prefix: &str) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                match inner.as_str().and_then(|text| text.strip_prefix("#/$defs/")) {
                    Some(name) if key == "$ref" => *inner = json!(format!("#/$defs/{prefix}.{name}")),
                    _ => prefix_references(inner, prefix),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| prefix_references(item, prefix)),
        _ => {}
    }
}
