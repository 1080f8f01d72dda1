//! runtime/image
