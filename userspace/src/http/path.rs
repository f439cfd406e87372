//! The normal form of paths. It prevents a path from matching another rule than its backend assumes.
//!
//! The form is Istio's `BASE`: RFC 3986 section 6.2.2 (dot segments, unreserved characters), and a backslash becomes
//! a slash. Slashes are not merged, and `%2F` stays as it is.

use std::borrow::Cow;

use super::refused::Refused;

/// Normalises a path that begins with a slash.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, Refused> {
    if is_normal(path) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path)?;
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = decoded.split('/').skip(1).peekable();
    while let Some(segment) = parts.next() {
        let is_last = parts.peek().is_none();
        match segment {
            "." if is_last => segments.push(""),
            "." => {}
            ".." => {
                segments.pop().ok_or(Refused::Path)?;
                if is_last {
                    segments.push("");
                }
            }
            segment => segments.push(segment),
        }
    }
    let mut normal = String::with_capacity(decoded.len());
    for segment in segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if normal.is_empty() {
        normal.push('/');
    }
    Ok(Cow::Owned(normal))
}

/// Whether the path is in its normal form already.
fn is_normal(path: &str) -> bool {
    path.starts_with('/') && !path.contains(['%', '\\']) && !path.contains("/.")
}

/// Decodes letters, digits and `-._~`, and writes all other escapes in upper case.
fn decode_unreserved(path: &str) -> Result<String, Refused> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        match letter {
            '\\' => decoded.push('/'),
            '%' => {
                let digits =
                    rest.get(..2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
                let digits = digits.ok_or(Refused::Path)?;
                rest = &rest[2..];
                match u8::from_str_radix(digits, 16) {
                    Ok(0) | Err(_) => return Err(Refused::Path),
                    Ok(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                        decoded.push(char::from(byte));
                    }
                    Ok(_) => {
                        decoded.push('%');
                        decoded.push_str(&digits.to_ascii_uppercase());
                    }
                }
            }
            letter => decoded.push(letter),
        }
    }
    if decoded.starts_with('/') { Ok(decoded) } else { Err(Refused::Path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_form() {
        let cases = [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b/", "/a//b/"),
            ("/a/./b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/%2e/b", "/a/b"),
            ("/a\\..\\b", "/b"),
            ("/%61%7e", "/a~"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%5cb", "/a%5Cb"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a/...", "/a/..."),
            ("/..a/b..", "/..a/b.."),
            ("/a/..", "/"),
            ("/a/..%2f../..", "/a/"),
        ];
        for (path, normal) in cases {
            assert_eq!(normalise(path).as_deref(), Ok(normal), "{path}");
            assert_eq!(normalise(normal).as_deref(), Ok(normal), "{path}");
        }
    }

    #[test]
    fn paths_that_mean_nothing_are_refused() {
        for path in
            ["/..", "/../a", "/a/../..", "/%2e%2e/a", "/\\..\\..", "/%00", "/%", "/%4", "/%zz", "*", ""]
        {
            assert_eq!(normalise(path), Err(Refused::Path), "{path}");
        }
    }
}
