//! The messages between the two processes: one line each, with descriptors beside it.
//!
//! A line is JSON. Two messages have the same text in every version, so that processes of different versions understand
//! them: `hello VERSION` and `refused REASON`.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use snisplice_config::admin::AdminAddress;
use thiserror::Error;

/// Changes whenever a message changes its meaning. Before 3, messages were words separated by blanks.
pub const VERSION: u32 = 4;

/// Slots in one message.
pub const PLACES: usize = 1_000;

/// Addresses in one message.
pub const ADDRESSES: usize = 200;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// The new process's first message.
    #[serde(skip)]
    Hello {
        /// The sender's [`VERSION`].
        version: u32,
    },
    /// The old process refuses, and continues to serve.
    #[serde(skip)]
    Refused(String),
    /// A listening socket.
    Listener {
        /// The address in the configuration.
        address: SocketAddr,
        /// The listener's name.
        name: String,
    },
    /// A socket of the admin endpoint.
    Admin {
        /// The address in the configuration.
        #[serde(serialize_with = "as_text", deserialize_with = "of_text")]
        address: AdminAddress,
    },
    /// The lock of the pins.
    Pins {
        /// The name of the directory.
        directory: String,
        /// Slots for flows in the maps.
        places: u32,
    },
    /// A seed of session tickets' keys. Sent only if the process terminates TLS.
    TicketSeed(TicketSeed),
    /// The socket on which the old process waits for new ones.
    ListeningSocket,
    /// The end of a list.
    End,
    /// The new process has loaded and bound everything.
    Prepare {
        /// Whether both processes share the maps.
        shared: bool,
    },
    /// Slots in use.
    Used(Vec<u32>),
    /// Addresses of listeners that the new process does not serve.
    Unwanted(Vec<SocketAddr>),
    /// Nothing of the new process can fail any more. It serves once it receives [`Message::Draining`].
    Serving {
        /// Whether the new process accepts flows.
        shared: bool,
    },
    /// The old process releases everything, and drains. Before this message, everything is its own.
    Draining,
    /// A flow in the kernel, with the sockets that hold its ports.
    Flow {
        /// The slot of the flow in the maps.
        place: u32,
        /// Accounted bytes of the kernel's state, up and down.
        counted: [u64; 2],
        /// Seconds since it was accepted.
        age: u32,
        /// For the client's and the backend's socket, if present: whether the peer is known to answer probes.
        answers: [Option<bool>; 2],
    },
}

/// The seed of session tickets' keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketSeed {
    /// Time of creation, in seconds since 1970.
    pub made: i64,
    /// Random bytes.
    pub bytes: SeedBytes,
}

/// Bytes that appear in no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedBytes(pub [u8; 32]);

impl fmt::Debug for SeedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("32 bytes")
    }
}

/// The error for a line that is no message of this version.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("not understood: {0:?}")]
pub struct Strange(pub String);

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello { version } => write!(f, "hello {version}"),
            Self::Refused(why) => write!(f, "refused {why}"),
            other => f.write_str(&serde_json::to_string(other).map_err(|_| fmt::Error)?),
        }
    }
}

impl FromStr for Message {
    type Err = Strange;

    fn from_str(text: &str) -> Result<Self, Strange> {
        let strange = || Strange(text.chars().take(80).collect());
        match text.split_once(' ') {
            Some(("hello", version)) => Ok(Self::Hello { version: version.parse().map_err(|_| strange())? }),
            Some(("refused", why)) => Ok(Self::Refused(why.to_owned())),
            _ => serde_json::from_str(text).map_err(|_| strange()),
        }
    }
}

fn as_text<S: Serializer>(value: &impl ToString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.to_string())
}

fn of_text<'de, T: FromStr<Err: fmt::Display>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(de::Error::custom)
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
            Message::TicketSeed(TicketSeed { made: 5, bytes: SeedBytes([7; 32]) }),
            Message::ListeningSocket,
            Message::End,
            Message::Prepare { shared: true },
            Message::Used(vec![]),
            Message::Used(vec![0, 7, u32::MAX]),
            Message::Unwanted(vec![address, "10.0.0.1:443".parse().unwrap()]),
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
        for text in [
            "",
            "hello",
            "hello you",
            "{}",
            "hello -1",
            "prepare true",
            r#"{"prepare":{}}"#,
            r#"{"prepare":{"shared":true,"more":1}}"#,
            r#"{"prepare":{"shared":true}}{"prepare":{"shared":true}}"#,
            r#"{"listener":{"address":"443","name":"x"}}"#,
            r#"{"admin":{"address":"nowhere"}}"#,
            r#"{"used":[1,"x"]}"#,
            r#"{"used":[4294967296]}"#,
            r#"{"flow":{"place":1,"counted":[2,3],"age":4,"answers":["maybe",null]}}"#,
            r#""farewell""#,
            &"[".repeat(10_000),
        ] {
            assert!(text.parse::<Message>().is_err(), "{text:?}");
        }
    }

    /// Every version must understand these messages.
    #[test]
    fn what_crosses_versions_never_changes() {
        assert_eq!(Message::Hello { version: 4 }.to_string(), "hello 4");
        assert_eq!(Message::Refused("stop it".into()).to_string(), "refused stop it");
        assert_eq!(Message::Prepare { shared: true }.to_string(), r#"{"prepare":{"shared":true}}"#);
        assert_eq!(Message::ListeningSocket.to_string(), r#""listening_socket""#);
    }

    #[test]
    fn full_messages_are_small_enough() {
        let address = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().unwrap();
        for message in [Message::Used(vec![u32::MAX; PLACES]), Message::Unwanted(vec![address; ADDRESSES])] {
            assert!(message.to_string().len() < super::super::channel::LONGEST);
        }
    }
}
