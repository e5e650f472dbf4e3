//! Which answer a request for a file gets: whole, a range, or "you have it". Pure (RFC 9110 §12.5.3, §13, §14).
//!
//! A file has up to three representations (as it is, gzip, zstd), each with an ETag of its own. A range is always one of
//! the file as it is. Several ranges, and ranges that are malformed, get the whole file.
//!
//! Departs from RFC 9110 §13.1.3: `If-Modified-Since` holds only for the very date that was sent as `Last-Modified`. A
//! timestamp that was restored from a backup, and is older, must still reach those that have the newer one.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use hyper::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
    LAST_MODIFIED, RANGE, VARY,
};
use hyper::{Method, StatusCode};

/// How a representation is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// As it is.
    Identity,
    /// `gzip`.
    Gzip,
    /// `zstd`.
    Zstd,
}

/// What an answer must know about a file, with its header values made beforehand.
#[derive(Debug, Clone)]
pub struct Facts {
    length: u64,
    gzip: Option<u64>,
    zstd: Option<u64>,
    negotiated: bool,
    etags: [HeaderValue; 3],
    modified: SystemTime,
    last_modified: HeaderValue,
    cache_control: HeaderValue,
    content_type: HeaderValue,
    /// Heads of the two frequent answers in each coding, kept when they have been made.
    heads: [OnceLock<HeaderMap>; 6],
}

impl Facts {
    /// Facts of a file with this SHA-256 in hexadecimal.
    pub fn new(
        length: u64,
        sha256: &str,
        modified: SystemTime,
        cache_control: &HeaderValue,
        content_type: &'static str,
    ) -> Self {
        let etag = |suffix: &str| ascii(&format!("\"{sha256}{suffix}\""));
        Self {
            length,
            gzip: None,
            zstd: None,
            negotiated: false,
            etags: [etag(""), etag("-gzip"), etag("-zstd")],
            modified,
            last_modified: ascii(&httpdate::fmt_http_date(modified)),
            cache_control: cache_control.clone(),
            content_type: HeaderValue::from_static(content_type),
            heads: Default::default(),
        }
    }

    /// Adds the lengths of coded representations; the answer then varies by `Accept-Encoding`.
    #[must_use]
    pub fn with_codings(mut self, gzip: Option<u64>, zstd: Option<u64>) -> Self {
        (self.gzip, self.zstd, self.negotiated) = (gzip, zstd, true);
        self
    }

    /// Length of the file in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    fn length_of(&self, coding: Coding) -> u64 {
        match coding {
            Coding::Identity => Some(self.length),
            Coding::Gzip => self.gzip,
            Coding::Zstd => self.zstd,
        }
        .unwrap_or(self.length)
    }

    /// Whether the file cannot change any more within the second of its date (RFC 9110 §8.8.2.2). Before, the date is not
    /// told: whoever had it could miss the next change for good.
    fn is_settled(&self, now: SystemTime) -> bool {
        now.duration_since(self.modified)
            .is_ok_and(|age| age >= Duration::from_secs(1))
    }

    fn etag(&self, coding: Coding) -> &HeaderValue {
        &self.etags[coding as usize]
    }
}

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// 200 with a whole representation.
    Whole(Coding),
    /// 206 with these bytes of the file.
    Part {
        /// First byte.
        first: u64,
        /// Last byte, inclusive.
        last: u64,
    },
    /// 304.
    NotModified(Coding),
    /// 412.
    PreconditionFailed,
    /// 416.
    Unsatisfiable,
}

/// Decides what a GET or HEAD request gets at the time `now`.
pub fn decide(method: &Method, request: &HeaderMap, facts: &Facts, now: SystemTime) -> Answer {
    let ranged = method == Method::GET && request.contains_key(RANGE);
    let coding = if ranged {
        Coding::Identity
    } else {
        negotiate(request, facts)
    };
    let etag = facts.etag(coding);
    // The order is that of RFC 9110 §13.2.2.
    if request.contains_key(IF_MATCH) {
        if !lists(request, &IF_MATCH, etag, Comparison::Strong) {
            return Answer::PreconditionFailed;
        }
    } else if date(request, &IF_UNMODIFIED_SINCE).is_some_and(|since| seconds(facts.modified) > seconds(since)) {
        return Answer::PreconditionFailed;
    }
    if request.contains_key(IF_NONE_MATCH) {
        if lists(request, &IF_NONE_MATCH, etag, Comparison::Weak) {
            return Answer::NotModified(coding);
        }
    } else if facts.is_settled(now)
        && date(request, &IF_MODIFIED_SINCE).is_some_and(|since| seconds(facts.modified) == seconds(since))
    {
        return Answer::NotModified(coding);
    }
    if !ranged || !if_range_holds(request, facts, now) {
        return Answer::Whole(coding);
    }
    let mut ranges = request.get_all(RANGE).iter();
    match (ranges.next().and_then(|range| range.to_str().ok()), ranges.next()) {
        (Some(range), None) => part(range, facts.length),
        _ => Answer::Whole(coding),
    }
}

/// The head of an answer at the time `now`. The length is that of the body a GET gets.
pub fn head(answer: Answer, facts: &Facts, now: SystemTime) -> (StatusCode, HeaderMap) {
    let is_settled = facts.is_settled(now);
    let frequent = match answer {
        Answer::Whole(coding) => Some((StatusCode::OK, coding as usize)),
        Answer::NotModified(coding) => Some((StatusCode::NOT_MODIFIED, 3 + coding as usize)),
        _ => None,
    };
    match frequent {
        Some((status, slot)) if is_settled => {
            let made = facts.heads[slot].get_or_init(|| make_head(answer, facts, true).1);
            (status, made.clone())
        }
        _ => make_head(answer, facts, is_settled),
    }
}

fn make_head(answer: Answer, facts: &Facts, is_settled: bool) -> (StatusCode, HeaderMap) {
    let mut headers = HeaderMap::with_capacity(10);
    let mut put = |name: HeaderName, value: HeaderValue| {
        headers.insert(name, value);
    };
    if facts.negotiated {
        put(VARY, HeaderValue::from_static("accept-encoding"));
    }
    let (status, coding) = match answer {
        Answer::PreconditionFailed => {
            put(CONTENT_LENGTH, HeaderValue::from(0));
            return (StatusCode::PRECONDITION_FAILED, headers);
        }
        Answer::Unsatisfiable => {
            put(CONTENT_RANGE, ascii(&format!("bytes */{}", facts.length)));
            put(CONTENT_LENGTH, HeaderValue::from(0));
            return (StatusCode::RANGE_NOT_SATISFIABLE, headers);
        }
        Answer::NotModified(coding) => (StatusCode::NOT_MODIFIED, coding),
        Answer::Whole(coding) => {
            put(CONTENT_LENGTH, HeaderValue::from(facts.length_of(coding)));
            (StatusCode::OK, coding)
        }
        Answer::Part { first, last } => {
            put(CONTENT_LENGTH, HeaderValue::from(last - first + 1));
            put(CONTENT_RANGE, ascii(&format!("bytes {first}-{last}/{}", facts.length)));
            (StatusCode::PARTIAL_CONTENT, Coding::Identity)
        }
    };
    put(ETAG, facts.etag(coding).clone());
    if is_settled {
        put(LAST_MODIFIED, facts.last_modified.clone());
    }
    put(CACHE_CONTROL, facts.cache_control.clone());
    if status != StatusCode::NOT_MODIFIED {
        put(CONTENT_TYPE, facts.content_type.clone());
        put(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        match coding {
            Coding::Identity => {}
            Coding::Gzip => put(CONTENT_ENCODING, HeaderValue::from_static("gzip")),
            Coding::Zstd => put(CONTENT_ENCODING, HeaderValue::from_static("zstd")),
        }
    }
    (status, headers)
}

/// The coding with the highest weight; among equals the smallest. A client that names nothing gets the file as it is.
fn negotiate(request: &HeaderMap, facts: &Facts) -> Coding {
    if facts.gzip.is_none() && facts.zstd.is_none() {
        return Coding::Identity;
    }
    let mut weights = [None; 3];
    let mut others = None;
    for value in request.get_all(ACCEPT_ENCODING) {
        let Ok(value) = value.to_str() else { continue };
        for item in value.split(',') {
            let mut fields = item.split(';').map(str::trim);
            let name = fields.next().unwrap_or_default().to_ascii_lowercase();
            let weight = fields.next().map_or(Some(1000), weight);
            // A malformed weight means that nobody knows what the client wants: not this.
            let weight = weight.unwrap_or(0);
            match name.as_str() {
                "identity" => weights[Coding::Identity as usize] = Some(weight),
                "gzip" | "x-gzip" => weights[Coding::Gzip as usize] = Some(weight),
                "zstd" => weights[Coding::Zstd as usize] = Some(weight),
                "*" => others = Some(weight),
                _ => {}
            }
        }
    }
    let weight_of = |coding: Coding| weights[coding as usize].or(others).unwrap_or(0);
    // Identity is acceptable unless refused by name or by `*`, but never preferred without being named.
    let mut best = (Coding::Identity, weights[Coding::Identity as usize].unwrap_or(1));
    for (coding, length) in [(Coding::Gzip, facts.gzip), (Coding::Zstd, facts.zstd)] {
        let weight = weight_of(coding);
        let shorter = length.is_some_and(|length| length < facts.length_of(best.0));
        if length.is_some() && weight > 0 && (weight > best.1 || (weight == best.1 && shorter)) {
            best = (coding, weight);
        }
    }
    best.0
}

/// `q=0.5` in thousandths.
fn weight(field: &str) -> Option<u32> {
    let text = field.strip_prefix("q=").or_else(|| field.strip_prefix("Q="))?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths: u32 = format!("{fraction:0<3}").parse().ok()?;
    let weight = whole.parse::<u32>().ok()? * 1000 + thousandths;
    (weight <= 1000).then_some(weight)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of entity tags has this one, or is `*`.
fn lists(request: &HeaderMap, name: &HeaderName, etag: &HeaderValue, comparison: Comparison) -> bool {
    let Ok(etag) = etag.to_str() else { return false };
    // Our tags hold no comma, so that a split cannot make a foreign one look like ours: the quotes must be there.
    request
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|item| {
            let item = match item.strip_prefix("W/") {
                Some(_) if comparison == Comparison::Strong => return false,
                Some(item) => item,
                None => item,
            };
            item == "*" || item == etag
        })
}

/// Whether the range applies: the client's part is of this very file.
fn if_range_holds(request: &HeaderMap, facts: &Facts, now: SystemTime) -> bool {
    let Some(value) = request.get(IF_RANGE) else {
        return true;
    };
    let Ok(text) = value.to_str() else { return false };
    if text.starts_with('"') {
        return value == facts.etag(Coding::Identity);
    }
    facts.is_settled(now) && httpdate::parse_http_date(text).is_ok_and(|date| seconds(date) == seconds(facts.modified))
}

fn part(range: &str, length: u64) -> Answer {
    let whole = Answer::Whole(Coding::Identity);
    let Some(spec) = range.trim().strip_prefix("bytes=") else {
        return whole;
    };
    let Some((first, last)) = spec.split_once('-') else {
        return whole;
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number too large for any file is still a number.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let (first, last) = (first.trim(), last.trim());
    match (number(first), number(last)) {
        (Some(first), None) if last.is_empty() => satisfy(first, u64::MAX, length),
        (Some(first), Some(last)) if first <= last => satisfy(first, last, length),
        (None, Some(suffix)) if first.is_empty() => match (suffix, length) {
            (0, _) | (_, 0) => Answer::Unsatisfiable,
            _ => satisfy(length.saturating_sub(suffix), u64::MAX, length),
        },
        _ => whole,
    }
}

fn satisfy(first: u64, last: u64, length: u64) -> Answer {
    if first >= length {
        return Answer::Unsatisfiable;
    }
    Answer::Part {
        first,
        last: last.min(length - 1),
    }
}

fn date(request: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(request.get(name)?.to_str().ok()?).ok()
}

/// Header dates have whole seconds; a file's time must be cut to them before it is compared.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
#[path = "representation_tests.rs"]
mod tests;
