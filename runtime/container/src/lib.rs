//! runtime/container
