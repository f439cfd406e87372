//! Findings as data: everything there is to say about what was loaded.

use std::fmt;

use crate::model::route::Origin;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What follows from it.
    pub severity: Severity,
    /// Where; `None` for the whole of the files or the command line.
    pub origin: Option<Origin>,
    /// Which object.
    pub object: Option<ObjectRef>,
    /// Which field, as `spec.servers[0].tls.mode`; empty for the whole object or document.
    pub field: String,
    /// What was found.
    pub message: String,
    /// What should be there.
    pub expected: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// A Kubernetes object by its identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Of its API, as `networking.istio.io`; empty for the core one.
    pub group: String,
    /// As `Gateway`.
    pub kind: String,
    /// `metadata.namespace`; `default` where none is written.
    pub namespace: String,
    /// `metadata.name`; empty if it cannot be read.
    pub name: String,
}

/// `Kind namespace/name`, or the kind alone.
impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name, .. } = self;
        if name.is_empty() { f.write_str(kind) } else { write!(f, "{kind} {namespace}/{name}") }
    }
}

/// What follows from a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Nothing is loaded.
    Error,
    /// This part of a foreign object is not served; the rest is.
    Rejected,
    /// Served, but perhaps not as meant.
    Warning,
    /// Has no meaning here.
    Ignored,
    /// Good to know.
    Note,
}

impl Severity {
    /// From the worst on.
    pub const ALL: [Self; 5] = [Self::Error, Self::Rejected, Self::Warning, Self::Ignored, Self::Note];

    /// As printed after the position.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Rejected => "rejected",
            Self::Warning => "warning",
            Self::Ignored => "ignored",
            Self::Note => "note",
        }
    }
}

/// `file:line:column: severity: object: field: message`, then what was expected and what to do on lines of their
/// own.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        write!(f, "{}: ", self.severity.as_str())?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        if let Some(expected) = &self.expected {
            write!(f, "\n    expected: {expected}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n    remedy: {remedy}")?;
        }
        Ok(())
    }
}
