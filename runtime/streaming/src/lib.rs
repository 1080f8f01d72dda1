//! runtime/streaming
