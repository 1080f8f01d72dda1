//! What people and programs read: logs on standard error, reports on standard output.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// Logs what `filter` selects; without one, warnings of everything and pith's own notices.
pub(crate) fn start_logging(filter: Option<&str>) {
    let filter = EnvFilter::new(filter.unwrap_or("warn,pith=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .with_target(true)
        .init();
}
