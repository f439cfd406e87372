//! Invariants for the prefixes of any bytes. The fuzz target `client_hello` checks them too.

use crate::{
    client_hello::{Parse, parse},
    error::HelloError,
};

/// Parses prefixes of `bytes`, of at most `most` different lengths and always the whole, and checks these invariants:
/// - The wanted length lies beyond the prefix and within the limit, and never shrinks.
/// - A hello is not complete before the wanted length.
/// - A verdict never changes.
///
/// Returns the verdict on the whole.
///
/// # Panics
/// Panics if an invariant does not hold.
pub fn check_prefixes(bytes: &[u8], limit: usize, most: usize) -> Result<Parse, HelloError> {
    let mut wanted = 0;
    let mut verdict: Option<Result<Parse, HelloError>> = None;
    for length in (0..bytes.len()).step_by(bytes.len() / most + 1).chain([bytes.len()]) {
        let result = parse(&bytes[..length], limit);
        if let Some(verdict) = &verdict {
            assert_eq!(verdict, &result, "the verdict changed at {length} bytes");
            continue;
        }
        match result {
            Ok(Parse::Incomplete { need }) => {
                assert!(need > length, "at {length} bytes {need} are wanted");
                assert!(need <= limit, "at {length} bytes {need} are wanted, the limit being {limit}");
                assert!(need >= wanted, "at {length} bytes {need} are wanted after {wanted}");
                wanted = need;
            }
            Ok(Parse::Done(_)) => {
                assert!(length >= wanted, "complete at {length} bytes although {wanted} were wanted");
                assert!(
                    length <= limit || parse(&bytes[..limit], limit) == result,
                    "complete beyond the limit"
                );
                verdict = Some(result);
            }
            Err(_) => verdict = Some(result),
        }
    }
    verdict.unwrap_or(Ok(Parse::Incomplete { need: wanted }))
}

/// Reads `bytes` like a caller that waits for the wanted length each time. Returns the verdict and the number of
/// calls. The verdict is `None` if the bytes ended first.
///
/// # Panics
/// Panics if the wanted length does not grow.
#[must_use]
pub fn follow(bytes: &[u8], limit: usize) -> (Option<Result<Parse, HelloError>>, usize) {
    let mut length = 0;
    for calls in 1.. {
        match parse(&bytes[..length], limit) {
            Ok(Parse::Incomplete { need }) if need > bytes.len() => return (None, calls),
            Ok(Parse::Incomplete { need }) => length = need,
            verdict => return (Some(verdict), calls),
        }
    }
    unreachable!("the wanted length grows with each call")
}
