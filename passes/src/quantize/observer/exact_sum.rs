//! Sums that do not depend on the order of their terms.

/// 32-bit digits: from the least f32 up to 2^40 times the greatest, and a sign.
const DIGITS: usize = 12;

/// Exponent of the lowest digit's unit: the least positive f32.
const UNIT: i32 = -149;

/// A sum of sums of f32 values, exact: the same bits in whatever order terms and parts are added.
///
/// A fixed-point number with the range of f32 (Kulisch's accumulator, cut to what f32 needs). Terms are f64,
/// as sums of f32 values are formed; each must be a multiple of the least f32, which every such sum is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExactSum {
    /// Lowest first; each in `0..2^32` but the last, which carries the sign.
    digits: [i64; DIGITS],
}

impl ExactSum {
    /// Adds a finite number.
    pub(super) fn add(&mut self, term: f64) {
        let bits = term.to_bits();
        let stored = ((bits >> 52) & 0x7ff) as i32;
        let mantissa = (bits & ((1 << 52) - 1)) | if stored == 0 { 0 } else { 1 << 52 };
        let exponent = stored.max(1) - 1075;
        let mut whole = if term < 0.0 { -i128::from(mantissa) } else { i128::from(mantissa) };
        let mut place = exponent - UNIT;
        if place < 0 {
            // What is shifted out is zero for sums of f32 values.
            whole >>= place.unsigned_abs().min(64);
            place = 0;
        }
        let first = (place as usize / 32).min(DIGITS - 1);
        let mut carry = whole << (place as u32 % 32);
        for digit in &mut self.digits[first..DIGITS - 1] {
            if carry == 0 {
                return;
            }
            let sum = carry + i128::from(*digit);
            *digit = (sum & 0xffff_ffff) as i64;
            carry = sum >> 32;
        }
        let top = &mut self.digits[DIGITS - 1];
        *top = top.saturating_add(carry.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64);
    }

    /// Adds another sum.
    pub(super) fn merge(&mut self, other: &ExactSum) {
        let mut carry = 0;
        for (digit, theirs) in self.digits[..DIGITS - 1].iter_mut().zip(&other.digits) {
            let sum = *digit + theirs + carry;
            *digit = sum & 0xffff_ffff;
            carry = sum >> 32;
        }
        let top = &mut self.digits[DIGITS - 1];
        *top = top.saturating_add(other.digits[DIGITS - 1]).saturating_add(carry);
    }

    /// The sum, rounded.
    pub(super) fn value(&self) -> f64 {
        let weights = (0..).map(|digit| f64::from(32 * digit + UNIT).exp2());
        let terms: Vec<f64> =
            self.digits.iter().zip(weights).map(|(&digit, unit)| digit as f64 * unit).collect();
        terms.iter().rev().sum()
    }

    /// The digits, lowest first.
    pub(super) fn digits(&self) -> &[i64; DIGITS] {
        &self.digits
    }

    /// The opposite of [`ExactSum::digits`]; `None` where they are no digits.
    pub(super) fn from_digits(digits: [i64; DIGITS]) -> Option<ExactSum> {
        let lower = &digits[..DIGITS - 1];
        lower.iter().all(|digit| (0..1i64 << 32).contains(digit)).then_some(ExactSum { digits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(terms: impl IntoIterator<Item = f32>) -> ExactSum {
        let mut sum = ExactSum::default();
        terms.into_iter().for_each(|term| sum.add(f64::from(term)));
        sum
    }

    #[test]
    fn any_order_gives_the_same_bits() {
        let terms: Vec<f32> = (0..999)
            .map(|i: i32| (i as f32 * 0.7).sin() * ((i * 37) % 90 - 45) as f32 * 10f32.powi(i % 60 - 30))
            .collect();
        let forward = sum(terms.iter().copied());
        assert_eq!(forward, sum(terms.iter().rev().copied()));
        let mut parts = sum(terms[..100].iter().copied());
        parts.merge(&sum(terms[100..].iter().copied()));
        assert_eq!(forward, parts);
        let mut turned = sum(terms[100..].iter().copied());
        turned.merge(&sum(terms[..100].iter().copied()));
        assert_eq!(forward, turned);
    }

    #[test]
    fn large_terms_that_cancel_leave_the_small_ones() {
        assert_eq!(sum([f32::MAX, 1.5, -f32::MAX]).value(), 1.5);
        assert_eq!(sum([f32::from_bits(1), 3e38, -3e38]).value(), f64::from(f32::from_bits(1)));
        assert_eq!(sum([-1.0, -2.5]).value(), -3.5);
        assert_eq!(sum([-1.0, 1.0]), ExactSum::default());
        assert_eq!(sum(std::iter::repeat_n(f32::MAX, 4096)).value(), f64::from(f32::MAX) * 4096.0);
    }
}
