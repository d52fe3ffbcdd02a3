//! Samples to learn from, in random order, and others to stop by.

use bytes::Bytes;
use optix_ir::{DType, Model, Tensor};
use optix_pipeline::{Batch, Cx, Labels, OracleError, PassError, Scratch, digest};
use rand_chacha::ChaCha8Rng;

use super::augment::below;
use crate::samples::singles;

/// Bytes of samples that are kept in memory; others are put aside.
pub(super) const ROOM: usize = 1 << 30;

/// Of so many samples one is held out.
const EACH: usize = 10;

/// Samples that are held out at most.
const HELD: usize = 1024;

/// A sample in as little memory as can be: there may be very many small ones.
struct Sample {
    labels: Option<Box<Labels>>,
    bytes: Place,
}

/// What a sample feeds.
enum Place {
    /// The bytes of every feed, in memory.
    Here(Box<[Bytes]>),
    /// All of them together were put aside here.
    Away(u64),
}

/// Bytes of memory that a sample takes beside what it feeds.
const BESIDE: usize = 160;

/// Samples of one shape.
pub(super) struct Pool {
    /// Samples to learn from have the first numbers.
    train: Vec<Sample>,
    /// None of those to learn from: they have the numbers behind.
    held: Vec<Sample>,
    /// Names, types and shapes of what a sample feeds.
    form: Vec<(String, DType, Vec<usize>)>,
    scratch: Option<Box<dyn Scratch>>,
    /// Bytes in memory.
    pub(super) bytes: usize,
    /// What samples are, each in few bytes, where that is wanted.
    pub(super) digests: Vec<[u8; 32]>,
    /// Order of the samples to learn from, from `next` on still to come.
    pub(super) order: Vec<usize>,
    pub(super) next: usize,
}

/// Names and shapes of what a sample feeds.
pub(super) fn shapes(sample: &Batch) -> Vec<(String, Vec<usize>)> {
    sample.feeds.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect()
}

fn form(sample: &Batch) -> Vec<(String, DType, Vec<usize>)> {
    let of = |(name, tensor): &(String, Tensor)| (name.clone(), tensor.dtype(), tensor.shape().to_vec());
    sample.feeds.iter().map(of).collect()
}

fn aside(what: String) -> PassError {
    OracleError::Environment(what).into()
}

impl Pool {
    /// Reads the calibration data, of which so many bytes stay in memory.
    ///
    /// # Errors
    /// When they cannot be read, cannot be taken apart, have samples of several shapes, or are too few; when there is no
    /// room for those that memory does not hold.
    pub(super) fn read(model: &Model, room: usize, cx: &mut Cx<'_>) -> Result<Pool, PassError> {
        let (_, data) = cx.calibration()?;
        let total = data.samples().unwrap_or(0);
        let mut pool = Pool {
            train: Vec::new(),
            held: Vec::new(),
            form: Vec::new(),
            scratch: None,
            bytes: 0,
            digests: Vec::new(),
            order: Vec::new(),
            next: 0,
        };
        let (mut seen, mut away, mut is_cut) = (0usize, 0usize, false);
        for batch in data.batches(model).map_err(OracleError::from)? {
            let batch = batch.map_err(OracleError::from)?;
            cx.progress("reading samples", seen as u64, total)?;
            let samples = singles(&batch);
            if samples.is_empty() {
                let what = "an input has no axis of samples, or holds packed elements or texts: samples cannot be \
                            shuffled";
                return Err(PassError::Options(what.to_owned()));
            }
            let size: usize = batch.feeds.iter().map(|(_, tensor)| tensor.bytes().len()).sum();
            let size = size + samples.len() * BESIDE;
            let is_away = pool.bytes + size > room && seen > 0;
            if is_away && pool.scratch.is_none() {
                pool.scratch = data.scratch().map_err(aside)?;
                is_cut = pool.scratch.is_none();
            }
            if is_cut {
                break;
            }
            if is_away {
                away += samples.len();
                pool.bytes += samples.len() * BESIDE;
            } else {
                pool.bytes += size;
            }
            for sample in samples {
                pool.add(sample, seen, is_away, cx.has_checkpoint())?;
                seen += 1;
            }
        }
        if is_cut {
            let size = room >> 20;
            cx.warn(format!("only the first {seen} samples are learned from: they take {size} MiB"));
        }
        if seen == 0 {
            return Err(PassError::Options("the data hold no samples".to_owned()));
        }
        if pool.held.is_empty() {
            let what = format!("{seen} samples are too few to learn from: one in {EACH} is held out");
            return Err(PassError::Options(what));
        }
        cx.count("samples to learn from", pool.train.len() as u64);
        cx.count("samples held out", pool.held.len() as u64);
        if away > 0 {
            cx.count("samples put aside in a temporary file", away as u64);
        }
        pool.order = (0..pool.train.len()).collect();
        pool.next = pool.order.len();
        Ok(pool)
    }

    fn add(
        &mut self,
        sample: Batch,
        place: usize,
        is_away: bool,
        is_digested: bool,
    ) -> Result<(), PassError> {
        let own = form(&sample);
        if is_away && own.iter().any(|(_, dtype, _)| *dtype == DType::String) {
            let what = "texts that are more than memory is to hold cannot be learned from: use `take`";
            return Err(PassError::Options(what.to_owned()));
        }
        if self.form.is_empty() {
            self.form.clone_from(&own);
        }
        if self.form != own {
            let what = match self.form.iter().zip(&own).find(|((_, _, a), (_, _, b))| a != b) {
                Some(((name, _, a), (_, _, b))) => {
                    format!("samples differ in shape: `{name}` is {a:?} in one and {b:?} in another")
                }
                None => "samples differ in shape".to_owned(),
            };
            return Err(PassError::Options(format!("{what}; pad or resize them (docs/data.md)")));
        }
        if is_digested {
            // As they are fed: after preprocessing, and with their labels.
            let labels = format!("{:?}", sample.labels);
            let fed = sample.feeds.iter().map(|(_, tensor)| &tensor.bytes()[..]);
            self.digests.push(digest(fed.chain([labels.as_bytes()])));
        }
        let fed = sample.feeds.iter().map(|(_, tensor)| tensor.bytes());
        let bytes = match &mut self.scratch {
            Some(scratch) if is_away => {
                let all: Vec<u8> = fed.flatten().copied().collect();
                Place::Away(scratch.put(&all).map_err(aside)?)
            }
            _ => Place::Here(fed.cloned().collect()),
        };
        let kept = Sample { labels: sample.labels.map(Box::new), bytes };
        match place % EACH == EACH - 1 && self.held.len() < HELD {
            true => self.held.push(kept),
            false => self.train.push(kept),
        }
        Ok(())
    }

    /// Number of samples to learn from.
    pub(super) fn learned(&self) -> usize {
        self.train.len()
    }

    /// Number of samples held out.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// A sample by its number.
    ///
    /// # Errors
    /// When it was put aside and cannot be read.
    pub(super) fn sample(&mut self, number: usize) -> Result<Batch, PassError> {
        let Pool { train, held, form, scratch, .. } = self;
        let found = train.get(number).or_else(|| held.get(number.checked_sub(train.len())?));
        let Some(Sample { labels, bytes }) = found else {
            return Err(aside(format!("there is no sample {number}")));
        };
        let parts: Vec<Bytes> = match (bytes, scratch) {
            (Place::Here(parts), _) => parts.to_vec(),
            (Place::Away(place), Some(scratch)) => {
                let length = |(_, dtype, shape): &(String, DType, Vec<usize>)| {
                    dtype.byte_len(shape.iter().product()).unwrap_or(0)
                };
                let mut all = vec![0; form.iter().map(length).sum()];
                scratch.get(*place, &mut all).map_err(aside)?;
                let mut all = Bytes::from(all);
                form.iter().map(|one| all.split_to(length(one))).collect()
            }
            (Place::Away(_), None) => return Err(aside("samples were put aside nowhere".to_owned())),
        };
        let mut feeds = Vec::with_capacity(form.len());
        for ((name, dtype, shape), bytes) in form.iter().zip(parts) {
            let tensor =
                Tensor::new(*dtype, shape.clone(), bytes).map_err(|error| aside(error.to_string()))?;
            feeds.push((name.clone(), tensor));
        }
        Ok(Batch { feeds, labels: labels.as_deref().cloned(), count: 1, ..Batch::default() })
    }

    /// Samples by their numbers.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(super) fn samples(
        &mut self,
        numbers: impl IntoIterator<Item = usize>,
    ) -> Result<Vec<Batch>, PassError> {
        numbers.into_iter().map(|number| self.sample(number)).collect()
    }

    /// The next `count` samples to learn from, shuffled anew whenever all were seen (Fisher and Yates).
    pub(super) fn draw(&mut self, count: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
        let mut drawn = Vec::with_capacity(count);
        while drawn.len() < count {
            if self.next >= self.order.len() {
                for place in (1..self.order.len()).rev() {
                    self.order.swap(place, below(random, place + 1));
                }
                self.next = 0;
            }
            drawn.push(self.order[self.next]);
            self.next += 1;
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use optix_ir::text;
    use optix_pipeline::{Calibration, DataError, NoOracle, Resources};
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    /// Seven batches of five samples, and a place for some of them.
    struct Data;

    /// Memory in the place of a file.
    struct Shelf(Vec<u8>);

    impl Scratch for Shelf {
        fn put(&mut self, bytes: &[u8]) -> Result<u64, String> {
            self.0.extend_from_slice(bytes);
            Ok((self.0.len() - bytes.len()) as u64)
        }

        fn get(&mut self, place: u64, bytes: &mut [u8]) -> Result<(), String> {
            let start = place as usize;
            let length = bytes.len();
            bytes.copy_from_slice(self.0.get(start..start + length).ok_or("nothing is there")?);
            Ok(())
        }
    }

    impl Calibration for Data {
        fn describe(&self) -> String {
            "numbers".to_owned()
        }

        fn scratch(&self) -> Result<Option<Box<dyn Scratch>>, String> {
            Ok(Some(Box::new(Shelf(Vec::new()))))
        }

        fn batches<'a>(
            &'a self,
            _: &Model,
        ) -> Result<Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>, DataError> {
            Ok(Box::new((0..7).map(|batch| {
                let numbers = |from: usize| (0..15).map(|at| (batch * 100 + from + at) as f32).collect();
                let feeds = vec![
                    ("a".to_owned(), Tensor::from_vec(vec![5, 3], numbers(0))),
                    ("b".to_owned(), Tensor::from_vec(vec![5, 1, 3], numbers(50))),
                ];
                Ok(Batch { feeds, count: 5, ..Batch::default() })
            })))
        }
    }

    #[test]
    fn samples_that_were_put_aside_are_those_that_were_read() {
        let model = text::parse("<ir_version: 8, opset_import: [\"\" : 17]> net (float x) => (float x) {}");
        let model = model.expect("it is a model");
        let read = |room: usize| {
            let mut resources =
                Resources { oracle: &mut NoOracle, calibration: Some(&Data), ..Resources::default() };
            let mut left = u64::MAX;
            let mut cx = Cx::new(&mut resources, optix_base::Limits::default(), &mut left);
            Pool::read(&model, room, &mut cx).expect("samples")
        };
        let (mut here, mut away) = (read(ROOM), read(2000));
        assert!(here.scratch.is_none() && away.scratch.is_some());
        assert_eq!((here.bytes, away.bytes), (35 * (24 + BESIDE), 10 * 24 + 35 * BESIDE));
        assert_eq!((here.learned(), here.held(), away.held()), (32, 3, 3));
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let numbers = here.draw(32, &mut random);
        let all = numbers.into_iter().chain(32..35);
        for number in all {
            assert_eq!(here.sample(number).expect("one"), away.sample(number).expect("one"), "{number}");
        }
        assert!(here.sample(35).is_err());
    }
}
