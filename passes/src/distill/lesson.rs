//! What a course is held with: samples, the teacher, and the student twice, to learn and to be judged.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, Tensor};
use optix_pipeline::{Augmentation, Batch, Cx, PassError};
use optix_training::loss::{Distance, is_softmax};
use optix_training::optimizer::Trained;
use optix_training::{Aim, Parameter};
use rand_chacha::ChaCha8Rng;

use super::augment::augmented;
use super::course::Course;
use super::features;
use super::pool::{self, Pool};
use super::school::{self, Class, Teacher, fed, pairs};
use crate::samples::together;

/// Changes of pictures, by input.
type Changes = BTreeMap<String, Vec<Augmentation>>;

pub(super) struct Lesson {
    pub(super) pool: Pool,
    teacher: Teacher,
    at_work: Class,
    at_exam: Class,
    /// Samples of a step.
    pub(super) count: usize,
    /// Classes of the labels that are learned too.
    classes: Option<usize>,
    pub(super) changes: Changes,
    /// Whether the teacher is asked in every step.
    is_streamed: bool,
    /// Whether each parameter has a gradient.
    pub(super) learns: Vec<bool>,
    /// What memory it takes, for people.
    pub(super) memory: String,
}

impl Lesson {
    /// Makes everything ready; parameters with where they start, and those of adapters behind them.
    ///
    /// # Errors
    /// When data, teacher and student do not fit each other, or nothing can be learned.
    pub(super) fn new(
        course: &Course<'_>,
        (model, teacher_model): (&Model, &Model),
        (parameters, trained): (&[Parameter], Vec<Trained>),
        cx: &mut Cx<'_>,
    ) -> Result<(Lesson, Vec<Trained>), PassError> {
        let pairs = pairs(teacher_model, model)?;
        let output = |model: &Model, place: usize| model.graph(model.main()).outputs()[place].value;
        let aim = |&(_, place): &(usize, usize)| Aim {
            value: output(model, place),
            distance: course.distance(model, place),
            weight: 1.0,
            is_border: false,
        };
        let mut aims: Vec<Aim> = pairs.iter().map(aim).collect();
        let mut pool = Pool::read(model, pool::ROOM, cx)?;
        let (learned, held) = (pool.learned(), pool.held());
        let count = course.batch_size.min(learned);
        let many = pool.samples(0..count)?;
        let first = &many[0];
        let changes = changes(course, first, cx)?;
        let of_teacher = pairs.iter().map(|&(place, _)| output(teacher_model, place)).collect();
        let mut teacher = Teacher::new(teacher_model, of_teacher, first, learned + held, cx)?;
        let own = fed(model, first, count)?;
        let mut features = features::pairs(
            (teacher_model, &teacher.shapes(first, count)),
            (model, &own),
            course.features,
            course.blocks,
        )?;
        teacher.watch(features.iter().map(|feature| feature.teacher));
        // With adapters, which are trained along and left behind.
        let mut wide = model.clone();
        let (mut parameters, mut trained) = (parameters.to_vec(), trained);
        let plain = parameters.len();
        let mut given = teacher.asked(&together(&many))?;
        teacher.check_rows(&given, &together(&many[..1]))?;
        let given_shapes: Vec<Vec<usize>> =
            given[aims.len()..].iter().map(|tensor| tensor.shape().to_vec()).collect();
        let adapters =
            features::adapt(&mut wide, &mut features, &given_shapes, &own, &mut cx.rng("adapters"));
        for (parameter, start) in adapters {
            parameters.push(parameter);
            trained.push(start);
        }
        // Samples held out are judged by what outputs alone lose.
        let judged = aims.len();
        aims.extend(features.iter().map(|feature| Aim {
            value: feature.student,
            distance: Distance::Squares,
            weight: course.feature_weight / features.len() as f32,
            is_border: course.blocks,
        }));
        let labelled = labelled(course, model, &aims[..judged], &given)?;
        if let Some((aim, classes)) = labelled {
            aims.push(aim);
            given.push(school::classes(&many, classes)?);
        }
        let of_sample: usize =
            given.iter().map(|tensor| tensor.bytes().len() / count.max(1) + school::BESIDE).sum();
        let freeze = course.freeze_unsupported;
        let mut at_work = Class::new(&wide, &parameters, (&aims, &given), (first, count), freeze, cx)?;
        let few = at_once(held, count);
        let given = teacher.asked(&together(&many[..few]))?;
        let at_exam = Class::new(&wide, &parameters, (&aims[..judged], &given), (first, few), freeze, cx)?;
        for (node, reason) in at_work.frozen() {
            cx.warn(format!("no gradient passes {node}: {reason}"));
        }
        let learns: Vec<bool> = at_work.learns().collect();
        if !learns[..plain].contains(&true) {
            return Err(PassError::Options("no gradient reaches any weight".to_owned()));
        }
        if course.blocks {
            cx.count("blocks that learn beside each other", features.len() as u64 + 1);
        }
        let needed = at_work.predicted_peak().map(|peak| {
            // Elements, two moments, what was best, and what is fed and comes back.
            let of_parameters: usize = trained.iter().map(|one| 6 * 4 * one.elements.len()).sum();
            // As many as the steps come to see.
            let seen = learned.min(usize::try_from(course.steps).unwrap_or(usize::MAX).saturating_mul(count));
            let answers = of_sample * (if course.blocks { 0 } else { seen } + held);
            // What kernels need for themselves, and what allocators keep: measured on two nets at two batch sizes.
            peak * 9 / 4 + (16 << 20) + (of_parameters + pool.bytes + answers.min(school::ROOM)) as u64
        });
        let memory =
            needed.map_or_else(String::new, |bytes| format!(" about {} MB", bytes.div_ceil(1_000_000)));
        if needed.is_some() {
            cx.note(format!("memory of training, predicted:{memory}, beside the program and the models"));
        }
        let classes = labelled.map(|(_, classes)| classes);
        let is_streamed = course.blocks;
        let lesson =
            Lesson { pool, teacher, at_work, at_exam, count, classes, changes, is_streamed, learns, memory };
        Ok((lesson, trained))
    }

    /// The loss on the next samples, and the gradients of the parameters that have one.
    pub(super) fn step(
        &mut self,
        trained: &[Trained],
        random: &mut ChaCha8Rng,
    ) -> Result<(f64, Vec<Tensor>), PassError> {
        let numbers = self.pool.draw(self.count, random);
        let samples = self.pool.samples(numbers.iter().copied())?;
        let mut feeds = together(&samples);
        // What blocks are fed is as much for every sample as a step holds: it is not kept.
        let mut given = if self.changes.is_empty() && !self.is_streamed {
            self.teacher.remembered(&numbers, (&feeds, false))?
        } else {
            let change = |(name, tensor): (String, Tensor)| {
                let wanted = self.changes.get(&name).map_or(&[][..], Vec::as_slice);
                (name, augmented(tensor, wanted, random))
            };
            feeds = feeds.into_iter().map(change).collect();
            self.teacher.asked(&feeds)?
        };
        if let Some(classes) = self.classes {
            given.push(school::classes(&samples, classes)?);
        }
        self.at_work.gradients(&feeds, given, trained)
    }

    /// The mean loss on samples held out.
    pub(super) fn exam(&mut self, trained: &[Trained]) -> Result<f64, PassError> {
        self.at_exam.loss(&mut self.pool, &mut self.teacher, trained)
    }

    /// Number of samples that judge.
    pub(super) fn judged(&self) -> usize {
        self.pool.held() / self.at_exam.count * self.at_exam.count
    }
}

/// The changes of pictures by input: the step's of all that are pictures, or the data's.
///
/// # Errors
/// When an input that they are for is no picture.
fn changes(course: &Course<'_>, sample: &Batch, cx: &mut Cx<'_>) -> Result<Changes, PassError> {
    let why_not = |tensor: &Tensor| match *tensor.shape() {
        _ if tensor.dtype() != DType::F32 => Some(format!("of type {}", tensor.dtype())),
        [_, channels, _, last] if last <= 4 && channels > 4 => {
            Some(format!("{:?}, its channels behind", tensor.shape()))
        }
        [_, _, _, _] => None,
        ref shape => Some(format!("{shape:?}")),
    };
    let refused = |name: &str, what: &str| {
        PassError::Options(format!(
            "`augment`: input `{name}` is {what}; pictures are [N, C, H, W] of 32-bit floats"
        ))
    };
    let mut changes = Changes::new();
    match course.augment {
        Some([]) => {}
        Some(wanted) => {
            let pictures = sample.feeds.iter().filter(|(_, tensor)| why_not(tensor).is_none());
            changes.extend(pictures.map(|(name, _)| (name.clone(), wanted.to_vec())));
            if let (true, Some((name, tensor))) = (changes.is_empty(), sample.feeds.first()) {
                return Err(refused(name, &why_not(tensor).unwrap_or_default()));
            }
        }
        None => {
            let of_data = cx.calibration()?.1.augment();
            for (name, tensor) in &sample.feeds {
                let named =
                    of_data.iter().find(|(known, _)| known.as_ref().is_none_or(|known| known == name));
                let Some((_, wanted)) = named else { continue };
                if let Some(what) = why_not(tensor) {
                    return Err(refused(name, &what));
                }
                changes.insert(name.clone(), wanted.clone());
            }
        }
    }
    Ok(changes)
}

/// What labels are learned at: the first output that has a row of classes for each sample, and how many these are.
fn labelled(
    course: &Course<'_>,
    model: &Model,
    aims: &[Aim],
    given: &[Tensor],
) -> Result<Option<(Aim, usize)>, PassError> {
    if course.label_weight == 0.0 {
        return Ok(None);
    }
    let found = aims.iter().zip(given).find(|(_, given)| given.shape().len() == 2);
    let Some((aim, given)) = found else {
        return Err(PassError::Options(
            "`label-weight`: no output has two axes, samples and classes".to_owned(),
        ));
    };
    let of_logits = !matches!(aim.distance, Distance::Probabilities) && !is_softmax(model, aim.value);
    let distance = Distance::Classes { of_logits };
    let aim = Aim { value: aim.value, distance, weight: course.label_weight, is_border: false };
    Ok(Some((aim, given.shape()[1])))
}

/// How many of `all` to look at together, up to `most`, so that as few as can be are left over.
fn at_once(all: usize, most: usize) -> usize {
    let most = most.min(all).max(1);
    (most.div_ceil(2)..=most).max_by_key(|&size| (all / size * size, size)).unwrap_or(most)
}
