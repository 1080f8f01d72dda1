//! ebpf/core
