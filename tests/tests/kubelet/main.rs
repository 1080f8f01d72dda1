//! The kubelet on the real kernel: a real API server in process, real supervisors, real containers. Each test
//! owns a network namespace, a cgroup subtree and a folder, and removes them.

mod image;
mod node;
mod pods;
mod speed;
mod streams;
