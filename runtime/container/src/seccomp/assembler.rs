//! Classic BPF for seccomp: rules by system call number become ranges, ranges a binary tree of comparisons.
//!
//! ```text
//! ld arch ─ jeq x86_64 ─ ld nr ─ jge 167 ┬ jge 83 ┬ …                ret allow
//!         └ jeq i386   …                 └ …      └ ld arg[0] … jeq  ret errno
//! ```

use std::collections::BTreeMap;

use super::syscalls::Architecture;
use super::{RET_ERRNO, RET_KILL_PROCESS};

// <linux/bpf_common.h>
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const NOT_LESS: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
// struct seccomp_data
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;
/// Numbers from here on are x32's (__X32_SYSCALL_BIT).
const X32: u32 = 0x4000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// `argument & mask <operator> value`, all of 64 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u32,
    pub(super) mask: u64,
    pub(super) operator: Operator,
    pub(super) value: u64,
}

/// What holds for one system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// The first whose conditions all hold decides.
    pub(super) conditional: Vec<(Vec<Condition>, u32)>,
    pub(super) otherwise: u32,
}

/// Where a comparison goes.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// Past the end of the condition: it holds.
    Holds,
    /// Past the end of the rule: it does not.
    Fails,
}

/// A whole filter. Calls of an architecture that is not listed kill the process.
pub(super) fn program(blocks: &[(Architecture, BTreeMap<u32, Rules>)], fallback: u32) -> Vec<u64> {
    let mut program = vec![word(LOAD, 0, 0, ARCH)];
    for (arch, rules) in blocks {
        let block = block(*arch, rules, fallback);
        program.push(word(EQUAL, 1, 0, arch.audit()));
        program.push(word(JUMP, 0, 0, block.len() as u32));
        program.extend(block);
    }
    program.push(word(RETURN, 0, 0, RET_KILL_PROCESS));
    program
}

fn block(arch: Architecture, rules: &BTreeMap<u32, Rules>, fallback: u32) -> Vec<u64> {
    let mut code = vec![word(LOAD, 0, 0, NR)];
    if arch == Architecture::X86_64 {
        code.push(word(NOT_LESS, 0, 1, X32));
        code.push(word(RETURN, 0, 0, fallback));
    }
    code.extend(tree(&ranges(rules, fallback)));
    code
}

/// Consecutive numbers with one treatment: where each range starts, the first at 0, the last without end.
///
/// Numbers above all that the profile knows are younger than it: they are answered with ENOSYS where the
/// profile would answer with an error, so that programs fall back to older calls (as runc does).
fn ranges(rules: &BTreeMap<u32, Rules>, fallback: u32) -> Vec<(u32, Rules)> {
    let plain = |action| Rules { conditional: vec![], otherwise: action };
    let mut ranges: Vec<(u32, Rules)> = Vec::new();
    let mut push = |start: u32, rules: Rules| {
        if ranges.last().is_none_or(|(_, last)| *last != rules) {
            ranges.push((start, rules));
        }
    };
    let mut next = 0;
    for (nr, rules) in rules {
        if next < *nr {
            push(next, plain(fallback));
        }
        push(*nr, rules.clone());
        next = nr + 1;
    }
    let beyond = if fallback & RET_ERRNO == RET_ERRNO && fallback >> 16 == RET_ERRNO >> 16 {
        RET_ERRNO | libc::ENOSYS as u32
    } else {
        fallback
    };
    push(next, plain(beyond));
    ranges
}

fn tree(ranges: &[(u32, Rules)]) -> Vec<u64> {
    if let [(_, rules)] = ranges {
        return leaf(rules);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (low, start) = (tree(low), high[0].0);
    let mut code = match u8::try_from(low.len()) {
        Ok(length) => vec![word(NOT_LESS, length, 0, start)],
        Err(_) => vec![word(NOT_LESS, 0, 1, start), word(JUMP, 0, 0, low.len() as u32)],
    };
    code.extend(low);
    code.extend(tree(high));
    code
}

fn leaf(rules: &Rules) -> Vec<u64> {
    let mut code = Vec::new();
    for (conditions, action) in &rules.conditional {
        code.extend(rule(conditions, *action));
    }
    code.push(word(RETURN, 0, 0, rules.otherwise));
    code
}

fn rule(conditions: &[Condition], action: u32) -> Vec<u64> {
    // Built from the end, so that every jump's length is known: `after` is what follows each condition.
    let mut after = vec![word(RETURN, 0, 0, action)];
    for condition in conditions.iter().rev() {
        let ops = comparison(condition);
        let mut code = Vec::with_capacity(ops.len() + after.len());
        for (index, (instruction, k, yes, no)) in ops.iter().enumerate() {
            let rest = ops.len() - index - 1;
            let length = |to: To| match to {
                To::Next => 0,
                To::Holds => rest as u8,
                To::Fails => (rest + after.len()) as u8,
            };
            code.push(word(*instruction, length(*yes), length(*no), *k));
        }
        code.extend(after);
        after = code;
    }
    after
}

/// Instruction, operand, and where to go if it holds or does not (loads go on).
type Op = (u16, u32, To, To);

fn comparison(condition: &Condition) -> Vec<Op> {
    let (mask_high, mask_low) = ((condition.mask >> 32) as u32, condition.mask as u32);
    let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
    let offset = ARGS + 8 * condition.argument;
    let load = |offset: u32, mask: u32| -> Vec<Op> {
        let mut ops = vec![(LOAD, offset, To::Next, To::Next)];
        if mask != u32::MAX {
            ops.push((AND, mask, To::Next, To::Next));
        }
        ops
    };
    let mut ops = Vec::new();
    // A mask without its upper half compares the lower alone, as the kernel does for `int` arguments.
    if mask_high != 0 || high != 0 {
        ops.extend(load(offset + 4, mask_high));
        match condition.operator {
            Operator::Equal => ops.push((EQUAL, high, To::Next, To::Fails)),
            Operator::NotEqual => ops.push((EQUAL, high, To::Next, To::Holds)),
            Operator::Greater | Operator::GreaterEqual => {
                ops.push((GREATER, high, To::Holds, To::Next));
                ops.push((EQUAL, high, To::Next, To::Fails));
            }
            Operator::Less | Operator::LessEqual => {
                ops.push((GREATER, high, To::Fails, To::Next));
                ops.push((EQUAL, high, To::Next, To::Holds));
            }
        }
    }
    ops.extend(load(offset, mask_low));
    ops.push(match condition.operator {
        Operator::Equal => (EQUAL, low, To::Next, To::Fails),
        Operator::NotEqual => (EQUAL, low, To::Fails, To::Next),
        Operator::Greater => (GREATER, low, To::Next, To::Fails),
        Operator::GreaterEqual => (NOT_LESS, low, To::Next, To::Fails),
        Operator::Less => (NOT_LESS, low, To::Fails, To::Next),
        Operator::LessEqual => (GREATER, low, To::Fails, To::Next),
    });
    ops
}

/// One `struct sock_filter` as it lies in memory on a little-endian machine.
fn word(code: u16, yes: u8, no: u8, k: u32) -> u64 {
    u64::from(code) | u64::from(yes) << 16 | u64::from(no) << 24 | u64::from(k) << 32
}
