//! Reading types of the text form.

use super::lex::{ParseError, Token};
use super::parse::Parser;
use super::{MAX_DEPTH, starts_type};
use crate::dtype::DType;
use crate::types::{Dim, TensorType, Type};

/// Reads a type, such as `float[batch, 3]` or `seq(int64[?])`.
///
/// # Errors
/// When the text is anything else.
pub fn parse_type(text: &str) -> Result<Type, ParseError> {
    let mut parser = Parser::new(text);
    let ty = parser.ty(0)?;
    parser.expect_end()?;
    Ok(ty)
}

impl Parser<'_> {
    pub(super) fn next_is_type(&self) -> Result<bool, ParseError> {
        Ok(matches!(self.lexer.peek()?, Token::Word(word) if starts_type(word)))
    }

    pub(super) fn ty(&mut self, depth: usize) -> Result<Type, ParseError> {
        let place = self.lexer.place();
        if depth >= MAX_DEPTH {
            return Err(self.lexer.error_at(place, format!("types may be nested {MAX_DEPTH} deep at most")));
        }
        let found = self.lexer.next()?;
        let word = match found {
            Token::Word(word) if starts_type(word) => word,
            ref other => return Err(self.expected(place, "a type such as `float[N, 3]`", other)),
        };
        if let Some(dtype) = DType::from_name(word) {
            return Ok(Type::Tensor(TensorType { dtype: Some(dtype), shape: self.shape()? }));
        }
        if word == "undefined" {
            return Ok(Type::Tensor(TensorType { dtype: None, shape: self.shape()? }));
        }
        self.expect_mark('(', "`(`")?;
        let ty = match word {
            "seq" => Type::Sequence(Box::new(self.ty(depth + 1)?)),
            "optional" => Type::Optional(Box::new(self.ty(depth + 1)?)),
            "map" => {
                let key_place = self.lexer.place();
                let found = self.lexer.next()?;
                let key = match &found {
                    Token::Word(word) => DType::from_name(word),
                    _ => None,
                };
                let key = key.ok_or_else(|| self.expected(key_place, "the map's key type", &found))?;
                self.expect_mark(',', "`,` after the map's key type")?;
                Type::Map(key, Box::new(self.ty(depth + 1)?))
            }
            "sparse_tensor" => {
                let inner_place = self.lexer.place();
                match self.ty(depth + 1)? {
                    Type::Tensor(tensor) => Type::SparseTensor(tensor),
                    _ => return Err(self.lexer.error_at(inner_place, "expected a dense tensor type")),
                }
            }
            _ => self.opaque()?,
        };
        self.expect_mark(')', "`)` after the type")?;
        Ok(ty)
    }

    /// `[dims]` of a tensor type: nothing is a scalar, `[]` an unknown rank.
    fn shape(&mut self) -> Result<Option<Vec<Dim>>, ParseError> {
        if !self.take_mark('[')? {
            return Ok(Some(Vec::new()));
        }
        if self.take_mark(']')? {
            return Ok(None);
        }
        let mut dims = Vec::new();
        loop {
            let place = self.lexer.place();
            let found = self.lexer.next()?;
            dims.push(match &found {
                Token::Mark('?') => Dim::Unknown,
                Token::Word(name) => Dim::symbol(name),
                Token::Quoted(name) => Dim::symbol(name),
                // What some exporters write where they do not know.
                Token::Integer(text) if text.starts_with('-') => Dim::Unknown,
                Token::Integer(text) => Dim::Fixed(text.parse().map_err(|_| {
                    self.lexer.error_at(place, format!("{} is not a size", found.describe()))
                })?),
                _ => return Err(self.expected(place, "a dimension (a size, a name or `?`)", &found)),
            });
            if !self.take_mark(',')? {
                break;
            }
        }
        self.expect_mark(']', "`,` or `]` after a dimension")?;
        Ok(Some(dims))
    }

    /// What is between the parentheses of `opaque(domain, name)`.
    fn opaque(&mut self) -> Result<Type, ParseError> {
        let mut parts = Vec::new();
        if !self.next_is(')')? {
            loop {
                let mut part = self.name("the opaque type's name")?.1;
                while self.take_mark('.')? {
                    part.push('.');
                    part += &self.name("a name after `.`")?.1;
                }
                parts.push(part);
                if parts.len() == 2 || !self.take_mark(',')? {
                    break;
                }
            }
        }
        let name = parts.pop().unwrap_or_default();
        Ok(Type::Opaque { domain: parts.pop().unwrap_or_default(), name })
    }
}
