//! `create`: from a bundle to a process that waits at its gate.
//!
//! The state folder comes first and names the cgroup before that is made; the process dies with this one until the
//! state names it too. So whenever this command is killed, what it leaves can be found and deleted.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use pith_cgroup::Hierarchy;
use pith_container::compile::{self, Caller, CgroupView, Options, Overlay, hooks_of};
use pith_container::execute::{self, Gate, Launch, Launched, Report};
use pith_container::hooks;
use pith_container::plan::{Enter, Hook, Namespace, Plan, Stage};
use pith_container::supervisor::protocol::CgroupDirs;
use pith_container::supervisor::wire::{self, WireError};
use pith_sys::process::Child;

use crate::bundle::Bundle;
use crate::cgroup::{self, Place};
use crate::console::{self, Inherited};
use crate::delete;
use crate::error::{Error, Result};
use crate::notify;
use crate::state::{Folder, Identified, State, Status};
use crate::witness::{By, Witness, tell, tell_step};

/// What a caller asks for beside the configuration.
pub struct Request<'a> {
    /// Folder of the containers' folders.
    pub root: &'a Path,
    pub id: &'a str,
    pub bundle: Bundle,
    pub extras: Extras,
    pub console_socket: Option<&'a str>,
    pub pid_file: Option<PathBuf>,
    pub inherited: &'a Inherited,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    /// The terminal, if there is one, is this command's to serve.
    pub attached: bool,
    /// The container ends with this process, however that ends.
    pub tied: bool,
    pub witness: &'a dyn Witness,
}

/// What an image says and a configuration has no field for.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// The root from layers, in place of `root.path`.
    pub overlay: Option<Overlay>,
    /// `user[:group]`, looked up in the container's own files.
    pub user: Option<String>,
    /// Load the default seccomp profile where the configuration has none.
    pub default_seccomp: bool,
}

/// A container in state `created`.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) folder: Folder,
    pub(crate) state: State,
    pub(crate) child: Child,
    /// The terminal's master, where no console socket took it.
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) plan: Plan,
}

pub(crate) fn create(request: &mut Request<'_>) -> Result<Created> {
    request.bundle.add_variables(request.inherited.variables());
    let request = &*request;
    let bundle = &request.bundle;
    let terminal = bundle.spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
    console::check(terminal, request.console_socket.is_some(), request.attached)?;
    compile::passed_over(&bundle.spec).iter().for_each(|what| request.witness.warn(what));
    let hierarchy = cgroup::hierarchy()?;
    let folder = Folder::make(request.root, request.id)?;
    let state = Place::of(&bundle.spec, request.id, &hierarchy)
        .and_then(|place| new_state(bundle, &folder, place))
        .inspect_err(|_| drop(folder.remove()))?;
    let made = Making { request, bundle, folder: &folder, hierarchy: &hierarchy }.make(state.clone());
    made.inspect_err(|_| {
        // Nothing half-created stays behind; what cannot be removed is said, and `delete --force` tries again.
        if let Err(left) = delete::remove(&folder, &state, true) {
            request.witness.warn(&format!("cleaning up: {left}"));
        }
        run_poststop(&state, request.witness);
    })
}

fn new_state(bundle: &Bundle, folder: &Folder, place: Place) -> Result<State> {
    let hooks = bundle.spec.hooks().as_ref();
    let own = Identified::of(std::process::id().cast_signed());
    let linux = bundle.spec.linux().as_ref();
    let mut namespaces = linux.and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten();
    Ok(State {
        id: folder.id.clone(),
        bundle: bundle.dir.clone(),
        rootfs: bundle.rootfs(),
        created: jiff::Timestamp::now().to_string(),
        owner: rustix::process::geteuid().as_raw(),
        annotations: bundle.spec.annotations().clone().unwrap_or_default().into_iter().collect(),
        creator: own.ok_or(Error::NotRunning)?,
        process: None,
        cgroup: Some(place),
        covered: match compile::mounts_in_the_callers_namespace(&bundle.spec) {
            true => Some(delete::mount_at(&bundle.rootfs())?),
            false => None,
        },
        has_program: bundle.spec.process().is_some(),
        own_pids: namespaces.any(|namespace| namespace.typ() == oci_spec::runtime::LinuxNamespaceType::Pid),
        config_version: bundle.spec.version().clone(),
        poststart: hooks_of(hooks, Stage::Poststart)?,
        poststop: hooks_of(hooks, Stage::Poststop)?,
    })
}

/// Hooks of a container that never came to be (OCI lifecycle, step 12 on).
fn run_poststop(state: &State, witness: &dyn Witness) {
    if !state.poststop.is_empty() {
        delete::run_poststop(state, witness);
    }
}

struct Making<'a> {
    request: &'a Request<'a>,
    bundle: &'a Bundle,
    folder: &'a Folder,
    hierarchy: &'a std::sync::Arc<Hierarchy>,
}

impl Making<'_> {
    fn make(&self, mut state: State) -> Result<Created> {
        let spec = &self.bundle.spec;
        self.folder.save(&state)?;
        let linux = spec.linux().clone().unwrap_or_default();
        let cgroup = match &state.cgroup {
            Some(place) => match cgroup::make(self.hierarchy, place, &linux, self.request.witness) {
                Ok(dirs) => dirs,
                Err(error) if is_denied(&error) => {
                    self.request.witness.warn(&format!("no cgroup of its own: {error}"));
                    state.cgroup = None;
                    self.folder.save(&state)?;
                    CgroupDirs { unified: None, legacy: vec![] }
                }
                Err(error) => return Err(error),
            },
            None => CgroupDirs { unified: None, legacy: vec![] },
        };
        let Extras { overlay, user, default_seccomp } = self.request.extras.clone();
        let options = Options {
            overlay,
            cgroup,
            cgroup_view: CgroupView::of(self.hierarchy),
            user,
            default_seccomp,
            confine: Default::default(),
        };
        let plan = compile::bundle(spec, &options, &self.caller())?;
        let hooks = hooks_of(spec.hooks().as_ref(), Stage::StartContainer)?;
        let witness = self.request.witness;
        let prepared =
            execute::prepare(&plan, |step, carried| tell_step(witness, By::Runtime, step, carried));
        let prepared = prepared.map_err(Error::Start)?;
        let gate = self.folder.make_gate()?;
        let launch = Launch {
            hold: true,
            prepared: &prepared,
            preserved: &self.request.inherited.borrowed(),
            outlive: !self.request.tied,
            gate: Some(Gate { socket: gate.as_fd(), hooks: &hooks }),
            trace: witness.wants_steps(),
            ..Launch::new(&plan, console::stdio())
        };
        let words = || (plan.birth_call(), plan.birth_change());
        let launched = tell(witness, words, || execute::launch(&launch)).map_err(Error::Start)?;
        // Closed here, so that nobody is behind the gate once the container's process is gone.
        drop((gate, prepared));
        // The process makes its mounts meanwhile.
        let saved = self.folder.save_config(&self.bundle.text);
        let terminal = saved
            .and_then(|()| self.follow(&launched, &plan, &mut state))
            .inspect_err(|_| end(&launched.child))?;
        Ok(Created { folder: self.folder.clone(), state, child: launched.child, terminal, plan })
    }

    fn caller(&self) -> Caller {
        caller(
            (!self.request.no_new_keyring).then(|| format!("_ses.{}", self.folder.id)),
            if self.request.no_pivot { Enter::Move } else { Enter::Pivot },
        )
    }

    /// Does the supervisor's part while the plan is carried out; returns when the process waits at its gate.
    fn follow(&self, launched: &Launched, plan: &Plan, state: &mut State) -> Result<Option<OwnedFd>> {
        let pid = launched.child.pid;
        let (spec, witness) = (&self.bundle.spec, self.request.witness);
        let mut terminal = None;
        loop {
            let (report, mut fds) = match wire::receive::<Report>(launched.control.as_fd(), true) {
                Ok(received) => received,
                Err(WireError::Closed) => return Err(Error::Died),
                Err(error) => {
                    return Err(Error::Io {
                        operation: "hear from",
                        path: "the container's process".into(),
                        source: std::io::Error::other(error.to_string()),
                    });
                }
            };
            match report {
                Report::Notice(text) => witness.warn(&text),
                Report::Terminal => {
                    terminal = fds.pop();
                    if self.request.attached {
                        terminal.iter().for_each(console::keep_line_ends);
                    }
                }
                Report::Mappings => {
                    if let Some(mappings) = &plan.mappings {
                        let rootless = !rustix::process::geteuid().is_root();
                        let words = || (mappings.call(pid), mappings.change());
                        tell(witness, words, || execute::write_mappings(pid, mappings, rootless))
                            .map_err(Error::io("write the uid and gid maps of", "the user namespace"))?;
                    }
                    answer(launched, b"go")?;
                }
                Report::Hooks(stage) => {
                    let text = state.for_hooks(Status::Creating, pid);
                    if matches!(stage, Stage::Prestart | Stage::CreateRuntime) {
                        hooks::run_all(
                            stage,
                            &hooks_of(spec.hooks().as_ref(), stage)?,
                            &hook_state(state, stage, pid),
                        )?;
                    }
                    answer(launched, &text)?;
                }
                Report::Listener => {
                    let listener = fds.pop().ok_or(Error::Died)?;
                    notify::hand_over(spec, state, pid, listener)?;
                }
                Report::Failed(failure) => return Err(Error::Start(failure)),
                Report::Step { index, carried } => {
                    if let Some(step) = plan.step(index) {
                        tell_step(witness, By::Container, step, carried);
                    }
                }
                Report::Executing | Report::Free => {}
                Report::Ready => break,
            }
        }
        if let (Some(socket), Some(master)) = (self.request.console_socket, &terminal) {
            console::hand_over(socket, master)?;
            terminal = None;
        }
        state.process = Some(Identified::of(pid).ok_or(Error::Died)?);
        self.folder.save(state)?;
        if let Some(path) = &self.request.pid_file {
            crate::state::replace(path, pid.to_string().as_bytes())?;
        }
        answer(launched, b"go")?;
        if self.request.tied {
            return Ok(terminal);
        }
        // Until then it would end with this command.
        match wire::receive::<Report>(launched.control.as_fd(), true) {
            Ok((Report::Free, _)) => Ok(terminal),
            Ok(_) | Err(_) => Err(Error::Died),
        }
    }
}

/// Prestart hooks were made when there was no state `creating`: they are told `created`, as the specification's
/// tests still expect; all others what is the case.
fn hook_state(state: &State, stage: Stage, pid: i32) -> Vec<u8> {
    let status = if stage == Stage::Prestart { Status::Created } else { Status::Creating };
    state.for_hooks(status, pid)
}

pub(crate) fn caller(keyring: Option<String>, enter: Enter) -> Caller {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    Caller {
        keyring,
        enter,
        privileged: rustix::process::geteuid().is_root(),
        apparmor: enabled.is_ok_and(|enabled| enabled.starts_with('Y')),
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
    }
}

/// An ordinary user may not make cgroups, and runs without limits then.
fn is_denied(error: &Error) -> bool {
    let Error::Cgroup(error) = error else { return false };
    let denied = [std::io::ErrorKind::PermissionDenied, std::io::ErrorKind::ReadOnlyFilesystem];
    !rustix::process::geteuid().is_root() && error.io_error().is_some_and(|io| denied.contains(&io.kind()))
}

fn answer(launched: &Launched, text: &[u8]) -> Result<()> {
    launched.answer(text).map_err(|_| Error::Died)
}

fn end(child: &Child) {
    // It may have ended by itself; either way it is collected here.
    let _ = pith_sys::process::signal(child.pidfd.as_fd(), libc::SIGKILL);
    let _ = pith_sys::process::wait(&child.pidfd);
}

/// Namespaces of a process that are not this one's.
pub(crate) fn namespaces_of(pid: i32) -> Vec<Namespace> {
    const KINDS: [(Namespace, &str); 8] = [
        (Namespace::User, "user"),
        (Namespace::Mount, "mnt"),
        (Namespace::Pid, "pid"),
        (Namespace::Network, "net"),
        (Namespace::Ipc, "ipc"),
        (Namespace::Uts, "uts"),
        (Namespace::Cgroup, "cgroup"),
        (Namespace::Time, "time"),
    ];
    let link = |whose: &str, name: &str| std::fs::read_link(format!("/proc/{whose}/ns/{name}")).ok();
    let pid = pid.to_string();
    KINDS
        .into_iter()
        .filter(|(_, name)| link(&pid, name) != link("self", name))
        .map(|(kind, _)| kind)
        .collect()
}

/// The hooks of a container, for those who only have its state.
pub(crate) fn run_hooks(stage: Stage, hooks: &[Hook], state: &State, status: Status, pid: i32) -> Result<()> {
    Ok(hooks::run_all(stage, hooks, &state.for_hooks(status, pid))?)
}
