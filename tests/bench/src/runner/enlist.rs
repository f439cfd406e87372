//! The selection of contestants.

use std::path::Path;

use anyhow::bail;

use super::Entry;
use crate::{
    cli,
    contestants::{self, Contestant, Role, Search},
    install,
    record::Entrant,
};

/// The selected contestants, with their programs and versions.
pub(super) fn enlist(options: &cli::Run, search: &Search) -> anyhow::Result<Vec<Entry>> {
    let mut chosen = contestants::all();
    if !options.contestants.is_empty() {
        for wanted in &options.contestants {
            if !chosen.iter().any(|contestant| contestant.id().starts_with(wanted.as_str())) {
                let ids: Vec<&str> = chosen.iter().map(|contestant| contestant.id()).collect();
                bail!("no contestant is called {wanted}: there are {}", ids.join(", "));
            }
        }
        chosen.retain(|contestant| {
            options.contestants.iter().any(|wanted| contestant.id().starts_with(wanted.as_str()))
        });
    }
    let is_missing = |contestant: &dyn Contestant| {
        contestant.role() != Role::Reference && contestant.find(search).is_none()
    };
    if options.install_peers {
        let missing: Vec<&dyn Contestant> =
            chosen.iter().map(AsRef::as_ref).filter(|contestant| is_missing(*contestant)).collect();
        let tools: Vec<&str> =
            install::TOOLS.into_iter().filter(|tool| search.program(tool).is_none()).collect();
        if !missing.is_empty() || !tools.is_empty() {
            install::install(&missing, &tools)?;
        }
    }
    chosen
        .into_iter()
        .map(|contestant| {
            let program = contestant.find(search);
            let missing =
                is_missing(contestant.as_ref()).then(|| format!("not found: {}", contestant.install()));
            let version = match &missing {
                Some(_) => None,
                None => Some(contestant.version(program.as_deref().unwrap_or(Path::new("")))?),
            };
            let entrant = Entrant {
                id: contestant.id().to_owned(),
                role: contestant.role(),
                version,
                note: contestant.note().to_owned(),
                missing,
            };
            Ok(Entry { contestant, program, entrant })
        })
        .collect()
}
