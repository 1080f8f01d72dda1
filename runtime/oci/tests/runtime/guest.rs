//! The program inside the containers, and the hooks beside them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::ExitCode;

use serde_json::{Value, json};

/// Runs a guest command if this executable was called as one.
pub(crate) fn main(args: &[String]) -> Option<ExitCode> {
    let name = args.first()?.rsplit('/').next()?;
    let words: Vec<&str> = args[1..].iter().map(String::as_str).collect();
    match name {
        "guest" => Some(ExitCode::from(run(&words))),
        "true" => Some(ExitCode::SUCCESS),
        "hook" => Some(ExitCode::from(hook(&words))),
        _ => None,
    }
}

/// Appends a line with what it was called with and the state it got; ends with a code.
fn hook(words: &[&str]) -> u8 {
    let [file, name, code] = words else { return 90 };
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    let state: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let line = json!({
        "name": name,
        "state": state,
        "env": std::env::vars().collect::<BTreeMap<_, _>>(),
        "cwd": std::env::current_dir().map(|dir| dir.display().to_string()).unwrap_or_default(),
        "proc mounted at root path": fs::read_dir(
            state["bundle"].as_str().map(|bundle| format!("{bundle}/rootfs/proc/self")).unwrap_or_default(),
        ).is_ok(),
        "pid": std::process::id(),
    });
    let written = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .and_then(|mut file| writeln!(file, "{line}"));
    if read.is_err() || written.is_err() {
        return 91;
    }
    if *code == "hang" {
        loop {
            std::thread::park();
        }
    }
    code.parse().unwrap_or(92)
}

fn run(words: &[&str]) -> u8 {
    match words {
        ["exit", code] => code.parse().unwrap_or(99),
        ["print", text @ ..] => {
            println!("{}", text.join(" "));
            0
        }
        ["facts"] => {
            println!("{}", facts());
            0
        }
        ["wait"] => loop {
            std::thread::park();
        },
        ["term"] => {
            // Ends with 7 when it is told to: as the first process it needs to ask for the signal.
            let signals = pith_sys::process::signal_descriptor(&[libc::SIGTERM]).expect("signalfd");
            fs::write("/tmp/ready", "").expect("write");
            let mut fds = [rustix::event::PollFd::new(&signals, rustix::event::PollFlags::IN)];
            while rustix::event::poll(&mut fds, None).is_err() {}
            7
        }
        ["killed", signal] => {
            let signal = signal.parse().unwrap_or(0);
            let me =
                rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
            let _ = me.map(|me| pith_sys::process::signal(std::os::fd::AsFd::as_fd(&me), signal));
            97
        }
        ["cat"] => {
            let mut text = String::new();
            let _ = std::io::stdin().read_to_string(&mut text);
            print!("{text}");
            0
        }
        ["read", path] => {
            print!("{}", fs::read_to_string(path).unwrap_or_else(|error| error.to_string()));
            0
        }
        ["try", what @ ..] => {
            for what in what {
                println!("{what}: {}", attempt(what));
            }
            0
        }
        ["fork", count] => {
            println!("{}", fork(count));
            run(&["wait"])
        }
        ["count forks", count] => {
            println!("{}", fork(count));
            0
        }
        ["eat", mebibytes] => {
            // Not zeros, which the kernel would not have to keep.
            let eaten = vec![1_u8; mebibytes.parse::<usize>().unwrap_or(0) << 20];
            u8::from(std::hint::black_box(eaten).is_empty())
        }
        ["run away"] => {
            // Nobody who reads a list of processes and kills those on it gets everyone: each has gone on by then.
            let command = || std::process::Command::new("/bin/guest").arg("run away").spawn();
            u8::from(command().is_err())
        }
        ["burn", milliseconds] => {
            let length = std::time::Duration::from_millis(milliseconds.parse().unwrap_or(0));
            let start = std::time::Instant::now();
            while start.elapsed() < length {
                std::hint::spin_loop();
            }
            0
        }
        _ => 98,
    }
}

/// How many of so many children could be started. They end with the container.
fn fork(count: &str) -> usize {
    (0..count.parse().unwrap_or(0))
        .map(|_| std::process::Command::new("/bin/guest").arg("wait").spawn())
        .filter(Result::is_ok)
        .count()
}

fn lines(path: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let pair =
        |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(pair).collect()
}

/// What a process can find out about itself.
fn facts() -> Value {
    let mut fds: Vec<String> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?.display().to_string();
            // The listing's own descriptor.
            (!target.starts_with("/proc/")).then(|| entry.file_name().to_string_lossy().into_owned())
        })
        .collect();
    fds.sort();
    let mounts: Vec<String> = fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(" / ").or_else(|| line.split_once(' ')).map(|_| line.to_owned()))
        .collect();
    let devices: BTreeMap<String, String> = names("/dev")
        .into_iter()
        .filter_map(|name| {
            let found = fs::symlink_metadata(format!("/dev/{name}")).ok()?;
            let kind = if found.file_type().is_char_device() {
                "c"
            } else if found.file_type().is_block_device() {
                "b"
            } else if found.file_type().is_fifo() {
                "p"
            } else {
                return None;
            };
            let (major, minor) = (libc::major(found.rdev()), libc::minor(found.rdev()));
            Some((
                name,
                format!("{kind} {major}:{minor} {:o} {}:{}", found.mode() & 0o7777, found.uid(), found.gid()),
            ))
        })
        .collect();
    let namespaces: BTreeMap<String, String> = names("/proc/self/ns")
        .into_iter()
        .map(|name| {
            (
                name.clone(),
                fs::read_link(format!("/proc/self/ns/{name}"))
                    .map(|l| l.display().to_string())
                    .unwrap_or_default(),
            )
        })
        .collect();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    json!({
        "pid": std::process::id(),
        "args": std::env::args().collect::<Vec<_>>(),
        "status": lines("/proc/self/status"),
        "limits": read("/proc/self/limits"),
        "sched": read("/proc/self/sched"),
        "stat": read("/proc/self/stat"),
        "personality": read("/proc/self/personality"),
        "oom": read("/proc/self/oom_score_adj"),
        "io priority": pith_sys::attributes::io_priority().map(|(class, level)| json!([class, level]))
            .unwrap_or_default(),
        "numa": read("/proc/self/numa_maps"),
        "fds": fds,
        "mounts": mounts,
        "devices": devices,
        "dev": names("/dev"),
        "srv": names("/srv"),
        "namespaces": namespaces,
        "cwd": std::env::current_dir().map(|dir| dir.display().to_string()).unwrap_or_default(),
        "variables": std::env::vars().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
        "env": std::env::vars().collect::<BTreeMap<_, _>>(),
        "hostname": read("/proc/sys/kernel/hostname"),
        "domainname": read("/proc/sys/kernel/domainname"),
        "msgmax": read("/proc/sys/kernel/msgmax"),
        "cgroup": read("/proc/self/cgroup"),
        "uid_map": read("/proc/self/uid_map"),
        "timens": read("/proc/self/timens_offsets"),
        "uptime": read("/proc/uptime"),
        "keyring": read("/proc/keys"),
        "ids": [rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()],
        "terminal": rustix::termios::tcgetwinsize(std::io::stdin())
            .map(|size| json!([size.ws_row, size.ws_col]))
            .unwrap_or_default(),
        "owner of srv": fs::metadata("/srv").map(|found| json!([found.uid(), found.gid()])).unwrap_or_default(),
    })
}

fn names(dir: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Tries to do something; says how it went.
/// Mounts a procfs in namespaces below a user namespace of its own, as root of which it may.
fn procfs_of_its_own() -> Result<(), rustix::io::Errno> {
    use pith_sys::process::{Ended, namespaces};
    let flags = namespaces::USER | namespaces::MOUNT | namespaces::PID;
    let child = pith_sys::process::fork(flags, None, || {
        let mounted = rustix::mount::mount("proc", "/proc", "proc", rustix::mount::MountFlags::empty(), None);
        mounted.map_or_else(rustix::io::Errno::raw_os_error, |()| 0)
    })?;
    match pith_sys::process::wait(&child.pidfd)? {
        Ended::Code(0) => Ok(()),
        Ended::Code(errno) => Err(rustix::io::Errno::from_raw_os_error(errno)),
        Ended::Signal(_) => Err(rustix::io::Errno::INTR),
    }
}

fn attempt(what: &str) -> String {
    let io = |result: std::io::Result<()>| match result {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("refused {}", error.raw_os_error().unwrap_or(0)),
    };
    let kernel = |result: Result<(), rustix::io::Errno>| io(result.map_err(Into::into));
    match what.split_once(' ').unwrap_or((what, "")) {
        ("write", path) => io(fs::write(path, "x")),
        ("open-write", path) => io(fs::OpenOptions::new().write(true).open(path).map(drop)),
        ("length", path) => {
            fs::read(path).map_or_else(|error| io(Err(error)), |bytes| bytes.len().to_string())
        }
        ("list", path) => {
            fs::read_dir(path).map_or_else(|error| io(Err(error)), |entries| entries.count().to_string())
        }
        ("mkdir", path) => io(fs::create_dir(path)),
        ("mknod", path) => kernel(rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::BlockDevice,
            rustix::fs::Mode::from_raw_mode(0o666),
            rustix::fs::makedev(254, 0),
        )),
        ("mode", path) => {
            let mode = |metadata: fs::Metadata| format!("{:o}", metadata.mode() & 0o7777);
            fs::metadata(path).map_or_else(|error| io(Err(error)), mode)
        }
        ("proc", _) => kernel(procfs_of_its_own()),
        ("env", name) => std::env::var(name).unwrap_or_else(|_| "unset".to_owned()),
        ("getcwd", _) => io(std::env::current_dir().map(drop)),
        ("unshare", _) => kernel(pith_sys::process::unshare(pith_sys::process::namespaces::USER)),
        ("shared", path) => {
            let info = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let line = info.lines().find(|line| line.split(' ').nth(4) == Some(path));
            line.map_or_else(String::new, |line| {
                line.split(" - ").next().unwrap_or_default().split(' ').skip(6).collect()
            })
        }
        _ => "unknown".to_owned(),
    }
}
