//! What a run says while it goes on: one line that moves on a terminal, few plain lines otherwise.

use std::io::{IsTerminal, Write, stderr};

/// Something is done.
pub(crate) fn step(text: &str) {
    eprintln!("{}{text}", clear());
}

/// Round `round` of `rounds` is done.
pub(crate) fn rounds(what: &str, round: usize, rounds: usize) {
    if stderr().is_terminal() {
        eprint!("{}{what}: round {round} of {rounds}", clear());
        // A terminal that went away is no reason to stop.
        let _ = stderr().flush();
    }
    if round == rounds {
        step(&format!("{what}: {rounds} rounds"));
    }
}

fn clear() -> &'static str {
    if stderr().is_terminal() { "\r\x1b[K" } else { "" }
}
