//! SPDY/3.1 as `draft-mbelshe-httpbis-spdy-00` and Kubernetes' clients have it: frames, headers, streams.

pub(crate) mod connection;
pub(crate) mod exec;
pub(crate) mod forward;
mod frame;
mod headers;
#[cfg(test)]
mod tests;
