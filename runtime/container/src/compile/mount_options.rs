//! The options of an OCI mount: which are attributes of the mount, which belong to the file system.

use crate::plan::{Attributes, Propagation};

use super::{CompileError, unsupported};

// MOUNT_ATTR_* of mount_setattr(2).
pub(super) const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub(super) const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub(super) const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
pub(super) const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

/// Name, bits to set, bits to clear; with an `r` in front each also exists for the whole tree.
/// The access time modes are one field (`MOUNT_ATTR__ATIME`) and replace each other.
const ATTRIBUTES: &[(&str, u64, u64)] = &[
    ("ro", RDONLY, 0),
    ("rw", 0, RDONLY),
    ("nosuid", NOSUID, 0),
    ("suid", 0, NOSUID),
    ("nodev", NODEV, 0),
    ("dev", 0, NODEV),
    ("noexec", NOEXEC, 0),
    ("exec", 0, NOEXEC),
    ("noatime", NOATIME, ATIME),
    ("atime", 0, ATIME),
    ("relatime", 0, ATIME),
    ("norelatime", STRICTATIME, ATIME),
    ("strictatime", STRICTATIME, ATIME),
    ("nostrictatime", 0, ATIME),
    ("nodiratime", NODIRATIME, 0),
    ("diratime", 0, NODIRATIME),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
];

/// A mount's options, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MountOptions {
    /// Some(true) for `rbind`.
    pub(super) bind: Option<bool>,
    /// Of this mount alone.
    pub(super) attributes: Attributes,
    /// Of everything below it too.
    pub(super) recursive_attributes: Attributes,
    pub(super) propagation: Option<(Propagation, bool)>,
    /// Some(true) for `ridmap`.
    pub(super) idmap: Option<bool>,
    pub(super) copy_up: bool,
    pub(super) remount: bool,
    /// For the file system: `key` or `key=value`.
    pub(super) data: Vec<(String, Option<String>)>,
}

pub(super) fn parse(options: &[String], field: &str) -> Result<MountOptions, CompileError> {
    let mut parsed = MountOptions::default();
    for option in options {
        if let Some((_, set, clear)) = attribute(option) {
            parsed.attributes.change(set, clear);
        } else if let Some((_, set, clear)) = option.strip_prefix('r').and_then(attribute) {
            parsed.recursive_attributes.change(set, clear);
        } else if let Some(propagation) = propagation(option) {
            parsed.propagation = Some(propagation);
        } else {
            match option.as_str() {
                "bind" => parsed.bind = Some(parsed.bind.unwrap_or(false)),
                "rbind" => parsed.bind = Some(true),
                "" | "defaults" | "async" | "nomand" | "noiversion" | "nolazytime" | "silent" | "loud" => {}
                "idmap" => parsed.idmap = Some(parsed.idmap.unwrap_or(false)),
                "ridmap" => parsed.idmap = Some(true),
                "tmpcopyup" => parsed.copy_up = true,
                "remount" => parsed.remount = true,
                "mand" | "iversion" => {
                    let reason = ": Linux no longer has it";
                    return Err(unsupported(format!("{field}.options: {option}"), reason));
                }
                _ => parsed.data.push(match option.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (option.clone(), None),
                }),
            }
        }
    }
    Ok(parsed)
}

impl Attributes {
    /// A later option wins over an earlier one.
    fn change(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !(set & !clear)) | clear;
    }
}

fn attribute(name: &str) -> Option<(&'static str, u64, u64)> {
    ATTRIBUTES.iter().copied().find(|(known, _, _)| *known == name)
}

pub(super) fn propagation(name: &str) -> Option<(Propagation, bool)> {
    Some(match name {
        "shared" => (Propagation::Shared, false),
        "rshared" => (Propagation::Shared, true),
        "slave" => (Propagation::Slave, false),
        "rslave" => (Propagation::Slave, true),
        "private" => (Propagation::Private, false),
        "rprivate" => (Propagation::Private, true),
        "unbindable" => (Propagation::Unbindable, false),
        "runbindable" => (Propagation::Unbindable, true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_table() {
        let plain = MountOptions::default();
        let set = |set, clear| Attributes { set, clear };
        let cases: &[(&str, &str, MountOptions)] = &[
            ("nothing", "", plain.clone()),
            (
                "read-only bind",
                "bind,ro",
                MountOptions { bind: Some(false), attributes: set(RDONLY, 0), ..plain.clone() },
            ),
            ("rbind wins", "rbind,bind", MountOptions { bind: Some(true), ..plain.clone() }),
            (
                "recursive attributes",
                "rbind,rro,nosuid",
                MountOptions {
                    bind: Some(true),
                    attributes: set(NOSUID, 0),
                    recursive_attributes: set(RDONLY, 0),
                    ..plain.clone()
                },
            ),
            ("the last wins", "ro,rw", MountOptions { attributes: set(0, RDONLY), ..plain.clone() }),
            ("and back", "rw,ro", MountOptions { attributes: set(RDONLY, 0), ..plain.clone() }),
            (
                "access times replace each other",
                "noatime,strictatime",
                MountOptions { attributes: set(STRICTATIME, ATIME), ..plain.clone() },
            ),
            (
                "propagation",
                "rbind,rslave",
                MountOptions {
                    bind: Some(true),
                    propagation: Some((Propagation::Slave, true)),
                    ..plain.clone()
                },
            ),
            (
                "data",
                "size=64k,newinstance,nosuid",
                MountOptions {
                    attributes: set(NOSUID, 0),
                    data: vec![("size".into(), Some("64k".into())), ("newinstance".into(), None)],
                    ..plain.clone()
                },
            ),
        ];
        for (name, input, expect) in cases {
            let options: Vec<String> = input.split(',').map(str::to_owned).collect();
            assert_eq!(parse(&options, "mounts[0]").as_ref(), Ok(expect), "{name}");
        }
    }

    #[test]
    fn refused_by_name() {
        for option in ["mand", "iversion"] {
            let error = parse(&[option.to_owned()], "mounts[3]").expect_err(option);
            let expect = format!("mounts[3].options: {option} is not supported: Linux no longer has it");
            assert_eq!(error.to_string(), expect);
        }
    }
}
