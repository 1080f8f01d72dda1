//! runtime/cgroup
