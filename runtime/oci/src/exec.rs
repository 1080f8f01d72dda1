//! `exec`: another process in a running container.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::{BoxBuilder, Process, Spec};
use pith_container::compile::{self, CgroupView, Options, capability_sets};
use pith_container::execute::{self, Launch, Report};
use pith_container::plan::{Enter, Namespace};
use pith_container::supervisor::protocol::CgroupDirs;
use pith_container::supervisor::wire::{self, WireError};

use crate::args::Parsed;
use crate::bundle;
use crate::cgroup;
use crate::console::{self, Foreground, Inherited};
use crate::create::{caller, namespaces_of};
use crate::error::{Error, Result};
use crate::log::Log;
use crate::notify;
use crate::state::{Folder, State, Status};
use crate::witness::Witness;

/// Runs a process; its exit code, or 0 once it runs detached.
pub(crate) fn exec(
    folder: &Folder,
    flags: &Parsed,
    words: &[String],
    inherited: &Inherited,
    log: &Log,
) -> Result<i32> {
    let state = folder.load()?;
    match state.status(folder) {
        Status::Created | Status::Running => {}
        Status::Paused if flags.is_set("ignore-paused") => {}
        Status::Paused => return Err(Error::ExecPaused),
        status @ (Status::Creating | Status::Stopped) => return Err(Error::CannotExec(status)),
    }
    let target = state.process.ok_or(Error::NotRunning)?;
    let pidfd = target.open()?.ok_or(Error::NotRunning)?;
    let mut spec = read_spec(folder, log)?;
    if let Some(root) = spec.root_mut() {
        // The file's may be relative to its bundle.
        root.set_path(state.rootfs.clone());
    }
    let process = process(&spec, flags, words, inherited, log)?;
    let detach = flags.is_set("detach");
    let socket = flags.get("console-socket");
    console::check(process.terminal().unwrap_or(false), socket.is_some(), !detach)?;
    let foreground = if detach { None } else { Some(Foreground::new()?) };

    let namespaces = namespaces_of(target.pid);
    let pid_namespace = namespaces.contains(&Namespace::Pid).then(|| pidfd.as_fd());
    let joined = namespaces.into_iter().filter(|namespace| *namespace != Namespace::Pid).collect();
    let options = options(&state, flags.get("cgroup"))?;
    let caller = caller(None, Enter::Pivot);
    let plan = compile::exec_bundle(&spec, &process, &options, &caller, joined)?;
    let launched = execute::launch(&Launch {
        hold: true,
        outlive: true,
        target: Some(pidfd.as_fd()),
        pid_namespace,
        preserved: &inherited.borrowed(),
        ..Launch::new(&plan, console::stdio())
    })
    .map_err(Error::Start)?;
    let pid = launched.child.pid;
    let mut terminal = None;
    let mut executing = false;
    loop {
        match wire::receive::<Report>(launched.control.as_fd(), true) {
            // Said when the container was created.
            Ok((Report::Notice(text), _)) => log.debug(&text),
            Ok((Report::Terminal, mut fds)) => {
                terminal = fds.pop();
                if !detach {
                    terminal.iter().for_each(console::keep_line_ends);
                }
            }
            Ok((Report::Listener, mut fds)) => {
                let listener = fds.pop().ok_or(Error::Died)?;
                notify::hand_over(&spec, &state, pid, listener)?;
            }
            Ok((Report::Failed(failure), _)) => {
                let _ = pith_sys::process::wait(&launched.child.pidfd);
                return Err(Error::Start(failure));
            }
            Ok((Report::Ready, _)) => {
                if let (Some(socket), Some(master)) = (socket, terminal.take_if(|_| socket.is_some())) {
                    console::hand_over(socket, &master)?;
                }
                if let Some(path) = flags.get("pid-file") {
                    crate::state::replace(Path::new(path), pid.to_string().as_bytes())?;
                }
                launched.go().map_err(|_| Error::Died)?;
            }
            Ok((Report::Executing, _)) => executing = true,
            Ok((Report::Mappings | Report::Hooks(_) | Report::Step { .. } | Report::Free, _)) => {}
            Err(WireError::Closed) if executing => break,
            Err(_) => return Err(Error::Died),
        }
    }
    match foreground {
        Some(foreground) => foreground.serve(&launched.child, terminal),
        None => Ok(0),
    }
}

/// The configuration that the container was created with.
fn read_spec(folder: &Folder, log: &Log) -> Result<Spec> {
    let path = folder.config();
    let text = fs::read(&path).map_err(Error::io("read", &path))?;
    bundle::parse(&text, &path, log)
}

fn options(state: &State, below: Option<&str>) -> Result<Options> {
    let mut dirs = CgroupDirs { unified: None, legacy: vec![] };
    if let Some(place) = &state.cgroup {
        let cgroup = place.open()?;
        let unified = cgroup.v2_dir().filter(|dir| dir.is_dir());
        let legacy = cgroup.dirs().into_iter().filter(|dir| Some(dir) != unified.as_ref()).collect();
        dirs = CgroupDirs { unified, legacy };
    }
    for path in below.into_iter().flat_map(|below| below.split(',')) {
        // `controllers:path`, or a path for all of them.
        let (controller, path) = path.split_once(':').map_or((None, path), |(name, path)| (Some(name), path));
        let path = path.trim_matches('/');
        if path.split('/').any(|name| name == "..") {
            return Err(Error::NotBelow(path.to_owned()));
        }
        let mut known = controller.is_none();
        for dir in dirs.unified.iter_mut().chain(&mut dirs.legacy) {
            let wanted = controller.is_none_or(|name| dir.ancestors().any(|above| above.ends_with(name)));
            if wanted {
                *dir = dir.join(path);
                known = true;
            }
        }
        if !known {
            return Err(Error::UnknownController(controller.unwrap_or_default().to_owned()));
        }
    }
    Ok(Options {
        overlay: None,
        cgroup: dirs,
        cgroup_view: CgroupView::of(&*cgroup::hierarchy()?),
        user: None,
        default_seccomp: false,
        confine: Default::default(),
    })
}

/// The process from a file, or the container's own with what the flags change.
fn process(
    spec: &Spec,
    flags: &Parsed,
    words: &[String],
    inherited: &Inherited,
    log: &Log,
) -> Result<Process> {
    let mut process = match flags.get("process") {
        Some(path) => {
            let text = fs::read(path).map_err(Error::io("read", path))?;
            bundle::parse_process(&text, Path::new(path), log)?
        }
        None => {
            if words.is_empty() {
                return Err(Error::Usage("process args cannot be empty".to_owned()));
            }
            let process = spec.process().clone();
            let process = process.ok_or_else(|| Error::Invalid("process is missing".to_owned()))?;
            from_flags(process, flags, words, log)?
        }
    };
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(inherited.variables());
    process.set_env(Some(env));
    Ok(process)
}

fn from_flags(mut process: Process, flags: &Parsed, words: &[String], log: &Log) -> Result<Process> {
    process.set_args(Some(words.to_vec()));
    process.set_terminal(Some(flags.is_set("tty")));
    if flags.is_set("tty")
        && let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin())
    {
        let size = BoxBuilder::default().height(u64::from(size.ws_row)).width(u64::from(size.ws_col)).build();
        process.set_console_size(size.ok());
    }
    if let Some(cwd) = flags.get("cwd") {
        process.set_cwd(cwd.into());
    }
    if let Some(profile) = flags.get("apparmor") {
        process.set_apparmor_profile(Some(profile.to_owned()));
    }
    if let Some(label) = flags.get("process-label") {
        process.set_selinux_label(Some(label.to_owned()));
    }
    if flags.is_set("no-new-privs") {
        process.set_no_new_privileges(Some(true));
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(flags.all("env").map(str::to_owned));
    process.set_env(Some(env));
    let number = |text: &str| {
        // Rust's own parser takes a sign as well.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u32>().ok().filter(|_| digits);
        number.ok_or_else(|| Error::Usage(format!("{text:?} is not a user or group number")))
    };
    if let Some(user) = flags.get("user") {
        let (uid, gid) = user.split_once(':').map_or((user, None), |(uid, gid)| (uid, Some(gid)));
        process.user_mut().set_uid(number(uid)?);
        if let Some(gid) = gid {
            process.user_mut().set_gid(number(gid)?);
        }
    }
    let groups = flags.all("additional-gids").flat_map(|gids| gids.split(',')).map(number);
    let groups = groups.collect::<Result<Vec<u32>>>()?;
    if !groups.is_empty() {
        let mut all = process.user().additional_gids().clone().unwrap_or_default();
        all.extend(groups);
        process.user_mut().set_additional_gids(Some(all));
    }
    let more: Vec<&str> = flags.all("cap").flat_map(|caps| caps.split(',')).collect();
    if !more.is_empty() {
        add_capabilities(&mut process, &more, log)?;
    }
    Ok(process)
}

/// Adds to the sets that let a program have them; nothing becomes inheritable (CVE-2022-29162). Unknown ones are named in
/// a warning, as those of a configuration are.
fn add_capabilities(process: &mut Process, names: &[&str], log: &Log) -> Result<()> {
    let (known, unknown): (Vec<&str>, Vec<&str>) =
        names.iter().partition(|name| compile::capability_mask(name).is_ok());
    if !unknown.is_empty() {
        log.warn(&format!("ignoring unknown or unavailable capabilities: {}", unknown.join(", ")));
    }
    let more = capability_sets(&known)?;
    let mut sets = match process.capabilities() {
        Some(sets) => sets.clone(),
        None => capability_sets::<&str>(&[])?,
    };
    let joined = |ours: &Option<oci_spec::runtime::Capabilities>,
                  theirs: &Option<oci_spec::runtime::Capabilities>| {
        Some(ours.iter().flatten().chain(theirs.iter().flatten()).copied().collect())
    };
    sets.set_bounding(joined(sets.bounding(), more.bounding()));
    sets.set_effective(joined(sets.effective(), more.effective()));
    sets.set_permitted(joined(sets.permitted(), more.permitted()));
    process.set_capabilities(Some(sets));
    Ok(())
}
