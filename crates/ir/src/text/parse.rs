//! Reading the text form.

use std::collections::HashMap;

use super::MAX_DEPTH;
use super::lex::{Lexer, ParseError, Token};
use crate::edit::Position;
use crate::ids::{GraphId, ValueId};
use crate::model::Model;
use crate::node::{Carry, Function, Initializer, Node, OpsetImport, Property, ValueInfo};
use crate::types::Type;

/// Reads a model; see the [module](super)'s documentation for the syntax.
///
/// Names are resolved, so a value that nothing defines, or that two nodes define, is an error here; all
/// other rules are [`crate::verify::verify`]'s.
///
/// # Errors
/// With line and column, and what was expected there.
pub fn parse(text: &str) -> Result<Model, ParseError> {
    let mut parser = Parser::new(text);
    parser.model()?;
    Ok(parser.model)
}

/// Names of one graph while it is read.
struct Scope {
    graph: GraphId,
    names: HashMap<String, ValueId>,
    /// Values used and not defined yet, with the place of the first use.
    undefined: HashMap<String, usize>,
}

pub(super) struct Parser<'a> {
    pub(super) lexer: Lexer<'a>,
    pub(super) model: Model,
    /// The graphs we are in, innermost last.
    scopes: Vec<Scope>,
}

/// A declaration read before the names it speaks of are all known.
type Declared = (usize, String, Option<Type>);

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Parser { lexer: Lexer::new(text), model: Model::new(), scopes: Vec::new() }
    }

    // ---- small things -------------------------------------------------------------------------------

    pub(super) fn next_is(&self, mark: char) -> Result<bool, ParseError> {
        Ok(self.lexer.peek()? == Token::Mark(mark))
    }

    /// A name, bare or quoted.
    pub(super) fn name(&mut self, what: &str) -> Result<(usize, String), ParseError> {
        let place = self.lexer.place();
        match self.lexer.next()? {
            Token::Word(word) => Ok((place, word.to_owned())),
            Token::Quoted(text) => Ok((place, text)),
            other => Err(self.expected(place, what, &other)),
        }
    }

    pub(super) fn next_is_name(&self) -> Result<bool, ParseError> {
        Ok(matches!(self.lexer.peek()?, Token::Word(_) | Token::Quoted(_)))
    }

    pub(super) fn integer(&mut self, what: &str) -> Result<i64, ParseError> {
        let place = self.lexer.place();
        let found = self.lexer.next()?;
        match &found {
            Token::Integer(text) => text.parse().map_err(|_| {
                self.lexer.error_at(place, format!("{} does not fit in 64 bits", found.describe()))
            }),
            _ => Err(self.expected(place, what, &found)),
        }
    }

    // ---- names of values ----------------------------------------------------------------------------

    fn scope(&mut self) -> &mut Scope {
        self.scopes.last_mut().expect("names are read inside a graph")
    }

    /// The value a name stands for; one that nothing has defined yet is made, and must be defined by the
    /// end of its graph.
    fn resolve(&mut self, name: &str, place: usize) -> ValueId {
        let known = self.scopes.iter().rev().find_map(|scope| scope.names.get(name));
        if let Some(&value) = known {
            return value;
        }
        let graph = self.scope().graph;
        let value = self.model.add_value(graph, name);
        let scope = self.scope();
        scope.names.insert(name.to_owned(), value);
        scope.undefined.insert(name.to_owned(), place);
        value
    }

    /// The value a name is given to here.
    fn define(&mut self, name: &str, place: usize) -> Result<ValueId, ParseError> {
        let scope = self.scope();
        let graph = scope.graph;
        match scope.names.get(name) {
            Some(&value) if scope.undefined.remove(name).is_some() => Ok(value),
            Some(_) => Err(self.lexer.error_at(place, format!("`{name}` is defined a second time"))),
            None => {
                let value = self.model.add_value(graph, name);
                self.scope().names.insert(name.to_owned(), value);
                Ok(value)
            }
        }
    }

    // ---- nodes and graphs ---------------------------------------------------------------------------

    /// Names separated by commas, up to something else; an omitted one is `None`. A comma at the end adds
    /// nothing.
    fn names(&mut self) -> Result<Vec<Option<(usize, String)>>, ParseError> {
        let mut names = Vec::new();
        loop {
            let found = if self.next_is_name()? { Some(self.name("a name")?) } else { None };
            let comma = self.take_mark(',')?;
            if found.is_some() || comma {
                names.push(found.filter(|(_, name)| !name.is_empty()));
            }
            if !comma {
                return Ok(names);
            }
        }
    }

    fn node(&mut self) -> Result<(), ParseError> {
        let mut node = Node::default();
        if self.take_mark('[')? {
            if self.next_is_name()? {
                node.name = self.name("the node's name")?.1;
            }
            self.expect_mark(']', "`]` after the node's name")?;
        }
        let outputs = self.names()?;
        self.expect_mark('=', "`=` after the node's outputs, or `}` after the last node")?;
        let mut path = vec![self.name("an operator")?.1];
        while self.take_mark('.')? {
            path.push(self.name("an operator after `.`")?.1);
        }
        node.op_type = path.pop().unwrap_or_default();
        node.domain = path.join(".");
        if self.take_mark(':')? {
            node.overload = self.name("the overload's name")?.1;
        }
        node.attributes = self.attributes()?;
        self.expect_mark('(', "`(` and the node's inputs")?;
        let inputs = self.names()?;
        self.expect_mark(')', "`,` or `)` after an input")?;
        if node.attributes.is_empty() {
            node.attributes = self.attributes()?;
        }
        node.inputs =
            inputs.into_iter().map(|name| name.map(|(place, name)| self.resolve(&name, place))).collect();
        let mut produced = Vec::new();
        let mut first_place = None;
        for output in outputs {
            produced.push(match output {
                Some((place, name)) => {
                    first_place.get_or_insert(place);
                    Some(self.define(&name, place)?)
                }
                None => None,
            });
        }
        let graph = self.scope().graph;
        self.model.insert_node(graph, Position::End, node, produced).map_err(|error| {
            let place = first_place.unwrap_or(0);
            self.lexer.error_at(place, error.to_string())
        })?;
        Ok(())
    }

    /// `type name = {elements}, ...` up to the closing mark. An initializer's value must have been
    /// declared as input where `inputs` says so; the rest are declarations.
    fn declarations(&mut self, close: char, inputs: bool) -> Result<Vec<Declared>, ParseError> {
        let mut declared = Vec::new();
        if self.take_mark(close)? {
            return Ok(declared);
        }
        loop {
            let ty = if self.next_is_type()? { Some(self.ty(0)?) } else { None };
            let (place, name) = self.name("a type or a name")?;
            if inputs {
                let value = self.define(&name, place)?;
                self.model.add_input(ValueInfo::new(value, ty.clone()));
            }
            if self.take_mark('=')? {
                self.initializer(&name, place, ty, inputs)?;
            } else if !inputs {
                declared.push((place, name, ty));
            }
            if !self.take_mark(',')? {
                break;
            }
        }
        self.expect_mark(close, &format!("`,` or `{close}`"))?;
        Ok(declared)
    }

    fn initializer(
        &mut self,
        name: &str,
        place: usize,
        ty: Option<Type>,
        is_input: bool,
    ) -> Result<(), ParseError> {
        let ty = ty.ok_or_else(|| {
            self.lexer.error_at(place, format!("the constant `{name}` needs a type: `float[2] {name} = ...`"))
        })?;
        // Older files list a constant among the inputs and among the initializers.
        let known = self.scope().names.get(name).copied();
        let value = match known {
            Some(value) if is_input || self.model.value(value).is_input() => value,
            _ => self.define(name, place)?,
        };
        if self.model.value(value).initializer().is_some() {
            return Err(self.lexer.error_at(place, format!("`{name}` is given a constant a second time")));
        }
        let initializer = if matches!(ty, Type::SparseTensor(_)) {
            let mut sparse = self.sparse_data(&ty)?;
            sparse.values.name = name.to_owned();
            self.model.value_mut(value).ty = Some(ty);
            Initializer::Sparse(Box::new(sparse))
        } else {
            Initializer::Dense(Box::new(self.tensor_data(&ty)?.into()))
        };
        self.model.set_initializer(value, initializer);
        Ok(())
    }

    /// A graph from its name on.
    pub(super) fn graph(&mut self, graph: GraphId) -> Result<(), ParseError> {
        let place = self.lexer.place();
        if self.scopes.len() >= MAX_DEPTH {
            return Err(self.lexer.error_at(place, format!("graphs may be nested {MAX_DEPTH} deep at most")));
        }
        self.scopes.push(Scope { graph, names: HashMap::new(), undefined: HashMap::new() });
        self.model.graph_mut(graph).name = self.name("the graph's name")?.1;
        if self.take_mark('(')? {
            self.declarations(')', true)?;
        }
        self.arrow()?;
        self.expect_mark('(', "`(` and the graph's outputs")?;
        let outputs = self.interface(')')?;
        let infos = if self.take_mark('<')? { self.declarations('>', false)? } else { Vec::new() };
        self.finish_graph(outputs, infos)
    }

    fn arrow(&mut self) -> Result<(), ParseError> {
        let place = self.lexer.place();
        match self.lexer.next()? {
            Token::Arrow => Ok(()),
            other => Err(self.expected(place, "`=>` and the outputs", &other)),
        }
    }

    /// Names with optional types, up to the closing mark.
    fn interface(&mut self, close: char) -> Result<Vec<Declared>, ParseError> {
        let mut declared = Vec::new();
        if self.take_mark(close)? {
            return Ok(declared);
        }
        loop {
            let ty = if self.next_is_type()? { Some(self.ty(0)?) } else { None };
            let (place, name) = self.name("a type or a name")?;
            declared.push((place, name, ty));
            if !self.take_mark(',')? {
                break;
            }
        }
        self.expect_mark(close, &format!("`,` or `{close}`"))?;
        Ok(declared)
    }

    /// Nodes of a graph; then outputs and declarations, whose names are known by now.
    fn finish_graph(&mut self, outputs: Vec<Declared>, infos: Vec<Declared>) -> Result<(), ParseError> {
        self.expect_mark('{', "`{` and the nodes")?;
        while !self.take_mark('}')? {
            self.node()?;
        }
        let graph = self.scope().graph;
        for (place, name, ty) in outputs {
            let value = self.resolve(&name, place);
            self.model.add_output(graph, ValueInfo::new(value, ty));
        }
        let first = self.scope().undefined.iter().min_by_key(|(_, place)| **place);
        if let Some((name, &place)) = first {
            let message = format!("`{name}` is used, but no input, constant or node defines it");
            return Err(self.lexer.error_at(place, message));
        }
        for (_, name, ty) in infos {
            let known = self.scope().names.get(&name).copied();
            // Files keep declarations of values that are gone.
            let value = known.unwrap_or_else(|| self.model.add_value(graph, name));
            self.model.add_value_info(graph, ValueInfo::new(value, ty));
        }
        self.scopes.pop();
        Ok(())
    }

    // ---- the model ----------------------------------------------------------------------------------

    fn model(&mut self) -> Result<(), ParseError> {
        if self.take_mark('<')? {
            loop {
                let (place, key) = self.name("a property of the model")?;
                self.expect_mark(':', "`:`")?;
                match key.as_str() {
                    "ir_version" => self.model.ir_version = self.integer("an integer")?,
                    "opset_import" => self.model.opset_imports = self.opset_imports()?,
                    "producer_name" => self.model.producer_name = self.quoted("a quoted string")?,
                    "producer_version" => self.model.producer_version = self.quoted("a quoted string")?,
                    "domain" => self.model.domain = self.quoted("a quoted string")?,
                    "model_version" => self.model.model_version = self.integer("an integer")?,
                    "doc_string" => self.model.doc_string = self.quoted("a quoted string")?,
                    "metadata_props" => self.model.metadata = self.properties()?,
                    _ => {
                        let message = format!(
                            "`{key}` is no property of a model; they are ir_version, opset_import, \
                             producer_name, producer_version, domain, model_version, doc_string and \
                             metadata_props"
                        );
                        return Err(self.lexer.error_at(place, message));
                    }
                }
                if !self.take_mark(',')? {
                    break;
                }
            }
            self.expect_mark('>', "`,` or `>` after a property")?;
        }
        self.graph(self.model.main())?;
        while self.lexer.peek()? != Token::End {
            self.function()?;
        }
        Ok(())
    }

    fn opset_imports(&mut self) -> Result<Vec<OpsetImport>, ParseError> {
        self.expect_mark('[', "`[` and the operator sets, such as `[\"\" : 18]`")?;
        let mut imports = Vec::new();
        if self.take_mark(']')? {
            return Ok(imports);
        }
        loop {
            let domain = self.quoted("an operator set's name in quotes")?;
            self.expect_mark(':', "`:` and the version")?;
            let version = self.integer("a version")?;
            imports.push(OpsetImport { domain, version, carry: Carry::default() });
            if !self.take_mark(',')? {
                break;
            }
        }
        self.expect_mark(']', "`,` or `]` after a version")?;
        Ok(imports)
    }

    fn properties(&mut self) -> Result<Vec<Property>, ParseError> {
        self.expect_mark('[', "`[` and pairs of strings")?;
        let mut properties = Vec::new();
        if self.take_mark(']')? {
            return Ok(properties);
        }
        loop {
            let key = self.quoted("a key in quotes")?;
            self.expect_mark(':', "`:` and the value")?;
            let value = self.quoted("a value in quotes")?;
            properties.push(Property { key, value, carry: Carry::default() });
            if !self.take_mark(',')? {
                break;
            }
        }
        self.expect_mark(']', "`,` or `]` after a value")?;
        Ok(properties)
    }

    fn function(&mut self) -> Result<(), ParseError> {
        let graph = self.model.add_graph(None);
        let mut function = Function {
            domain: String::new(),
            name: String::new(),
            overload: String::new(),
            attribute_names: Vec::new(),
            attributes: Vec::new(),
            opset_imports: Vec::new(),
            graph,
            doc_string: String::new(),
            metadata: Vec::new(),
            carry: Carry::default(),
        };
        if self.take_mark('<')? {
            loop {
                let (place, key) = self.name("a property of the function")?;
                self.expect_mark(':', "`:`")?;
                match key.as_str() {
                    "domain" => function.domain = self.quoted("a quoted string")?,
                    "overload" => function.overload = self.quoted("a quoted string")?,
                    "doc_string" => function.doc_string = self.quoted("a quoted string")?,
                    "opset_import" => function.opset_imports = self.opset_imports()?,
                    _ => {
                        let message = format!(
                            "`{key}` is no property of a function; they are domain, overload, \
                             opset_import and doc_string"
                        );
                        return Err(self.lexer.error_at(place, message));
                    }
                }
                if !self.take_mark(',')? {
                    break;
                }
            }
            self.expect_mark('>', "`,` or `>` after a property")?;
        }
        self.scopes.push(Scope { graph, names: HashMap::new(), undefined: HashMap::new() });
        function.name = self.name("the function's name")?.1;
        if self.take_mark('<')? {
            loop {
                let (_, name) = self.name("an attribute's name")?;
                if self.next_is(':')? || self.next_is('=')? {
                    function.attributes.push(self.attribute(name)?);
                } else {
                    function.attribute_names.push(name);
                }
                if !self.take_mark(',')? {
                    break;
                }
            }
            self.expect_mark('>', "`,` or `>` after an attribute")?;
        }
        self.expect_mark('(', "`(` and the function's inputs")?;
        let mut infos = Vec::new();
        for (place, name, ty) in self.interface(')')? {
            let value = self.define(&name, place)?;
            self.model.add_input(ValueInfo::new(value, None));
            infos.extend(ty.map(|ty| (place, name, Some(ty))));
        }
        self.arrow()?;
        self.expect_mark('(', "`(` and the function's outputs")?;
        let mut outputs = self.interface(')')?;
        // Types of a function's interface are declared beside it, in its `value_info`.
        for (place, name, ty) in &mut outputs {
            infos.extend(ty.take().map(|ty| (*place, name.clone(), Some(ty))));
        }
        if self.take_mark('<')? {
            infos.extend(self.interface('>')?);
        }
        self.finish_graph(outputs, infos)?;
        self.model.functions.push(function);
        Ok(())
    }
}
