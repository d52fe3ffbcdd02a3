//! Tensors of the text form.

use half::{bf16, f16};

use super::lex::{Lexer, ParseError, Token};
use super::parse::Parser;
use crate::dtype::DType;
use crate::node::{StoredSparse, StoredTensor};
use crate::tensor::{Tensor, element_count};
use crate::types::{Dim, Type};

/// Reads one tensor, such as `float[2, 2] {1, 2, 3, 4}` or `int64 {7}`.
///
/// # Errors
/// When the text is not a tensor with all of its elements, and nothing else.
pub fn parse_tensor(text: &str) -> Result<Tensor, ParseError> {
    let mut parser = Parser::new(text);
    let ty = parser.ty(0)?;
    let tensor = parser.tensor_data(&ty)?;
    parser.expect_end()?;
    Ok(tensor)
}

impl Parser<'_> {
    /// `{elements}` of a tensor of a type already read.
    pub(super) fn tensor_data(&mut self, ty: &Type) -> Result<Tensor, ParseError> {
        let place = self.lexer.place();
        let fixed = ty.dtype().zip(ty.fixed_shape());
        let Some((dtype, shape)) = fixed else {
            return Err(self.lexer.error_at(
                place,
                format!("a constant needs an element type and numeric dimensions, not `{ty}`"),
            ));
        };
        match self.lexer.next()? {
            Token::Mark('{') => {}
            Token::Mark('[') => {
                return Err(self.lexer.error_at(
                    place,
                    "tensors in external files cannot be read from text: write the elements as `{...}`",
                ));
            }
            other => {
                return Err(self.expected(place, "the tensor's elements, `{...}`", &other));
            }
        }
        if self.lexer.peek()? == Token::Ellipsis {
            let place = self.lexer.place();
            return Err(self.lexer.error_at(
                place,
                "this tensor's elements were left out when the text was printed: print without a limit on \
                 elements to get a text that can be read back",
            ));
        }
        let (tensor, found) = self.elements(dtype, &shape)?;
        tensor.ok_or_else(|| {
            let wanted = element_count(&shape).map_or("too many".into(), |count| count.to_string());
            self.lexer.error_at(place, format!("`{ty}` takes {wanted} elements, but {found} are given"))
        })
    }

    /// The elements up to and with `}`: the tensor, unless their number does not fit, and that number.
    fn elements(&mut self, dtype: DType, shape: &[usize]) -> Result<(Option<Tensor>, usize), ParseError> {
        use DType::*;
        let count = element_count(shape);
        macro_rules! numbers {
            ($rust:ty, $read:expr) => {{
                let data: Vec<$rust> = self.list($read)?;
                let found = data.len();
                ((count == Some(found)).then(|| Tensor::from_vec(shape, data)), found)
            }};
        }
        macro_rules! integers {
            ($rust:ty) => {
                numbers!($rust, |parser| {
                    let (low, high) = (<$rust>::MIN as i128, <$rust>::MAX as i128);
                    Ok(parser.bounded(dtype, low, high)? as $rust)
                })
            };
        }
        macro_rules! pairs {
            ($rust:ty, $read:expr) => {{
                let data: Vec<$rust> = self.list($read)?;
                let pairs: Vec<[$rust; 2]> = data.as_chunks::<2>().0.to_vec();
                let found = data.len() / 2;
                let whole = data.len() % 2 == 0 && count == Some(found);
                (whole.then(|| Tensor::from_vec(shape, pairs)), found)
            }};
        }
        Ok(match dtype {
            F32 => numbers!(f32, Parser::f32),
            F64 => numbers!(f64, Parser::f64),
            F16 => numbers!(f16, |parser| match parser.pattern_or_number(dtype)? {
                Ok(bits) => Ok(f16::from_bits(bits)),
                Err(number) => Ok(f16::from_f64(number)),
            }),
            BF16 => numbers!(bf16, |parser| match parser.pattern_or_number(dtype)? {
                Ok(bits) => Ok(bf16::from_bits(bits)),
                Err(number) => Ok(bf16::from_f64(number)),
            }),
            I64 => integers!(i64),
            I32 => integers!(i32),
            I16 => integers!(i16),
            I8 => integers!(i8),
            U64 => integers!(u64),
            U32 => integers!(u32),
            U16 => integers!(u16),
            U8 => integers!(u8),
            Complex64 => pairs!(f32, Parser::f32),
            Complex128 => pairs!(f64, Parser::f64),
            String => {
                let data = self.list(|parser| parser.quoted("a quoted string"))?;
                ((count == Some(data.len())).then(|| Tensor::from_strings(shape, &data)), data.len())
            }
            Bool => {
                let data = self.list(|parser| Ok(parser.bounded(dtype, 0, 1)? == 1))?;
                ((count == Some(data.len())).then(|| Tensor::from_bools(shape, &data)), data.len())
            }
            I2 | U2 | I4 | U4 | F4E2M1 | F6E2M3 | F6E3M2 | F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ
            | F8E8M0 => {
                let bits = dtype.bits();
                let (low, high) = dtype.integer_range().unwrap_or((0, (1 << bits) - 1));
                let mask = ((1u16 << bits) - 1) as i128;
                let data = self.list(|parser| Ok((parser.bounded(dtype, low, high)? & mask) as u8))?;
                ((count == Some(data.len())).then(|| Tensor::from_codes(dtype, shape, &data)), data.len())
            }
        })
    }

    /// Elements separated by commas, up to and with `}`; the opening brace is read.
    fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        let mut data = Vec::new();
        if self.lexer.peek()? == Token::Mark('}') {
            self.lexer.next()?;
            return Ok(data);
        }
        loop {
            data.push(read(self)?);
            let place = self.lexer.place();
            match self.lexer.next()? {
                Token::Mark(',') => {}
                Token::Mark('}') => return Ok(data),
                other => return Err(self.expected(place, "`,` or `}` after an element", &other)),
            }
        }
    }

    /// An integer within bounds.
    fn bounded(&mut self, dtype: DType, low: i128, high: i128) -> Result<i128, ParseError> {
        let place = self.lexer.place();
        let found = self.lexer.next()?;
        let number = match &found {
            Token::Integer(text) => text.parse::<i128>().ok(),
            _ => return Err(self.expected(place, &format!("an integer element of {dtype}"), &found)),
        };
        number.filter(|number| (low..=high).contains(number)).ok_or_else(|| {
            let found = found.describe();
            self.lexer.error_at(place, format!("{found} is not within {low}..={high}, the range of {dtype}"))
        })
    }

    /// Bit pattern of a 16-bit float, or its value where that is how it is written.
    fn pattern_or_number(&mut self, dtype: DType) -> Result<Result<u16, f64>, ParseError> {
        Ok(match self.lexer.peek()? {
            Token::Integer(_) => Ok(self.bounded(dtype, 0, 0xFFFF)? as u16),
            _ => Err(self.f64()?),
        })
    }

    pub(super) fn f32(&mut self) -> Result<f32, ParseError> {
        self.real(|text| text.parse().ok(), f32::is_infinite)
    }

    fn f64(&mut self) -> Result<f64, ParseError> {
        self.real(|text| text.parse().ok(), f64::is_infinite)
    }

    fn real<T: Copy>(
        &mut self,
        read: impl Fn(&str) -> Option<T>,
        is_infinite: impl Fn(T) -> bool,
    ) -> Result<T, ParseError> {
        let place = self.lexer.place();
        let found = self.lexer.next()?;
        let text = match &found {
            Token::Integer(text) | Token::Real(text) => *text,
            Token::Word(text) if is_special_float(text) => text,
            _ => return Err(self.expected(place, "a number", &found)),
        };
        let number = read(text).ok_or_else(|| self.expected(place, "a number", &found))?;
        if is_infinite(number) && text.contains(|c: char| c.is_ascii_digit()) {
            return Err(self.lexer.error_at(place, format!("{} is out of range", found.describe())));
        }
        Ok(number)
    }

    /// `{values, indices}` of a sparse tensor of a type already read.
    pub(super) fn sparse_data(&mut self, ty: &Type) -> Result<StoredSparse, ParseError> {
        let place = self.lexer.place();
        let dense = match ty {
            Type::SparseTensor(dense) => dense.clone(),
            _ => return Err(self.lexer.error_at(place, format!("expected a sparse tensor, not `{ty}`"))),
        };
        let shape: Option<Vec<usize>> =
            dense.shape.as_ref().and_then(|shape| shape.iter().map(Dim::fixed).collect());
        let Some(shape) = shape else {
            return Err(self.lexer.error_at(place, "a sparse constant needs numeric dimensions"));
        };
        self.expect_mark('{', "the sparse tensor's values and indices")?;
        let values = self.whole_tensor()?;
        self.expect_mark(',', "`,` between values and indices")?;
        let indices = self.whole_tensor()?;
        self.expect_mark('}', "`}` after the indices")?;
        if dense.dtype != Some(values.dtype()) || indices.dtype() != DType::I64 {
            return Err(self.lexer.error_at(
                place,
                format!("values must have the element type of `{ty}` and indices must be int64"),
            ));
        }
        let (values, indices) = (StoredTensor::from(values), StoredTensor::from(indices));
        Ok(StoredSparse { values, indices, shape, carry: Default::default() })
    }

    fn whole_tensor(&mut self) -> Result<Tensor, ParseError> {
        let ty = self.ty(0)?;
        self.tensor_data(&ty)
    }
}

/// Words that are numbers.
pub(super) fn is_special_float(word: &str) -> bool {
    ["inf", "infinity", "nan"].iter().any(|special| word.eq_ignore_ascii_case(special))
}

impl<'a> Parser<'a> {
    /// The error "expected this, found that".
    pub(super) fn expected(&self, place: usize, what: &str, found: &Token<'_>) -> ParseError {
        self.lexer.error_at(place, format!("expected {what}, found {}", found.describe()))
    }

    /// Takes a mark that must be there.
    pub(super) fn expect_mark(&mut self, mark: char, what: &str) -> Result<(), ParseError> {
        let place = self.lexer.place();
        match self.lexer.next()? {
            Token::Mark(found) if found == mark => Ok(()),
            other => Err(self.expected(place, what, &other)),
        }
    }

    /// Takes a mark if it is next.
    pub(super) fn take_mark(&mut self, mark: char) -> Result<bool, ParseError> {
        let mut ahead: Lexer<'a> = self.lexer.clone();
        if ahead.next()? == Token::Mark(mark) {
            self.lexer = ahead;
            return Ok(true);
        }
        Ok(false)
    }

    /// Nothing may follow.
    pub(super) fn expect_end(&mut self) -> Result<(), ParseError> {
        let place = self.lexer.place();
        match self.lexer.next()? {
            Token::End => Ok(()),
            other => Err(self.expected(place, "the end of the text", &other)),
        }
    }

    /// A quoted string.
    pub(super) fn quoted(&mut self, what: &str) -> Result<String, ParseError> {
        let place = self.lexer.place();
        match self.lexer.next()? {
            Token::Quoted(text) => Ok(text),
            other => Err(self.expected(place, what, &other)),
        }
    }
}
