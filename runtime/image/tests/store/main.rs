//! The store from outside, on a real file system. One program, because linking it is what takes time.

mod collect;
mod damage;
mod disk;
mod hostile;
mod import;
mod killed;
mod mirrors;
mod power;
mod registry;
mod server;
mod support;
