//! The report's description of the machine.

use std::{collections::BTreeMap, fs};

use crate::record::Machine;

/// Host settings that no namespace has of its own and that affect the figures.
const HOST_SYSCTLS: [&str; 4] =
    ["net.core.netdev_max_backlog", "net.core.rmem_max", "net.core.wmem_max", "net.ipv4.tcp_mem"];

/// Reads the description. Unreadable parts stay empty, since no measurement needs them.
pub(crate) fn describe(
    namespace_settings: Vec<(String, String)>,
    tools: BTreeMap<String, String>,
) -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = read("/proc/cpuinfo");
    let meminfo = read("/proc/meminfo");
    let uname = rustix::system::uname();
    let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let mut sysctls: BTreeMap<String, String> = namespace_settings.into_iter().collect();
    for key in HOST_SYSCTLS {
        sysctls.insert(key.to_owned(), read(&format!("/proc/sys/{}", key.replace('.', "/"))));
    }
    Machine {
        kernel: [uname.sysname(), uname.release(), uname.version(), uname.machine()].map(word).join(" "),
        processor: after(&cpuinfo, "model name").unwrap_or_default(),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory: after(&meminfo, "MemTotal")
            .and_then(|text| text.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()))
            .map_or(0, |kib| kib * 1024),
        clock_source: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        load_average: read("/proc/loadavg")
            .split(' ')
            .next()
            .and_then(|load| load.parse().ok())
            .unwrap_or(0.0),
        sysctls,
        tools,
    }
}

/// The text after `key` and a colon.
fn after(text: &str, key: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_the_whole_key() {
        let text = "MemTotal:       24 kB\nMemFree: 3 kB\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(after(text, "model name").as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(after(text, "MemTotal").as_deref(), Some("24 kB"));
        assert_eq!(after(text, "Mem"), None);
    }
}
