//! The harness of the end-to-end tests: a real cluster that each test starts, drives with stock clients and
//! tears down, and a picture of the machine to compare before and after.

mod cluster;
pub mod debian;
pub mod images;
mod kubectl;
mod machine;
mod program;
pub mod vm;

pub use cluster::Cluster;
pub use kubectl::{Kubectl, Reply};
pub use machine::Snapshot;
pub use program::{bin_dir, images_dir, missing_right, test_program, tools_dir, until};
