//! Device rules: as v1's `devices.allow` text, and as what the v2 device program decides from.
//!
//! Rules are taken in order and the last one that matches wins, like v1's files, where each write changes the
//! standing list.

use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    All,
    Char,
    Block,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

/// `None` is every number (`*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    pub typ: Type,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
}

impl fmt::Display for Rule {
    /// As `devices.allow` and `devices.deny` read it (Documentation/admin-guide/cgroup-v1/devices.rst).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typ = match self.typ {
            // Whatever follows `a` is ignored by the kernel.
            Type::All => return f.write_str("a"),
            Type::Char => 'c',
            Type::Block => 'b',
        };
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        write!(f, "{typ} {}:{} ", number(self.major), number(self.minor))?;
        for (on, letter) in [(self.access.read, "r"), (self.access.write, "w"), (self.access.mknod, "m")] {
            if on {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    pub fn parse(rules: &[LinuxDeviceCgroup]) -> Result<Rules> {
        rules.iter().map(parse_rule).collect::<Result<Vec<Rule>>>().map(Rules)
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Rule> {
        self.0.iter()
    }
}

fn parse_rule(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let bad = |field, value: String, reason| Err(Error::BadValue { field, value, reason });
    let typ = match rule.typ() {
        None | Some(LinuxDeviceType::A) => Type::All,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Type::Char,
        Some(LinuxDeviceType::B) => Type::Block,
        Some(LinuxDeviceType::P) => {
            return bad("devices.type", "p".to_owned(), "a pipe is not a device");
        }
    };
    let number = |field, n: Option<i64>| match n {
        None | Some(-1) => Ok(None),
        Some(n) => match u32::try_from(n) {
            Ok(n) => Ok(Some(n)),
            Err(_) => bad(field, n.to_string(), "device numbers are 32 bits").map(|_: Rule| None),
        },
    };
    let mut access = Access { read: false, write: false, mknod: false };
    let letters = rule.access().as_deref().unwrap_or("rwm");
    for letter in letters.chars() {
        match letter {
            'r' => access.read = true,
            'w' => access.write = true,
            'm' => access.mknod = true,
            _ => return bad("devices.access", letters.to_owned(), "access is some of r, w and m"),
        }
    }
    Ok(Rule {
        allow: rule.allow(),
        typ,
        major: number("devices.major", rule.major())?,
        minor: number("devices.minor", rule.minor())?,
        access,
    })
}
