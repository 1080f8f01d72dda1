//! runtime/kubelet
