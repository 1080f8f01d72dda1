//! New processes by clone3(2).
//!
//! [`fork`] is for a single-threaded supervisor: the child goes on in the same program. [`spawn`] is for a
//! program of many threads: the child shares its memory, does nothing but system calls, and executes
//! another program, as posix_spawn does, but straight into namespaces and a cgroup.

use std::ffi::{CStr, CString, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};

use crate::{Result, check, last_errno};

/// Namespace flags for [`fork`], [`spawn`] and `setns`.
pub mod namespaces {
    pub const TIME: u64 = libc::CLONE_NEWTIME as u64;
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    pub const NETWORK: u64 = libc::CLONE_NEWNET as u64;
}

/// The new process becomes a child of the caller's parent ([`fork_alone`]).
pub const CLONE_PARENT: u64 = libc::CLONE_PARENT as u64;

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Stack of the child in [`spawn`]: it only makes system calls.
const SPAWN_STACK: usize = 32 * 1024;
/// Descriptors are first moved above this number, so that none is overwritten while they are put in place.
const SCRATCH_FD: RawFd = 64;

/// A new child process.
#[derive(Debug)]
pub struct Child {
    pub pidfd: OwnedFd,
    /// Its number in the caller's pid namespace.
    pub pid: i32,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal(i32),
}

/// Forks: `body` runs in the child, which ends with the exit code that it returns.
///
/// Fails with `EBUSY` if the calling process has more than one thread, because the child would inherit
/// whatever locks the others hold.
pub fn fork(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, body: impl FnOnce() -> i32) -> Result<Child> {
    // The link count of the task directory is 2 plus the number of threads (fs/proc/base.c).
    if rustix::fs::stat("/proc/self/task")?.st_nlink != 3 {
        return Err(Errno::BUSY);
    }
    fork_alone(namespaces, cgroup, body)
}

/// Like [`fork`], for a process that is itself a child of it and has started no thread since: it may be in a root
/// without a /proc to look into. `CLONE_PARENT` among the flags makes the new process a sibling, a child of this
/// one's parent.
pub fn fork_alone(
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce() -> i32,
) -> Result<Child> {
    let mut pidfd: RawFd = -1;
    let mut args = clone_args(namespaces, &mut pidfd, cgroup);
    if namespaces & CLONE_PARENT != 0 {
        // A sibling announces its end as this process does (clone(2), CLONE_PARENT).
        args.exit_signal = 0;
    }
    // SAFETY: without CLONE_VM the child has its own copy of the memory, and as there is one thread no lock
    // is held by another; `args` and `pidfd` live through the call.
    let pid =
        unsafe { check(libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()))? };
    if pid == 0 {
        exit_now(body());
    }
    // SAFETY: the kernel has put a new descriptor there, which nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pidfd, pid: i32::try_from(pid).map_err(|_| Errno::OVERFLOW)? })
}

fn clone_args(flags: u64, pidfd: &mut RawFd, cgroup: Option<BorrowedFd<'_>>) -> libc::clone_args {
    // SAFETY: all fields are integers, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    args
}

/// A program to start by [`spawn`].
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Namespaces made new for it.
    pub namespaces: u64,
    /// The version 2 cgroup it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The executable, open with O_PATH.
    pub program: BorrowedFd<'a>,
    pub args: &'a [CString],
    pub env: &'a [CString],
    /// Become descriptors 0, 1, 2, …; the child has no others.
    pub descriptors: &'a [BorrowedFd<'a>],
}

/// What the child of [`spawn`] needs; shared with the parent, which waits until it is done with it.
struct SpawnArgs {
    program: RawFd,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    sources: Vec<RawFd>,
    errno: i32,
}

/// Starts a program from a process with any number of threads. All signals are blocked in the new program
/// until it unblocks them. Returns when it has been executed, or the reason why not.
pub fn spawn(spawn: &Spawn<'_>) -> Result<Child> {
    let scratch = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, SCRATCH_FD);
    let program = scratch(spawn.program)?;
    let sources = spawn.descriptors.iter().map(|fd| scratch(*fd)).collect::<Result<Vec<OwnedFd>>>()?;
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let mut shared = SpawnArgs {
        program: program.as_raw_fd(),
        argv: pointers(spawn.args),
        envp: pointers(spawn.env),
        sources: sources.iter().map(AsRawFd::as_raw_fd).collect(),
        errno: 0,
    };
    let mut pidfd: RawFd = -1;
    let mut args =
        clone_args(spawn.namespaces | (libc::CLONE_VM | libc::CLONE_VFORK) as u64, &mut pidfd, spawn.cgroup);
    let mut stack = vec![0u128; SPAWN_STACK / size_of::<u128>()];
    args.stack = stack.as_mut_ptr() as u64;
    args.stack_size = SPAWN_STACK as u64;

    let blocked = block_all_signals();
    // SAFETY: the child runs `exec_child` on its own stack, touches only `shared`, and this thread is
    // suspended until it executes or ends (CLONE_VFORK); no signal handler can run in it meanwhile.
    let pid = unsafe { clone3_call(&mut args, exec_child, (&raw mut shared).cast()) };
    restore_signals(&blocked);
    drop(stack);
    if pid < 0 {
        return Err(Errno::from_raw_os_error(i32::try_from(-pid).unwrap_or(libc::EIO)));
    }
    // SAFETY: the kernel has put a new descriptor there, which nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let child = Child { pidfd, pid: i32::try_from(pid).map_err(|_| Errno::OVERFLOW)? };
    if shared.errno != 0 {
        wait(&child.pidfd)?;
        return Err(Errno::from_raw_os_error(shared.errno));
    }
    Ok(child)
}

/// The child of [`spawn`]: system calls only, in memory shared with the suspended parent.
extern "C" fn exec_child(shared: *mut c_void) -> ! {
    // SAFETY: `spawn` passes its `SpawnArgs`, which outlives this child.
    let shared = unsafe { &mut *shared.cast::<SpawnArgs>() };
    // SAFETY: plain system calls on numbers and pointers prepared by `spawn`; this process ends in
    // execveat or _exit and owns no Rust value.
    unsafe {
        libc::setsid();
        for (target, source) in shared.sources.iter().enumerate() {
            if libc::dup3(*source, target as RawFd, 0) == -1 {
                shared.errno = *libc::__errno_location();
                libc::_exit(127);
            }
        }
        libc::syscall(
            libc::SYS_close_range,
            shared.sources.len(),
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        libc::syscall(
            libc::SYS_execveat,
            shared.program,
            c"".as_ptr(),
            shared.argv.as_ptr(),
            shared.envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        shared.errno = *libc::__errno_location();
        libc::_exit(127)
    }
}

/// clone3 whose child calls `body(arg)` on the stack given in `args`. Returns the pid or -errno.
///
/// # Safety
/// `args.stack` must be an unused, 16-byte aligned stack, and `body` must never return.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3_call(
    args: &mut libc::clone_args,
    body: extern "C" fn(*mut c_void) -> !,
    arg: *mut c_void,
) -> i64 {
    let ret: i64;
    // SAFETY: the parent leaves the block with only rax, rcx and r11 changed, as after any system call; the
    // child starts on an empty stack and never comes back.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => ret,
            in("rdi") std::ptr::from_mut(args),
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") body,
            in("r13") arg,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    ret
}

/// clone3 whose child calls `body(arg)` on the stack given in `args`. Returns the pid or -errno.
///
/// # Safety
/// `args.stack` must be an unused, 16-byte aligned stack, and `body` must never return.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3_call(
    args: &mut libc::clone_args,
    body: extern "C" fn(*mut c_void) -> !,
    arg: *mut c_void,
) -> i64 {
    let ret: i64;
    // SAFETY: the parent leaves the block with only x0 changed; the child starts on an empty stack and never
    // comes back.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x21",
            "blr x20",
            "brk 1",
            "2:",
            inlateout("x0") std::ptr::from_mut(args) => ret,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
            in("x20") body,
            in("x21") arg,
        );
    }
    ret
}

fn block_all_signals() -> libc::sigset_t {
    // SAFETY: both sets are valid memory that libc fills.
    unsafe {
        let (mut all, mut old) = std::mem::zeroed::<(libc::sigset_t, libc::sigset_t)>();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut old);
        old
    }
}

fn restore_signals(old: &libc::sigset_t) {
    // SAFETY: `old` was filled by `block_all_signals`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old, std::ptr::null_mut()) };
}

/// Unblocks every signal and gives each its default action: what a new program expects.
pub fn reset_signals() {
    // SAFETY: setting default actions and an empty mask installs no handler; numbers that cannot be set
    // (SIGKILL, SIGSTOP, libc's own) are refused without effect.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Waits for a child by its pidfd; `ECHILD` if it is not (or no longer) a child of this process.
pub fn wait(pidfd: &OwnedFd) -> Result<Ended> {
    loop {
        if let Some(ended) = wait_with(pidfd, WaitIdOptions::EXITED)? {
            return Ok(ended);
        }
    }
}

/// Like [`wait`], but does not block: `None` while the child runs.
pub fn try_wait(pidfd: &OwnedFd) -> Result<Option<Ended>> {
    wait_with(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

fn wait_with(pidfd: &OwnedFd, options: WaitIdOptions) -> Result<Option<Ended>> {
    use std::os::fd::AsFd;
    let status =
        rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options))?;
    Ok(status.as_ref().and_then(ended))
}

/// Collects one ended child, whichever it is, except those that `keep` names by pid: they are left to be
/// collected by their pidfd. `None` if there is none to collect.
pub fn reap_other(keep: impl Fn(i32) -> bool) -> Result<Option<i32>> {
    // SAFETY: `info` is valid memory for the kernel to fill.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let peek = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: as above.
    check(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, peek) }.into())?;
    // SAFETY: waitid fills the SIGCHLD member of the union, or leaves it zero.
    let pid = unsafe { info.si_pid() };
    if pid == 0 || keep(pid) {
        return Ok(None);
    }
    let collect = libc::WEXITED | libc::WNOHANG;
    // SAFETY: as above; the child is dead, so its pid is still its own.
    check(unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &raw mut info, collect) }.into())?;
    Ok(Some(pid))
}

fn ended(status: &WaitIdStatus) -> Option<Ended> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Ended::Code(code)),
        (None, Some(signal)) => Some(Ended::Signal(signal)),
        (None, None) => None,
    }
}

/// Collects ended children until this process is killed: all that the init process of a namespace has to do.
pub fn reap_for_ever() -> ! {
    // SAFETY: the sets are valid memory; waiting for a blocked signal and collecting children touch no
    // memory but what is given.
    unsafe {
        let mut children = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut children);
        libc::sigaddset(&raw mut children, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const children, std::ptr::null_mut());
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            libc::sigwaitinfo(&raw const children, std::ptr::null_mut());
        }
    }
}

/// Sends a signal by number; `ESRCH` once the process has been collected.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: no pointer is passed but null for the siginfo.
    unsafe {
        check(libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        ))?;
    }
    Ok(())
}

/// SIGKILL by pid for a process of this one's own namespace; used where no pidfd can be had.
pub fn kill(pid: Pid) -> Result<()> {
    rustix::process::kill_process(pid, Signal::KILL)
}

/// Enters namespaces: all of `namespaces` of the process behind a pidfd, or the one behind a namespace file.
pub fn setns(fd: BorrowedFd<'_>, namespaces: u64) -> Result<()> {
    let flags = libc::c_int::try_from(namespaces).map_err(|_| Errno::INVAL)?;
    // SAFETY: no memory is involved; descriptors stay valid across the change of namespaces.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) }.into())?;
    Ok(())
}

/// Makes namespaces new for the calling, single-threaded process.
pub fn unshare(namespaces: u64) -> Result<()> {
    let flags = libc::c_int::try_from(namespaces).map_err(|_| Errno::INVAL)?;
    // SAFETY: only namespace flags are given: no descriptor table is unshared.
    check(unsafe { libc::unshare(flags) }.into())?;
    Ok(())
}

/// The number of a process in the pid namespace of the mounted /proc, which a supervisor inside a pid
/// namespace of its own cannot know otherwise: the `Pid:` line of the pidfd's fdinfo.
pub fn host_pid(pidfd: &OwnedFd) -> Result<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|v| v.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or(Errno::SRCH)
}

/// Replaces the program of this process. Returns only the error.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: the path and the null-terminated arrays point to C strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    last_errno()
}

/// Like [`execve`], for a program that is open.
pub fn execve_fd(program: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: the null-terminated arrays point to C strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    last_errno()
}

/// Ends this process at once, without running destructors or exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and has no precondition.
    unsafe { libc::_exit(code) }
}

/// A descriptor that becomes readable when one of `signals` arrives; they are blocked otherwise.
pub fn signal_descriptor(signals: &[i32]) -> Result<OwnedFd> {
    // SAFETY: the set is valid memory; the returned descriptor is new and owned by nobody else.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Gives back what an idle process does not need: freed memory, and the mapping of its own code and
/// constants. Those stay in the page cache, shared by every process of this program, and come back by minor
/// faults of 64 KiB each (about 1 µs) when they are needed again.
pub fn trim_memory() {
    // Both symbols are the linker's (GNU ld and lld): the first byte of the image and the end of its code.
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    // SAFETY: malloc_trim has no precondition.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: sysconf has no precondition.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(usize::MAX);
    let start = (&raw const __executable_start).addr();
    let end = (&raw const etext).addr() & !(page - 1);
    if start.is_multiple_of(page) && start < end {
        let image = (&raw const __executable_start).cast_mut().cast();
        // SAFETY: the range holds only read-only private mappings of the executable file, never written to
        // (it has no text relocations), so that dropping their pages changes no content (madvise(2)).
        unsafe { libc::madvise(image, end - start, libc::MADV_DONTNEED) };
    }
}
