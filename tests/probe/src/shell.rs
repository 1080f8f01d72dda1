//! A toy shell, so that `kubectl exec -it` has somebody to talk to in an image without a shell. One command a line,
//! words split at spaces; every subcommand of this program is a command of the shell.

use std::io::{BufRead, IsTerminal, Write, stdin, stdout};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

/// Ends with the code of `exit`, else with that of the last command.
pub(crate) fn run() -> Result<ExitCode> {
    let prompt = stdin().is_terminal();
    let mut last: u8 = 0;
    let mut lines = stdin().lock().lines();
    loop {
        if prompt {
            print!("{} # ", crate::hostname());
            stdout().flush().context("show the prompt")?;
        }
        let Some(line) = lines.next() else { return Ok(ExitCode::from(last)) };
        let line = line.context("read a line")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            ["exit"] => return Ok(ExitCode::from(last)),
            ["exit", code] => return Ok(ExitCode::from(code.parse::<u8>().unwrap_or(2))),
            ["size"] => last = window_size(),
            ["help"] => println!("exit [CODE], size, help, and what `pith-probe --help` lists"),
            words => last = subcommand(words)?,
        }
    }
}

fn window_size() -> u8 {
    match rustix::termios::tcgetwinsize(stdin()) {
        Ok(size) => {
            println!("{} rows {} columns", size.ws_row, size.ws_col);
            0
        }
        Err(_) => {
            eprintln!("not a terminal");
            1
        }
    }
}

fn subcommand(words: &[&str]) -> Result<u8> {
    let status = Command::new("/proc/self/exe").args(words).status().context("start a command")?;
    // A command ended by a signal has no code; shells then give 128 and the signal, here it is just a failure.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
