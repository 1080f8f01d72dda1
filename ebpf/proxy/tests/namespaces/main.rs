//! The proxy on real sockets and in the kernel: one program, so that it is linked once.

mod direct;
mod driver;
mod gateway;
mod model;
mod pains;
mod pods;
mod quic;
mod remembered;
mod restarts;
mod services;
mod socket;
mod socket6;
mod support;
mod uplink;
mod uplink6;
mod verifier;
mod why;
mod xdp;
