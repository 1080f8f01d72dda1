//! runtime/oci: the OCI runtime command line over `container`.
//!
//! ```text
//! create   config.json ─compile─▶ Plan ─launch─▶ the container's process, waiting at its gate (a socket)
//! start    connects to the gate ─────────────▶ startContainer hooks, execve
//! delete   kills, removes cgroup and state folder ─▶ poststop hooks
//! ```
//!
//! No process of this program stays behind: what it knows about a container is in `<root>/<id>/state.json`, which is
//! written before anything is made and names everything that will be, so that `delete --force` can clean up after a
//! command that was killed at any point.
//!
//! | file | owns |
//! |---|---|
//! | `args` | flags and arguments, as engines pass them to runc |
//! | `log` | `--log`, `--log-format`, what stderr says |
//! | `bundle` | reading and checking `config.json` |
//! | `state` | the state folder, and what state a container is in |
//! | `cgroup` | a container's cgroup: path, device rules, limits |
//! | `create`, `exec`, `run` | launching processes |
//! | `start`, `signal`, `delete` | the rest of a container's life |
//! | `console` | terminals, here or by `--console-socket` |
//! | `shield` | keeping the program's file out of containers' reach |
//! | `witness` | who hears of each step |
//! | `watch`, `update`, `features`, `template` | `events`, `update`, `features`, `spec` |

pub mod args;
mod bundle;
mod cgroup;
pub mod command;
mod console;
mod create;
mod delete;
mod error;
mod exec;
mod features;
pub mod log;
mod notify;
mod run;
pub mod shield;
mod signal;
mod start;
mod state;
mod template;
mod update;
mod watch;
pub mod witness;

pub use bundle::Bundle;
pub use console::Inherited;
pub use create::{Extras, Request};
pub use delete::remove_container;
pub use error::{Error, Result};
pub use run::run;

/// The version of the specification that is implemented.
pub const SPEC_VERSION: &str = "1.2.0";
