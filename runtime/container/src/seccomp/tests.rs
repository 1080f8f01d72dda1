//! Filters are run in an interpreter of classic BPF and compared with what the profile says.

use oci_spec::runtime::{LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSyscallBuilder};
use proptest::prelude::*;

use super::*;

const EPERM: u32 = RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = RET_ERRNO | libc::ENOSYS as u32;

/// What the kernel would decide (kernel/seccomp.c, classic BPF over `struct seccomp_data`).
fn run(program: &[u64], arch: Architecture, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(nr.to_le_bytes());
    data.extend(arch.audit().to_le_bytes());
    data.extend([0; 8]);
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let (mut pc, mut accumulator) = (0, 0u32);
    for _ in 0..program.len() {
        let word = program[pc];
        let (code, k) = (word as u16, (word >> 32) as u32);
        let jump = |taken: bool| ((word >> if taken { 16 } else { 24 }) & 0xff) as usize;
        pc += 1;
        match code {
            0x20 => {
                let at = k as usize;
                accumulator = u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes"));
            }
            0x54 => accumulator &= k,
            0x05 => pc += k as usize,
            0x15 => pc += jump(accumulator == k),
            0x25 => pc += jump(accumulator > k),
            0x35 => pc += jump(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
    panic!("the program does not end")
}

fn default_verdict(bounding: u64, name: &str, args: [u64; 6]) -> u32 {
    let filter = default_filter(bounding).expect("the default profile filters");
    let nr = number(Architecture::native(), name).expect(name);
    run(&filter.program, Architecture::native(), nr, args)
}

#[test]
fn default_profile_table() {
    let admin = 1 << 21;
    let cases: &[(&str, u64, [u64; 6], u32)] = &[
        ("read", 0, [0; 6], RET_ALLOW),
        ("writev", 0, [0; 6], RET_ALLOW),
        ("keyctl", 0, [0; 6], RET_ALLOW),
        ("io_uring_setup", 0, [0; 6], EPERM),
        ("mount", 0, [0; 6], EPERM),
        ("mount", admin, [0; 6], RET_ALLOW),
        ("unshare", 0, [0; 6], EPERM),
        ("setns", 0, [0; 6], EPERM),
        ("kexec_load", u64::MAX, [0; 6], EPERM),
        ("userfaultfd", 0, [0; 6], EPERM),
        ("clone", 0, [libc::CLONE_VM as u64, 0, 0, 0, 0, 0], RET_ALLOW),
        ("clone", 0, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0], EPERM),
        ("clone", admin, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0], RET_ALLOW),
        ("clone3", 0, [0; 6], ENOSYS),
        ("clone3", admin, [0; 6], RET_ALLOW),
        ("socket", 0, [libc::AF_INET as u64, 0, 0, 0, 0, 0], RET_ALLOW),
        ("socket", 0, [libc::AF_VSOCK as u64, 0, 0, 0, 0, 0], EPERM),
        ("socket", 0, [1 << 32 | libc::AF_VSOCK as u64, 0, 0, 0, 0, 0], EPERM),
        ("personality", 0, [0xffff_ffff, 0, 0, 0, 0, 0], RET_ALLOW),
        ("personality", 0, [0x40000, 0, 0, 0, 0, 0], EPERM),
        ("syslog", 1 << 34, [0; 6], RET_ALLOW),
        ("bpf", 1 << 39, [0; 6], RET_ALLOW),
        ("bpf", 0, [0; 6], EPERM),
    ];
    for (name, bounding, args, expect) in cases {
        assert_eq!(default_verdict(*bounding, name, *args), *expect, "{name} {bounding:x} {args:x?}");
    }
}

#[test]
fn default_profile_bounds() {
    let filter = default_filter(0).expect("the default profile filters");
    let run = |arch, nr| run(&filter.program, arch, nr, [0; 6]);
    assert_eq!(run(Architecture::native(), 5000), ENOSYS, "calls younger than the profile");
    if Architecture::native() == Architecture::X86_64 {
        assert_eq!(run(Architecture::X86_64, 0x4000_0000), EPERM, "x32");
        assert_eq!(run(Architecture::I386, 3), RET_ALLOW, "read of a 32-bit program");
        assert_eq!(run(Architecture::I386, 21), EPERM, "mount of a 32-bit program");
        assert_eq!(run(Architecture::Aarch64, 63), RET_KILL_PROCESS, "not listed");
    }
    assert!(filter.program.len() < 900, "{} instructions", filter.program.len());
    let again = default_filter(0).expect("cached");
    assert!(Arc::ptr_eq(&filter.program, &again.program), "compiled once");
}

#[test]
fn every_name_of_the_default_profile_is_known() {
    let (entries, _) = default::entries(u64::MAX);
    let (without, _) = default::entries(0);
    let known = |name: &&&str| {
        [Architecture::X86_64, Architecture::I386, Architecture::Aarch64]
            .into_iter()
            .any(|arch| number(arch, name).is_some())
    };
    let unknown: Vec<&str> = entries
        .iter()
        .chain(&without)
        .flat_map(|entry| entry.names.iter())
        .filter(|name| !known(name))
        .copied()
        .collect();
    // Names that live only in tables of other architectures or nowhere any more.
    let elsewhere = ["fstatat64", "getsid", "newfstatat", "recv", "send", "umount", "lookup_dcookie"];
    let unexpected: Vec<_> = unknown.iter().filter(|name| !elsewhere.contains(name)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

fn profile_of(op: LinuxSeccompOperator, value: u64, value_two: u64) -> LinuxSeccomp {
    let mut arg = LinuxSeccompArgBuilder::default().index(1usize).value(value).op(op);
    arg = arg.value_two(value_two);
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .syscalls(vec![
            LinuxSyscallBuilder::default()
                .names(vec!["getpid".to_owned()])
                .action(LinuxSeccompAction::ScmpActAllow)
                .args(vec![arg.build().expect("an argument")])
                .build()
                .expect("a syscall"),
        ])
        .build()
        .expect("a profile")
}

proptest! {
    #[test]
    fn comparisons_agree_with_arithmetic(
        op in 0usize..7,
        value in prop_oneof![any::<u64>(), 0u64..4, Just(u64::MAX), Just(1 << 32)],
        two in prop_oneof![any::<u64>(), Just(0)],
        near in -1i64..=1,
        other in any::<u64>(),
        use_other in any::<bool>(),
    ) {
        use LinuxSeccompOperator::*;
        let arg = if use_other { other } else { value.wrapping_add_signed(near) };
        let (op, expect) = match op {
            0 => (ScmpCmpNe, arg != value),
            1 => (ScmpCmpLt, arg < value),
            2 => (ScmpCmpLe, arg <= value),
            3 => (ScmpCmpEq, arg == value),
            4 => (ScmpCmpGe, arg >= value),
            5 => (ScmpCmpGt, arg > value),
            _ => (ScmpCmpMaskedEq, arg & value == two),
        };
        let filter = compile(&profile_of(op, value, two)).expect("compiles").expect("filters");
        let nr = number(Architecture::native(), "getpid").expect("getpid");
        let verdict = run(&filter.program, Architecture::native(), nr, [0, arg, 0, 0, 0, 0]);
        prop_assert_eq!(verdict, if expect { RET_ALLOW } else { EPERM });
    }

    #[test]
    fn every_number_gets_its_action(allowed in proptest::collection::btree_set(0u32..400, 0..200), nr in 0u32..420) {
        let rules: BTreeMap<u32, Rules> = allowed
            .iter()
            .map(|nr| (*nr, Rules { conditional: vec![], otherwise: RET_ALLOW }))
            .collect();
        let program = assembler::program(&[(Architecture::X86_64, rules)], EPERM);
        let beyond = allowed.last().is_none_or(|last| nr > *last);
        let expect = if allowed.contains(&nr) { RET_ALLOW } else if beyond { ENOSYS } else { EPERM };
        prop_assert_eq!(run(&program, Architecture::X86_64, nr, [0; 6]), expect);
    }
}

#[test]
fn refused_profiles() {
    let mut profile = profile_of(LinuxSeccompOperator::ScmpCmpEq, 0, 0);
    profile.set_listener_path(Some("/x".into()));
    assert!(
        compile(&profile).is_ok_and(|filter| filter.is_some_and(|filter| !filter.listener)),
        "nobody to call"
    );
    profile.set_listener_path(None);
    profile.set_default_action(LinuxSeccompAction::ScmpActNotify);
    assert!(matches!(compile(&profile), Err(SeccompError::Action { .. })));
    let open = LinuxSeccompBuilder::default().default_action(LinuxSeccompAction::ScmpActAllow);
    assert_eq!(compile(&open.build().expect("a profile")), Ok(None), "allows everything");
}
