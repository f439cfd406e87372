//! Durations and sizes with units.

use std::{fmt, str::FromStr, time::Duration};

/// `10s`, `500ms`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// `16KiB`, `64k`, `1MiB`, or plain bytes. `k`, `m` and `g` are powers of 1024, as in nginx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnitError {
    #[error("a number is missing")]
    Number,
    #[error("a unit is missing")]
    NoUnit,
    #[error("the unit is unknown")]
    Unit,
    #[error("kB, MB and GB mean different things to different people")]
    Ambiguous,
    #[error("the number is too large")]
    TooLarge,
}

/// As it could be written: whole seconds, or milliseconds.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        if milliseconds.is_multiple_of(1_000) {
            write!(f, "{}s", milliseconds / 1_000)
        } else {
            write!(f, "{milliseconds}ms")
        }
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let mut total = Duration::ZERO;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(UnitError::Number);
        }
        while !rest.is_empty() {
            let (number, after) = number(rest)?;
            let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let milliseconds = match &after[..unit_end] {
                "ms" => 1,
                "s" => 1_000,
                "m" | "min" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                "" => return Err(UnitError::NoUnit),
                _ => return Err(UnitError::Unit),
            };
            let part = number.checked_mul(milliseconds).ok_or(UnitError::TooLarge)?;
            total = total.checked_add(Duration::from_millis(part)).ok_or(UnitError::TooLarge)?;
            rest = &after[unit_end..];
        }
        Ok(Self(total))
    }
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = number(text.trim())?;
        let factor = match unit.trim_start() {
            "" | "B" => 1,
            "k" | "K" | "Ki" | "KiB" | "kiB" => 1 << 10,
            "m" | "M" | "Mi" | "MiB" => 1 << 20,
            "g" | "G" | "Gi" | "GiB" => 1 << 30,
            "kB" | "KB" | "MB" | "GB" => return Err(UnitError::Ambiguous),
            _ => return Err(UnitError::Unit),
        };
        number.checked_mul(factor).map(Self).ok_or(UnitError::TooLarge)
    }
}

fn number(text: &str) -> Result<(u64, &str), UnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 {
        return Err(UnitError::Number);
    }
    Ok((text[..end].parse().map_err(|_| UnitError::TooLarge)?, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        for (text, milliseconds) in
            [("10s", 10_000), ("500ms", 500), ("1h", 3_600_000), ("1h30m", 5_400_000), ("0s", 0)]
        {
            let span = Span(Duration::from_millis(milliseconds));
            assert_eq!(text.parse(), Ok(span), "{text}");
            assert_eq!(span.to_string().parse(), Ok(span), "{text}");
        }
        for (text, error) in [
            ("", UnitError::Number),
            ("10", UnitError::NoUnit),
            ("s", UnitError::Number),
            ("-1s", UnitError::Number),
            ("1.5s", UnitError::Unit),
            ("1y", UnitError::Unit),
            ("1s5", UnitError::NoUnit),
            ("99999999999999999999s", UnitError::TooLarge),
            ("18446744073709551615h", UnitError::TooLarge),
        ] {
            assert_eq!(text.parse::<Span>(), Err(error), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("16KiB", 16 << 10), ("64k", 64 << 10), ("1 MiB", 1 << 20), ("512", 512), ("2g", 2 << 30)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "KiB", "16KB", "16q", "-1", "1.5k", "18446744073709551615k"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
