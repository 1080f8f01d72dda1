//! Limits, figures and the end of processes, on v2, hybrid and v1 hosts.
//!
//! A [`Cgroup`] is a pair: its v2 directory tracks the processes (birth by `CLONE_INTO_CGROUP`, `cgroup.kill`,
//! `cgroup.freeze`, `cgroup.events`, pressure, eBPF), and the controllers that set limits are wherever the
//! host bound them. Callers never see which.
//!
//! | file | owns |
//! |---|---|
//! | `hierarchy` | what is mounted, and where each controller is |
//! | `cgroup` | making one, joining it, setting limits |
//! | `limits` | OCI resources → control files, as a pure plan |
//! | `devices` | device rules |
//! | `stats` | memory, cpu, processes, OOM kills, pressure |
//! | `end` | freeze, kill, wait, delete, leftovers |

mod cgroup;
mod devices;
mod end;
mod error;
mod file;
mod hierarchy;
mod limits;
mod stats;

pub use cgroup::{Cgroup, Join};
pub use devices::{Access, Rule, Rules, Type};
pub use end::{leftovers, remove_tree};
pub use error::{Error, Result};
pub use hierarchy::{Controller, Hierarchy, Kind, Place};
pub use limits::{Step, Write, plan};
pub use stats::{Cpu, Memory, Pids, Pressure, Resource, Stall, Stats, host_pressure};
