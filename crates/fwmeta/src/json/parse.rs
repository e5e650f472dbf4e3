//! The parser: one pass over the text, filling the tape.

use std::borrow::Cow;

use super::{Doc, JsonError, Kind, Token};
use crate::limits;

pub(super) fn document(bytes: &[u8]) -> Result<Doc<'_>, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|error| JsonError::NotUtf8 {
        offset: error.valid_up_to(),
    })?;
    if u32::try_from(text.len()).is_err() {
        return Err(JsonError::TooManyValues);
    }
    let mut parser = Parser {
        text,
        bytes,
        at: 0,
        tape: Vec::with_capacity(bytes.len() / 24 + 8),
        canonical: true,
    };
    parser.space();
    // White space around the whole is no part of it.
    parser.canonical = true;
    parser.value(0)?;
    let canonical = parser.canonical;
    parser.space();
    if parser.at != bytes.len() {
        return Err(parser.expected("the end of the text"));
    }
    Ok(Doc {
        text,
        tape: parser.tape,
        canonical,
    })
}

/// The characters that an escaped string stands for. The parser has checked every escape.
pub(super) fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let (character, after) = escape(&rest[at + 1..]).unwrap_or((char::REPLACEMENT_CHARACTER, ""));
        text.push(character);
        rest = after;
    }
    text.push_str(rest);
    text
}

/// The character of the escape whose backslash stands before `text`, and what follows it.
fn escape(text: &str) -> Option<(char, &str)> {
    let mut rest = text.chars();
    let character = match rest.next()? {
        plain @ ('"' | '\\' | '/') => plain,
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => return unicode_escape(rest.as_str()),
        _ => return None,
    };
    Some((character, rest.as_str()))
}

fn unicode_escape(text: &str) -> Option<(char, &str)> {
    let (first, rest) = four_digits(text)?;
    if let Some(character) = char::from_u32(first) {
        return Some((character, rest));
    }
    // Only a high surrogate followed by a low one is a character; RFC 8259 §8.2 leaves others to chance, we refuse.
    let (second, rest) = four_digits(rest.strip_prefix("\\u")?)?;
    if !(0xd800..0xdc00).contains(&first) || !(0xdc00..0xe000).contains(&second) {
        return None;
    }
    Some((
        char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))?,
        rest,
    ))
}

fn four_digits(text: &str) -> Option<(u32, &str)> {
    let digits = text.get(..4)?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some((u32::from_str_radix(digits, 16).ok()?, &text[4..]))
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    tape: Vec<Token>,
    /// Whether everything so far stands in its canonical form.
    canonical: bool,
}

impl Parser<'_> {
    fn expected(&self, expected: &'static str) -> JsonError {
        JsonError::Syntax {
            offset: self.at,
            expected,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
            self.canonical = false;
        }
    }

    fn open(&mut self, kind: Kind) -> Result<usize, JsonError> {
        if self.tape.len() >= limits::JSON_VALUES {
            return Err(JsonError::TooManyValues);
        }
        // `document` has checked that every offset fits u32.
        let start = self.at as u32;
        self.tape.push(Token {
            kind,
            start,
            end: start,
            next: 0,
        });
        Ok(self.tape.len() - 1)
    }

    fn close(&mut self, index: usize, end: usize) {
        let next = self.tape.len() as u32;
        let token = &mut self.tape[index];
        token.end = end as u32;
        token.next = next;
    }

    fn value(&mut self, depth: usize) -> Result<(), JsonError> {
        match self.peek() {
            Some(b'{' | b'[') if depth >= limits::JSON_DEPTH => Err(JsonError::TooDeep { offset: self.at }),
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Kind::True),
            Some(b'f') => self.word("false", Kind::False),
            Some(b'n') => self.word("null", Kind::Null),
            _ => Err(self.expected("a value")),
        }
    }

    fn word(&mut self, word: &'static str, kind: Kind) -> Result<(), JsonError> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.expected(word));
        }
        let index = self.open(kind)?;
        self.at += word.len();
        self.close(index, self.at);
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start {
            Err(self.expected("a digit"))
        } else {
            Ok(())
        }
    }

    fn number(&mut self) -> Result<(), JsonError> {
        let index = self.open(Kind::Number)?;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let number = &self.text[self.tape[index].start as usize..self.at];
        self.canonical &= number != "-0" && !number.contains(['.', 'e', 'E']);
        self.close(index, self.at);
        Ok(())
    }

    fn string(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        let index = self.open(Kind::Plain)?;
        loop {
            let rest = &self.bytes[self.at..];
            let plain = rest
                .iter()
                .position(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\'));
            self.at += plain.unwrap_or(rest.len());
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    self.tape[index].kind = Kind::Escaped;
                    self.canonical &= matches!(self.bytes.get(self.at + 1), Some(b'"' | b'\\'));
                    let (_, rest) = escape(&self.text[self.at + 1..]).ok_or_else(|| self.expected("a valid escape"))?;
                    self.at = self.bytes.len() - rest.len();
                }
                Some(_) => return Err(self.expected("no raw control character in a string")),
                None => return Err(self.expected("the end of a string")),
            }
        }
        self.close(index, self.at);
        self.at += 1;
        Ok(())
    }

    fn array(&mut self, depth: usize) -> Result<(), JsonError> {
        let index = self.open(Kind::Array)?;
        self.at += 1;
        self.space();
        if self.peek() != Some(b']') {
            loop {
                self.space();
                self.value(depth + 1)?;
                self.space();
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b']') => break,
                    _ => return Err(self.expected("',' or ']'")),
                }
            }
        }
        self.at += 1;
        self.close(index, self.at);
        Ok(())
    }

    fn object(&mut self, depth: usize) -> Result<(), JsonError> {
        let index = self.open(Kind::Object)?;
        self.at += 1;
        self.space();
        if self.peek() != Some(b'}') {
            loop {
                self.space();
                if self.peek() != Some(b'"') {
                    return Err(self.expected("a key"));
                }
                self.string()?;
                self.space();
                if self.peek() != Some(b':') {
                    return Err(self.expected("':'"));
                }
                self.at += 1;
                self.space();
                self.value(depth + 1)?;
                self.space();
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => break,
                    _ => return Err(self.expected("',' or '}'")),
                }
            }
        }
        self.at += 1;
        self.close(index, self.at);
        self.refuse_duplicates(index)
    }

    fn key(&self, index: usize) -> Cow<'_, str> {
        let token = self.tape[index];
        let raw = &self.text[token.start as usize..token.end as usize];
        if token.kind == Kind::Escaped {
            Cow::Owned(unescape(raw))
        } else {
            Cow::Borrowed(raw)
        }
    }

    fn keys(&self, object: usize) -> impl Iterator<Item = Cow<'_, str>> {
        let end = self.tape[object].next as usize;
        let mut index = object + 1;
        std::iter::from_fn(move || {
            let key = (index < end).then_some(index)?;
            index = self.tape[key + 1].next as usize;
            Some(self.key(key))
        })
    }

    fn refuse_duplicates(&mut self, object: usize) -> Result<(), JsonError> {
        // Canonical files have sorted keys: then one comparison each is enough, and nothing is allocated.
        if self.keys(object).is_sorted_by(|a, b| a < b) {
            return Ok(());
        }
        self.canonical = false;
        let mut sorted: Vec<_> = self.keys(object).collect();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(JsonError::DuplicateKey {
                key: pair[0].chars().take(64).collect(),
            }),
            None => Ok(()),
        }
    }
}
