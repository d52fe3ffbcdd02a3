//! Foreign text made harmless.

use std::borrow::Cow;

/// Names come from files that may be hostile: control characters (terminal escapes among them) and
/// characters that reorder or hide text are shown as `\u{..}`; newline, tab and return as `\n`, `\t`, `\r`.
pub fn escape_for_terminal(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_dangerous(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_and_escapes_are_shown() {
        assert_eq!(escape_for_terminal("Grüße, 日本 /conv1"), "Grüße, 日本 /conv1");
        assert_eq!(escape_for_terminal("a\u{1b}[31mb\nc"), "a\\u{1b}[31mb\\nc");
        assert_eq!(escape_for_terminal("x\u{202e}y"), "x\\u{202e}y");
        assert_eq!(escape_for_terminal("\0"), "\\u{0}");
    }
}
