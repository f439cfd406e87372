//! The bodies of responses. Short ones are sent whole. Long ones are produced in pieces as the client reads them.

use std::convert::Infallible;

use axum::body::Body;
use futures_util::stream;
use hyper::body::Bytes;

/// Up to this size, in bytes, a response is sent whole, with its length.
const WHOLE: usize = 128 * 1024;

/// The largest piece given to the connection at once, in bytes.
const PIECE: usize = 64 * 1024;

/// The source of the pieces of a response.
pub(super) trait Pieces: Send + 'static {
    /// The next piece; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// The progress of a listing that is produced in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Begins,
    GoesOn,
    Ended,
}

/// Makes the body of a response. At most one piece is in memory, beside the first [`WHOLE`] bytes. A client that does
/// not read stops the production.
pub(super) async fn of(mut pieces: impl Pieces) -> Body {
    let mut start = Vec::new();
    while start.len() <= WHOLE {
        match pieces.next().await {
            Some(piece) => start.extend_from_slice(&piece),
            None => return start.into(),
        }
    }
    Body::from_stream(stream::unfold((Bytes::from(start), pieces), async |(mut piece, mut pieces)| {
        while piece.is_empty() {
            piece = pieces.next().await?;
        }
        let part = piece.split_to(piece.len().min(PIECE));
        Some((Ok::<_, Infallible>(part), (piece, pieces)))
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use http_body_util::BodyExt as _;
    use hyper::body::Body as _;

    use super::*;

    struct Counted {
        left: usize,
        made: Arc<AtomicUsize>,
    }

    impl Pieces for Counted {
        async fn next(&mut self) -> Option<Bytes> {
            self.left = self.left.checked_sub(1)?;
            self.made.fetch_add(1, Relaxed);
            Some(Bytes::from_static(&[b'x'; 1000]))
        }
    }

    #[tokio::test]
    async fn a_short_answer_has_a_length() {
        let answer = of(Counted { left: 100, made: Arc::default() }).await;
        assert_eq!(answer.size_hint().exact(), Some(100_000));
        assert_eq!(answer.collect().await.unwrap().to_bytes().len(), 100_000);
    }

    #[tokio::test]
    async fn a_long_answer_is_made_as_it_is_taken() {
        let made: Arc<AtomicUsize> = Arc::default();
        let mut answer = of(Counted { left: 10_000, made: made.clone() }).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(made.load(Relaxed) < 200, "{made:?} pieces for an asker who takes none");
        let mut total = 0;
        while let Some(frame) = answer.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE);
            total += piece.len();
        }
        assert_eq!(total, 10_000_000);
    }
}
