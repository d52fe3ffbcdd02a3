//! Reading attributes of the text form.

use bytes::Bytes;

use super::lex::{ParseError, Token};
use super::parse::Parser;
use super::parse_tensor::is_special_float;
use super::print::kind_name;
use super::{ATTRIBUTE_TYPES, starts_type};
use crate::ids::GraphId;
use crate::node::{Attribute, AttributeValue, Carry, StoredTensor};
use crate::types::Type;

impl Parser<'_> {
    /// `<name: type = value, ...>`, or nothing.
    pub(super) fn attributes(&mut self) -> Result<Vec<Attribute>, ParseError> {
        let mut attributes = Vec::new();
        if self.take_mark('<')? {
            loop {
                let (_, name) = self.name("an attribute's name")?;
                attributes.push(self.attribute(name)?);
                if !self.take_mark(',')? {
                    break;
                }
            }
            self.expect_mark('>', "`,` or `>` after an attribute")?;
        }
        Ok(attributes)
    }

    /// An attribute behind its name.
    pub(super) fn attribute(&mut self, name: String) -> Result<Attribute, ParseError> {
        let mut declared = None;
        if self.take_mark(':')? {
            let (place, word) = self.name("the attribute's type")?;
            let known = ATTRIBUTE_TYPES.iter().find(|(name, _)| *name == word);
            declared = Some(*known.ok_or_else(|| {
                let names: Vec<&str> = ATTRIBUTE_TYPES.iter().map(|(name, _)| *name).collect();
                let names = names.join(", ");
                self.lexer.error_at(place, format!("`{word}` is no attribute type; they are {names}"))
            })?);
        }
        self.expect_mark('=', "`=` and the attribute's value")?;
        let place = self.lexer.place();
        let value = if self.take_mark('[')? {
            self.attribute_list(place, declared.map(|(name, _)| name))?
        } else {
            let single = declared.map(|(name, _)| name);
            let value = self.attribute_value(single)?;
            match value {
                AttributeValue::Reference(name, _) => {
                    AttributeValue::Reference(name, declared.map_or(0, |(_, number)| number))
                }
                value => {
                    self.check_kind(place, single, &value)?;
                    value
                }
            }
        };
        Ok(Attribute { name, value, doc_string: String::new(), carry: Carry::default() })
    }

    fn check_kind(
        &self,
        place: usize,
        declared: Option<&str>,
        value: &AttributeValue,
    ) -> Result<(), ParseError> {
        let found = kind_name(value);
        match declared {
            Some(declared) if declared != found => Err(self
                .lexer
                .error_at(place, format!("the attribute is declared {declared}, but the value is {found}"))),
            _ => Ok(()),
        }
    }

    /// The values of a list, up to and with `]`.
    fn attribute_list(&mut self, place: usize, declared: Option<&str>) -> Result<AttributeValue, ParseError> {
        let element = match declared {
            None => None,
            Some(name) => Some(name.strip_suffix('s').ok_or_else(|| {
                self.lexer.error_at(place, format!("an attribute of type {name} is no list"))
            })?),
        };
        let mut values = Vec::new();
        if !self.take_mark(']')? {
            loop {
                let place = self.lexer.place();
                let value = self.attribute_value(element)?;
                self.check_kind(place, element, &value)?;
                values.push((place, value));
                if !self.take_mark(',')? {
                    break;
                }
            }
            self.expect_mark(']', "`,` or `]` after a list's element")?;
        }
        let kind = match (element, values.first()) {
            (Some(element), _) => element,
            (None, Some((_, first))) => kind_name(first),
            (None, None) => {
                return Err(self
                    .lexer
                    .error_at(place, "an empty list needs its type: write `name: ints = []`, say"));
            }
        };
        for (place, value) in &values {
            let found = kind_name(value);
            if found != kind {
                let message = format!("a list of {kind} values has an element that is {found}");
                return Err(self.lexer.error_at(*place, message));
            }
        }
        macro_rules! gather {
            ($variant:ident) => {
                values
                    .into_iter()
                    .filter_map(|(_, value)| match value {
                        AttributeValue::$variant(value) => Some(value),
                        _ => None,
                    })
                    .collect()
            };
        }
        Ok(match kind {
            "float" => AttributeValue::Floats(gather!(Float)),
            "int" => AttributeValue::Ints(gather!(Int)),
            "string" => AttributeValue::Strings(gather!(String)),
            "tensor" => AttributeValue::Tensors(unbox(gather!(Tensor))),
            "sparse_tensor" => AttributeValue::SparseTensors(unbox(gather!(SparseTensor))),
            "graph" => AttributeValue::Graphs(gather!(Graph)),
            "type_proto" => AttributeValue::Types(gather!(Type)),
            _ => return Err(self.lexer.error_at(place, "a list cannot hold references")),
        })
    }

    /// One value; integers where a float is declared are floats.
    fn attribute_value(&mut self, declared: Option<&str>) -> Result<AttributeValue, ParseError> {
        let place = self.lexer.place();
        Ok(match self.lexer.peek()? {
            Token::Mark('@') => {
                self.lexer.next()?;
                AttributeValue::Reference(self.name("the name of the function's attribute")?.1, 0)
            }
            Token::Ellipsis => {
                return Err(self.lexer.error_at(place, "this value was left out when the text was printed"));
            }
            Token::Integer(_) if declared != Some("float") => {
                AttributeValue::Int(self.integer("an integer")?)
            }
            Token::Integer(_) | Token::Real(_) => AttributeValue::Float(self.f32()?),
            Token::Word(word) if is_special_float(word) => AttributeValue::Float(self.f32()?),
            Token::Word(word) if starts_type(word) => {
                let ty = self.ty(0)?;
                let named = self.next_is_name()?;
                if !(named || self.next_is('{')? || self.next_is('=')?) {
                    return Ok(AttributeValue::Type(ty));
                }
                let name = if named { self.name("the tensor's name")?.1 } else { String::new() };
                self.take_mark('=')?;
                if matches!(ty, Type::SparseTensor(_)) {
                    let mut sparse = self.sparse_data(&ty)?;
                    sparse.values.name = name;
                    return Ok(AttributeValue::SparseTensor(Box::new(sparse)));
                }
                let tensor = self.tensor_data(&ty)?;
                AttributeValue::Tensor(Box::new(StoredTensor { name, ..tensor.into() }))
            }
            Token::Quoted(text) => {
                let mut ahead = self.lexer.clone();
                ahead.next()?;
                // A subgraph whose name is no identifier: a string is never followed by a parenthesis.
                if matches!(ahead.peek()?, Token::Mark('(') | Token::Arrow) {
                    AttributeValue::Graph(self.subgraph()?)
                } else {
                    self.lexer = ahead;
                    AttributeValue::String(Bytes::from(text))
                }
            }
            Token::Word(_) => AttributeValue::Graph(self.subgraph()?),
            other => return Err(self.expected(place, "an attribute's value", &other)),
        })
    }

    fn subgraph(&mut self) -> Result<GraphId, ParseError> {
        let graph = self.model.add_graph(None);
        self.graph(graph)?;
        Ok(graph)
    }
}

fn unbox<T>(boxes: Vec<Box<T>>) -> Vec<T> {
    boxes.into_iter().map(|held| *held).collect()
}
