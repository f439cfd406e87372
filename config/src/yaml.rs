//! YAML as a tree with positions, read as kubectl does: libyaml's rules, YAML 1.1's merge keys.
//!
//! The cost of a text is bounded by its length, except for aliases and merge keys. These have a budget in bytes: a
//! "billion laughs" file is an error, not an allocation.

pub(crate) use self::{
    build::parse,
    chunks::{Chunk, chunks},
};

mod build;
mod chunks;
#[cfg(test)]
mod corpus;
mod syntax;
#[cfg(test)]
mod tests;
