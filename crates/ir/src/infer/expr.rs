//! Whole-number arithmetic over symbolic sizes.
//!
//! A size that depends on symbols is a polynomial with whole coefficients whose unknowns are symbols and
//! rounded-down quotients. It is kept in a normal form, so that equal texts mean equal sizes, and travels
//! through [`Dim::Symbol`] as that text: `2*batch + 1`, `floor((height + 1)/2)`.

use std::fmt;
use std::sync::Arc;

use crate::types::Dim;

/// More than this and the size counts as unknown: such expressions help nobody and grow without end.
const MAX_TERMS: usize = 8;
const MAX_FACTORS: usize = 6;
const MAX_TEXT: usize = 160;
/// Quotients within quotients.
const MAX_NESTING: usize = 3;

/// A whole number that may depend on symbolic sizes, in normal form.
///
/// Symbols stand for sizes of dimensions, taken to be at least 1.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Expr {
    /// Sorted by factors, no two alike, no coefficient zero.
    terms: Vec<Term>,
    constant: i64,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Term {
    /// Sorted, never empty.
    factors: Vec<Atom>,
    coefficient: i64,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Atom {
    Symbol(Arc<str>),
    /// The quotient rounded down; the numerator's coefficients are within `0..divisor`.
    Floor(Arc<(Expr, i64)>),
}

impl From<i64> for Expr {
    fn from(constant: i64) -> Expr {
        Expr { terms: Vec::new(), constant }
    }
}

impl Expr {
    /// A symbol.
    pub fn symbol(name: &str) -> Expr {
        Expr::atom(Atom::Symbol(name.into()))
    }

    fn atom(atom: Atom) -> Expr {
        Expr { terms: vec![Term { factors: vec![atom], coefficient: 1 }], constant: 0 }
    }

    /// The size of a dimension; `None` when nothing is known of it.
    pub fn of(dim: &Dim) -> Option<Expr> {
        match dim {
            Dim::Fixed(size) => Some(Expr::from(i64::try_from(*size).ok()?)),
            Dim::Unknown => None,
            // Some exporters write a question mark for every size they do not know.
            Dim::Symbol(name) if matches!(name.as_ref(), "" | "?") => None,
            Dim::Symbol(name) => {
                Some(parse(name, MAX_NESTING).unwrap_or_else(|| Expr::atom(Atom::Symbol(name.clone()))))
            }
        }
    }

    /// As a dimension; a negative number is none, and unknown.
    pub fn dim(&self) -> Dim {
        if let Some(constant) = self.constant() {
            return usize::try_from(constant).map_or(Dim::Unknown, Dim::Fixed);
        }
        if let [Term { factors, coefficient: 1 }] = self.terms.as_slice()
            && let ([Atom::Symbol(name)], 0) = (factors.as_slice(), self.constant)
        {
            return Dim::Symbol(name.clone());
        }
        Dim::Symbol(self.to_string().into())
    }

    /// The number, when it depends on no symbol.
    pub fn constant(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// The least value it can have with every symbol at least 1; `None` when there is no telling.
    pub fn least(&self) -> Option<i64> {
        let mut least = self.constant;
        for Term { factors, coefficient } in &self.terms {
            let mut product = (*coefficient >= 0).then_some(*coefficient)?;
            for factor in factors {
                let factor = match factor {
                    Atom::Symbol(_) => 1,
                    Atom::Floor(quotient) => quotient.0.least()?.div_euclid(quotient.1).max(0),
                };
                product = product.checked_mul(factor)?;
            }
            least = least.checked_add(product)?;
        }
        Some(least)
    }

    /// The sum; `None` when it is too large or too complex, as for all operations here.
    pub fn add(&self, other: &Expr) -> Option<Expr> {
        let constant = self.constant.checked_add(other.constant)?;
        Expr::normal(self.terms.iter().chain(&other.terms).cloned().collect(), constant)
    }

    /// The difference.
    pub fn sub(&self, other: &Expr) -> Option<Expr> {
        self.add(&other.mul(&Expr::from(-1))?)
    }

    /// The product.
    pub fn mul(&self, other: &Expr) -> Option<Expr> {
        let mut terms = Vec::new();
        for (left, right) in [(self, other.constant), (other, self.constant)] {
            for Term { factors, coefficient } in &left.terms {
                let coefficient = coefficient.checked_mul(right)?;
                terms.push(Term { factors: factors.clone(), coefficient });
            }
        }
        for left in &self.terms {
            for right in &other.terms {
                let mut factors = [left.factors.as_slice(), &right.factors].concat();
                factors.sort();
                let coefficient = left.coefficient.checked_mul(right.coefficient)?;
                terms.push(Term { factors, coefficient });
            }
        }
        Expr::normal(terms, self.constant.checked_mul(other.constant)?)
    }

    /// The quotient by a positive number, rounded down.
    pub fn floor_div(&self, divisor: i64) -> Option<Expr> {
        if divisor <= 0 {
            return None;
        }
        let mut whole = Expr::from(self.constant.div_euclid(divisor));
        let mut rest = Expr::from(self.constant.rem_euclid(divisor));
        for Term { factors, coefficient } in &self.terms {
            for (part, coefficient) in
                [(&mut whole, coefficient.div_euclid(divisor)), (&mut rest, coefficient.rem_euclid(divisor))]
            {
                if coefficient != 0 {
                    part.terms.push(Term { factors: factors.clone(), coefficient });
                }
            }
        }
        if rest.terms.is_empty() {
            return Some(whole);
        }
        let common = rest.terms.iter().fold(divisor, |common, term| gcd(common, term.coefficient));
        let divisor = divisor / common;
        rest.constant = rest.constant.div_euclid(common);
        for term in &mut rest.terms {
            term.coefficient /= common;
        }
        if divisor == 1 {
            return whole.add(&rest);
        }
        // floor((floor(x/a) + b)/c) is floor((x + a*b)/(a*c)): what layer after layer of strides gives.
        if let [Term { factors, coefficient: 1 }] = rest.terms.as_slice()
            && let [Atom::Floor(inner)] = factors.as_slice()
        {
            let numerator = inner.0.add(&Expr::from(rest.constant.checked_mul(inner.1)?))?;
            return whole.add(&numerator.floor_div(divisor.checked_mul(inner.1)?)?);
        }
        let quotient = Expr::atom(Atom::Floor(Arc::new((rest, divisor))));
        if quotient.nesting() > MAX_NESTING || quotient.to_string().len() > MAX_TEXT {
            return None;
        }
        whole.add(&quotient)
    }

    /// The quotient by a positive number, rounded up.
    pub fn ceil_div(&self, divisor: i64) -> Option<Expr> {
        self.add(&Expr::from(divisor.checked_sub(1)?))?.floor_div(divisor)
    }

    /// The quotient, when the division is known to leave nothing over.
    pub fn exact_div(&self, divisor: &Expr) -> Option<Expr> {
        if self == divisor {
            return Some(Expr::from(1));
        }
        let (factors, coefficient) = match (divisor.terms.as_slice(), divisor.constant) {
            ([], constant) => (&[][..], constant),
            ([Term { factors, coefficient }], 0) => (factors.as_slice(), *coefficient),
            _ => return None,
        };
        if coefficient == 0 || self.constant.checked_rem(coefficient)? != 0 {
            return None;
        }
        if !factors.is_empty() && self.constant != 0 {
            return None;
        }
        let mut terms = Vec::new();
        for term in &self.terms {
            if term.coefficient.checked_rem(coefficient)? != 0 {
                return None;
            }
            let mut left = term.factors.clone();
            for factor in factors {
                left.remove(left.iter().position(|other| other == factor)?);
            }
            terms.push(Term { factors: left, coefficient: term.coefficient.checked_div(coefficient)? });
        }
        // Terms left without factors are part of the constant.
        let mut constant = self.constant.checked_div(coefficient)?;
        for term in terms.iter().filter(|term| term.factors.is_empty()) {
            constant = constant.checked_add(term.coefficient)?;
        }
        terms.retain(|term| !term.factors.is_empty());
        Expr::normal(terms, constant)
    }

    fn normal(mut terms: Vec<Term>, constant: i64) -> Option<Expr> {
        terms.sort_by(|a, b| a.factors.cmp(&b.factors));
        let mut merged: Vec<Term> = Vec::with_capacity(terms.len());
        for term in terms {
            match merged.last_mut() {
                Some(last) if last.factors == term.factors => {
                    last.coefficient = last.coefficient.checked_add(term.coefficient)?;
                }
                _ => merged.push(term),
            }
        }
        merged.retain(|term| term.coefficient != 0);
        if merged.len() > MAX_TERMS || merged.iter().any(|term| term.factors.len() > MAX_FACTORS) {
            return None;
        }
        let expr = Expr { terms: merged, constant };
        // One symbol alone is kept however long its name is.
        let simple = matches!(expr.terms.as_slice(), [] | [Term { .. }]) && expr.constant == 0;
        (simple || expr.to_string().len() <= MAX_TEXT).then_some(expr)
    }

    fn nesting(&self) -> usize {
        let quotients = self.terms.iter().flat_map(|term| &term.factors).map(|factor| match factor {
            Atom::Symbol(_) => 0,
            Atom::Floor(quotient) => 1 + quotient.0.nesting(),
        });
        quotients.max().unwrap_or(0)
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Term { factors, coefficient }) in self.terms.iter().enumerate() {
            match (index, *coefficient < 0) {
                (0, false) => {}
                (0, true) => f.write_str("-")?,
                (_, false) => f.write_str(" + ")?,
                (_, true) => f.write_str(" - ")?,
            }
            if coefficient.unsigned_abs() != 1 {
                write!(f, "{}*", coefficient.unsigned_abs())?;
            }
            for (index, factor) in factors.iter().enumerate() {
                if index > 0 {
                    f.write_str("*")?;
                }
                match factor {
                    Atom::Symbol(name) => f.write_str(name)?,
                    Atom::Floor(quotient) if quotient.0.terms.len() == 1 && quotient.0.constant == 0 => {
                        write!(f, "floor({}/{})", quotient.0, quotient.1)?;
                    }
                    Atom::Floor(quotient) => write!(f, "floor(({})/{})", quotient.0, quotient.1)?,
                }
            }
        }
        match (self.terms.is_empty(), self.constant) {
            (true, constant) => write!(f, "{constant}"),
            (false, 0) => Ok(()),
            (false, constant) => {
                let sign = if constant < 0 { '-' } else { '+' };
                write!(f, " {sign} {}", constant.unsigned_abs())
            }
        }
    }
}

/// Reads a sum as [`Display`](fmt::Display) writes it. `None` for anything else: a name of its own kind.
///
/// Signs count only with a space on both sides, so that `seq-len` is one name.
fn parse(text: &str, nesting: usize) -> Option<Expr> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let mut sum = Expr::from(0);
    let (mut sign, mut rest) = (1, text);
    loop {
        let plus = outside_parentheses(rest, " + ");
        let minus = outside_parentheses(rest, " - ");
        let end = plus.into_iter().chain(minus).min();
        let product = parse_product(&rest[..end.unwrap_or(rest.len())], nesting)?;
        sum = sum.add(&product.mul(&Expr::from(sign))?)?;
        let Some(end) = end else { return Some(sum) };
        sign = if Some(end) == plus { 1 } else { -1 };
        rest = &rest[end + 3..];
    }
}

fn parse_product(text: &str, nesting: usize) -> Option<Expr> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let mut product = Expr::from(sign);
    loop {
        let end = outside_parentheses(rest, "*");
        let factor = &rest[..end.unwrap_or(rest.len())];
        let quotient = factor.strip_prefix("floor(").and_then(|factor| factor.strip_suffix(')'));
        let factor = if let Some(quotient) = quotient {
            let (numerator, divisor) = quotient.rsplit_once('/')?;
            let bare = numerator.strip_prefix('(').and_then(|numerator| numerator.strip_suffix(')'));
            let numerator = bare.unwrap_or(numerator);
            let divisor = divisor.parse().ok().filter(|&divisor| divisor > 0)?;
            parse(numerator, nesting.checked_sub(1)?)?.floor_div(divisor)?
        } else if let Ok(number) = factor.parse::<i64>() {
            Expr::from(number)
        } else if factor.is_empty() || factor.contains(|c: char| c.is_whitespace() || "()*".contains(c)) {
            return None;
        } else {
            Expr::symbol(factor)
        };
        product = product.mul(&factor)?;
        let Some(end) = end else { return Some(product) };
        rest = &rest[end + 1..];
    }
}

/// Where `what` first is, parentheses not looked into.
fn outside_parentheses(text: &str, what: &str) -> Option<usize> {
    let mut depth = 0i32;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ if depth == 0 && text.as_bytes()[at..].starts_with(what.as_bytes()) => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Expr {
        Expr::of(&Dim::symbol(text)).unwrap()
    }

    #[test]
    fn texts_are_normal_forms() {
        for (text, normal) in [
            ("batch", "batch"),
            ("1 + seq", "seq + 1"),
            ("seq - 1 + 1", "seq"),
            ("2*batch*seq", "2*batch*seq"),
            ("seq*batch*3", "3*batch*seq"),
            ("a - b", "a - b"),
            ("b - a", "-a + b"),
            ("floor((H + 1)/2)", "floor((H + 1)/2)"),
            ("floor((H - 1)/2) + 1", "floor((H + 1)/2)"),
            ("floor(H/2)", "floor(H/2)"),
            ("floor((H)/2)", "floor(H/2)"),
            ("floor(5*floor(H/2)*W/6)", "floor(5*W*floor(H/2)/6)"),
            ("floor((floor(H/2)*W + floor(W/3))/6)", "floor((W*floor(H/2) + floor(W/3))/6)"),
            ("floor((2*H + 3)/4)", "floor((H + 1)/2)"),
            ("floor((4*H + 6)/2)", "2*H + 3"),
            ("floor((floor((H + 1)/2) + 1)/2)", "floor((H + 3)/4)"),
            ("-H + 3", "-H + 3"),
            // Names that only look like arithmetic.
            ("seq-len", "seq-len"),
            ("DynamicDimension.0", "DynamicDimension.0"),
            ("batch size", "batch size"),
            ("foo(bar", "foo(bar"),
            ("a * b", "a * b"),
        ] {
            assert_eq!(read(text).to_string(), normal, "{text}");
            assert_eq!(read(normal).to_string(), normal, "reading {normal} again");
        }
        assert_eq!(read("3").constant(), Some(3));
        assert_eq!(read("-1").dim(), Dim::Unknown);
        assert_eq!(Expr::of(&Dim::symbol("?")), None);
    }

    #[test]
    fn arithmetic_agrees_with_numbers() {
        let value = |text: &str, h: i64| -> i64 {
            // Substituting is parsing with the number in place of the name.
            parse(&text.replace('H', &h.to_string()), 3).unwrap().constant().unwrap()
        };
        for a in ["H", "2*H - 3", "floor((H + 1)/2)", "H*H + 5", "-3*H"] {
            for divisor in [1, 2, 3, 4, 6] {
                let down = read(a).floor_div(divisor).unwrap().to_string();
                let up = read(a).ceil_div(divisor).unwrap().to_string();
                for h in 1..40 {
                    assert_eq!(value(&down, h), value(a, h).div_euclid(divisor), "{a} / {divisor} at {h}");
                    assert_eq!(value(&up, h), -(-value(a, h)).div_euclid(divisor), "{a} / {divisor} at {h}");
                }
            }
        }
        let product = read("a + 1").mul(&read("a - 1")).unwrap();
        assert_eq!(product.to_string(), "a*a - 1");
        assert_eq!(read("384*b*s").exact_div(&read("12*b")).unwrap().to_string(), "32*s");
        assert_eq!(read("4*b*s + 4*b").exact_div(&read("4*b")).unwrap().to_string(), "s + 1");
        assert_eq!(read("b").exact_div(&read("s")), None);
        assert_eq!(read("5*b").exact_div(&Expr::from(2)), None);
    }

    #[test]
    fn least_values() {
        for (text, least) in
            [("H", Some(1)), ("H - 1", Some(0)), ("-H + 9", None), ("floor((H + 1)/2)", Some(1))]
        {
            assert_eq!(read(text).least(), least, "{text}");
        }
    }

    #[test]
    fn what_grows_without_end_is_given_up() {
        let mut product = read("a");
        let steps =
            (0..100).take_while(|_| product.mul(&read("b")).map(|next| product = next).is_some()).count();
        assert!(steps < 10);
        assert_eq!(Expr::from(i64::MAX).add(&Expr::from(1)), None);
        assert_eq!(Expr::from(i64::MIN).mul(&Expr::from(-1)), None);
        assert_eq!(read("a").mul(&Expr::from(i64::MAX)).unwrap().mul(&Expr::from(2)), None);
    }
}
