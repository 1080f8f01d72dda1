//! Everything that needs real network namespaces, one machine of its own a test.

mod names;
mod pods;
mod sandbox;
mod topology;
