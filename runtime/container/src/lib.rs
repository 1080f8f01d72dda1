//! runtime/container: what makes a process a container.
//!
//! ```text
//! oci_spec Spec ──compile──▶ Plan (data) ──supervisor socket──▶ pith-podd ──clone3──▶ execute(Plan)
//! ```
//!
//! [`plan`] is the vocabulary: ordered kernel steps. [`supervisor`] starts, adopts and asks the process
//! that carries plans out for a pod.

pub mod capability;
pub mod compile;
pub mod execute;
pub mod hooks;
pub mod plan;
pub mod seccomp;
pub mod supervisor;
pub mod trace;
mod words;
