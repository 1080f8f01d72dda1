//! Other stock clients than kubectl: Helm, and the Python library.

mod helm;
mod python;
