//! The last step: finding the program and becoming it.

use std::collections::btree_map::{BTreeMap, Entry};
use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::{Errno, FdFlags};

use crate::plan::{Exec, Failure, FailureKind};

use super::Executor;

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Executor {
    /// Whether there is such a program.
    pub(super) fn look_up(&self, exec: &Exec) -> Result<(), Failure> {
        match exec.args.first() {
            Some(name) => find(name, &exec.env).map(drop),
            // A container without a process: there is nothing to look up, and its start is refused.
            None => Ok(()),
        }
    }

    /// Everything that the program is started with.
    pub(super) fn program(&self, exec: &Exec) -> Result<Program, Failure> {
        let name = exec.args.first().map_or("", String::as_str);
        let path = find(name, &exec.env)?;
        let mut env = last_of_each(&exec.env);
        if !env.iter().any(|variable| variable.starts_with("HOME=")) {
            let home = self.identity.as_ref().and_then(|identity| identity.home.clone());
            env.push(format!("HOME={}", home.filter(|home| !home.is_empty()).unwrap_or("/".to_owned())));
        }
        let strings = |strings: &[String]| -> Result<Vec<CString>, Failure> {
            strings
                .iter()
                .map(|text| CString::new(text.as_str()).map_err(|_| bad(name, Errno::INVAL)))
                .collect()
        };
        let (args, env) = (strings(&exec.args)?, strings(&env)?);
        let file = CString::new(path.as_str()).map_err(|_| bad(name, Errno::INVAL))?;
        Ok(Program { path, file, args, env })
    }

    /// From here on nothing of the host is open but the control socket, which execve closes.
    pub(super) fn pass_descriptors(&self, program: &Program) -> Result<(), Failure> {
        let passed = self.preserved.iter().try_for_each(|fd| rustix::io::fcntl_setfd(fd, FdFlags::empty()));
        let first = 3 + u32::try_from(self.preserved.len()).unwrap_or(0);
        passed
            .and_then(|()| pith_sys::descriptor::close_all_but(first, self.control.as_fd()))
            .map_err(|errno| bad(&program.path, errno))
    }
}

/// A program that has been found.
pub(super) struct Program {
    path: String,
    file: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Becomes it; returns only why not.
    pub(super) fn execute(&self) -> Failure {
        let errno = pith_sys::process::execve(&self.file, &self.args, &self.env);
        let kind = if errno == Errno::NOENT { FailureKind::NotFound } else { FailureKind::NotExecutable };
        failed(kind, errno, format!("exec {}: {}", self.path, words(errno)))
    }
}

/// Of variables that are given twice the last one counts, as with every other runtime; getenv(3) would find the first.
fn last_of_each(given: &[String]) -> Vec<String> {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut env: Vec<String> = Vec::new();
    for variable in given {
        let name = variable.split('=').next().unwrap_or_default();
        match places.entry(name) {
            Entry::Occupied(place) => env[*place.get()].clone_from(variable),
            Entry::Vacant(place) => {
                place.insert(env.len());
                env.push(variable.clone());
            }
        }
    }
    env
}

/// The path of a program, with the words Go's `os/exec` (and so every other runtime) has for failures.
fn find(name: &str, env: &[String]) -> Result<String, Failure> {
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(Errno::NOENT) => {
                let message = format!("exec: {name:?}: stat {name}: no such file or directory");
                Err(failed(FailureKind::NotFound, Errno::NOENT, message))
            }
            Err(errno) => Err(bad(name, errno)),
        };
    }
    let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut refused = None;
    for dir in path.split(':').filter(|dir| dir.starts_with('/')) {
        let candidate = format!("{}/{name}", dir.trim_end_matches('/'));
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => refused = Some(Errno::ACCESS),
            Err(_) => {}
        }
    }
    match refused {
        Some(errno) => Err(bad(name, errno)),
        None => {
            let message = format!("exec: {name:?}: executable file not found in $PATH");
            Err(failed(FailureKind::NotFound, Errno::NOENT, message))
        }
    }
}

fn executable(path: &str) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Err(Errno::ISDIR),
        FileType::RegularFile => rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS),
        _ => Err(Errno::ACCESS),
    }
}

fn bad(name: &str, errno: Errno) -> Failure {
    failed(FailureKind::NotExecutable, errno, format!("exec: {name:?}: {}", words(errno)))
}

fn failed(kind: FailureKind, errno: Errno, message: String) -> Failure {
    Failure { kind, step: "execve".to_owned(), errno: errno.raw_os_error(), message }
}

/// The kernel's words as Go prints them: lower case, without the number.
fn words(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "no such file or directory".to_owned(),
        Errno::ACCESS => "permission denied".to_owned(),
        Errno::PERM => "operation not permitted".to_owned(),
        Errno::NOEXEC => "exec format error".to_owned(),
        Errno::ISDIR => "is a directory".to_owned(),
        Errno::TXTBSY => "text file busy".to_owned(),
        Errno::TOOBIG => "argument list too long".to_owned(),
        Errno::INVAL => "invalid argument".to_owned(),
        errno => errno.to_string().to_lowercase(),
    }
}
