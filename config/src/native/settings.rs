//! Settings that belong to no object. Each may be written only once over all documents. [`crate::model::settings`]
//! declares them.

use crate::{
    decode::{Diagnostics, Fields, View},
    model::{
        Dns,
        route::Origin,
        settings::{Group, Settings, groups},
    },
    units::Span,
};

/// The settings of all documents. Missing ones keep their defaults.
#[derive(Debug, Default)]
pub(crate) struct Given {
    settings: Settings,
    /// The written settings and their locations.
    written: Vec<(String, Origin)>,
}

impl Given {
    pub(crate) fn settings(&self) -> Settings {
        self.settings.clone()
    }

    /// The location of a setting, such as `limits.connections`, if it is written.
    pub(crate) fn written(&self, setting: &str) -> Option<Origin> {
        self.written.iter().find(|(written, _)| written == setting).map(|(_, origin)| origin.clone())
    }

    pub(super) fn read(&mut self, fields: &mut Fields<'_>, diagnostics: &mut Diagnostics) {
        for group in groups() {
            match group.name {
                "" => self.read_group(group, fields, diagnostics),
                "admin" => {
                    if let Some(view) = fields.take("admin") {
                        self.read_admin(group, &view, diagnostics);
                    }
                }
                name => {
                    if let Some(view) = fields.take(name) {
                        self.read_section(group, &view, diagnostics);
                    }
                }
            }
        }
        self.read_former(fields, diagnostics);
    }

    /// Reads the keys of earlier versions.
    fn read_former(&mut self, fields: &mut Fields<'_>, diagnostics: &mut Diagnostics) {
        let group = |name| groups().iter().find(|group| group.name == name);
        let example = "offload: {after_bytes: 512KiB, after_messages: 16, packet: true}";
        if let Some(view) = fields.take_former("handover", "offload", example, diagnostics)
            && let Some(group) = group("offload")
        {
            self.read_section(group, &view, diagnostics);
        }
        if let Some(view) =
            fields.take_former("survive", "flows.persist", "flows: {persist: true}", diagnostics)
            && let Some(group) = group("flows")
            && let Some(setting) = group.settings.iter().find(|setting| setting.name == "persist")
            && self.first(group.name, setting.name, &view, diagnostics)
        {
            setting.read(&mut self.settings, &view, diagnostics);
        }
    }

    fn read_group(&mut self, group: &'static Group, fields: &mut Fields<'_>, diagnostics: &mut Diagnostics) {
        for setting in &group.settings {
            let former = match (group.name, setting.name) {
                ("offload", "after_bytes") => Some("bytes"),
                ("offload", "after_messages") => Some("messages"),
                _ => None,
            };
            let name = setting.name;
            let former = former.and_then(|former| fields.take_former(former, name, name, diagnostics));
            for view in fields.take(name).into_iter().chain(former) {
                if self.first(group.name, name, &view, diagnostics) {
                    setting.read(&mut self.settings, &view, diagnostics);
                }
            }
        }
    }

    fn read_section(&mut self, group: &'static Group, view: &View<'_>, diagnostics: &mut Diagnostics) {
        let before = diagnostics.errors();
        let Some(mut fields) = view.fields(&shape(group), diagnostics) else { return };
        self.read_group(group, &mut fields, diagnostics);
        if group.name == "timeouts" {
            fields.renamed("unacknowledged", "tcp_user_timeout", "tcp_user_timeout");
        }
        if group.name == "dns" && diagnostics.errors() == before {
            self.check_ttls(view, diagnostics);
        }
        fields.finish(diagnostics);
    }

    /// The floor of a TTL is at most its ceiling.
    fn check_ttls(&self, view: &View<'_>, diagnostics: &mut Diagnostics) {
        let Dns { min_ttl, max_ttl, .. } = self.settings.runtime.dns;
        if min_ttl > max_ttl {
            let (min_ttl, max_ttl) = (Span(min_ttl), Span(max_ttl));
            view.error(format!("min_ttl ({min_ttl}) is longer than max_ttl ({max_ttl})"))
                .remedy("write both keys, min_ttl with the shorter time")
                .emit(diagnostics);
        }
    }

    /// Unlike other sections, it is written as a whole, and a text is its address.
    fn read_admin(&mut self, group: &'static Group, view: &View<'_>, diagnostics: &mut Diagnostics) {
        if !self.first("", "admin", view, diagnostics) {
            return;
        }
        let address = group.settings.iter().find(|setting| setting.name == "address");
        if let (true, Some(address)) = (view.is_text(), address) {
            address.read(&mut self.settings, view, diagnostics);
            return;
        }
        let expected = format!("ip:port, unix:/path, or {}", shape(group));
        let Some(mut fields) = view.fields(&expected, diagnostics) else { return };
        self.read_group(group, &mut fields, diagnostics);
        if view.peek("ready").is_none() && view.peek("status").is_none() {
            fields.require(
                "address",
                "ip:port, [ipv6]:port or unix:/path, for example 127.0.0.1:9090",
                diagnostics,
            );
        }
        fields.finish(diagnostics);
    }

    /// Whether this setting was not written before, including by its former name.
    fn first(&mut self, group: &str, name: &str, view: &View<'_>, diagnostics: &mut Diagnostics) -> bool {
        let field = format!("{group}.{name}");
        if let Some((_, origin)) = self.written.iter().find(|(written, _)| *written == field) {
            view.error(format!("the setting is written already ({origin})"))
                .remedy("keep one of the two")
                .emit(diagnostics);
            return false;
        }
        self.written.push((field, view.origin()));
        true
    }
}

/// `{idle, keepalive}`.
fn shape(group: &Group) -> String {
    let names: Vec<_> = group.settings.iter().map(|setting| setting.name).collect();
    format!("{{{}}}", names.join(", "))
}
