//! What a process costs in memory, as the kernel accounts it.

use std::fs;

use anyhow::{Context, Result};

/// Resident and proportional set size of a process, in KiB. Pages shared by n processes count 1/n in the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) rss_kib: u64,
    pub(crate) pss_kib: u64,
}

/// Reads `/proc/PID/smaps_rollup` (proc_pid_smaps(5)).
pub(crate) fn of(pid: i64) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    parse(&fs::read_to_string(&path).with_context(|| format!("read {path}"))?)
}

/// All live processes whose command name is `name`.
pub(crate) fn of_all_named(name: &str) -> Result<Vec<Memory>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let file_name = entry.context("read /proc")?.file_name();
        let Some(pid) = file_name.to_str().and_then(|name| name.parse::<i64>().ok()) else { continue };
        // A process may end between the listing and the reading: then it is not alive, which is the question.
        let Ok(comm) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
        if comm.trim() == name {
            found.extend(of(pid).ok());
        }
    }
    Ok(found)
}

/// What the kernel keeps for itself, in KiB, and cannot give back: beyond the processes' own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelMemory(u64);

impl KernelMemory {
    /// Reads `/proc/meminfo` (proc_meminfo(5)).
    pub(crate) fn now() -> Result<KernelMemory> {
        KernelMemory::parse(&fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?)
    }

    fn parse(meminfo: &str) -> Result<KernelMemory> {
        const FIELDS: [&str; 4] = ["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"];
        FIELDS.iter().map(|name| field(meminfo, name)).sum::<Result<u64>>().map(KernelMemory)
    }

    pub(crate) fn since(self, before: KernelMemory) -> u64 {
        self.0.saturating_sub(before.0)
    }
}

/// A line such as `Rss:   1024 kB`.
fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    let number = line.trim().trim_end_matches("kB").trim();
    number.parse::<u64>().with_context(|| format!("{name} {number:?} is a number"))
}

fn parse(rollup: &str) -> Result<Memory> {
    Ok(Memory { rss_kib: field(rollup, "Rss:")?, pss_kib: field(rollup, "Pss:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollup_is_read() {
        let text = "55d0-7ffd ---p 0 00:00 0 [rollup]\nRss:                1024 kB\nPss:                 512 kB\n\
                    Pss_Dirty:            10 kB\n";
        assert_eq!(parse(text).expect("complete"), Memory { rss_kib: 1024, pss_kib: 512 });
        assert!(parse("Rss: 1 kB\n").is_err());
    }

    #[test]
    fn the_kernels_share_is_read() {
        let text = |stack| {
            format!(
                "MemFree: 9 kB\nSUnreclaim: 10 kB\nKernelStack: {stack} kB\nPageTables: 3 kB\nPercpu: 4 kB\n"
            )
        };
        let at = |stack| KernelMemory::parse(&text(stack)).expect("complete");
        assert_eq!(at(8).since(at(2)), 6);
        assert!(KernelMemory::parse("SUnreclaim: 1 kB\n").is_err());
    }
}
