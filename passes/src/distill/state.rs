//! The state of training as bytes, to go on from after an interruption as if there had been none.

use optix_training::optimizer::Trained;

/// First bytes of a checkpoint.
const MAGIC: &[u8; 8] = b"optixck2";

/// Everything that training changes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    /// Steps that were made.
    pub(super) step: u64,
    /// Looks at samples held out since the last gain.
    pub(super) since: u64,
    /// The loss on samples held out before the first step.
    pub(super) first: f64,
    /// The least one since, and the step that it was after.
    pub(super) best: f64,
    pub(super) best_step: u64,
    /// Place in the stream of random numbers.
    pub(super) random: u128,
    /// Order of the samples, and the next one in it.
    pub(super) order: Vec<usize>,
    pub(super) next: usize,
    pub(super) trained: Vec<Trained>,
    /// Elements that were best.
    pub(super) kept: Vec<Vec<f32>>,
    /// Steps with the loss on samples held out behind them.
    pub(super) curve: Vec<[f64; 2]>,
}

/// Takes numbers off the front of bytes.
struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn floats(&mut self, count: usize) -> Option<Vec<f32>> {
        let (own, rest) = self.0.split_at_checked(count.checked_mul(4)?)?;
        self.0 = rest;
        let (numbers, _) = own.as_chunks::<4>();
        Some(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

impl State {
    /// The state of a training that `identity` tells from all others.
    pub(super) fn to_bytes(&self, identity: &[u8; 32]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(identity);
        for number in [self.step, self.since, self.best_step, self.next as u64, self.order.len() as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.first, self.best] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.random.to_le_bytes());
        bytes.extend_from_slice(&(self.curve.len() as u64).to_le_bytes());
        for number in self.curve.iter().flatten() {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for &place in &self.order {
            bytes.extend_from_slice(&(place as u64).to_le_bytes());
        }
        let of_trained = self.trained.iter().flat_map(|one| [&one.elements, &one.mean, &one.square]);
        for number in of_trained.chain(&self.kept).flatten() {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The state that such bytes hold, of the same training: `start` is its state before the first step. Says what is
    /// wrong with them otherwise.
    pub(super) fn from_bytes(bytes: &[u8], identity: &[u8; 32], start: &State) -> Result<State, String> {
        let broken = || "it is no checkpoint, or a part of one".to_owned();
        let mut reader = Reader(bytes);
        if &reader.take::<8>().ok_or_else(broken)? != MAGIC {
            return Err(broken());
        }
        if &reader.take::<32>().ok_or_else(broken)? != identity {
            return Err(
                "it belongs to a training of another model, teacher, data, seed or options".to_owned()
            );
        }
        State::read(&mut reader, start).filter(|_| reader.0.is_empty()).ok_or_else(broken)
    }

    fn read(reader: &mut Reader<'_>, start: &State) -> Option<State> {
        let mut number = || reader.take::<8>().map(u64::from_le_bytes);
        let (step, since, best_step) = (number()?, number()?, number()?);
        let (next, count) = (usize::try_from(number()?).ok()?, number()?);
        let mut float = || reader.take::<8>().map(f64::from_le_bytes);
        let (first, best) = (float()?, float()?);
        let random = u128::from_le_bytes(reader.take::<16>()?);
        let looks = u64::from_le_bytes(reader.take::<8>()?);
        let mut curve = Vec::new();
        for _ in 0..looks {
            let mut float = || reader.take::<8>().map(f64::from_le_bytes);
            curve.push([float()?, float()?]);
        }
        // Nothing is allocated for what a file declares.
        let is_same = count == start.order.len() as u64 && next <= start.order.len();
        let mut order = Vec::new();
        for _ in 0..if is_same { start.order.len() } else { return None } {
            let place = usize::try_from(u64::from_le_bytes(reader.take::<8>()?)).ok()?;
            order.push(Some(place).filter(|&place| place < start.order.len())?);
        }
        let mut trained = start.trained.clone();
        for one in &mut trained {
            let count = one.elements.len();
            for part in [&mut one.elements, &mut one.mean, &mut one.square] {
                *part = reader.floats(count)?;
            }
        }
        let kept = start.kept.iter().map(|elements| reader.floats(elements.len())).collect::<Option<_>>()?;
        Some(State { step, since, first, best, best_step, random, order, next, trained, kept, curve })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_and_another_is_refused() {
        let start = State {
            step: 0,
            since: 0,
            first: 0.5,
            best: 0.5,
            best_step: 0,
            random: 0,
            order: vec![0, 1, 2],
            next: 3,
            trained: vec![Trained::new(vec![1.0, 2.0], true, false), Trained::new(vec![3.0], false, false)],
            kept: vec![vec![1.0, 2.0], vec![3.0]],
            curve: vec![[0.0, 0.5]],
        };
        let mut later = start.clone();
        (later.step, later.since, later.best, later.best_step) = (40, 2, 0.25, 20);
        (later.random, later.order, later.next) = (1 << 70, vec![2, 0, 1], 1);
        later.trained[0].mean = vec![0.25, f32::MIN_POSITIVE];
        later.kept[1] = vec![-7.5];
        later.curve.push([20.0, 0.25]);
        let bytes = later.to_bytes(&[7; 32]);
        assert_eq!(State::from_bytes(&bytes, &[7; 32], &start), Ok(later));
        assert!(State::from_bytes(&bytes, &[8; 32], &start).expect_err("another").contains("another model"));
        for length in 0..bytes.len() {
            assert!(State::from_bytes(&bytes[..length], &[7; 32], &start).is_err(), "{length}");
        }
        let more = [&bytes[..], &[0]].concat();
        assert!(State::from_bytes(&more, &[7; 32], &start).is_err());
        let mut wrong = bytes.clone();
        // Behind what has one number each and two points of the curve: the first place in the order.
        wrong[152..160].copy_from_slice(&3u64.to_le_bytes());
        assert!(State::from_bytes(&wrong, &[7; 32], &start).is_err());
    }
}
