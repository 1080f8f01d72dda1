//! Reading a bundle's `config.json`.
//!
//! Unknown properties are ignored and unknown capabilities are named in a warning, as the specification asks; every
//! other value that cannot be honoured is an error that says which. The types are those of oci-spec: where they know
//! less than the specification (later capabilities) or ask for more, the text is put right and read again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::log::Log;
use crate::witness::Witness;

/// Largest configuration that is read, in bytes.
const CONFIG_MAX: u64 = 16 * 1024 * 1024;

/// A configuration, and where it stands.
#[derive(Debug)]
pub struct Bundle {
    pub(crate) dir: PathBuf,
    pub(crate) spec: Spec,
    /// The file as it was.
    pub(crate) text: Vec<u8>,
}

impl Bundle {
    /// Reads the configuration, and makes the bundle the working directory: hooks run there, and relative sources of
    /// mounts are resolved there. `config` is the configuration's name in it.
    pub(crate) fn open(dir: Option<&str>, config: &str, log: &Log) -> Result<Bundle> {
        let dir = fs::canonicalize(dir.filter(|dir| !dir.is_empty()).unwrap_or("."))
            .map_err(Error::io("open bundle", dir.unwrap_or(".")))?;
        std::env::set_current_dir(&dir).map_err(Error::io("enter bundle", &dir))?;
        let path = dir.join(config);
        let text = read(&path)?;
        let mut spec = parse(&text, &path, log)?;
        check_version(&spec)?;
        let root = spec.root_mut().as_mut().ok_or_else(|| Error::Invalid("root is missing".to_owned()))?;
        let rootfs = fs::canonicalize(root.path())
            .map_err(|error| Error::Invalid(format!("root.path: {}: {error}", root.path().display())))?;
        if !rootfs.is_dir() {
            return Err(Error::Invalid(format!("root.path: {} is not a directory", rootfs.display())));
        }
        root.set_path(rootfs);
        Ok(Bundle { dir, spec, text })
    }

    /// Of a configuration that nobody has written down yet. `root.path` is absolute; an overlay needs no more than that
    /// folder.
    #[must_use]
    pub fn of(dir: PathBuf, spec: Spec) -> Bundle {
        let text = serde_json::to_vec(&spec).expect("a configuration is text and numbers");
        Bundle { dir, spec, text }
    }

    /// Adds to the program's environment.
    pub(crate) fn add_variables(&mut self, more: Vec<String>) {
        if let Some(process) = self.spec.process_mut().as_mut().filter(|_| !more.is_empty()) {
            let mut env = process.env().clone().unwrap_or_default();
            env.extend(more);
            process.set_env(Some(env));
        }
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default()
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let length = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        // A pipe would have this wait for whoever writes to it.
        Ok(_) => return Err(Error::Invalid("it is not a regular file".to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(Error::NoConfig(path.to_owned())),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    if length > CONFIG_MAX {
        return Err(Error::Invalid(format!("it has {length} bytes, more than {CONFIG_MAX}")));
    }
    fs::read(path).map_err(Error::io("read", path))
}

pub(crate) fn parse(text: &[u8], path: &Path, log: &Log) -> Result<Spec> {
    match serde_json::from_slice(text) {
        Ok(spec) => Ok(spec),
        Err(first) => reread(text, path, log, first, "/process"),
    }
}

/// A process by itself, as `exec --process` has it.
pub(crate) fn parse_process(text: &[u8], path: &Path, log: &Log) -> Result<Process> {
    match serde_json::from_slice(text) {
        Ok(process) => Ok(process),
        Err(first) => reread(text, path, log, first, ""),
    }
}

/// Reads a text again without what only our types object to. `process` is the JSON pointer to the process in it.
fn reread<T: DeserializeOwned>(
    text: &[u8],
    path: &Path,
    log: &Log,
    first: serde_json::Error,
    process: &str,
) -> Result<T> {
    let config = |source| Error::Config { path: path.to_owned(), source };
    let mut value: Value = serde_json::from_slice(text).map_err(config)?;
    let Some(process) = value.pointer_mut(process).and_then(Value::as_object_mut) else {
        return Err(config(first));
    };
    let before = process.clone();
    let unknown = process.get_mut("capabilities").map(drop_unknown_capabilities).unwrap_or_default();
    if !unknown.is_empty() {
        log.warn(&format!("ignoring unknown or unavailable capabilities: {}", unknown.join(", ")));
    }
    // OCI: optional, and user 0 then.
    process.entry("user").or_insert_with(|| json!({}));
    process.get_mut("scheduler").map(rename_scheduler_flags);
    if *process == before {
        return Err(config(first));
    }
    serde_json::from_value(value).map_err(config)
}

/// The specification's names for two flags, and those that our types have.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

fn rename_scheduler_flags(scheduler: &mut Value) {
    let flags = scheduler.get_mut("flags").and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, ours)) = SCHEDULER_FLAGS.iter().find(|(name, _)| flag.as_str() == Some(name)) {
            *flag = (*ours).into();
        }
    }
}

fn drop_unknown_capabilities(sets: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    for set in sets.as_object_mut().into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(set) = set.as_array_mut() else { continue };
        set.retain(|name| {
            let known =
                name.as_str().is_none_or(|name| pith_container::compile::capability_mask(name).is_ok());
            if let (false, Some(name)) = (known, name.as_str())
                && !unknown.iter().any(|listed| listed == name)
            {
                unknown.push(name.to_owned());
            }
            known
        });
    }
    unknown
}

/// Major version 1 of the specification, in the form of semver.org.
fn check_version(spec: &Spec) -> Result<()> {
    let version = spec.version();
    match parse_version(version) {
        Some((1, _)) => Ok(()),
        Some(_) => Err(Error::Invalid(format!("ociVersion {version} is not supported"))),
        None if version.is_empty() => Err(Error::Invalid("ociVersion is missing".to_owned())),
        None => Err(Error::Invalid(format!("ociVersion {version:?} is not a version"))),
    }
}

/// Major and minor number.
pub(crate) fn parse_version(version: &str) -> Option<(u64, u64)> {
    let core = version.split(['-', '+']).next()?;
    let mut numbers = core.split('.').map(|part| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse().ok()).flatten()
    });
    let (major, minor, _patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_table() {
        let cases = [
            ("1.0.2", Some((1, 0))),
            ("1.2.0-rc.1+dev", Some((1, 2))),
            ("1.0.2-dev", Some((1, 0))),
            ("2.0.0", Some((2, 0))),
            ("invalid", None),
            ("1.0", None),
            ("1.0.0.0", None),
            ("1..0", None),
            ("", None),
        ];
        for (version, expect) in cases {
            assert_eq!(parse_version(version), expect, "{version:?}");
        }
    }

    #[test]
    fn what_is_unknown() {
        let log = Log::default();
        let config = |process: &str| {
            format!("{{\"ociVersion\": \"1.0.0\", \"unknown\": 1, \"root\": {{\"path\": \"r\"}}{process}}}")
        };
        let process = |capability: &str| {
            let set = format!("{{\"bounding\": [\"CAP_KILL\", \"{capability}\"]}}");
            config(&format!(", \"process\": {{\"cwd\": \"/\", \"user\": {{}}, \"capabilities\": {set}}}"))
        };
        let parse = |text: String| parse(text.as_bytes(), Path::new("config.json"), &log);
        parse(config("")).expect("an unknown property");
        parse(process("CAP_FUTURE")).expect("an unknown capability");
        parse(process("CAP_NET_RAW")).expect("a known capability");
        assert!(parse(config(", \"mounts\": 3")).is_err(), "a wrong type");
        assert!(parse("{".to_owned()).is_err(), "no JSON");
    }
}
