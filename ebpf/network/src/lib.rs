//! ebpf/network
