//! The option that says which target is meant: the name of a built-in profile, or a whole profile.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{DEFAULT_TARGET, TARGETS, Target};

/// Which target is meant.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetChoice {
    /// A built-in one, by name.
    Named(&'static str),
    /// One that was given as a whole: recipes hold it, so that they need no other file.
    Given(Box<Target>),
}

impl Default for TargetChoice {
    fn default() -> Self {
        TargetChoice::Named(DEFAULT_TARGET)
    }
}

impl TargetChoice {
    /// A built-in target by name.
    ///
    /// # Errors
    /// When there is none; names those that there are, and the one that may be meant.
    pub fn named(name: &str) -> Result<TargetChoice, String> {
        match TARGETS.iter().find(|(known, _)| *known == name) {
            Some((known, _)) => Ok(TargetChoice::Named(known)),
            None => {
                let names: Vec<&str> = TARGETS.iter().map(|(known, _)| *known).collect();
                let hint = optix_pipeline::did_you_mean(name, names.iter().copied());
                let shown: String = name.chars().take(100).collect();
                let shown = optix_base::escape_for_terminal(&shown).into_owned();
                Err(format!("there is no target `{shown}`{hint} (there are: {})", names.join(", ")))
            }
        }
    }

    /// The profile.
    ///
    /// # Errors
    /// When it is none.
    pub fn resolve(&self) -> Result<Target, String> {
        match self {
            TargetChoice::Named(name) => {
                Target::built_in(name).ok_or_else(|| format!("the built-in target `{name}` cannot be read"))
            }
            TargetChoice::Given(target) => {
                target.check()?;
                Ok((**target).clone())
            }
        }
    }
}

impl Serialize for TargetChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            TargetChoice::Named(name) => serializer.serialize_str(name),
            TargetChoice::Given(target) => target.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for TargetChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Choice;
        impl<'de> Visitor<'de> for Choice {
            type Value = TargetChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a target or the table of a profile")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<TargetChoice, E> {
                TargetChoice::named(name).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TargetChoice, A::Error> {
                let target = Target::deserialize(MapAccessDeserializer::new(map))?;
                target.check().map_err(A::Error::custom)?;
                Ok(TargetChoice::Given(Box::new(target)))
            }
        }
        deserializer.deserialize_any(Choice)
    }
}

impl JsonSchema for TargetChoice {
    fn schema_name() -> Cow<'static, str> {
        "TargetChoice".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        let profile = generator.subschema_for::<Target>();
        json_schema!({
            "description": "A built-in target by name, or a profile as a table.",
            "anyOf": [{ "type": "string", "enum": names }, profile],
        })
    }
}
