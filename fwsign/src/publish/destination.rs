//! Where a publication goes and with which token: checked before anything is sent.

use std::path::Path;

use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::api_error::ApiError;
use crate::bounded;

/// Longest token file.
const TOKEN_BYTES: u16 = 4096;

/// The server's address, ending with a slash.
pub(super) fn base_url(text: &str) -> Result<Url, ApiError> {
    let refused = |reason| ApiError::Url {
        url: text.to_owned(),
        reason,
    };
    let mut url = Url::parse(text).map_err(|_| refused("is not a URL such as https://updates.example.com"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(refused("is not an http or https URL"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Not repeated: it holds a secret.
        return Err(ApiError::Url {
            url: format!("{}://…", url.scheme()),
            reason: "has a user or password in it: the token is given by --token-file",
        });
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refused("has a query or fragment"));
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// Whether the host is this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Reads the `Authorization` value.
pub(super) fn token(path: &Path) -> Result<HeaderValue, ApiError> {
    let fault = |reason: String| ApiError::Token {
        path: path.to_owned(),
        reason,
    };
    let text = bounded::read_secret(path, TOKEN_BYTES).map_err(|error| fault(error.to_string()))?;
    let token = text.lines().next().unwrap_or_default().trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(fault("its first line is not a token".to_owned()));
    }
    let header = zeroize::Zeroizing::new(format!("Bearer {token}"));
    let mut value = HeaderValue::from_str(&header).map_err(|_| fault("its first line is not a token".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls() {
        for (text, expected) in [
            ("https://u.example", "https://u.example/"),
            ("https://u.example/a", "https://u.example/a/"),
            ("http://[::1]:80/", "http://[::1]/"),
        ] {
            assert_eq!(base_url(text).unwrap().as_str(), expected);
        }
        for text in [
            "",
            "u.example",
            "ftp://u.example",
            "https://u.example/?a",
            "https://u.example/#a",
            "file:///x",
        ] {
            assert!(matches!(base_url(text), Err(ApiError::Url { .. })), "{text}");
        }
        let refused = base_url("https://me:secret@u.example/").unwrap_err();
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (url, expected) in [
            ("http://localhost:1", true),
            ("http://127.0.0.2", true),
            ("http://[::1]", true),
            ("http://localhost.example", false),
            ("http://10.0.0.1", false),
            ("http://0.0.0.0", false),
            ("http://[::ffff:10.0.0.1]", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn a_token_is_read_from_the_first_line_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "abc123\nrest\n").unwrap();
        let value = token(&path).unwrap();
        assert_eq!(value.as_bytes(), b"Bearer abc123");
        assert!(!format!("{value:?}").contains("abc123"));
        for bytes in [
            &b""[..],
            b"\n",
            b"two words\n",
            b"\xff\n",
            "t\u{f6}ken".as_bytes(),
            &[b'a'; 5000],
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(token(&path), Err(ApiError::Token { .. })));
        }
    }
}
