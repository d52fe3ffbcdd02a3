//! Text to numbers, with a `tokenizer.json`. The crate that reads those files can be made to panic, and to
//! ask for any amount of memory, by what stands in them: padding and truncation are therefore done here,
//! what the file says of them being no more than a default, and the rest runs where a panic is caught.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use optix_base::{Limits, escape_for_terminal};
use optix_ir::Tensor;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::utils::truncation::{TruncationDirection, TruncationParams, TruncationStrategy};
use tokenizers::{PostProcessor, Tokenizer};

use crate::error::DataError;
use crate::input::{open_plain, read_at_most};

/// Larger files are no tokenizers; the largest known ones have 35 MB.
const MAX_FILE: u64 = 128 << 20;

/// Most tokens of a sample.
const MAX_TOKENS: usize = 1 << 22;

/// Options of the step `tokenize`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tokenize {
    /// The tokenizer, relative to the data.toml.
    #[serde(default = "usual_file")]
    pub file: PathBuf,
    /// Most tokens of a sample, special ones included; what is longer is cut.
    pub max_length: Option<usize>,
    /// How samples get one length.
    #[serde(default)]
    pub padding: Padding,
    /// Whether longer samples are cut to `max-length`; without it they are errors.
    #[serde(default = "super::yes")]
    pub truncation: bool,
    /// The array with the second text of each sample.
    pub pair: Option<String>,
    /// Whether the tokens that the model wants around the text are added.
    #[serde(default = "super::yes")]
    pub special_tokens: bool,
    /// Which numbers this input gets; found out from the input's name when left out.
    pub output: Option<TokenOutput>,
    /// Token that fills samples up, when the file names none.
    pub pad_id: Option<u32>,
    /// The side that is filled, when it is not the file's.
    pub pad_side: Option<Side>,
}

fn usual_file() -> PathBuf {
    PathBuf::from("tokenizer.json")
}

impl Default for Tokenize {
    fn default() -> Tokenize {
        Tokenize {
            file: usual_file(),
            max_length: None,
            padding: Padding::default(),
            truncation: true,
            pair: None,
            special_tokens: true,
            output: None,
            pad_id: None,
            pad_side: None,
        }
    }
}

/// How samples get one length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// To the longest one that they are fed with.
    #[default]
    Longest,
    /// To `max-length`.
    MaxLength,
    /// Not at all: samples of different lengths are fed apart.
    None,
}

/// What a model's input is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenOutput {
    /// The tokens.
    Ids,
    /// 1 for tokens, 0 for what is filled up.
    AttentionMask,
    /// 0 for the first text, 1 for the second.
    TokenTypeIds,
    /// 0, 1, 2, ...
    PositionIds,
}

/// The side that is filled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Behind the text.
    Right,
    /// Before it, as for models that go on writing.
    Left,
}

impl TokenOutput {
    /// What an input of this name wants.
    fn of_input(name: &str) -> Option<TokenOutput> {
        let name = name.to_ascii_lowercase();
        let has = |part: &str| name.contains(part);
        if has("mask") {
            Some(TokenOutput::AttentionMask)
        } else if has("type") || has("segment") {
            Some(TokenOutput::TokenTypeIds)
        } else if has("position") {
            Some(TokenOutput::PositionIds)
        } else if has("id") || has("token") || has("input") {
            Some(TokenOutput::Ids)
        } else {
            None
        }
    }
}

impl Tokenize {
    /// Whether the options make sense.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.max_length {
            Some(length) if length == 0 || length > MAX_TOKENS => {
                Err(format!("`max-length = {length}`: it is 1 to {MAX_TOKENS}"))
            }
            None if self.padding == Padding::MaxLength => {
                Err("`padding = \"max-length\"` needs `max-length`".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// What the input of this name gets.
    pub(super) fn output_for(&self, input: &str) -> Result<TokenOutput, String> {
        self.output.or_else(|| TokenOutput::of_input(input)).ok_or_else(|| {
            format!(
                "what input `{input}` wants does not show in its name: add `output = \"ids\"`, `\"attention-mask\"`, \
                 `\"token-type-ids\"` or `\"position-ids\"`"
            )
        })
    }
}

/// What of a `tokenizer.json` is looked at before the crate gets it.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    padding: Option<Value>,
    #[serde(default)]
    post_processor: Option<Value>,
    #[serde(rename = "model")]
    _model: IgnoredAny,
}

/// The tokens of one sample, not filled up.
#[derive(Debug)]
pub(crate) struct Encoded {
    ids: Vec<i64>,
    types: Vec<i64>,
}

/// A text, the second one, and their tokens.
type Last = (String, Option<String>, Arc<Encoded>);

/// A tokenizer that has been looked at.
pub(crate) struct Loaded {
    path: PathBuf,
    tokenizer: Tokenizer,
    options: Tokenize,
    pad_id: i64,
    side: Side,
    /// The inputs of a model ask for the same text one after the other.
    last: Mutex<Option<Last>>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Loaded {
    /// Reads a tokenizer.
    pub(crate) fn open(options: &Tokenize, limits: &Limits) -> Result<Loaded, DataError> {
        let path = options.file.as_path();
        let fail = |what: String| DataError::invalid(path, "", what);
        let (file, length) = open_plain(path)?;
        if length > MAX_FILE {
            return Err(fail(format!("{length} bytes are more than any tokenizer has")));
        }
        let bytes = read_at_most(file, MAX_FILE.min(limits.sample_bytes))
            .map_err(|error| DataError::read(path, error))?;
        let head: Head = serde_json::from_slice(&bytes)
            .map_err(|error| fail(format!("it is no tokenizer.json, or a damaged one ({error})")))?;
        if let Some(processor) = &head.post_processor {
            check_templates(processor, 0).map_err(fail)?;
        }
        let parsed = catch_unwind(AssertUnwindSafe(|| Tokenizer::from_bytes(&bytes)));
        let mut tokenizer = match parsed {
            Ok(Ok(tokenizer)) => tokenizer,
            Ok(Err(error)) => return Err(fail(format!("it is no tokenizer that can be used ({error})"))),
            Err(_) => return Err(fail("it is no tokenizer that can be used: reading it fails".to_owned())),
        };
        tokenizer.with_padding(None);
        let is_pair = options.pair.is_some();
        let added = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(is_pair));
        let truncation = match options.max_length.filter(|_| options.truncation) {
            Some(length) if options.special_tokens && length <= added => {
                return Err(fail(format!(
                    "`max-length = {length}` leaves no room beside {added} special tokens"
                )));
            }
            length => length.map(|max_length| TruncationParams {
                direction: TruncationDirection::Right,
                max_length,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }),
        };
        tokenizer.with_truncation(truncation).map_err(|error| fail(error.to_string()))?;
        let pad_id = match options.pad_id.or_else(|| pad_token(&tokenizer, head.padding.as_ref())) {
            Some(id) => i64::from(id),
            None if options.padding == Padding::None => 0,
            None => {
                return Err(fail(
                    "it names no token to fill samples up with: set `pad-id`, or `padding = \"none\"`"
                        .to_owned(),
                ));
            }
        };
        let left =
            head.padding.as_ref().and_then(|padding| padding.get("direction")?.as_str()) == Some("Left");
        let side = options.pad_side.unwrap_or(if left { Side::Left } else { Side::Right });
        let (path, options) = (path.to_owned(), options.clone());
        Ok(Loaded { path, tokenizer, options, pad_id, side, last: Mutex::new(None) })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The options it was opened with.
    pub(crate) fn options(&self) -> &Tokenize {
        &self.options
    }

    fn encode(&self, text: &str, pair: Option<&str>) -> Result<Arc<Encoded>, String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, known_pair, encoded)) = last.as_ref()
            && known == text
            && known_pair.as_deref() == pair
        {
            return Ok(Arc::clone(encoded));
        }
        let special = self.options.special_tokens;
        let encoding = catch_unwind(AssertUnwindSafe(|| match pair {
            Some(pair) => self.tokenizer.encode((text, pair), special),
            None => self.tokenizer.encode(text, special),
        }));
        let shown: String = text.chars().take(40).collect();
        let shown = escape_for_terminal(&shown);
        let encoding = match encoding {
            Ok(Ok(encoding)) => encoding,
            Ok(Err(error)) => return Err(format!("the tokenizer refuses `{shown}`: {error}")),
            Err(_) => return Err(format!("the tokenizer fails on `{shown}`: its file is damaged")),
        };
        let wide = |values: &[u32]| values.iter().map(|&value| i64::from(value)).collect::<Vec<i64>>();
        let encoded = Encoded { ids: wide(encoding.get_ids()), types: wide(encoding.get_type_ids()) };
        let length = encoded.ids.len();
        let most = self.options.max_length.unwrap_or(MAX_TOKENS);
        if length > most {
            return Err(format!(
                "`{shown}` has {length} tokens, more than {most}: `truncation = true` cuts them off"
            ));
        }
        let encoded = Arc::new(encoded);
        *last = Some((text.to_owned(), pair.map(str::to_owned), Arc::clone(&encoded)));
        Ok(encoded)
    }

    /// What one input gets of a sample.
    pub(crate) fn output(
        &self,
        text: &str,
        pair: Option<&str>,
        output: TokenOutput,
    ) -> Result<Tensor, String> {
        let encoded = self.encode(text, pair)?;
        let length = encoded.ids.len();
        let mut values = match output {
            TokenOutput::Ids => encoded.ids.clone(),
            TokenOutput::AttentionMask => vec![1; length],
            TokenOutput::TokenTypeIds => encoded.types.clone(),
            TokenOutput::PositionIds => (0..).take(length).collect(),
        };
        if self.options.padding == Padding::MaxLength {
            let missing = self.options.max_length.unwrap_or(length).saturating_sub(length);
            let fill = std::iter::repeat_n(self.fill(output), missing);
            match self.side {
                Side::Right => values.extend(fill),
                Side::Left => values.splice(0..0, fill).for_each(drop),
            }
        }
        if values.is_empty() {
            return Err("the text has no tokens".to_owned());
        }
        Ok(Tensor::from_i64s(&values))
    }

    /// What samples are filled up with.
    pub(crate) fn fill(&self, output: TokenOutput) -> i64 {
        if output == TokenOutput::Ids { self.pad_id } else { 0 }
    }

    /// The side on which samples are filled up.
    pub(crate) fn side(&self) -> Side {
        self.side
    }
}

/// The token that fills samples up: what the file says, else one of the usual names.
fn pad_token(tokenizer: &Tokenizer, padding: Option<&Value>) -> Option<u32> {
    let given = padding.and_then(|padding| padding.get("pad_id")?.as_u64());
    let usual = ["[PAD]", "<pad>", "<|pad|>", "<PAD>", "<|endoftext|>", "</s>"];
    given
        .and_then(|id| u32::try_from(id).ok())
        .or_else(|| usual.iter().find_map(|name| tokenizer.token_to_id(name)))
}

/// Every special token of a template must be declared beside it.
fn check_templates(processor: &Value, depth: usize) -> Result<(), String> {
    if depth > 8 {
        return Err("its post-processors stand too deep within each other".to_owned());
    }
    if let Some(inner) = processor.get("processors").and_then(Value::as_array) {
        return inner.iter().try_for_each(|inner| check_templates(inner, depth.saturating_add(1)));
    }
    if processor.get("type").and_then(Value::as_str) != Some("TemplateProcessing") {
        return Ok(());
    }
    let declared: BTreeSet<&str> = processor
        .get("special_tokens")
        .and_then(Value::as_object)
        .map(|tokens| tokens.keys().map(String::as_str).collect())
        .unwrap_or_default();
    for (key, sequences) in [("single", &["A"][..]), ("pair", &["A", "B"])] {
        let pieces = processor.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for piece in pieces {
            let id = |kind: &str| piece.get(kind).and_then(|piece| piece.get("id")?.as_str());
            if let Some(token) = id("SpecialToken").filter(|token| !declared.contains(token)) {
                return Err(format!(
                    "its template uses the special token `{}`, which it does not declare",
                    escape_for_terminal(token)
                ));
            }
            if let Some(sequence) = id("Sequence").filter(|sequence| !sequences.contains(sequence)) {
                return Err(format!(
                    "its template for `{key}` uses sequence `{}`",
                    escape_for_terminal(sequence)
                ));
            }
        }
    }
    Ok(())
}
