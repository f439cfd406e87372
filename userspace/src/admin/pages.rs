//! Long responses, produced page by page.

use std::sync::Arc;

use hyper::body::Bytes;

use super::{
    Admin,
    body::{Pieces, State},
};
use crate::{
    account::{
        registry::RegistryRequest,
        view::{ConnectionView, Filter},
    },
    metrics::Metrics,
};

/// The number of connections that one request to the workers returns.
const PAGE: usize = 256;

/// The metrics, family by family.
pub(super) struct Families {
    metrics: Arc<Metrics>,
    next: usize,
}

impl Families {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, next: 0 }
    }
}

impl Pieces for Families {
    async fn next(&mut self) -> Option<Bytes> {
        let family = self.metrics.encode_family(self.next)?;
        self.next += 1;
        Some(family.into())
    }
}

/// Open connections, page by page, as the text of a [`Listing`](crate::account::view::Listing).
pub(super) struct Listed {
    admin: Arc<Admin>,
    filter: Filter,
    /// Number of connections that may still be listed.
    left: usize,
    /// The next connections, and one more if there are further ones.
    page: Vec<ConnectionView>,
    state: State,
}

impl Listed {
    /// Connections that match the filter, at most `left`, after the one with the number `after`.
    pub(super) async fn begin(admin: Arc<Admin>, filter: Filter, left: usize, after: Option<u64>) -> Self {
        let mut listing = Self { admin, filter, left, page: Vec::new(), state: State::Begins };
        listing.turn_to(after).await;
        listing
    }

    /// Whether no connection matches.
    pub(super) fn is_empty(&self) -> bool {
        self.page.is_empty()
    }

    /// Requests the connections after the one with this number.
    async fn turn_to(&mut self, after: Option<u64>) {
        let most = self.left.min(PAGE) + 1;
        let filter = &self.filter;
        let asked = |reply| RegistryRequest::List { filter: filter.clone(), after, most, reply };
        self.page = self.admin.ask(asked).await.into_iter().flatten().collect();
        self.page.sort_by_key(|one| one.id);
        self.page.truncate(most);
    }
}

impl Pieces for Listed {
    async fn next(&mut self) -> Option<Bytes> {
        let mut text = match self.state {
            State::Begins => br#"{"connections":["#.to_vec(),
            State::GoesOn => vec![b','],
            State::Ended => return None,
        };
        let told = self.page.len().min(self.left.min(PAGE));
        let more = self.page.len() > told;
        self.left -= told;
        for (index, one) in self.page[..told].iter().enumerate() {
            if index > 0 {
                text.push(b',');
            }
            if let Err(error) = serde_json::to_writer(&mut text, one) {
                tracing::error!(%error, "admin: a connection cannot be told");
                return None;
            }
        }
        self.state = State::GoesOn;
        if more && self.left > 0 {
            let last = self.page[..told].last().map(|one| one.id);
            self.turn_to(last).await;
            // All of them may have ended meanwhile.
            if !self.page.is_empty() {
                return Some(text.into());
            }
        }
        self.state = State::Ended;
        text.extend_from_slice(if more && self.left == 0 {
            b"],\"more\":true}\n"
        } else {
            b"],\"more\":false}\n"
        });
        Some(text.into())
    }
}
