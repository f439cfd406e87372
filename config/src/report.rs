//! Findings as data: all errors, warnings and notes about the loaded documents.

use std::fmt;

use crate::model::route::Origin;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The consequence.
    pub severity: Severity,
    /// The position. `None` for all files together, or the command line.
    pub origin: Option<Origin>,
    /// The object.
    pub object: Option<ObjectRef>,
    /// The field, such as `spec.servers[0].tls.mode`. Empty for the whole object or document.
    pub field: String,
    /// The finding.
    pub message: String,
    /// The expected value.
    pub expected: Option<String>,
    /// The remedy.
    pub remedy: Option<String>,
}

/// A Kubernetes object by its identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// The API group, such as `networking.istio.io`. Empty for the core group.
    pub group: String,
    /// The kind, such as `Gateway`.
    pub kind: String,
    /// `metadata.namespace`. The default is `default`.
    pub namespace: String,
    /// `metadata.name`. Empty if it is invalid.
    pub name: String,
}

/// `Kind namespace/name`, or the kind alone.
impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name, .. } = self;
        if name.is_empty() { f.write_str(kind) } else { write!(f, "{kind} {namespace}/{name}") }
    }
}

/// The consequence of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// No model is loaded.
    Error,
    /// This part of a foreign object is not served. The rest is served.
    Rejected,
    /// Served, but perhaps not as intended.
    Warning,
    /// Without a meaning here.
    Ignored,
    /// For information.
    Note,
}

impl Severity {
    /// All severities, from the worst on.
    pub const ALL: [Self; 5] = [Self::Error, Self::Rejected, Self::Warning, Self::Ignored, Self::Note];

    /// The text after the position.
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

/// `file:line:column: severity: object: field: message`, then the expected value and the remedy on lines of their
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
