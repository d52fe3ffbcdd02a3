//! Calibration statistics as a file: what was gathered once is used again, and parts are put together.
//!
//! The file: 8 bytes `OPTIXCAL`, the version of the format as one byte, the 32-byte fingerprint of the model,
//! then in the encoding of observers the number of samples, the number of tensors, and for each tensor its
//! name and its observer.

use std::collections::BTreeMap;

use optix_ir::{Model, ValueId};
use optix_pipeline::PassError;

use super::observer::{Observer, Reader, Truncated, Writer};

const MAGIC: &[u8; 8] = b"OPTIXCAL";
const VERSION: u8 = 1;

/// How many samples a file of statistics is about; `None` when it is no such file.
pub fn samples_in_statistics(bytes: &[u8]) -> Option<u64> {
    let mut reader = Reader(bytes);
    let is_known = reader.take(MAGIC.len()).ok()? == MAGIC && reader.take(1).ok()? == [VERSION];
    reader.take(32).ok()?;
    reader.number().ok().filter(|_| is_known)
}

/// Statistics of a model's activations.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Statistics {
    /// Of the model that ran.
    fingerprint: [u8; 32],
    /// Samples seen.
    pub(super) samples: u64,
    tensors: BTreeMap<String, Observer>,
}

impl Statistics {
    pub(super) fn new(
        model: &Model,
        samples: u64,
        observers: &BTreeMap<ValueId, Observer>,
    ) -> Result<Statistics, PassError> {
        let name = |value: ValueId| model.value(value).name().to_owned();
        let tensors = observers.iter().map(|(&value, observer)| (name(value), observer.clone())).collect();
        Ok(Statistics { fingerprint: fingerprint(model)?, samples, tensors })
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.0.extend_from_slice(MAGIC);
        writer.0.push(VERSION);
        writer.0.extend_from_slice(&self.fingerprint);
        writer.number(self.samples);
        writer.number(self.tensors.len() as u64);
        for (name, observer) in &self.tensors {
            writer.text(name);
            observer.write(&mut writer);
        }
        writer.0
    }

    fn parse(bytes: &[u8]) -> Result<Statistics, String> {
        let damaged = |_: Truncated| "it is cut off or damaged".to_owned();
        let mut reader = Reader(bytes);
        if reader.take(MAGIC.len()).ok() != Some(MAGIC) {
            return Err("it is no file of calibration statistics".to_owned());
        }
        let version = reader.take(1).map_err(damaged)?;
        if version != [VERSION] {
            return Err(format!("it is of version {} and this program knows version {VERSION}", version[0]));
        }
        let fingerprint = reader.take(32).map_err(damaged)?.try_into().map_err(|_| damaged(Truncated))?;
        let samples = reader.number().map_err(damaged)?;
        let mut tensors = BTreeMap::new();
        for _ in 0..reader.number().map_err(damaged)? {
            let name = reader.text().map_err(damaged)?.to_owned();
            tensors.insert(name, Observer::read(&mut reader).map_err(damaged)?);
        }
        if !reader.0.is_empty() {
            return Err("there is something behind its end".to_owned());
        }
        Ok(Statistics { fingerprint, samples, tensors })
    }

    /// Puts statistics of later samples behind these; the names of tensors must be the same.
    fn merge(&mut self, later: &Statistics) -> Result<(), String> {
        let missing = self.tensors.keys().find(|name| !later.tensors.contains_key(*name));
        let added = later.tensors.keys().find(|name| !self.tensors.contains_key(*name));
        if let Some(name) = missing.or(added) {
            return Err(format!(
                "only one of the files has value `{name}`: they were made with different options"
            ));
        }
        for (mine, theirs) in self.tensors.values_mut().zip(later.tensors.values()) {
            mine.merge(theirs);
        }
        self.samples = self.samples.saturating_add(later.samples);
        Ok(())
    }

    /// Reads files, names and contents, and puts them together in order.
    ///
    /// # Errors
    /// When one is damaged, or was made of another model than this.
    pub(super) fn read(files: &[(String, impl AsRef<[u8]>)], model: &Model) -> Result<Statistics, PassError> {
        let own = fingerprint(model)?;
        let mut all: Option<Statistics> = None;
        for (name, bytes) in files {
            let refuse = |what: String| {
                PassError::Options(format!(
                    "statistics {name}: {what}; remove the file and it is made anew from the calibration data"
                ))
            };
            let statistics = Statistics::parse(bytes.as_ref()).map_err(refuse)?;
            if statistics.fingerprint != own {
                return Err(refuse("they are of another model, or the steps before have changed".to_owned()));
            }
            match &mut all {
                None => all = Some(statistics),
                Some(all) => all.merge(&statistics).map_err(refuse)?,
            }
        }
        all.ok_or_else(|| PassError::Options("no statistics were given".to_owned()))
    }

    /// The observers of these values.
    ///
    /// # Errors
    /// When one of them has none.
    pub(super) fn of(
        &self,
        model: &Model,
        values: &[ValueId],
    ) -> Result<BTreeMap<ValueId, Observer>, PassError> {
        let find = |&value: &ValueId| {
            let name = model.value(value).name();
            let observer = self.tensors.get(name).ok_or_else(|| {
                PassError::Options(format!(
                    "the statistics say nothing of value `{name}`: they were made with other options; remove the file and it is made anew"
                ))
            })?;
            Ok((value, observer.clone()))
        };
        values.iter().map(find).collect()
    }
}

fn fingerprint(model: &Model) -> Result<[u8; 32], PassError> {
    optix_pipeline::fingerprint(model)
        .map_err(|error| PassError::Options(format!("the model cannot be identified: {error}")))
}

#[cfg(test)]
mod tests {
    use optix_ir::ModelBuilder;

    use super::*;

    fn model(weight: f32) -> Model {
        ModelBuilder::new(18)
            .input("x", "float[n, 2]")
            .constant("w", optix_ir::Tensor::from_vec(vec![2], vec![weight, 1.0]))
            .node("Mul", ["x", "w"], ["y"])
            .output("y", "float[n, 2]")
            .build()
    }

    fn statistics(model: &Model, values: &[f32]) -> Statistics {
        let mut observer = Observer::new(Some(1));
        observer.observe(values, &[values.len() / 2, 2], values.len() / 2);
        let x = model.find_value(model.main(), "x").expect("there is one");
        Statistics::new(model, observer.samples(), &BTreeMap::from([(x, observer)])).expect("can be made")
    }

    fn file(name: &str, statistics: &Statistics) -> (String, Vec<u8>) {
        (name.to_owned(), statistics.write())
    }

    #[test]
    fn parts_put_together_are_the_whole() {
        let model = model(2.0);
        let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin() * i as f32).collect();
        let whole = statistics(&model, &values);
        let files =
            [file("a", &statistics(&model, &values[..20])), file("b", &statistics(&model, &values[20..]))];
        let read = Statistics::read(&files, &model).expect("both are good");
        assert_eq!(read.samples, 32);
        let x = model.find_value(model.main(), "x").expect("there is one");
        let of = |statistics: &Statistics| statistics.of(&model, &[x]).expect("it is there")[&x].clone();
        assert_eq!(
            of(&read).mean_squared_error(optix_ir::DType::U8),
            of(&whole).mean_squared_error(optix_ir::DType::U8)
        );
        assert_eq!(Statistics::read(&[file("a", &whole)], &model).expect("good"), whole);
        let y = model.find_value(model.main(), "y").expect("there is one");
        let error = whole.of(&model, &[y]).unwrap_err().to_string();
        assert!(error.contains("value `y`"), "{error}");
    }

    #[test]
    fn files_that_do_not_fit_are_refused_with_a_reason() {
        let (model, other) = (model(2.0), model(3.0));
        let good = statistics(&model, &[1.0, 2.0, 3.0, 4.0]).write();
        let refused = |bytes: Vec<u8>| {
            let error = Statistics::read(&[("s.stats".to_owned(), bytes)], &model).unwrap_err().to_string();
            assert!(error.starts_with("statistics s.stats: "), "{error}");
            error
        };
        assert!(refused(statistics(&other, &[1.0, 2.0]).write()).contains("another model"));
        assert!(refused(b"PK\x03\x04".to_vec()).contains("no file of calibration statistics"));
        let mut newer = good.clone();
        newer[8] = 9;
        assert!(refused(newer).contains("version 9"));
        let mut longer = good.clone();
        longer.push(0);
        assert!(refused(longer).contains("behind its end"));
        for end in 0..good.len() {
            refused(good[..end].to_vec());
        }
    }
}
