//! Words of the text form, and where in the text they are.

/// Why a text could not be read, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column, in characters, from 1.
    pub column: usize,
    /// What was expected and what was found.
    pub message: String,
}

/// One word of the text.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Token<'a> {
    /// A bare word.
    Word(&'a str),
    /// A quoted string, its escapes undone.
    Quoted(String),
    /// An integer literal.
    Integer(&'a str),
    /// A literal with a point or an exponent, `-inf` or `-nan`.
    Real(&'a str),
    /// `=>`
    Arrow,
    /// `...`
    Ellipsis,
    /// Any other character.
    Mark(char),
    /// Nothing is left.
    End,
}

impl Token<'_> {
    /// For error messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Token::Word(text) | Token::Integer(text) | Token::Real(text) => format!("`{text}`"),
            Token::Quoted(text) => format!("\"{text}\""),
            Token::Arrow => "`=>`".into(),
            Token::Ellipsis => "`...`".into(),
            Token::Mark(mark) => format!("`{mark}`"),
            Token::End => "the end of the text".into(),
        }
    }
}

/// A place in the text, and what can be read from there.
#[derive(Clone)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Lexer { text, at: 0 }
    }

    /// The byte offset of the next word.
    pub(super) fn place(&mut self) -> usize {
        self.skip_blank();
        self.at
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            self.at += blank;
            if !self.rest().starts_with('#') {
                return;
            }
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    /// An error at a byte offset.
    pub(super) fn error_at(&self, place: usize, message: impl Into<String>) -> ParseError {
        let before = self.text.get(..place).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        ParseError {
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).map_or(0, |line| line.chars().count()) + 1,
            message: message.into(),
        }
    }

    /// The next word, which stays.
    pub(super) fn peek(&self) -> Result<Token<'a>, ParseError> {
        self.clone().next()
    }

    /// The next word, taken.
    pub(super) fn next(&mut self) -> Result<Token<'a>, ParseError> {
        self.skip_blank();
        let (start, rest) = (self.at, self.rest());
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        let second = rest.as_bytes().get(1).copied().unwrap_or(0);
        let take = |lexer: &mut Self, length: usize| {
            lexer.at = start + length;
            rest.get(..length).unwrap_or(rest)
        };
        let word = |text: &str| {
            text.bytes().position(|b| !b.is_ascii_alphanumeric() && b != b'_').unwrap_or(text.len())
        };
        Ok(match first {
            'a'..='z' | 'A'..='Z' | '_' => Token::Word(take(self, word(rest))),
            '"' => self.quoted()?,
            '0'..='9' => self.number(0),
            '-' if second.is_ascii_digit() => self.number(1),
            '-' if second.is_ascii_alphabetic() => {
                Token::Real(take(self, 1 + word(rest.get(1..).unwrap_or_default())))
            }
            '=' if second == b'>' => {
                take(self, 2);
                Token::Arrow
            }
            '.' if rest.starts_with("...") => {
                take(self, 3);
                Token::Ellipsis
            }
            mark => {
                take(self, mark.len_utf8());
                Token::Mark(mark)
            }
        })
    }

    /// A number whose digits start `sign` bytes on.
    fn number(&mut self, sign: usize) -> Token<'a> {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        let digits = |from: usize| {
            let run = bytes.get(from..).unwrap_or_default().iter().take_while(|b| b.is_ascii_digit()).count();
            from + run
        };
        let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
        let (mut end, mut real) = (digits(sign), false);
        if at(end) == b'.' && at(end + 1) != b'.' {
            (end, real) = (digits(end + 1), true);
        }
        if matches!(at(end), b'e' | b'E') {
            let signed = end + 1 + usize::from(matches!(at(end + 1), b'+' | b'-'));
            if at(signed).is_ascii_digit() {
                (end, real) = (digits(signed), true);
            }
        }
        self.at += end;
        let text = rest.get(..end).unwrap_or(rest);
        if real { Token::Real(text) } else { Token::Integer(text) }
    }

    fn quoted(&mut self) -> Result<Token<'a>, ParseError> {
        let (start, rest) = (self.at, self.rest());
        let mut text = String::new();
        let mut characters = rest.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.at = start + at + 1;
                    return Ok(Token::Quoted(text));
                }
                // A backslash stands for nothing but the character behind it.
                '\\' => match characters.next() {
                    Some((_, escaped)) => text.push(escaped),
                    None => break,
                },
                other => text.push(other),
            }
        }
        Err(self.error_at(start, "this string has no closing `\"`"))
    }
}
