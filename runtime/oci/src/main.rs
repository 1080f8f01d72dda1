//! The program `pith-oci`: reads the command line, makes sure that no container can reach this file, and says why
//! something failed.

use std::process::exit;

use pith_oci::Error;
use pith_oci::command::{Asked, read};
use pith_oci::log::Log;
use pith_oci::shield;
use pith_sys::entry::LAUNCHING;

fn main() {
    // Before anything is opened: what was inherited has to come along.
    let launches = |word: String| LAUNCHING.iter().any(|launching| launching.to_bytes() == word.as_bytes());
    if std::env::args().any(launches) {
        shield::raise();
    }
    let invocation = match read(std::env::args().skip(1)) {
        Ok(Asked::Text(text)) => {
            print!("{text}");
            exit(0);
        }
        Ok(Asked::Command(invocation)) => invocation,
        Err(error) => fail(&Log::default(), &error),
    };
    let log = match invocation.log() {
        Ok(log) => log,
        Err(error) => fail(&Log::default(), &error),
    };
    match invocation.run(&log) {
        Ok(code) => exit(code),
        Err(error) => fail(&log, &error),
    }
}

fn fail(log: &Log, error: &Error) -> ! {
    log.error(&error.to_string());
    exit(error.exit_code())
}
