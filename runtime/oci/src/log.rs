//! Where errors and warnings go: `--log FILE` in `--log-format text` or `json`, as logrus writes them, which is what
//! engines parse; standard error otherwise.

use std::fs::{File, OpenOptions};
use std::io::Write;

use crate::error::{Error, Result};
use crate::witness::{Performed, Witness};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug,
    Warning,
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

#[derive(Debug, Default)]
pub struct Log {
    file: Option<File>,
    format: Format,
    debug: bool,
}

impl Log {
    pub fn open(path: Option<&str>, format: Option<&str>, debug: bool) -> Result<Log> {
        let format = match format {
            None | Some("" | "text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => return Err(Error::Usage(format!("invalid log-format: {other}"))),
        };
        let open = |path: &str| {
            OpenOptions::new().append(true).create(true).open(path).map_err(Error::io("open log", path))
        };
        let file = path.filter(|path| !path.is_empty()).map(open).transpose()?;
        Ok(Log { file, format, debug })
    }

    pub(crate) fn debug(&self, message: &str) {
        if self.debug {
            self.write(Level::Debug, message);
        }
    }

    /// The reason why the command failed: also on standard error, where people look.
    pub fn error(&self, message: &str) {
        self.write(Level::Error, message);
        if self.file.is_some() {
            eprintln!("{message}");
        }
    }

    fn write(&self, level: Level, message: &str) {
        let line = line(self.format, level, message, jiff::Timestamp::now());
        // A log that cannot be written to is no reason to fail.
        let _ = match &self.file {
            Some(file) => (&mut &*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

impl Witness for Log {
    fn warn(&self, message: &str) {
        self.write(Level::Warning, message);
    }

    fn wants_steps(&self) -> bool {
        self.debug
    }

    fn step(&self, Performed { call, change, carried, .. }: &Performed) {
        self.debug(&format!("{:>9.1} us  {call}: {change}", carried.nanoseconds as f64 / 1e3));
    }
}

fn line(format: Format, level: Level, message: &str, now: jiff::Timestamp) -> String {
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ");
    match format {
        Format::Text => {
            format!("time=\"{time}\" level={} msg={}\n", level.name(), serde_json::Value::from(message))
        }
        Format::Json => {
            let entry =
                serde_json::json!({ "level": level.name(), "msg": message, "time": time.to_string() });
            format!("{entry}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_engines_parse_them() {
        let now: jiff::Timestamp = "2026-01-02T03:04:05.678Z".parse().expect("a time");
        let text = line(Format::Text, Level::Error, "no \"such\" thing", now);
        assert_eq!(text, "time=\"2026-01-02T03:04:05Z\" level=error msg=\"no \\\"such\\\" thing\"\n");
        let json = line(Format::Json, Level::Warning, "x", now);
        assert_eq!(json, "{\"level\":\"warning\",\"msg\":\"x\",\"time\":\"2026-01-02T03:04:05Z\"}\n");
    }
}
