//! The first instructions of a program, before those of libc.
//!
//! A program that executes itself again pays twice for what libc does before `main`: 0.3 ms in a virtual machine, most
//! of it the processor's answers to `cpuid`, which the machine's monitor has to give. Here is a way to execute it again
//! before that: the linker makes [`pith_entry`] the program's entry (`-e pith_entry`), which ends in libc's `_start` in
//! any case, with the registers and the stack as the kernel left them.
//!
//! Invariant: nothing of libc is used, and nothing that the compiler might turn into a call of it (memcpy, strlen, a
//! panic): its thread area and its relocations do not exist yet.

use std::arch::{asm, naked_asm};
use std::ffi::CStr;
use std::mem::MaybeUninit;

/// Commands by which a process comes to be where a container can see it.
pub static LAUNCHING: [&CStr; 3] = [c"create", c"run", c"exec"];

const SELF: &CStr = c"/proc/self/exe";

/// Executes the program again through a read-only view of its file if one of its arguments is [`LAUNCHING`], it runs as
/// root, and its file is not read-only already. Whatever cannot be done here is left to the program.
///
/// # Safety
/// Only the kernel may call it, as the entry of a static program.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_entry() -> ! {
    // The kernel hands over rsp (arguments) and rdx (a function to call at the end); both registers that keep them here
    // are the callee's to preserve (System V ABI for x86-64, 3.4.1 and 3.2.1).
    naked_asm!(
        "mov r12, rsp",
        "mov r13, rdx",
        "xor ebp, ebp",
        "mov rdi, rsp",
        "and rsp, -16",
        "call {raise}",
        "mov rsp, r12",
        "mov rdx, r13",
        "jmp _start",
        raise = sym raise,
    )
}

/// Executes the program again through a read-only view of its file if one of its arguments is [`LAUNCHING`], it runs as
/// root, and its file is not read-only already. Whatever cannot be done here is left to the program.
///
/// # Safety
/// Only the kernel may call it, as the entry of a static program.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pith_entry() -> ! {
    // The kernel hands over sp (arguments) and x0; x19 and x20 are the callee's to preserve (AAPCS64, 6.1.1).
    naked_asm!(
        "mov x19, sp",
        "mov x20, x0",
        "mov x29, xzr",
        "mov x0, sp",
        "bl {raise}",
        "mov sp, x19",
        "mov x0, x20",
        "b _start",
        raise = sym raise,
    )
}

/// `stack`: the number of arguments, the arguments, null, the environment, null (execve(2), as the ABIs lay it out).
///
/// # Safety
/// `stack` is the stack as the kernel has made it for a new program.
unsafe extern "C" fn raise(stack: *const usize) {
    // SAFETY: the kernel has put so many pointers to strings there, a null, and the environment's.
    unsafe {
        let count = stack.read_volatile();
        let arguments = stack.add(1).cast::<*const u8>();
        let environment = arguments.add(count).add(1);
        if !launches(arguments, count) || call(libc::SYS_geteuid, [0; 5]) != 0 || is_read_only() {
            return;
        }
        let clone = libc::OPEN_TREE_CLONE as usize | libc::OPEN_TREE_CLOEXEC as usize;
        let here = libc::AT_FDCWD as usize;
        let Ok(view) = usize::try_from(call(libc::SYS_open_tree, [here, SELF.as_ptr().addr(), clone, 0, 0]))
        else {
            return;
        };
        let change =
            libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
        let (empty, itself) = (c"".as_ptr().addr(), libc::AT_EMPTY_PATH as usize);
        let size = size_of::<libc::mount_attr>();
        let changed = call(libc::SYS_mount_setattr, [view, empty, itself, (&raw const change).addr(), size]);
        if changed == 0 {
            let (arguments, environment) = (arguments.addr(), environment.addr());
            call(libc::SYS_execveat, [view, empty, arguments, environment, itself]);
        }
        call(libc::SYS_close, [view, 0, 0, 0, 0]);
    }
}

/// # Safety
/// `arguments` are so many pointers to strings.
unsafe fn launches(arguments: *const *const u8, count: usize) -> bool {
    let mut index = 1;
    while index < count {
        let mut word = 0;
        while word < LAUNCHING.len() {
            // SAFETY: both are strings, and `index` and `word` below the numbers of them.
            unsafe {
                let launching = (&raw const LAUNCHING).cast::<&CStr>().add(word).read_volatile();
                if same(arguments.add(index).read_volatile(), launching.as_ptr().cast()) {
                    return true;
                }
            }
            word += 1;
        }
        index += 1;
    }
    false
}

/// Byte by byte, and by volatile reads: compilers know what strcmp looks like.
///
/// # Safety
/// Both are strings.
unsafe fn same(one: *const u8, other: *const u8) -> bool {
    let mut at = 0;
    loop {
        // SAFETY: neither string has ended before `at`.
        let (a, b) = unsafe { (one.add(at).read_volatile(), other.add(at).read_volatile()) };
        if a != b {
            return false;
        }
        if a == 0 {
            return true;
        }
        at += 1;
    }
}

fn is_read_only() -> bool {
    // struct statfs of <asm-generic/statfs.h>, of which libc's type hides the flags: 15 words, the flags in the eleventh.
    let mut about = MaybeUninit::<[u64; 15]>::uninit();
    // SAFETY: the kernel fills `about` if it returns 0.
    unsafe {
        call(libc::SYS_statfs, [SELF.as_ptr().addr(), about.as_mut_ptr().addr(), 0, 0, 0]) == 0
            && about.as_ptr().cast::<u64>().add(10).read_volatile() & libc::ST_RDONLY != 0
    }
}

/// A system call; a negative number is an errno's.
///
/// # Safety
/// As the system call has it.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: libc::c_long, [a, b, c, d, e]: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the kernel changes rax, rcx and r11, and memory that the caller answers for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// A system call; a negative number is an errno's.
///
/// # Safety
/// As the system call has it.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: libc::c_long, [a, b, c, d, e]: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the kernel changes x0, and memory that the caller answers for.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => result,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            options(nostack),
        );
    }
    result
}
