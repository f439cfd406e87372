//! The limit of log lines about names per minute.

pub(crate) use crate::log::Budget;
