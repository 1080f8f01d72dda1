//! Processor time that processes use, as the kernel accounts it.

use std::fs;

use anyhow::{Context, Result};

use crate::table::Figure;

/// `/proc` counts in ticks of this many a second (proc_pid_stat(5): USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// The time that a server and its clients, this process, have used so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    server: u32,
    server_ticks: u64,
    client_ticks: u64,
}

impl Cpu {
    pub(crate) fn now(server: u32) -> Result<Self> {
        Ok(Self { server, server_ticks: ticks(server)?, client_ticks: ticks(std::process::id())? })
    }

    /// What each of `count` operations has cost both sides since then.
    pub(crate) fn each(self, count: usize) -> Result<Vec<Figure>> {
        let now = Self::now(self.server)?;
        #[expect(clippy::cast_precision_loss, reason = "ticks and counts of a benchmark are far below 2^52")]
        let each = |ticks: u64| ticks as f64 / TICKS_PER_SECOND * 1e6 / count.max(1) as f64;
        let figure = |name, ticks| Figure { name, number: each(ticks), unit: "µs" };
        Ok(vec![
            figure("CPU of the primary", now.server_ticks - self.server_ticks),
            figure("of the clients", now.client_ticks - self.client_ticks),
        ])
    }
}

/// User and system time of all threads of a process.
fn ticks(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse(&text).with_context(|| format!("{path} is not as in proc_pid_stat(5)"))
}

fn parse(stat: &str) -> Option<u64> {
    // The name in parentheses may hold anything; field 3 follows it, utime and stime are 14 and 15.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_added() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 0 0 0 17 5 0 0 20 0 4 0 1 1 1";
        assert_eq!(parse(stat), Some(22));
        assert_eq!(parse("42 (a) S 1"), None);
    }
}
