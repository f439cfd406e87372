//! The bodies of answers: short ones whole, long ones in pieces that are made as the asker takes them.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::mpsc;

/// Up to so many bytes an answer is sent whole, with its length.
const WHOLE: usize = 128 * 1024;

/// So many bytes at most are handed to the connection at once.
const PIECE: usize = 64 * 1024;

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// All of it, until it is taken.
    Whole(Bytes),
    /// What comes by and by. Its length is not known.
    Pieces(mpsc::Receiver<Bytes>),
}

/// Where the pieces of an answer come from.
pub(super) trait Pieces: Send + 'static {
    /// The next one; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

impl Answer {
    /// Makes an answer of pieces. No more than two of them are in memory at once, beside the first [`WHOLE`] bytes.
    pub(super) async fn of(mut pieces: impl Pieces) -> Self {
        let mut start = Vec::new();
        while start.len() <= WHOLE {
            match pieces.next().await {
                Some(piece) => start.extend_from_slice(&piece),
                None => return Self::Whole(start.into()),
            }
        }
        // As many as one wait here: an asker that does not read stops the making.
        let (pieces_to, received) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut piece = Bytes::from(start);
            loop {
                while !piece.is_empty() {
                    let part = piece.split_to(piece.len().min(PIECE));
                    if pieces_to.send(part).await.is_err() {
                        return;
                    }
                }
                match pieces.next().await {
                    Some(next) => piece = next,
                    None => return,
                }
            }
        });
        Self::Pieces(received)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.get_mut() {
            Self::Whole(bytes) => (!bytes.is_empty()).then(|| std::mem::take(bytes)),
            Self::Pieces(pieces) => ready!(pieces.poll_recv(context)),
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use http_body_util::BodyExt as _;

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
        let answer = Answer::of(Counted { left: 100, made: Arc::default() }).await;
        assert_eq!(answer.size_hint().exact(), Some(100_000));
        assert_eq!(answer.collect().await.unwrap().to_bytes().len(), 100_000);
    }

    #[tokio::test]
    async fn a_long_answer_is_made_as_it_is_taken() {
        let made: Arc<AtomicUsize> = Arc::default();
        let mut answer = Answer::of(Counted { left: 10_000, made: made.clone() }).await;
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
