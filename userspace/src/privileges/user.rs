//! The user of `--user`.

use std::str::FromStr;

use nix::unistd;
use rustix::process::{Gid, Uid};
use thiserror::Error;

/// The value of `--user`: `USER` or `USER:GROUP`, each a name or a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserOption {
    user: String,
    group: Option<String>,
}

/// A user and a group by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: Uid,
    /// The only group.
    pub gid: Gid,
}

/// The reason for which `--user` names no user.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UserError {
    /// Not of the form.
    #[error("expected USER or USER:GROUP, names or numbers")]
    Form,
    /// There is no such user.
    #[error("there is no user '{0}'; make one with 'useradd --system {0}', or give a number")]
    NoUser(String),
    /// There is no such group.
    #[error("there is no group '{0}'; make one with 'groupadd --system {0}', or give a number")]
    NoGroup(String),
    /// A user number without an entry has no known group.
    #[error("user {0} has no entry, so its group is not known; write {0}:GROUP")]
    GroupUnknown(String),
}

impl FromStr for UserOption {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, UserError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        if user.is_empty() || group.is_some_and(|group| group.is_empty() || group.contains(':')) {
            return Err(UserError::Form);
        }
        Ok(Self { user: user.to_owned(), group: group.map(ToOwned::to_owned) })
    }
}

impl UserOption {
    /// Looks the names up.
    pub fn look_up(&self) -> Result<User, UserError> {
        let Self { user, group } = self;
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number != u32::MAX);
        let entry = match number(user) {
            Some(uid) => unistd::User::from_uid(uid.into()),
            None => unistd::User::from_name(user),
        };
        // A database that cannot be read counts as empty.
        let entry = entry.ok().flatten();
        let uid = entry.as_ref().map(|entry| entry.uid.as_raw()).or_else(|| number(user));
        let uid = uid.ok_or_else(|| UserError::NoUser(user.clone()))?;
        let gid = match group {
            Some(group) => {
                let named = || unistd::Group::from_name(group).ok().flatten().map(|entry| entry.gid.as_raw());
                number(group).or_else(named).ok_or_else(|| UserError::NoGroup(group.clone()))?
            }
            None => entry.ok_or_else(|| UserError::GroupUnknown(user.clone()))?.gid.as_raw(),
        };
        Ok(User { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Result<(u32, u32), UserError> {
        let user = text.parse::<UserOption>()?.look_up()?;
        Ok((user.uid.as_raw(), user.gid.as_raw()))
    }

    #[test]
    fn names_and_numbers_are_found() {
        assert_eq!(found("root"), Ok((0, 0)));
        assert_eq!(found("0"), Ok((0, 0)));
        assert_eq!(found("4000000:root"), Ok((4_000_000, 0)));
        assert_eq!(found("4000000:4000001"), Ok((4_000_000, 4_000_001)));
    }

    #[test]
    fn what_means_nobody_says_why() {
        for text in ["", ":", "a:", ":b", "a:b:c"] {
            assert_eq!(found(text), Err(UserError::Form), "{text}");
        }
        assert_eq!(found("no such user"), Err(UserError::NoUser("no such user".into())));
        assert_eq!(found("root:no such group"), Err(UserError::NoGroup("no such group".into())));
        assert_eq!(found("4000000"), Err(UserError::GroupUnknown("4000000".into())));
        assert_eq!(found("4294967295"), Err(UserError::NoUser("4294967295".into())));
    }
}
