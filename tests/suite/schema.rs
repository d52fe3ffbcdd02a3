//! A small validator of JSON schemas: what our own schemas use of the language, and nothing else.

use serde_json::{Map, Value};

/// Keywords that say nothing about validity.
const SILENT: [&str; 6] = ["$schema", "$defs", "title", "description", "default", "format"];

/// Everything in `value` that the schema does not allow.
///
/// # Panics
/// On a keyword that it does not know: an unchecked schema would look like a valid document.
pub fn violations(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, schema, value, "", &mut found);
    found
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let rules = match schema {
        Value::Bool(true) => return,
        Value::Object(rules) => rules,
        other => panic!("{other} is no schema"),
    };
    let mut fail = |what: String| found.push(format!("{at}: {what}"));
    for (keyword, rule) in rules {
        match keyword.as_str() {
            "type" => {
                let kinds: Vec<&Value> = rule.as_array().map_or(vec![rule], |kinds| kinds.iter().collect());
                if !kinds.iter().any(|kind| is_a(value, kind.as_str().unwrap_or_default())) {
                    fail(format!("{value} is not {rule}"));
                }
            }
            "const" if value != rule => fail(format!("{value} is not {rule}")),
            "enum" if !rule.as_array().is_some_and(|allowed| allowed.contains(value)) => {
                fail(format!("{value} is not one of {rule}"));
            }
            "minimum" if value.as_f64() < rule.as_f64() => fail(format!("{value} is below {rule}")),
            "minItems" | "maxItems" => {
                let (length, bound) = (value.as_array().map(Vec::len), rule.as_u64().unwrap_or(0) as usize);
                let right =
                    length.is_none_or(
                        |length| if keyword == "minItems" { length >= bound } else { length <= bound },
                    );
                if !right {
                    fail(format!("{value} has the wrong length"));
                }
            }
            "required" => {
                for name in rule.as_array().expect("a list").iter().filter_map(Value::as_str) {
                    if value.as_object().is_some_and(|object| !object.contains_key(name)) {
                        fail(format!("`{name}` is missing"));
                    }
                }
            }
            "const"
            | "enum"
            | "minimum"
            | "$ref"
            | "anyOf"
            | "oneOf"
            | "items"
            | "properties"
            | "additionalProperties" => {}
            silent if SILENT.contains(&silent) => {}
            other => panic!("the schema uses `{other}`, which this validator does not know"),
        }
    }
    if let Some(reference) = rules.get("$ref").and_then(Value::as_str) {
        let path = reference.strip_prefix('#').expect("references are local");
        let target = root.pointer(path).unwrap_or_else(|| panic!("{reference} leads nowhere"));
        check(root, target, value, at, found);
    }
    for (keyword, many) in [("anyOf", true), ("oneOf", false)] {
        let Some(alternatives) = rules.get(keyword).and_then(Value::as_array) else { continue };
        let fits = alternatives.iter().filter(|one| {
            let mut inner = Vec::new();
            check(root, one, value, at, &mut inner);
            inner.is_empty()
        });
        let count = fits.count();
        if count == 0 || (count > 1 && !many) {
            found.push(format!("{at}: {value} fits {count} of the alternatives"));
        }
    }
    if let (Some(items), Some(list)) = (rules.get("items"), value.as_array()) {
        for (index, item) in list.iter().enumerate() {
            check(root, items, item, &format!("{at}/{index}"), found);
        }
    }
    if let Some(object) = value.as_object() {
        let empty = Map::new();
        let properties = rules.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        for (name, inner) in object {
            let at = format!("{at}/{name}");
            match (properties.get(name), rules.get("additionalProperties")) {
                (Some(rule), _) => check(root, rule, inner, &at, found),
                (None, Some(Value::Bool(false))) => found.push(format!("{at} is not known")),
                (None, Some(rule)) => check(root, rule, inner, &at, found),
                (None, None) => {}
            }
        }
    }
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("there is no type `{other}`"),
    }
}

#[test]
fn violations_are_found() {
    let schema = serde_json::json!({
        "type": "object",
        "required": ["a"],
        "properties": { "a": { "$ref": "#/$defs/A" }, "b": { "type": "array", "items": { "minimum": 0 } } },
        "additionalProperties": false,
        "$defs": { "A": { "anyOf": [{ "type": "string" }, { "const": 1 }] } },
    });
    let count = |value: Value| violations(&schema, &value).len();
    assert_eq!(count(serde_json::json!({ "a": "x", "b": [0, 1] })), 0);
    assert_eq!(count(serde_json::json!({ "a": 1 })), 0);
    for wrong in [r#"{}"#, r#"{"a": 2}"#, r#"{"a": 1, "c": 0}"#, r#"{"a": 1, "b": [-1]}"#, "[]"] {
        assert_eq!(count(serde_json::from_str(wrong).expect("JSON")), 1, "{wrong}");
    }
}
