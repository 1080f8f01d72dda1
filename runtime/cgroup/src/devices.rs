//! Device rules: as v1's `devices.allow` text, and as the eBPF program that decides on v2.
//!
//! The rules of a specification are changes to a standing policy, as writes to v1's files are: a default for
//! every device, and exceptions from it. The program follows that policy, so that both hosts decide alike
//! (security/device_cgroup.c: devcgroup_update_access, match_exception, match_exception_partial).

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

/// What a list of rules comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    default_allow: bool,
    exceptions: Vec<Exception>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exception {
    device: (Type, Option<u32>, Option<u32>),
    access: u32,
}

/// BPF_DEVCG_ACC_*, include/uapi/linux/bpf.h.
const ACCESS_MKNOD: u32 = 1;
const ACCESS_READ: u32 = 2;
const ACCESS_WRITE: u32 = 4;
const ACCESS_ALL: u32 = 7;

impl Access {
    fn bits(self) -> u32 {
        [(self.mknod, ACCESS_MKNOD), (self.read, ACCESS_READ), (self.write, ACCESS_WRITE)]
            .into_iter()
            .filter(|(on, _)| *on)
            .fold(0, |bits, (_, bit)| bits | bit)
    }
}

impl Policy {
    /// A new cgroup allows everything until told otherwise.
    fn of(rules: &Rules) -> Policy {
        let mut policy = Policy { default_allow: true, exceptions: Vec::new() };
        for rule in rules.iter() {
            policy.change(rule);
        }
        policy
    }

    fn change(&mut self, rule: &Rule) {
        if rule.typ == Type::All {
            *self = Policy { default_allow: rule.allow, exceptions: Vec::new() };
            return;
        }
        let device = (rule.typ, rule.major, rule.minor);
        let access = rule.access.bits();
        let standing = self.exceptions.iter_mut().find(|exception| exception.device == device);
        match (rule.allow == self.default_allow, standing) {
            // Back to the default: less of an exception, or none.
            (true, Some(exception)) => exception.access &= !access,
            (true, None) => {}
            (false, Some(exception)) => exception.access |= access,
            (false, None) => self.exceptions.push(Exception { device, access }),
        }
        self.exceptions.retain(|exception| exception.access != 0);
    }
}

/// Instructions of a BPF_PROG_TYPE_CGROUP_DEVICE program that decides as `rules` say.
pub(crate) fn program(rules: &Rules) -> Vec<u64> {
    let policy = Policy::of(rules);
    // r1 → struct bpf_cgroup_dev_ctx { u32 access_type, major, minor }, access_type = access << 16 | type
    let mut program = vec![
        insn(LOAD_WORD, 2, 1, 0, 0),
        insn(MOVE, 3, 2, 0, 0),
        insn(AND_32, 2, 0, 0, 0xffff),
        insn(SHIFT_RIGHT_32, 3, 0, 0, 16),
        insn(LOAD_WORD, 4, 1, 4, 0),
        insn(LOAD_WORD, 5, 1, 8, 0),
    ];
    for exception in &policy.exceptions {
        program.extend(decide(exception, policy.default_allow));
    }
    program.extend(verdict(policy.default_allow));
    program
}

/// r2 type, r3 access, r4 major, r5 minor; r0 and r1 are free. Falls through to what follows when the device is
/// another one.
fn decide(exception: &Exception, default_allow: bool) -> Vec<u64> {
    // Conditions first, without the distance to jump, which is to the end of this block.
    let mut block: Vec<(u8, u8, u8, u32)> = Vec::new();
    let (typ, major, minor) = exception.device;
    match typ {
        Type::All => {}
        Type::Block => block.push((JUMP_NOT_EQUAL_32, 2, 0, 1)),
        Type::Char => block.push((JUMP_NOT_EQUAL_32, 2, 0, 2)),
    }
    if exception.access != ACCESS_ALL {
        block.push((MOVE, 1, 3, 0));
        block.push((AND_32, 1, 0, exception.access));
        block.push(if default_allow {
            // Denied as soon as a part of what is asked for is.
            (JUMP_EQUAL_32, 1, 0, 0)
        } else {
            // Allowed when all that is asked for is.
            (JUMP_NOT_EQUAL_REGISTER_32, 1, 3, 0)
        });
    }
    block.extend(major.map(|major| (JUMP_NOT_EQUAL_32, 4, 0, major)));
    block.extend(minor.map(|minor| (JUMP_NOT_EQUAL_32, 5, 0, minor)));
    let length = block.len();
    let verdict = verdict(!default_allow);
    let conditions = block.into_iter().enumerate().map(|(n, (code, dst, src, imm))| {
        let is_jump = matches!(code & 7, 5 | 6);
        let distance = length - 1 - n + verdict.len();
        let offset =
            if is_jump { i16::try_from(distance).expect("a block has under ten instructions") } else { 0 };
        insn(code, dst, src, offset, imm)
    });
    conditions.chain(verdict).collect()
}

fn verdict(allow: bool) -> [u64; 2] {
    [insn(MOVE_IMMEDIATE, 0, 0, 0, u32::from(allow)), insn(EXIT, 0, 0, 0, 0)]
}

// Operation codes, Documentation/bpf/standardization/instruction-set.rst: class | source | operation.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const JUMP_EQUAL_32: u8 = 0x16;
const JUMP_NOT_EQUAL_32: u8 = 0x56;
const JUMP_NOT_EQUAL_REGISTER_32: u8 = 0x5e;
const EXIT: u8 = 0x95;

/// `struct bpf_insn { u8 code; u8 dst:4, src:4; s16 off; s32 imm; }` in the machine's byte order.
fn insn(code: u8, dst: u8, src: u8, offset: i16, imm: u32) -> u64 {
    let mut bytes = [0_u8; 8];
    bytes[0] = code;
    bytes[1] = if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..8].copy_from_slice(&imm.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
