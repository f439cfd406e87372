//! The number of lines that the log has about names in a minute.

pub(crate) use crate::log::Budget;
