//! Optimizers: how a gradient becomes a step.

use rayon::prelude::*;

/// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101): Adam's steps, and weights that decay by themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Share of the mean gradient that is kept from step to step.
    pub beta1: f32,
    /// Share of the mean squared gradient that is kept.
    pub beta2: f32,
    /// Added to the root of the mean squared gradient.
    pub epsilon: f32,
    /// Share of a weight that goes in a step, times the learning rate.
    pub decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, decay: 0.0 }
    }
}

/// A parameter and what the optimizer knows of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// Its elements.
    pub elements: Vec<f32>,
    /// Mean gradients.
    pub mean: Vec<f32>,
    /// Mean squared gradients.
    pub square: Vec<f32>,
    /// Whether it decays: weights do, biases and scales do not.
    pub decays: bool,
    /// Whether elements that are 0 stay so.
    pub keeps_zeros: bool,
}

impl Trained {
    /// A parameter before the first step.
    pub fn new(elements: Vec<f32>, decays: bool, keeps_zeros: bool) -> Trained {
        let zeros = vec![0f32; elements.len()];
        Trained { mean: zeros.clone(), square: zeros, elements, decays, keeps_zeros }
    }
}

/// Elements that are stepped together.
const CHUNK: usize = 1 << 14;

impl AdamW {
    /// One step, number `step` from 1, along a gradient that is multiplied by `factor` first.
    ///
    /// # Panics
    /// When the gradient has another length than the parameter.
    pub fn step(&self, trained: &mut Trained, gradient: &[f32], factor: f32, rate: f32, step: u64) {
        assert_eq!(trained.elements.len(), gradient.len(), "a gradient of its parameter's length");
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        // In 64 bits: 1 - 0.999^1 has few digits left in 32.
        let missing = |beta: f32| (1.0 - f64::from(beta).powi(power)) as f32;
        let (of_mean, of_square) = (missing(self.beta1), missing(self.beta2));
        let decay = if trained.decays { 1.0 - rate * self.decay } else { 1.0 };
        let keeps = trained.keeps_zeros;
        let parts = trained.elements.par_chunks_mut(CHUNK);
        let moments = trained.mean.par_chunks_mut(CHUNK).zip(trained.square.par_chunks_mut(CHUNK));
        parts.zip(moments).zip(gradient.par_chunks(CHUNK)).for_each(
            |((elements, (means, squares)), gradient)| {
                let all = elements.iter_mut().zip(means).zip(squares).zip(gradient);
                for (((element, mean), square), &gradient) in all {
                    if keeps && *element == 0.0 {
                        continue;
                    }
                    let gradient = gradient * factor;
                    *mean = self.beta1 * *mean + (1.0 - self.beta1) * gradient;
                    *square = self.beta2 * *square + (1.0 - self.beta2) * gradient * gradient;
                    let by = (*mean / of_mean) / ((*square / of_square).sqrt() + self.epsilon);
                    let next = *element * decay - rate * by;
                    // A weight that happens to land on 0 is not one that was pruned.
                    *element = if keeps && next == 0.0 { f32::MIN_POSITIVE } else { next };
                }
            },
        );
    }
}

/// The norm of all gradients together, summed in a fixed order.
pub fn norm(gradients: &[&[f32]]) -> f64 {
    let square = |part: &[f32]| part.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let of_one = |gradient: &&[f32]| gradient.chunks(CHUNK).map(square).sum::<f64>();
    gradients.iter().map(of_one).sum::<f64>().sqrt()
}

/// The learning rate of step `step` of `steps`, from 0: it rises evenly over the first `warmup` and then falls as half
/// a cosine to nothing (Loshchilov and Hutter 2017, arXiv 1608.03983).
pub fn cosine(rate: f32, step: u64, steps: u64, warmup: u64) -> f32 {
    if step < warmup {
        return rate * (step + 1) as f32 / (warmup + 1) as f32;
    }
    let share = (step - warmup) as f64 / (steps.saturating_sub(warmup)).max(1) as f64;
    (f64::from(rate) * 0.5 * (1.0 + (std::f64::consts::PI * share.min(1.0)).cos())) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_the_paper() {
        // f(x) = x^2 / 2 from 1: the first step is the rate, whatever the gradient.
        let adam = AdamW::default();
        let mut trained = Trained::new(vec![1.0, -2.0], true, false);
        adam.step(&mut trained, &[1.0, -2.0], 1.0, 0.1, 1);
        assert!((trained.elements[0] - 0.9).abs() < 1e-6 && (trained.elements[1] + 1.9).abs() < 1e-6);
        for step in 2..2000 {
            let gradient = trained.elements.clone();
            adam.step(&mut trained, &gradient, 1.0, 0.01, step);
        }
        assert!(trained.elements.iter().all(|x| x.abs() < 1e-3), "{:?}", trained.elements);
        // Decay alone.
        let mut still = Trained::new(vec![2.0], true, false);
        AdamW { decay: 0.5, ..adam }.step(&mut still, &[0.0], 1.0, 0.1, 1);
        assert!((still.elements[0] - 1.9).abs() < 1e-6);
        let mut bias = Trained::new(vec![2.0], false, false);
        AdamW { decay: 0.5, ..adam }.step(&mut bias, &[0.0], 1.0, 0.1, 1);
        assert_eq!(bias.elements, [2.0]);
    }

    #[test]
    fn zeros_that_are_kept_stay() {
        let mut sparse = Trained::new(vec![0.0, 1.0, 0.0], true, true);
        for step in 1..50 {
            AdamW::default().step(&mut sparse, &[1.0, 1.0, -1.0], 1.0, 0.02, step);
            assert!(sparse.elements[0] == 0.0 && sparse.elements[1] != 0.0 && sparse.elements[2] == 0.0);
        }
    }

    #[test]
    fn rates_rise_and_fall() {
        let rates: Vec<f32> = (0..10).map(|step| cosine(1.0, step, 10, 2)).collect();
        assert!(rates[0] < rates[1] && rates[1] < rates[2] && rates[2] == 1.0);
        assert!(rates.windows(2).skip(2).all(|pair| pair[1] < pair[0]) && rates[9] > 0.0);
        assert_eq!(norm(&[&[3.0], &[0.0, 4.0]]), 5.0);
    }
}
