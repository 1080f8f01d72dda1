//! ebpf/abi
