//! `--resolve`: the addresses of a name on the command line override those of the files.

use std::{collections::HashMap, net::SocketAddr};

use crate::{
    decode::Diagnostics,
    options::Resolve,
    report::{Diagnostic, Severity},
};

/// Looks names up in the `--resolve` arguments, and records which arguments were used.
#[derive(Debug)]
pub(crate) struct Overrides<'o> {
    all: &'o [Resolve],
    by_host: HashMap<(Option<&'o str>, u16), usize>,
    used: Vec<bool>,
}

impl<'o> Overrides<'o> {
    pub(crate) fn new(all: &'o [Resolve]) -> Self {
        // A later argument replaces an earlier one, as with curl.
        let by_host = all
            .iter()
            .enumerate()
            .map(|(index, one)| {
                ((one.host.as_ref().map(crate::name::HostName::without_dot), one.port), index)
            })
            .collect();
        Self { all, by_host, used: vec![false; all.len()] }
    }

    /// The addresses for a canonical name. `my-nginx.default.svc.cluster.local` also matches `my-nginx`, in any
    /// spelling of the destination.
    pub(crate) fn addresses(&mut self, name: &str, port: u16) -> Option<&'o [SocketAddr]> {
        let index = [Some(name), short_name(name), None]
            .into_iter()
            .enumerate()
            // Without a short name there is no lookup: `None` would mean `*`.
            .filter(|(place, name)| *place == 2 || name.is_some())
            .find_map(|(_, name)| self.by_host.get(&(name, port)).copied())?;
        self.used[index] = true;
        Some(&self.all[index].addresses)
    }

    pub(crate) fn report_unused(&self, diagnostics: &mut Diagnostics) {
        for (resolve, used) in self.all.iter().zip(&self.used) {
            if !used {
                Diagnostic::general(
                    Severity::Warning,
                    format!("--resolve {resolve}: matches no destination"),
                )
                .expected("the host and port of a destination or endpoint")
                .emit(diagnostics);
            }
        }
    }
}

/// `svc` of `svc.namespace.svc.cluster.local`.
pub(crate) fn short_name(name: &str) -> Option<&str> {
    let (service, namespace) = name.strip_suffix(".svc.cluster.local")?.split_once('.')?;
    (!namespace.contains('.')).then_some(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_name_before_short_name_before_star() {
        let all: Vec<Resolve> = [
            "*:443:10.0.0.1",
            "web:443:10.0.0.2",
            "web.prod.svc.cluster.local:443:10.0.0.3",
            "web:443:10.0.0.4",
            "web:8443:10.0.0.5",
        ]
        .into_iter()
        .map(|text| text.parse().unwrap())
        .collect();
        let mut overrides = Overrides::new(&all);
        for (name, address) in [
            ("web.prod.svc.cluster.local", "10.0.0.3:443"),
            ("web.test.svc.cluster.local", "10.0.0.4:443"),
            ("web.example.com", "10.0.0.1:443"),
        ] {
            assert_eq!(overrides.addresses(name, 443), Some(&[address.parse().unwrap()][..]), "{name}");
        }
        assert_eq!(overrides.addresses("other", 8443), None);
        let mut diagnostics = Diagnostics::default();
        overrides.report_unused(&mut diagnostics);
        let unused: Vec<_> = diagnostics.found.iter().map(|found| &*found.message).collect();
        assert_eq!(
            unused,
            [
                "--resolve web:443:10.0.0.2: matches no destination",
                "--resolve web:8443:10.0.0.5: matches no destination"
            ]
        );
    }
}
