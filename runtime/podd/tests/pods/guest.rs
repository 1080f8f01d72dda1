//! The program inside the containers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

/// Runs a guest command if this executable was called as one.
pub(crate) fn main(args: &[String]) -> Option<ExitCode> {
    let name = args.first()?.rsplit('/').next()?;
    let command: Vec<&str> = match name {
        "guest" => args[1..].iter().map(String::as_str).collect(),
        "true" => vec!["exit", "0"],
        _ => return None,
    };
    Some(ExitCode::from(run(&command)))
}

fn run(command: &[&str]) -> u8 {
    match command {
        ["exit", code] => code.parse().unwrap_or(99),
        ["print", text @ ..] => {
            println!("{}", text.join(" "));
            0
        }
        ["both"] => {
            println!("to stdout");
            eprintln!("to stderr");
            0
        }
        ["facts"] => {
            println!("{}", facts());
            0
        }
        ["cat"] => {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
                let mut out = std::io::stdout();
                if out.write_all(&buffer[..length]).and_then(|()| out.flush()).is_err() {
                    return 1;
                }
            }
            0
        }
        ["lines", count] => {
            let count: u64 = count.parse().unwrap_or(0);
            (0..count).for_each(|number| println!("line {number}"));
            0
        }
        ["wait"] => {
            println!("waiting");
            loop {
                std::thread::park();
            }
        }
        ["term"] => {
            // Ends with 7 when it is told to: as init process it needs to ask for the signal.
            let mut signals = rustix_signals();
            println!("waiting");
            signals.wait();
            7
        }
        ["daemon"] => {
            // A grandchild that has left the session, ignores signals and cleared its death signal.
            let mut child = std::process::Command::new("/bin/guest");
            child.args(["wait"]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            let child = child.spawn();
            println!("daemon {}", child.map_or(0, |child| child.id()));
            run(&["wait"])
        }
        ["try", what] => {
            println!("{}", attempt(what));
            0
        }
        _ => 98,
    }
}

/// Blocks SIGTERM and waits for it.
struct Signals(std::os::fd::OwnedFd);

fn rustix_signals() -> Signals {
    Signals(pith_sys::process::signal_descriptor(&[libc::SIGTERM]).expect("signalfd"))
}

impl Signals {
    fn wait(&mut self) {
        let mut fds = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
        while rustix::event::poll(&mut fds, None).is_err() {}
    }
}

/// What a process can find out about itself.
fn facts() -> Value {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let status: BTreeMap<&str, &str> =
        status.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k, v.trim())).collect();
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
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            Some(format!("{} {}", fields.get(4)?, fields.get(5)?))
        })
        .collect();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let nofile = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or("").to_owned();
    let dev: Vec<String> = names("/dev");
    json!({
        "pid": std::process::id(),
        "status": status,
        "fds": fds,
        "mounts": mounts,
        "nofile": nofile,
        "dev": dev,
        "cwd": std::env::current_dir().map(|dir| dir.display().to_string()).unwrap_or_default(),
        "env": std::env::vars().collect::<BTreeMap<_, _>>(),
        "first process": fs::read_to_string("/proc/1/status")
            .unwrap_or_default()
            .lines()
            .find(|line| line.starts_with("Uid:")),
        "hostname": fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim(),
        "cgroup": fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
        "sid": rustix::process::getsid(None).map(|pid| pid.as_raw_nonzero().get()).unwrap_or(0),
        "terminal": rustix::termios::tcgetwinsize(std::io::stdin())
            .map(|size| json!([size.ws_row, size.ws_col]))
            .unwrap_or_default(),
        "cgroup files": names("/sys/fs/cgroup"),
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

/// Tries to do something that a container must not be able to do; says how it went.
fn attempt(what: &str) -> String {
    let io = |result: std::io::Result<()>| match result {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("refused: {}", error.raw_os_error().unwrap_or(0)),
    };
    let kernel = |result: Result<(), rustix::io::Errno>| io(result.map_err(Into::into));
    match what {
        "write sysctl" => io(fs::write("/proc/sys/kernel/domainname", "x")),
        "read masked" => match fs::read("/proc/interrupts") {
            Ok(bytes) => format!("{} bytes", bytes.len()),
            Err(error) => format!("refused: {}", error.raw_os_error().unwrap_or(0)),
        },
        "list firmware" => format!("{} names", names("/sys/firmware").len()),
        "mount tmpfs" => kernel(rustix::mount::mount(
            "tmpfs",
            "/tmp",
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            None::<&std::ffi::CStr>,
        )),
        "unshare" => kernel(pith_sys::process::unshare(pith_sys::process::namespaces::USER)),
        "write root" => io(fs::write("/created", "x")),
        "write exe" => io(fs::OpenOptions::new().write(true).open("/proc/self/exe").map(|_| ())),
        "write parent exe" => io(fs::OpenOptions::new().write(true).open("/proc/1/exe").map(|_| ())),
        "read etc-host" => fs::read_to_string("/mnt/secret").unwrap_or_else(|error| error.to_string()),
        "root of 1" => io(fs::read_dir("/proc/1/root/").map(|_| ())),
        _ => "unknown".to_owned(),
    }
}
