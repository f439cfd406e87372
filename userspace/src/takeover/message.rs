//! What the two processes say to each other: one line of text for each message, and descriptors beside it.

use std::{
    fmt,
    net::SocketAddr,
    str::{FromStr, ParseBoolError},
};

use snisplice_config::admin::AdminAddress;
use thiserror::Error;

/// Changes whenever a message changes its meaning.
pub const VERSION: u32 = 2;

/// Places named in one message.
pub const PLACES: usize = 1_000;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The new one's first word.
    Hello {
        /// Its [`VERSION`].
        version: u32,
    },
    /// The old one refuses, and keeps serving.
    Refused(String),
    /// With a listening socket.
    Listener {
        /// As the configuration has it.
        address: SocketAddr,
        /// The listener's name.
        name: String,
    },
    /// With a socket of the admin endpoint.
    Admin {
        /// As the configuration has it.
        address: AdminAddress,
    },
    /// With the lock of what is pinned.
    Pins {
        /// The directory's name.
        directory: String,
        /// Places for flows in the maps.
        places: u32,
    },
    /// With the socket that this was asked on.
    Door,
    /// The end of a list.
    End,
    /// Everything is loaded and bound.
    Prepare {
        /// Whether the maps are to be shared.
        shared: bool,
    },
    /// Places that have a flow.
    Used(Vec<u32>),
    /// Nothing of the new one can fail any more: it serves once it hears [`Message::Draining`].
    Serving {
        /// Whether it wants flows.
        shared: bool,
    },
    /// The old one gives everything up, and drains. Until it has said so, everything is its own.
    Draining,
    /// A flow in the kernel's hands, with the sockets that hold its ports.
    Flow {
        /// Its place.
        place: u32,
        /// Bytes up and down of what the kernel's state shows that are accounted for.
        counted: [u64; 2],
        /// Seconds since it was accepted.
        age: u32,
        /// For the client's and the backend's socket, if it is there: whether the peer is known to answer it.
        answers: [Option<bool>; 2],
    },
}

/// What is not a message of this version.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("not understood: {0:?}")]
pub struct Strange(pub String);

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello { version } => write!(f, "hello {version}"),
            Self::Refused(why) => write!(f, "refused {why}"),
            Self::Listener { address, name } => write!(f, "listener {address} {name}"),
            Self::Admin { address } => write!(f, "admin {address}"),
            Self::Pins { directory, places } => write!(f, "pins {places} {directory}"),
            Self::Door => f.write_str("door"),
            Self::End => f.write_str("end"),
            Self::Prepare { shared } => write!(f, "prepare {shared}"),
            Self::Used(places) => {
                f.write_str("used")?;
                places.iter().try_for_each(|place| write!(f, " {place}"))
            }
            Self::Serving { shared } => write!(f, "serving {shared}"),
            Self::Draining => f.write_str("draining"),
            Self::Flow { place, counted: [up, down], age, answers: [client, backend] } => {
                write!(f, "flow {place} {up} {down} {age} {} {}", word(*client), word(*backend))
            }
        }
    }
}

fn word(answers: Option<bool>) -> &'static str {
    match answers {
        None => "none",
        Some(true) => "true",
        Some(false) => "false",
    }
}

impl FromStr for Message {
    type Err = Strange;

    fn from_str(text: &str) -> Result<Self, Strange> {
        parse(text).ok_or_else(|| Strange(text.chars().take(80).collect()))
    }
}

fn parse(text: &str) -> Option<Message> {
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    Some(match kind {
        "hello" => Message::Hello { version: rest.parse().ok()? },
        "refused" => Message::Refused(rest.to_owned()),
        "listener" => {
            let (address, name) = rest.split_once(' ')?;
            Message::Listener { address: address.parse().ok()?, name: name.to_owned() }
        }
        "admin" => Message::Admin { address: rest.parse().ok()? },
        "pins" => {
            let (places, directory) = rest.split_once(' ')?;
            Message::Pins { directory: directory.to_owned(), places: places.parse().ok()? }
        }
        "door" => Message::Door,
        "end" => Message::End,
        "prepare" => Message::Prepare { shared: rest.parse().ok()? },
        "used" => Message::Used(rest.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?),
        "serving" => Message::Serving { shared: rest.parse().ok()? },
        "draining" => Message::Draining,
        "flow" => {
            let words: Vec<_> = rest.split(' ').collect();
            let [place, up, down, age, client, backend] = words[..] else { return None };
            Message::Flow {
                place: place.parse().ok()?,
                counted: [up.parse().ok()?, down.parse().ok()?],
                age: age.parse().ok()?,
                answers: [answers(client).ok()?, answers(backend).ok()?],
            }
        }
        _ => return None,
    })
}

fn answers(word: &str) -> Result<Option<bool>, ParseBoolError> {
    if word == "none" { Ok(None) } else { word.parse().map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let address = "[::]:443".parse().unwrap();
        for message in [
            Message::Hello { version: VERSION },
            Message::Refused("it is stopping; wait".into()),
            Message::Listener { address, name: "a name with spaces".into() },
            Message::Admin { address: AdminAddress::Tcp(address) },
            Message::Admin { address: AdminAddress::Unix("/run/a b/admin.sock".into()) },
            Message::Pins { directory: "v1-4026531840".into(), places: 128 },
            Message::Door,
            Message::End,
            Message::Prepare { shared: true },
            Message::Used(vec![]),
            Message::Used(vec![0, 7, u32::MAX]),
            Message::Serving { shared: false },
            Message::Draining,
            Message::Flow { place: 3, counted: [u64::MAX, 0], age: 9, answers: [Some(true), None] },
            Message::Flow { place: 0, counted: [1, 2], age: u32::MAX, answers: [None, Some(false)] },
        ] {
            assert_eq!(message.to_string().parse(), Ok(message));
        }
    }

    #[test]
    fn nonsense_is_not_understood() {
        for text in
            ["", "hello", "hello you", "listener 443 x", "flow 1 2 3", "flow 1 2 3 4 maybe none", "used 1 x"]
        {
            assert!(text.parse::<Message>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_message_full_of_places_is_small_enough() {
        assert!(Message::Used(vec![u32::MAX; PLACES]).to_string().len() < super::super::channel::LONGEST);
    }
}
