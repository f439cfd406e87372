//! Settings that belong to no object: each may be written once over all documents. [`crate::model::settings`] declares them.

use crate::{
    decode::{Diagnostics, Fields, View},
    model::{
        rule::Origin,
        settings::{Group, Settings, groups},
    },
};

/// What the documents say; what they do not say keeps its default.
#[derive(Debug, Default)]
pub(crate) struct Given {
    settings: Settings,
    /// Which setting was written where.
    written: Vec<(String, Origin)>,
}

impl Given {
    pub(crate) fn settings(&self) -> Settings {
        self.settings.clone()
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
        fields.renamed("handover", "offload", "offload: {after_bytes, after_messages, packet}");
        fields.renamed("survive", "flows", "flows: {persist: true}");
    }

    fn read_group(&mut self, group: &'static Group, fields: &mut Fields<'_>, diagnostics: &mut Diagnostics) {
        for setting in &group.settings {
            if let Some(view) = fields.take(setting.name)
                && self.first(&view, diagnostics)
            {
                setting.read(&mut self.settings, &view, diagnostics);
            }
        }
    }

    fn read_section(&mut self, group: &'static Group, view: &View<'_>, diagnostics: &mut Diagnostics) {
        let Some(mut fields) = view.fields(&shape(group), diagnostics) else { return };
        self.read_group(group, &mut fields, diagnostics);
        for (section, old, new) in [
            ("offload", "bytes", "after_bytes"),
            ("offload", "messages", "after_messages"),
            ("timeouts", "unacknowledged", "tcp_user_timeout"),
        ] {
            if section == group.name {
                fields.renamed(old, new, new);
            }
        }
        fields.finish(diagnostics);
    }

    /// Unlike other sections it is written as a whole, and a text is its address. It serves something.
    fn read_admin(&mut self, group: &'static Group, view: &View<'_>, diagnostics: &mut Diagnostics) {
        if !self.first(view, diagnostics) {
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
        if view.peek("ready").is_none() {
            fields.require(
                "address",
                "ip:port, [ipv6]:port or unix:/path, for example 127.0.0.1:9090",
                diagnostics,
            );
        }
        fields.finish(diagnostics);
    }

    /// Whether no other document has written this setting.
    fn first(&mut self, view: &View<'_>, diagnostics: &mut Diagnostics) -> bool {
        let field = view.field();
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
