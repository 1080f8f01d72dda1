//! ebpf/proxy
