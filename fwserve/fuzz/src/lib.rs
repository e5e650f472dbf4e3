//! What is fuzzed: one function a target, each of which states what must hold of any input. `cargo fuzz` runs them for
//! long, `tests/fuzz.rs` of fwserve runs the same functions over the seeds and mutations of them.
//!
//! ```text
//! cargo +nightly fuzz run route corpus/route seeds/route -- -max_total_time=600
//! ```

use std::path::{Component, Path};
use std::time::{Duration, SystemTime};

use fwserve::publish::PublishRequest;
use fwserve::representation::{self, Answer, Coding, Facts};
use fwserve::routes::{self, Route};
use fwserve::tokens;
use hyper::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH,
    RANGE,
};
use hyper::{Method, StatusCode};

/// A request to publish that is accepted names visible files of the repository only, by digests.
pub fn publish(data: &[u8]) {
    let Ok(request) = PublishRequest::parse(data) else {
        return;
    };
    assert!(
        request
            .base
            .iter()
            .chain(request.files.values())
            .all(|digest| routes::is_sha256(digest))
    );
    for name in request.files.keys() {
        assert_inside(name);
        // What is published can be asked for.
        let (dir, file) = name.split_once('/').expect("in a directory");
        let escaped = file.split('/').map(escape).collect::<Vec<_>>().join("/");
        let path = format!("/{dir}/{escaped}");
        if dir == "targets" {
            let Some(Route::File(names)) = routes::route(&path) else {
                panic!("{path} names no file")
            };
            assert_eq!(&names[0], name);
        }
    }
}

/// A request path names files inside the repository, or nothing; naming the same file again gives the same names.
pub fn route(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else { return };
    let Some(route) = routes::route(path) else { return };
    assert!(route.allows(route.allow().split(", ").next().expect("a method")));
    match &route {
        Route::File(names) => {
            assert!((1..=3).contains(&names.len()));
            for name in names {
                assert_inside(name);
            }
            // Only this is looked up without asking `route`.
            assert!(routes::plain_name(path).is_none_or(|name| name == names[0]));
            if let Some(name) = names[0].strip_prefix("targets/") {
                let parts: Vec<_> = name.split('/').map(escape).collect();
                let again = routes::route(&format!("/targets/{}", parts.join("/")));
                assert_eq!(again.as_ref(), Some(&route));
            }
            if names[0].starts_with("metadata/") {
                assert_eq!(routes::route(&format!("/{}", names[0])).as_ref(), Some(&route));
            }
        }
        Route::Object(digest) => assert!(routes::is_sha256(digest)),
        Route::Health | Route::Repository | Route::Publish => {}
    }
}

/// Every part of a name is a visible entry of the directory before it.
fn assert_inside(name: &str) {
    assert!(
        name.starts_with("metadata/") || name.starts_with("targets/"),
        "{name:?}"
    );
    assert!(
        name.split('/').all(|part| !part.is_empty() && !part.starts_with('.')),
        "{name:?}"
    );
    assert!(!name.contains(['\0', '\\']), "{name:?}");
    assert!(
        Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
    );
    assert!(
        name.starts_with("targets/") || name.matches('/').count() == 1,
        "{name:?}"
    );
}

fn escape(part: &str) -> String {
    part.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

const LENGTH: u64 = 1000;
const GZIP: u64 = 300;
const SHA256: &str = "abababababababababababababababababababababababababababababababab";

/// The lines `METHOD` and `NAME: VALUE` of a request for a file of 1,000 bytes: the answer is one that such a file has, and
/// its head says so.
pub fn headers(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let method = match lines.next() {
        Some(b"HEAD") => Method::HEAD,
        _ => Method::GET,
    };
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), &line[colon + 1..]);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.trim_ascii())) {
            headers.append(name, value);
        }
    }
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let plain = Facts::new(
        LENGTH,
        SHA256,
        modified,
        &HeaderValue::from_static("no-cache"),
        "application/json",
    );
    let coded = plain.clone().with_codings(Some(GZIP), None);
    for now in [modified, modified + Duration::from_secs(60)] {
        for (facts, has_gzip) in [(&plain, false), (&coded, true)] {
            let answer = representation::decide(&method, &headers, facts, now);
            let (status, head) = representation::head(answer, facts, now);
            check(&headers, &method, answer, status, &head, has_gzip);
        }
    }
}

fn check(request: &HeaderMap, method: &Method, answer: Answer, status: StatusCode, head: &HeaderMap, has_gzip: bool) {
    let number = |name| -> Option<u64> { head.get(name)?.to_str().ok()?.parse().ok() };
    let length = number(CONTENT_LENGTH);
    match answer {
        Answer::Whole(coding) => {
            let coded = match coding {
                Coding::Identity => None,
                Coding::Gzip if has_gzip => Some("gzip"),
                other => panic!("{other:?} is not there"),
            };
            assert_eq!((status, length), (StatusCode::OK, Some(coded.map_or(LENGTH, |_| GZIP))));
            assert_eq!(
                head.get(CONTENT_ENCODING).and_then(|coding| coding.to_str().ok()),
                coded
            );
        }
        Answer::Part { first, last } => {
            assert!(method == Method::GET && request.get_all(RANGE).iter().count() == 1);
            assert!(first <= last && last < LENGTH);
            assert_eq!((status, length), (StatusCode::PARTIAL_CONTENT, Some(last - first + 1)));
            assert_eq!(head[CONTENT_RANGE], format!("bytes {first}-{last}/{LENGTH}"));
        }
        Answer::NotModified(_) => {
            assert_eq!((status, length), (StatusCode::NOT_MODIFIED, None));
            // Only who names this very file, or its date, is told to keep what it has.
            let named = request.get_all(IF_NONE_MATCH).iter().any(|value| {
                let value = value.as_bytes();
                let tag = head[ETAG].as_bytes();
                value.contains(&b'*') || value.windows(tag.len()).any(|part| part == tag)
            });
            assert!(named || !request.contains_key(IF_NONE_MATCH));
        }
        Answer::PreconditionFailed => assert!(
            status == StatusCode::PRECONDITION_FAILED
                && (request.contains_key(IF_MATCH) || request.contains_key("if-unmodified-since"))
        ),
        Answer::Unsatisfiable => {
            assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
            assert_eq!(head[CONTENT_RANGE], format!("bytes */{LENGTH}"));
        }
    }
}

/// A token file that is accepted means the same when written, and has no more tokens than lines.
pub fn tokens(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new("tokens");
    let Ok(tokens) = tokens::parse(path, text) else { return };
    assert!(tokens.len() <= text.lines().count());
    let written: String = tokens
        .iter()
        .map(|token| format!("{} sha256:{}\n", token.name, fwmeta::hex::encode(&token.digest)))
        .collect();
    assert_eq!(tokens::parse(path, &written).ok().as_deref(), Some(tokens.as_slice()));
}
