//! The recorded files.

use std::collections::HashSet;

use serde_json::Value;

/// A few objects, the connections to probe, and Istio's results.
pub(crate) struct Set {
    pub(crate) seed: u64,
    /// The namespace of the gateway's workload.
    pub(crate) namespace: String,
    /// The labels of the gateway's workload.
    pub(crate) labels: Vec<(String, String)>,
    /// All objects as YAML documents.
    pub(crate) text: String,
    pub(crate) objects: Vec<Value>,
    /// Objects that Istio's validation refuses, as `Kind namespace/name`.
    pub(crate) refused: HashSet<String>,
    pub(crate) asks: Vec<Ask>,
}

pub(crate) struct Ask {
    /// `None` is a hello without a name.
    pub(crate) name: Option<String>,
    pub(crate) port: u16,
    pub(crate) answer: Answer,
}

/// The destination of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// No destination.
    Closed,
    /// Envoy rejects the whole listener.
    Rejected,
    /// Endpoints by weight. `None` is closed.
    Parts(Vec<(u32, Option<Vec<String>>)>),
}

impl Answer {
    /// A normal form, independent of the order.
    pub(crate) fn settled(self) -> Self {
        let Self::Parts(mut parts) = self else { return self };
        let only = parts.len() == 1;
        for (weight, endpoints) in &mut parts {
            if only {
                *weight = 1;
            }
            match endpoints {
                Some(all) if all.is_empty() => *endpoints = None,
                Some(all) => {
                    all.sort();
                    all.dedup();
                }
                None => {}
            }
        }
        parts.sort();
        if parts.iter().all(|(_, endpoints)| endpoints.is_none()) { Self::Closed } else { Self::Parts(parts) }
    }

    fn read(text: &str) -> Self {
        match text {
            "none" | "terminated" | "http" => return Self::Closed,
            "rejected by Envoy" => return Self::Rejected,
            _ => {}
        }
        let parts = text.split("; ").map(|part| {
            let mut words = part.split(' ');
            let weight = words.next().unwrap().parse().unwrap();
            let endpoints = words.nth(1).filter(|rest| !rest.is_empty() && *rest != "missing");
            // A missing weight is 1.
            let all = endpoints.map(|all| all.split(',').map(|one| one.replace("*0", "*1")).collect());
            (weight, all)
        });
        Self::Parts(parts.collect()).settled()
    }
}

impl Set {
    pub(crate) fn read(text: &str) -> Vec<Self> {
        let mut sets: Vec<Self> = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("set ") {
                let words: Vec<_> = rest.split(' ').collect();
                let labels = words[2].split(',').filter_map(|label| label.split_once('='));
                sets.push(Self {
                    seed: words[0].parse().unwrap(),
                    namespace: words[1].into(),
                    labels: labels.map(|(key, value)| (key.into(), value.into())).collect(),
                    text: String::new(),
                    objects: Vec::new(),
                    refused: HashSet::new(),
                    asks: Vec::new(),
                });
                continue;
            }
            let set = sets.last_mut().unwrap();
            if let Some(object) = line.strip_prefix("refused ") {
                set.refused.insert(object.into());
            } else if let Some(ask) = line.strip_prefix("ask ") {
                let (question, answer) = ask.split_once(" -> ").unwrap();
                let (name, port) = question.split_once(' ').unwrap();
                let name = (name != "-").then(|| name.to_owned());
                set.asks.push(Ask { name, port: port.parse().unwrap(), answer: Answer::read(answer) });
            } else {
                set.objects.push(serde_json::from_str(line).unwrap());
                set.text.push_str("---\n");
                set.text.push_str(line);
                set.text.push('\n');
            }
        }
        sets
    }

    /// Whether an endpoint is a name that no object defines.
    pub(crate) fn defines_not(&self, endpoint: &str) -> bool {
        let host = endpoint.split(':').next().unwrap();
        let defined = self.objects.iter().any(|object| {
            object["kind"] == "ServiceEntry"
                && object["spec"]["hosts"].as_array().unwrap().iter().any(|own| own == host)
        });
        host.parse::<std::net::IpAddr>().is_err() && !defined
    }
}
