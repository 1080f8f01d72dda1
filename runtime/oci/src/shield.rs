//! Keeping this program's file out of the reach of containers.
//!
//! A container whose program is `/proc/self/exe`, or a script that names it as its interpreter, executes this file;
//! from then on the file can be opened through `/proc/<pid>/exe`, and written to once nobody executes it any more
//! (CVE-2019-5736). So what runs is not the file itself but a view of it through a mount that is read-only, in no
//! mount namespace, and so in nobody's power to change; where such a mount cannot be had, a sealed copy in memory.
//!
//! Usually `pith_sys::entry` has seen to it before this program began; here is what it leaves: ordinary users, copies,
//! and programs that are linked otherwise (`build.rs`).

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

const SELF: &str = "/proc/self/exe";

/// Executes this program again through a safe view of its file, unless it already is. Where neither is allowed the
/// program goes on as it is: it does not run as root then, or in a place that is confined itself.
pub fn raise() {
    if is_raised().unwrap_or(true) {
        return;
    }
    if let Ok(program) = read_only_view().or_else(|_| sealed_copy()) {
        let text = |words: Vec<std::ffi::OsString>| -> Vec<CString> {
            words.into_iter().filter_map(|word| CString::new(word.into_vec()).ok()).collect()
        };
        let args = text(std::env::args_os().collect());
        let env = text(
            std::env::vars_os()
                .map(|(mut name, value)| {
                    name.push("=");
                    name.push(value);
                    name
                })
                .collect(),
        );
        pith_sys::process::execve_fd(program.as_fd(), &args, &env);
    }
}

fn is_raised() -> Result<bool, Errno> {
    let own = rustix::fs::open(SELF, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let user = rustix::process::geteuid();
    if !user.is_root() && rustix::fs::fstat(&own)?.st_uid != user.as_raw() {
        // Root inside is this user outside, and the file is not this user's.
        return Ok(true);
    }
    if rustix::fs::fstatvfs(&own)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    Ok(rustix::fs::fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SealFlags::WRITE)))
}

fn read_only_view() -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = rustix::mount::open_tree(CWD, SELF, flags)?;
    let change = pith_sys::mount::Change { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
    pith_sys::mount::set_attributes(view.as_fd(), change)?;
    Ok(view)
}

fn sealed_copy() -> Result<OwnedFd, Errno> {
    let memory = rustix::fs::memfd_create("pith", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let file = rustix::fs::open(SELF, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    std::io::copy(
        &mut std::fs::File::from(file),
        &mut std::fs::File::from(memory.try_clone().map_err(errno)?),
    )
    .map_err(errno)?;
    rustix::fs::fcntl_add_seals(
        &memory,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(memory)
}

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
