#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};

use super::*;

const MODIFIED: &str = "Tue, 02 Jan 2024 03:04:05 GMT";

fn facts() -> Facts {
    // The fraction of a second must not matter.
    Facts::new(
        100,
        "ab",
        modified(),
        &HeaderValue::from_static("no-cache"),
        "text/plain",
    )
}

fn request(headers: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    map
}

fn modified() -> SystemTime {
    httpdate::parse_http_date(MODIFIED).unwrap() + Duration::from_millis(700)
}

/// Long after the last change.
fn now() -> SystemTime {
    modified() + Duration::from_secs(3600)
}

fn get(headers: &[(&str, &str)]) -> Answer {
    decide(&Method::GET, &request(headers), &facts(), now())
}

const WHOLE: Answer = Answer::Whole(Coding::Identity);
const SAME: Answer = Answer::NotModified(Coding::Identity);

#[test]
fn ranges() {
    let part = |first, last| Answer::Part { first, last };
    for (range, expected) in [
        ("bytes=0-0", part(0, 0)),
        ("bytes=0-99", part(0, 99)),
        ("bytes=0-1000", part(0, 99)),
        ("bytes=10-", part(10, 99)),
        ("bytes=99-", part(99, 99)),
        ("bytes=-1", part(99, 99)),
        ("bytes=-1000", part(0, 99)),
        ("bytes=5-99999999999999999999999", part(5, 99)),
        ("bytes=100-", Answer::Unsatisfiable),
        ("bytes=99999999999999999999999-", Answer::Unsatisfiable),
        ("bytes=-0", Answer::Unsatisfiable),
        ("bytes=5-4", WHOLE),
        ("bytes=a-b", WHOLE),
        ("bytes=+1-2", WHOLE),
        ("bytes=-", WHOLE),
        ("bytes=", WHOLE),
        ("bytes=1", WHOLE),
        ("bytes=0-1,3-4", WHOLE),
        ("items=0-1", WHOLE),
    ] {
        assert_eq!(get(&[("range", range)]), expected, "{range}");
    }
    assert_eq!(get(&[("range", "bytes=0-1"), ("range", "bytes=3-4")]), WHOLE);
    assert_eq!(
        decide(&Method::HEAD, &request(&[("range", "bytes=0-1")]), &facts(), now()),
        WHOLE
    );
    let empty = Facts::new(
        0,
        "ab",
        SystemTime::UNIX_EPOCH,
        &HeaderValue::from_static("x"),
        "text/plain",
    );
    for range in ["bytes=0-", "bytes=-5"] {
        assert_eq!(
            decide(&Method::GET, &request(&[("range", range)]), &empty, now()),
            Answer::Unsatisfiable
        );
    }
}

#[test]
fn if_range() {
    let part = Answer::Part { first: 0, last: 1 };
    for (value, expected) in [
        ("\"ab\"", part),
        ("\"cd\"", WHOLE),
        ("W/\"ab\"", WHOLE),
        ("\"ab-gzip\"", WHOLE),
        (MODIFIED, part),
        ("Tue, 02 Jan 2024 03:04:06 GMT", WHOLE),
        ("nonsense", WHOLE),
    ] {
        assert_eq!(get(&[("range", "bytes=0-1"), ("if-range", value)]), expected, "{value}");
    }
}

#[test]
fn conditions() {
    let later = "Wed, 03 Jan 2024 00:00:00 GMT";
    let earlier = "Mon, 01 Jan 2024 00:00:00 GMT";
    for (headers, expected) in [
        (&[("if-none-match", "\"ab\"")][..], SAME),
        (&[("if-none-match", "W/\"ab\"")], SAME),
        (&[("if-none-match", "\"x\", \"ab\"")], SAME),
        (&[("if-none-match", "\"x\""), ("if-none-match", "\"ab\"")], SAME),
        (&[("if-none-match", "*")], SAME),
        (&[("if-none-match", "ab")], WHOLE),
        (&[("if-none-match", "\"abc\"")], WHOLE),
        (&[("if-none-match", "\"x\""), ("if-modified-since", later)], WHOLE),
        (&[("if-modified-since", MODIFIED)], SAME),
        (&[("if-modified-since", later)], WHOLE),
        (&[("if-modified-since", earlier)], WHOLE),
        (&[("if-modified-since", "yesterday")], WHOLE),
        (&[("if-match", "\"ab\"")], WHOLE),
        (&[("if-match", "W/\"ab\"")], Answer::PreconditionFailed),
        (&[("if-match", "\"x\"")], Answer::PreconditionFailed),
        (&[("if-unmodified-since", earlier)], Answer::PreconditionFailed),
        (&[("if-unmodified-since", MODIFIED)], WHOLE),
        (&[("if-none-match", "\"ab\""), ("range", "bytes=0-1")], SAME),
    ] {
        assert_eq!(get(headers), expected, "{headers:?}");
    }
}

#[test]
fn a_date_counts_only_when_its_second_is_over() {
    let young = modified() + Duration::from_millis(900);
    for (headers, settled, expected) in [
        (&[("if-modified-since", MODIFIED)][..], SAME, WHOLE),
        (
            &[("range", "bytes=0-1"), ("if-range", MODIFIED)],
            Answer::Part { first: 0, last: 1 },
            WHOLE,
        ),
        (&[("if-none-match", "\"ab\"")], SAME, SAME),
    ] {
        let at = |now| decide(&Method::GET, &request(headers), &facts(), now);
        assert_eq!((at(now()), at(young)), (settled, expected), "{headers:?}");
    }
    for (now, told) in [(now(), true), (young, false), (SystemTime::UNIX_EPOCH, false)] {
        assert_eq!(head(WHOLE, &facts(), now).1.contains_key("last-modified"), told);
    }
}

#[test]
fn negotiation() {
    let facts = facts().with_codings(Some(40), Some(30));
    let coding = |accept: &str| match decide(&Method::GET, &request(&[("accept-encoding", accept)]), &facts, now()) {
        Answer::Whole(coding) => coding,
        other => panic!("{accept}: {other:?}"),
    };
    for (accept, expected) in [
        ("", Coding::Identity),
        ("br", Coding::Identity),
        ("gzip", Coding::Gzip),
        ("GZIP", Coding::Gzip),
        ("zstd", Coding::Zstd),
        ("gzip, zstd", Coding::Zstd),
        ("gzip;q=1.0, zstd;q=0.9", Coding::Gzip),
        ("gzip;q=0", Coding::Identity),
        ("*", Coding::Zstd),
        ("*;q=0.5, zstd;q=0", Coding::Gzip),
        ("identity, gzip;q=0.5", Coding::Identity),
        ("identity;q=0.5, gzip", Coding::Gzip),
        ("gzip;q=0.001", Coding::Gzip),
        ("gzip;q=2", Coding::Identity),
        ("gzip;q=abc", Coding::Identity),
    ] {
        assert_eq!(coding(accept), expected, "{accept}");
    }
    assert_eq!(decide(&Method::GET, &request(&[]), &facts, now()), WHOLE);
    // A range is one of the file as it is, and each coding has a tag of its own.
    let ranged = request(&[("accept-encoding", "gzip"), ("range", "bytes=0-1")]);
    assert_eq!(
        decide(&Method::GET, &ranged, &facts, now()),
        Answer::Part { first: 0, last: 1 }
    );
    for (tag, expected) in [
        ("\"ab-gzip\"", Answer::NotModified(Coding::Gzip)),
        ("\"ab\"", Answer::Whole(Coding::Gzip)),
    ] {
        let request = request(&[("accept-encoding", "gzip"), ("if-none-match", tag)]);
        assert_eq!(decide(&Method::GET, &request, &facts, now()), expected);
    }
}

#[test]
fn heads() {
    let facts = facts().with_codings(Some(40), None);
    let text = |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, headers) = head(Answer::Whole(Coding::Gzip), &facts, now());
    assert_eq!(status, StatusCode::OK);
    assert_eq!(text(&headers, "content-length").as_deref(), Some("40"));
    assert_eq!(text(&headers, "content-encoding").as_deref(), Some("gzip"));
    assert_eq!(text(&headers, "etag").as_deref(), Some("\"ab-gzip\""));
    assert_eq!(text(&headers, "vary").as_deref(), Some("accept-encoding"));
    let (status, headers) = head(Answer::Part { first: 3, last: 9 }, &facts, now());
    assert_eq!(status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(text(&headers, "content-range").as_deref(), Some("bytes 3-9/100"));
    assert_eq!(text(&headers, "content-length").as_deref(), Some("7"));
    assert_eq!(text(&headers, "content-encoding"), None);
    let (status, headers) = head(Answer::Unsatisfiable, &facts, now());
    assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(text(&headers, "content-range").as_deref(), Some("bytes */100"));
    let (status, headers) = head(Answer::NotModified(Coding::Identity), &facts, now());
    assert_eq!(status, StatusCode::NOT_MODIFIED);
    assert_eq!(text(&headers, "last-modified").as_deref(), Some(MODIFIED));
    assert_eq!(text(&headers, "content-length"), None);
}
