//! How much a file may make us do.

use std::time::{Duration, Instant};

macro_rules! limits {
    ($($(#[$doc:meta])* $field:ident, $name:literal, $default:expr;)*) => {
        /// Limits on what is read from a file. All generous; `--limits name=value,...` raises them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Limits { $($(#[$doc])* pub $field: u64,)* }

        impl Default for Limits {
            fn default() -> Self { Limits { $($field: $default,)* } }
        }

        impl Limits {
            /// Names that `--limits` takes, with their values.
            pub fn entries(&self) -> Vec<(&'static str, u64)> { vec![$(($name, self.$field),)*] }

            fn set(&mut self, name: &str, value: u64) -> bool {
                match name { $($name => self.$field = value,)* _ => return false }
                true
            }
        }
    };
}

limits! {
    /// Nodes of all graphs together.
    nodes, "nodes", 2_000_000;
    /// Tensors: initializers and attributes.
    tensors, "tensors", 1_000_000;
    /// Graphs within graphs.
    depth, "depth", 32;
    /// Bytes of one name.
    name_bytes, "name-bytes", 65_536;
    /// Bytes of all names.
    names_bytes, "names-bytes", 256 << 20;
    /// Bytes of one constant computed ahead.
    folded_bytes, "folded-bytes", 64 << 20;
    /// Bytes of all constants computed ahead.
    folded_total, "folded-total", 1 << 30;
    /// Bytes that repeated elements may take in memory while a file is parsed; 0 chooses by file size.
    element_memory, "element-memory", 0;
    /// Bytes of one sample of a data set.
    sample_bytes, "sample-bytes", 1 << 30;
    /// Pixels of one image.
    image_pixels, "image-pixels", 64 << 20;
    /// Bytes of one line of text or one record of a CSV file.
    record_bytes, "record-bytes", 8 << 20;
    /// Bytes that a command may write for one data set.
    command_bytes, "command-bytes", 16 << 30;
    /// Files of one data set.
    files, "files", 10_000_000;
    /// Entries of an archive.
    archive_entries, "archive-entries", 65_536;
    /// How many times larger than its compressed form data may become, beyond the first 64 MiB.
    expansion, "expansion", 512;
    /// Seconds for loading.
    seconds, "seconds", 600;
}

/// A limit was passed, or cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// More than the limit.
    #[error("{what}: more than {limit} {name}; `--limits {name}=N` allows more")]
    Exceeded {
        /// What passed it.
        what: String,
        /// Name of the limit.
        name: &'static str,
        /// Its value.
        limit: u64,
    },
    /// `--limits` with something it does not know.
    #[error("`{0}` is not a limit; the form is name=value,..., the names: {1}")]
    Unknown(String, String),
}

impl Limits {
    /// Applies `name=value,...`.
    ///
    /// # Errors
    /// On unknown names and values that are not whole numbers.
    pub fn parse(mut self, text: &str) -> Result<Limits, BudgetError> {
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let known = part
                .split_once('=')
                .and_then(|(name, value)| Some((name.trim(), value.trim().parse::<u64>().ok()?)))
                .is_some_and(|(name, value)| self.set(name, value));
            if !known {
                let names: Vec<&str> = self.entries().iter().map(|(name, _)| *name).collect();
                return Err(BudgetError::Unknown(part.trim().to_owned(), names.join(", ")));
            }
        }
        Ok(self)
    }
}

/// What is left of the limits during one load.
#[derive(Clone, Debug)]
pub struct Budget {
    limits: Limits,
    nodes: u64,
    tensors: u64,
    names: u64,
    folded: u64,
    started: Instant,
}

impl Budget {
    /// A full budget.
    pub fn new(limits: Limits) -> Budget {
        Budget { limits, nodes: 0, tensors: 0, names: 0, folded: 0, started: Instant::now() }
    }

    /// The limits it started from.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes one node.
    ///
    /// # Errors
    /// When there are too many. So for the other methods.
    pub fn node(&mut self) -> Result<(), BudgetError> {
        self.nodes = self.nodes.saturating_add(1);
        // A look at the clock now and then is enough.
        if self.nodes.is_multiple_of(4096) {
            self.clock()?;
        }
        check("the model", "nodes", self.nodes, self.limits.nodes)
    }

    /// Takes one tensor.
    ///
    /// # Errors
    /// See [`Budget::node`].
    pub fn tensor(&mut self) -> Result<(), BudgetError> {
        self.tensors = self.tensors.saturating_add(1);
        check("the model", "tensors", self.tensors, self.limits.tensors)
    }

    /// Takes a name.
    ///
    /// # Errors
    /// See [`Budget::node`].
    pub fn name(&mut self, name: &str) -> Result<(), BudgetError> {
        let length = name.len() as u64;
        if length > self.limits.name_bytes {
            let start: String = name.chars().take(40).collect();
            let what = format!("the name starting `{}`", crate::escape_for_terminal(&start));
            return check(&what, "name-bytes", length, self.limits.name_bytes);
        }
        self.names = self.names.saturating_add(length);
        check("the model", "names-bytes", self.names, self.limits.names_bytes)
    }

    /// Checks a depth of graphs within graphs, the main graph being 1.
    ///
    /// # Errors
    /// See [`Budget::node`].
    pub fn depth(&self, depth: u64) -> Result<(), BudgetError> {
        check("graphs within graphs", "depth", depth, self.limits.depth)
    }

    /// Takes the memory of a constant computed ahead.
    ///
    /// # Errors
    /// See [`Budget::node`].
    pub fn fold(&mut self, bytes: u64) -> Result<(), BudgetError> {
        check("a folded constant", "folded-bytes", bytes, self.limits.folded_bytes)?;
        self.folded = self.folded.saturating_add(bytes);
        check("folded constants", "folded-total", self.folded, self.limits.folded_total)
    }

    /// Looks at the clock.
    ///
    /// # Errors
    /// See [`Budget::node`].
    pub fn clock(&self) -> Result<(), BudgetError> {
        if self.started.elapsed() > Duration::from_secs(self.limits.seconds) {
            return Err(BudgetError::Exceeded {
                what: "loading".to_owned(),
                name: "seconds",
                limit: self.limits.seconds,
            });
        }
        Ok(())
    }
}

fn check(what: &str, name: &'static str, value: u64, limit: u64) -> Result<(), BudgetError> {
    if value > limit { Err(BudgetError::Exceeded { what: what.to_owned(), name, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_kept_and_raised() {
        let limits = Limits::default().parse("nodes=2, name-bytes=3").unwrap();
        let mut budget = Budget::new(limits);
        assert!(budget.node().is_ok() && budget.node().is_ok());
        let error = budget.node().unwrap_err().to_string();
        assert!(error.contains("--limits nodes=N"), "{error}");
        assert!(budget.name("abc").is_ok());
        assert!(budget.name("abcd").is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["nods=1", "nodes", "nodes=-1", "nodes=1e6", "=3"] {
            assert!(Limits::default().parse(text).is_err(), "{text}");
        }
        assert_eq!(Limits::default().parse("").unwrap(), Limits::default());
    }
}
