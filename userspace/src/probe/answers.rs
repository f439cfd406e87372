//! The results of the experiments, in a form that another process reads and a file keeps.

use serde::{Deserialize, Serialize};

use super::{
    packet::Experiments,
    report::{Outcome, Report},
    same_host, sockmap,
};

/// The experiments to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Questions {
    /// Whether the kernel can redirect between sockets.
    pub sockmap: bool,
    /// Whether the kernel supports the packet datapath.
    pub packet: bool,
    /// Whether backends on this host can take the short cut.
    pub same_host: bool,
}

/// The result of the experiments about one datapath.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the datapath can serve.
    pub passed: bool,
    /// Each experiment with its result and remedy, for people.
    pub text: String,
    /// The experiments that could not be made, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untried: Vec<String>,
}

/// The results of the experiments; `None` for those that were not made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// Whether the kernel can redirect between sockets.
    pub sockmap: Option<Answer>,
    /// Whether the kernel supports the packet datapath.
    pub packet: Option<Answer>,
    /// Whether backends on this host can take the short cut.
    pub same_host: Option<Answer>,
}

impl Questions {
    /// Whether no experiment is to be made.
    #[must_use]
    pub fn is_empty(self) -> bool {
        !self.sockmap && !self.packet && !self.same_host
    }

    /// Makes the experiments. Blocks the calling thread.
    #[must_use]
    pub fn answer(self) -> Answers {
        // The experiment about packets mostly waits for its devices, so it runs beside the others.
        let packet = self.packet.then(Experiments::begin);
        let sockmap = (self.sockmap || self.same_host).then(sockmap::run_all);
        let passed = sockmap.as_ref().is_some_and(Report::passed);
        let same_host = (self.same_host && passed).then(|| {
            let report = same_host::run();
            Answer::new(&report, report.describe_same_host())
        });
        Answers {
            sockmap: sockmap.as_ref().map(|report| Answer::new(report, report.to_string())),
            packet: packet.map(|trial| {
                let report = trial.finish();
                Answer::new(&report, report.describe_packet())
            }),
            same_host,
        }
    }
}

impl Answer {
    fn new(report: &Report, text: String) -> Self {
        let untried = report.untried().map(|probe| match &probe.outcome {
            Outcome::Untried(why) => format!("{}: {why}", probe.name),
            _ => probe.name.to_owned(),
        });
        let untried = untried.collect();
        Self { passed: report.passed(), text, untried }
    }
}

impl Answers {
    /// Whether the kernel has all required capabilities. A missing one is tried again at each start, since the machine
    /// may have been busy.
    #[must_use]
    pub fn affirm(&self, questions: Questions) -> bool {
        let Self { sockmap, packet, same_host } = self;
        (passed(sockmap.as_ref()) || !questions.sockmap)
            && (passed(packet.as_ref()) || !questions.packet)
            && (passed(same_host.as_ref()) || !questions.same_host)
    }

    /// These results, replaced by those of `later` where it has new ones.
    #[must_use]
    pub fn updated(self, later: &Self) -> Self {
        let Self { sockmap, packet, same_host } = later.clone();
        Self {
            sockmap: sockmap.or(self.sockmap),
            packet: packet.or(self.packet),
            same_host: same_host.or(self.same_host),
        }
    }

    /// The datapaths that `self` reports as usable and `later` as unusable. An experiment that was not repeated keeps
    /// its result.
    #[must_use]
    pub fn lost(&self, later: &Self) -> Vec<&'static str> {
        let pairs = [
            ("sockmap", &self.sockmap, &later.sockmap),
            ("packet", &self.packet, &later.packet),
            ("same_host", &self.same_host, &later.same_host),
        ];
        pairs
            .into_iter()
            .filter(|(_, before, after)| {
                passed(before.as_ref()) && after.is_some() && !passed(after.as_ref())
            })
            .map(|(name, ..)| name)
            .collect()
    }
}

fn passed(answer: Option<&Answer>) -> bool {
    answer.is_some_and(|answer| answer.passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(passed: bool) -> Answer {
        Answer { passed, text: String::new(), untried: Vec::new() }
    }

    #[test]
    fn only_what_passed_is_affirmed() {
        let answers = Answers { sockmap: Some(answer(true)), packet: Some(answer(false)), same_host: None };
        let nothing = Questions { sockmap: false, packet: false, same_host: false };
        assert!(answers.affirm(nothing));
        assert!(answers.affirm(Questions { sockmap: true, ..nothing }));
        assert!(!answers.affirm(Questions { packet: true, ..nothing }));
        assert!(!answers.affirm(Questions { same_host: true, ..nothing }));
    }

    #[test]
    fn what_is_lost_is_named() {
        let before = Answers { sockmap: Some(answer(true)), packet: Some(answer(true)), same_host: None };
        let after = Answers {
            sockmap: Some(answer(true)),
            packet: Some(answer(false)),
            same_host: Some(answer(false)),
        };
        assert_eq!(before.lost(&after), ["packet"]);
        assert_eq!(after.lost(&before), [""; 0]);
        assert_eq!(before.lost(&before), [""; 0]);
        // Another configuration requires less.
        assert_eq!(before.lost(&Answers::default()), [""; 0]);
    }

    #[test]
    fn answers_survive_being_written() {
        let text = "ok       x\n=> y\n".to_owned();
        let answers = Answers {
            sockmap: Some(Answer { passed: true, text, untried: vec!["packets over IPv4".into()] }),
            packet: Some(answer(false)),
            same_host: None,
        };
        let written = serde_json::to_string(&answers).unwrap();
        assert_eq!(serde_json::from_str::<Answers>(&written).unwrap(), answers);
    }
}
