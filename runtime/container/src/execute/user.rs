//! Users and groups by name, from the files of the container's root.
//!
//! Parsing is strict: a number is digits and nothing else, a name that is not listed is an error. Nothing
//! falls back to user 0 (CVE-2026-30892 was such a fallback).

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::Path;

use pith_sys::mount::open_in_root;
use rustix::fs::{FileType, OFlags};

use crate::plan::Identity;

/// Longest passwd or group file that is read, in bytes.
const FILE_MAX: u64 = 4 * 1024 * 1024;
/// Largest user or group number, as image tools agree on.
const ID_MAX: u32 = i32::MAX as u32;

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: Option<String>,
}

/// Finds out who `identity` is in this root; an error is a sentence for the user.
pub(super) fn resolve(root: BorrowedFd<'_>, identity: &Identity) -> Result<Resolved, String> {
    let passwd = read(root, "etc/passwd");
    match identity {
        Identity::Ids { uid, gid, groups } => {
            let home = users(&passwd).find(|user| user.uid == *uid).map(|user| user.home.to_owned());
            Ok(Resolved { uid: *uid, gid: *gid, groups: groups.clone(), home })
        }
        Identity::Named { user, groups } => named(user, groups, &passwd, &read(root, "etc/group")),
    }
}

/// An absent or unreadable file lists nobody. Only a regular file is read: the root is not trusted.
fn read(root: BorrowedFd<'_>, path: &str) -> String {
    let mut text = String::new();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    if let Ok(fd) = open_in_root(root, Path::new(path), flags)
        && rustix::fs::fstat(&fd)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
    {
        let mut bytes = Vec::new();
        if std::fs::File::from(fd).take(FILE_MAX).read_to_end(&mut bytes).is_ok() {
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
    text
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        let home = fields.nth(1).unwrap_or("");
        Some(User { name, uid, gid, home })
    })
}

/// Name, number, members.
fn groups_of(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = number(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn number(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id <= ID_MAX)
}

fn named(spec: &str, extra: &[u32], passwd: &str, group: &str) -> Result<Resolved, String> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    if user.is_empty() || wanted_group.is_some_and(|group| group.is_empty() || group.contains(':')) {
        return Err(format!("invalid user {spec:?}: expected user or user:group"));
    }
    let entry = users(passwd).find(|entry| entry.name == user || Some(entry.uid) == number(user));
    let (uid, mut gid) = match (&entry, number(user)) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => {
            return Err(format!("unable to find user {user}: no matching entries in passwd file"));
        }
    };
    if let Some(wanted) = wanted_group {
        let listed = groups_of(group).find(|(name, gid, _)| *name == wanted || Some(*gid) == number(wanted));
        gid = match (listed, number(wanted)) {
            (Some((_, gid, _)), _) => gid,
            (None, Some(gid)) => gid,
            (None, None) => {
                return Err(format!("unable to find group {wanted}: no matching entries in group file"));
            }
        };
    }
    let mut groups = vec![gid];
    if let Some(entry) = &entry {
        let member = |members: &str| members.split(',').any(|member| member == entry.name);
        groups.extend(groups_of(group).filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid));
    }
    groups.extend(extra);
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|gid| seen.insert(*gid));
    Ok(Resolved { uid, gid, groups, home: entry.map(|entry| entry.home.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnginx:x:101:102:nginx:/var/lib/nginx:/bin/false\n\
        broken:x:abc:0:::\n2000:x:7:8::/seven:\nshort:x\n";
    const GROUP: &str = "root:x:0:\nnginx:x:102:\nadm:x:4:syslog,nginx\ntty:x:5:\n";

    #[test]
    fn names_table() {
        let ok = |uid, gid, groups: &[u32], home: Option<&str>| {
            Ok(Resolved { uid, gid, groups: groups.to_vec(), home: home.map(str::to_owned) })
        };
        let err = |text: &str| Err(text.to_owned());
        let cases: &[(&str, &[u32], Result<Resolved, String>)] = &[
            ("root", &[], ok(0, 0, &[0], Some("/root"))),
            ("nginx", &[], ok(101, 102, &[102, 4], Some("/var/lib/nginx"))),
            ("101", &[], ok(101, 102, &[102, 4], Some("/var/lib/nginx"))),
            ("nginx:adm", &[9, 4], ok(101, 4, &[4, 9], Some("/var/lib/nginx"))),
            ("1000", &[2000], ok(1000, 0, &[0, 2000], None)),
            ("1000:3000", &[], ok(1000, 3000, &[3000], None)),
            ("2000", &[], ok(7, 8, &[8], Some("/seven"))),
            ("nobody", &[], err("unable to find user nobody: no matching entries in passwd file")),
            ("broken", &[], err("unable to find user broken: no matching entries in passwd file")),
            ("1000:wheel", &[], err("unable to find group wheel: no matching entries in group file")),
            ("1abc", &[], err("unable to find user 1abc: no matching entries in passwd file")),
            (" 0", &[], err("unable to find user  0: no matching entries in passwd file")),
            ("-1", &[], err("unable to find user -1: no matching entries in passwd file")),
            ("+0", &[], err("unable to find user +0: no matching entries in passwd file")),
            ("4294967296", &[], err("unable to find user 4294967296: no matching entries in passwd file")),
            ("", &[], err("invalid user \"\": expected user or user:group")),
            (":0", &[], err("invalid user \":0\": expected user or user:group")),
            ("root:", &[], err("invalid user \"root:\": expected user or user:group")),
            ("0:0:0", &[], err("invalid user \"0:0:0\": expected user or user:group")),
        ];
        for (spec, extra, expect) in cases {
            assert_eq!(named(spec, extra, PASSWD, GROUP), *expect, "{spec:?}");
        }
        assert!(named("root", &[], "", "").is_err(), "no passwd file names nobody");
    }
}
