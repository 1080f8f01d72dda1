//! The store from outside, on a real file system. One program, because linking it is what takes time.

mod collect;
mod damage;
mod hostile;
mod import;
mod mirrors;
mod registry;
mod server;
mod support;
