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

fn parse(rollup: &str) -> Result<Memory> {
    let field = |name: &str| {
        let line =
            rollup.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        let number = line.trim().trim_end_matches("kB").trim();
        number.parse::<u64>().with_context(|| format!("{name} {number:?} is a number"))
    };
    Ok(Memory { rss_kib: field("Rss:")?, pss_kib: field("Pss:")? })
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
}
