//! `cargo xtask bench`: measurements beside the numbers that pith holds itself to. Never tests: they judge nothing.

mod memory;
mod start;

pub(crate) use start::start;
