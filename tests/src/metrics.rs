//! A parser of the Prometheus text format.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// One scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Vec<Sample>);

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Parses the text of a scrape.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples: Result<Vec<_>> =
            lines.map(|line| sample(line).with_context(|| format!("bad sample: {line}"))).collect();
        Ok(Self(samples?))
    }

    /// The sum of all samples of `name` with at least these `labels`, in whole units. 0 without any.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "counts of what a test does are far below 2^52")]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> i64 {
        let sum: f64 = self
            .0
            .iter()
            .filter(|sample| sample.name == name)
            .filter(|sample| {
                labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|own| own == value))
            })
            .map(|sample| sample.value)
            .sum();
        sum.round() as i64
    }

    /// Like [`Metrics::sum`], or `None` without any such sample.
    #[must_use]
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<i64> {
        let carries = |sample: &&Sample| {
            let has = |(key, value): &(&str, &str)| sample.labels.get(*key).is_some_and(|own| own == value);
            sample.name == name && labels.iter().all(has)
        };
        self.0.iter().any(|sample| carries(&sample)).then(|| self.sum(name, labels))
    }

    /// The samples of `name` that are not 0, for people.
    pub fn describe(&self, name: &str) -> impl Iterator<Item = String> {
        let samples = self.0.iter().filter(move |sample| sample.name == name && sample.value != 0.0);
        samples.map(|Sample { name, labels, value }| {
            let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{name} {}: {value}", labels.join(" "))
        })
    }

    /// Whether there is any sample of `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|sample| sample.name == name)
    }
}

/// `name{key="value",...} number`. Values with a quote or comma inside are not supported.
fn sample(line: &str) -> Result<Sample> {
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let (name, labels) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').context("no closing brace")?),
        None => (series, ""),
    };
    let labels = labels
        .split("\",")
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once("=\"").context("not a label")?;
            Ok((key.to_owned(), value.trim_end_matches('"').to_owned()))
        })
        .collect::<Result<_>>()?;
    Ok(Sample { name: name.to_owned(), labels, value: value.parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_what_carries_the_labels() {
        let text = "# HELP x y\nx_total{a=\"1\",b=\"2, 3\"} 4\nx_total{a=\"2\"} 8\ny 7\n# EOF\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("x_total", &[]), 12);
        assert_eq!(metrics.sum("x_total", &[("b", "2, 3")]), 4);
        assert_eq!(metrics.sum("y", &[]), 7);
        assert!(!metrics.has("z"));
    }
}
