//! Durations and sizes with units.

use std::{fmt, str::FromStr, time::Duration};

use bytesize::ByteSize;
use humantime::DurationError;

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
    #[error("M is a month to some and a minute to others: write m for minutes")]
    Month,
    #[error("the number is too large")]
    TooLarge,
}

/// The value as written in a configuration.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, milliseconds) in
            [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)]
        {
            let (number, left) = (rest / milliseconds, rest % milliseconds);
            if number > 0 {
                write!(f, "{number}{unit}")?;
            }
            rest = left;
        }
        Ok(())
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        // The text is ambiguous.
        if text.split(|c: char| !c.is_alphabetic()).any(|unit| unit == "M") {
            return Err(UnitError::Month);
        }
        // Elsewhere zero needs no unit. Here every number needs one.
        if text.trim() == "0" {
            return Err(UnitError::NoUnit);
        }
        humantime::parse_duration(text.trim()).map(Self).map_err(|error| match error {
            DurationError::Empty | DurationError::NumberExpected(_) | DurationError::InvalidCharacter(0) => {
                UnitError::Number
            }
            DurationError::UnknownUnit { unit, .. } if unit.is_empty() => UnitError::NoUnit,
            DurationError::UnknownUnit { .. } | DurationError::InvalidCharacter(_) => UnitError::Unit,
            DurationError::NumberOverflow => UnitError::TooLarge,
        })
    }
}

/// The value as written in a configuration.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let whole = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match units.into_iter().find(|(shift, _)| whole(*shift)) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let number: u64 = match number {
            "" => return Err(UnitError::Number),
            digits => digits.parse().map_err(|_| UnitError::TooLarge)?,
        };
        let unit = match unit.trim_start() {
            "" | "B" => return Ok(Self(number)),
            "k" | "K" | "kiB" => "KiB",
            "m" | "M" => "MiB",
            "g" | "G" => "GiB",
            "kB" | "KB" | "MB" | "GB" | "TB" => return Err(UnitError::Ambiguous),
            // A fraction is not allowed: `1.5KiB` would be read as another number.
            other if other.bytes().all(|byte| byte.is_ascii_alphabetic()) => other,
            _ => return Err(UnitError::Unit),
        };
        let ByteSize(one) = format!("1{unit}").parse().map_err(|_| UnitError::Unit)?;
        number.checked_mul(one).map(Self).ok_or(UnitError::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        for (text, milliseconds) in [
            ("10s", 10_000),
            ("500ms", 500),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
            ("2d", 172_800_000),
        ] {
            let span = Span(Duration::from_millis(milliseconds));
            assert_eq!(text.parse(), Ok(span), "{text}");
            assert_eq!(span.to_string().parse(), Ok(span), "{text}");
        }
        for (seconds, text) in [(5_400, "1h30m"), (365 * 86_400, "365d"), (60, "1m"), (0, "0s")] {
            assert_eq!(Span(Duration::from_secs(seconds)).to_string(), text);
        }
        for (text, error) in [
            ("", UnitError::Number),
            ("0", UnitError::NoUnit),
            ("10", UnitError::NoUnit),
            ("s", UnitError::Number),
            ("-1s", UnitError::Number),
            ("1x", UnitError::Unit),
            ("5M", UnitError::Month),
            ("1h5M", UnitError::Month),
            ("1s5", UnitError::NoUnit),
            ("99999999999999999999s", UnitError::TooLarge),
            ("18446744073709551615h", UnitError::TooLarge),
        ] {
            assert_eq!(text.parse::<Span>(), Err(error), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("16KiB", 16 << 10),
            ("64k", 64 << 10),
            ("64K", 64 << 10),
            ("1 MiB", 1 << 20),
            ("3Mi", 3 << 20),
            ("512", 512),
            ("512B", 512),
            ("2g", 2 << 30),
            ("1TiB", 1 << 40),
            ("1025", 1_025),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
            assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)), "{text}");
        }
        assert_eq!(Bytes(16 << 10).to_string(), "16KiB");
        for text in [
            "",
            "KiB",
            "16q",
            "-1",
            "1.5k",
            "1.5KiB",
            "1 .5KiB",
            "18446744073709551615k",
            "99999999999999999999",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        for text in ["16kB", "16KB", "1MB", "1 GB", "1TB"] {
            assert_eq!(text.parse::<Bytes>(), Err(UnitError::Ambiguous), "{text}");
        }
    }
}
