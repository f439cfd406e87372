//! The lines of a guest's report. `tests/vm/init` writes them.

use std::time::Duration;

/// Starts a section: `##begin KIND NAME`.
pub(super) const BEGIN: &str = "##begin ";
/// Ends a section: `##end STATUS CENTISECONDS`.
pub(super) const END: &str = "##end ";
/// The section with the kernel's log.
pub(super) const LOG: &str = "log";
/// Marks a complete report.
pub(super) const DONE: &str = "##done";

/// All received lines.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    sections: Vec<Section>,
    done: bool,
}

/// One job and its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) lines: Vec<String>,
    /// `None` if the guest ended before.
    pub(super) end: Option<Ended>,
}

/// The end of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// The shell's status: 128 plus the number of the signal for a killed job.
    pub(super) status: i32,
    pub(super) took: Duration,
}

impl Transcript {
    /// Adds the next line. Returns its section.
    pub(super) fn push(&mut self, line: &str) -> Option<&Section> {
        let line = line.trim_end_matches(['\r', '\n']);
        if let Some(title) = line.strip_prefix(BEGIN) {
            let (kind, name) = title.split_once(' ').unwrap_or((title, ""));
            let (kind, name) = (kind.to_owned(), name.to_owned());
            self.sections.push(Section { kind, name, lines: Vec::new(), end: None });
            return None;
        }
        if line == DONE {
            self.done = true;
            return None;
        }
        let open = self.sections.last_mut().filter(|section| section.end.is_none())?;
        if let Some(ended) = line.strip_prefix(END).and_then(Ended::parse) {
            open.end = Some(ended);
            while open.lines.last().is_some_and(String::is_empty) {
                open.lines.pop();
            }
            return None;
        }
        open.lines.push(line.to_owned());
        Some(open)
    }

    /// Whether the report is complete.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// The sections of a kind.
    pub(super) fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Section> {
        self.sections.iter().filter(move |section| section.kind == kind)
    }

    /// The lines of one section.
    pub(super) fn lines(&self, kind: &str, name: &str) -> &[String] {
        let section = self.sections.iter().find(|section| section.kind == kind && section.name == name);
        section.map_or(&[], |section| &section.lines)
    }
}

impl Ended {
    fn parse(text: &str) -> Option<Self> {
        let (status, centiseconds) = text.split_once(' ')?;
        let centiseconds: u64 = centiseconds.parse().ok()?;
        Some(Self { status: status.parse().ok()?, took: Duration::from_millis(centiseconds * 10) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(text: &str) -> Transcript {
        let mut transcript = Transcript::default();
        for line in text.lines() {
            transcript.push(line);
        }
        transcript
    }

    #[test]
    fn sections_have_what_is_printed_between_their_ends() {
        let heard = transcript(
            "noise\n##begin system boot\nLinux\r\n\n##end 0 12\nnoise\n##begin test relay::a b\none\n\ntwo\n##end 101 \
             250\n##done\n",
        );
        assert!(heard.is_done());
        assert_eq!(heard.lines("system", "boot"), ["Linux"]);
        let tests: Vec<_> = heard.of_kind("test").collect();
        assert_eq!(tests.len(), 1);
        assert_eq!(tests[0].name, "relay::a b");
        assert_eq!(tests[0].lines, ["one", "", "two"]);
        assert_eq!(tests[0].end, Some(Ended { status: 101, took: Duration::from_millis(2500) }));
    }

    #[test]
    fn a_guest_that_goes_away_leaves_an_open_section() {
        let heard = transcript("##begin test a\n##end 0 1\n##begin test b\nhalf a li");
        assert!(!heard.is_done());
        let last = heard.of_kind("test").last().unwrap();
        assert_eq!(last.end, None);
        assert_eq!(last.lines, ["half a li"]);
    }

    #[test]
    fn what_only_resembles_an_end_is_output() {
        let heard = transcript("##begin test a\n##end of the story\n##end 0 1");
        assert_eq!(heard.lines("test", "a"), ["##end of the story"]);
    }
}
