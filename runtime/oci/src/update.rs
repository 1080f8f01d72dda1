//! `update`: new limits for a running container.

use std::io::Read;

use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use crate::args::{Flag, Parsed, value};
use crate::error::{Error, Result};
use crate::state::{Folder, Status};

pub(crate) const FLAGS: &[Flag] = &[
    value(&["resources", "r"]),
    value(&["blkio-weight"]),
    value(&["cpu-period"]),
    value(&["cpu-quota"]),
    value(&["cpu-burst"]),
    value(&["cpu-share"]),
    value(&["cpu-rt-period"]),
    value(&["cpu-rt-runtime"]),
    value(&["cpuset-cpus"]),
    value(&["cpuset-mems"]),
    value(&["cpu-idle"]),
    value(&["kernel-memory"]),
    value(&["kernel-memory-tcp"]),
    value(&["memory"]),
    value(&["memory-reservation"]),
    value(&["memory-swap"]),
    value(&["pids-limit"]),
    value(&["l3-cache-schema"]),
    value(&["mem-bw-schema"]),
];

/// A flag, and where its number goes.
const NUMBERS: &[(&str, &str, &str)] = &[
    ("blkio-weight", "blockIO", "weight"),
    ("cpu-period", "cpu", "period"),
    ("cpu-quota", "cpu", "quota"),
    ("cpu-burst", "cpu", "burst"),
    ("cpu-share", "cpu", "shares"),
    ("cpu-rt-period", "cpu", "realtimePeriod"),
    ("cpu-rt-runtime", "cpu", "realtimeRuntime"),
    ("cpu-idle", "cpu", "idle"),
    ("kernel-memory-tcp", "memory", "kernelTCP"),
    ("memory", "memory", "limit"),
    ("memory-reservation", "memory", "reservation"),
    ("memory-swap", "memory", "swap"),
    ("pids-limit", "pids", "limit"),
];

pub(crate) fn update(folder: &Folder, flags: &Parsed) -> Result<()> {
    let state = folder.load()?;
    match state.status(folder) {
        Status::Created | Status::Running | Status::Paused => {}
        Status::Creating | Status::Stopped => return Err(Error::NotRunning),
    }
    let resources = resources(flags)?;
    let place =
        state.cgroup.ok_or_else(|| Error::Usage("the container has no cgroup of its own".to_owned()))?;
    Ok(place.open()?.apply(&resources)?)
}

fn resources(flags: &Parsed) -> Result<LinuxResources> {
    for refused in ["l3-cache-schema", "mem-bw-schema"] {
        if flags.get(refused).is_some_and(|value| !value.is_empty()) {
            return Err(Error::Usage(format!("{refused}: intelRdt is not supported")));
        }
    }
    let mut wanted = match flags.get("resources") {
        None => json!({}),
        Some(path) => {
            let mut text = Vec::new();
            if path == "-" {
                std::io::stdin().read_to_end(&mut text).map_err(Error::io("read", "standard input"))?;
            } else {
                text = std::fs::read(path).map_err(Error::io("read", path))?;
            }
            serde_json::from_slice(&text).map_err(|source| Error::Config { path: path.into(), source })?
        }
    };
    for (flag, group, key) in NUMBERS {
        if let Some(text) = flags.get(flag).filter(|text| !text.is_empty()) {
            let number =
                number(text).ok_or_else(|| Error::Usage(format!("invalid value for {flag}: {text}")))?;
            wanted[*group][*key] = number.into();
        }
    }
    for (flag, key) in [("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")] {
        if let Some(list) = flags.get(flag).filter(|list| !list.is_empty()) {
            wanted["cpu"][key] = Value::from(list);
        }
    }
    if wanted["memory"]["limit"] == -1 && wanted["memory"]["swap"].is_null() {
        // Memory and swap together cannot be limited to less than memory: no limit is none on either.
        wanted["memory"]["swap"] = (-1).into();
    }
    serde_json::from_value(wanted).map_err(|source| Error::Config { path: "resources".into(), source })
}

/// A number, or a size with a binary unit: `64m`, `1G`.
fn number(text: &str) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    let text = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let (digits, shift) = match text.char_indices().last()? {
        (end, 'k') => (&text[..end], 10),
        (end, 'm') => (&text[..end], 20),
        (end, 'g') => (&text[..end], 30),
        (end, 't') => (&text[..end], 40),
        _ => (text, 0),
    };
    digits.parse::<i64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_table() {
        let cases = [
            ("1024", Some(1024)),
            ("-1", Some(-1)),
            ("64m", Some(64 << 20)),
            ("1GiB", Some(1 << 30)),
            ("2KB", Some(2048)),
            ("m", None),
            ("", None),
            ("1x", None),
            ("9223372036854775807k", None),
        ];
        for (text, expect) in cases {
            assert_eq!(number(text), expect, "{text:?}");
        }
    }

    #[test]
    fn flags_and_file_together() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), r#"{"memory": {"limit": 1, "swap": 2}, "pids": {"limit": 3}}"#)
            .expect("written");
        let words =
            ["--resources", &file.path().display().to_string(), "--memory", "64m", "--cpuset-cpus", "0"];
        let flags = Parsed::read(&[FLAGS], words.map(str::to_owned)).expect("flags");
        let resources = resources(&flags).expect("resources");
        let memory = resources.memory().as_ref().expect("memory");
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(2)));
        assert_eq!(resources.pids().as_ref().map(|pids| pids.limit()), Some(3));
        let unlimited = Parsed::read(&[FLAGS], ["--memory", "-1"].map(str::to_owned)).expect("flags");
        let unlimited = super::resources(&unlimited).expect("resources");
        let memory = unlimited.memory().as_ref().expect("memory");
        assert_eq!((memory.limit(), memory.swap()), (Some(-1), Some(-1)));
        assert_eq!(resources.cpu().as_ref().and_then(|cpu| cpu.cpus().clone()).as_deref(), Some("0"));
    }
}
