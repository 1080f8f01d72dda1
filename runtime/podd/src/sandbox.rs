//! What the supervisor makes of itself before it serves: mounts, parameters, name, cgroup.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use pith_container::execute::{Launch, Launched, Report, Then, launch};
use pith_container::plan::{Capabilities, Enter, Exec, Identity, Namespace, Plan, Slot, Step};
use pith_container::supervisor::protocol::{SandboxSpec, SharedTmpfs};
use pith_container::supervisor::{records, wire};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

/// Spared by the OOM killer before any container: its end is the end of the pod.
const OOM_SCORE: &str = "-998";
/// Who the init process of a shared pid namespace is: nobody, with no right.
const NOBODY: u32 = 65534;

/// What the set-up leaves behind.
pub(crate) struct Sandbox {
    pub(crate) notices: Vec<String>,
    /// This process in the host's pid namespace.
    pub(crate) pid: i32,
    pub(crate) null: OwnedFd,
    /// The init process of the pid namespace that the containers share, if they do.
    pub(crate) shared_pid: Option<Launched>,
}

/// Errors are sentences: they go to the kubelet's user as they are.
pub(crate) fn set_up(spec: &SandboxSpec) -> Result<Sandbox, String> {
    let mut notices = Vec::new();
    let failed = |what: String| move |error: &dyn std::fmt::Display| format!("{what}: {error}");
    for dir in &spec.cgroup.legacy {
        // Through `tasks`, for it does not wait for a grace period (see plan::Step::JoinCgroup).
        let tasks = dir.join("tasks");
        fs::write(&tasks, "0").map_err(|e| failed(format!("join cgroup {}", tasks.display()))(&e))?;
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| failed("prctl PR_SET_DUMPABLE".to_owned())(&e))?;
    if let Err(error) = fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        notices.push(format!("the supervisor's oom_score_adj stays as it is: {error}"));
    }
    // Unmounts on the host reach this namespace, and nothing mounted here leaves it.
    let slave = pith_sys::mount::Change {
        propagation: libc::MS_SLAVE,
        recursive: true,
        ..pith_sys::mount::Change::default()
    };
    pith_sys::mount::set_attributes_of(c"/", slave)
        .map_err(|e| failed("mount_setattr / MS_SLAVE".to_owned())(&e))?;
    for tmpfs in &spec.tmpfs {
        mount(tmpfs).map_err(|e| failed(format!("mount tmpfs at {}", tmpfs.path.display()))(&e))?;
    }
    if !spec.host_network {
        rustix::system::sethostname(spec.hostname.as_bytes())
            .map_err(|e| failed(format!("sethostname {}", spec.hostname))(&e))?;
        pith_sys::network::loopback_up().map_err(|e| failed("bring lo up".to_owned())(&e))?;
    }
    for (key, value) in &spec.sysctls {
        sysctl(spec, key, value)?;
    }
    if spec.host_pid {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|e| failed("prctl PR_SET_CHILD_SUBREAPER".to_owned())(&e))?;
    }
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed("open /dev/null".to_owned())(&e))?;
    let pid = own_pid().ok_or("read /proc/self: this /proc is not of a pid namespace above")?;
    let folder = records::folder(&spec.dir);
    fs::create_dir_all(&folder).map_err(|e| failed(format!("create {}", folder.display()))(&e))?;
    let pid_file = spec.dir.join(records::PID_FILE);
    fs::write(&pid_file, pid.to_string()).map_err(|e| failed(format!("write {}", pid_file.display()))(&e))?;
    let shared_pid = match spec.share_pid && !spec.host_pid {
        true => Some(shared_pid(&spec.dir, &null)?),
        false => None,
    };
    Ok(Sandbox { notices, pid, null, shared_pid })
}

fn mount(tmpfs: &SharedTmpfs) -> Result<(), Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", "tmpfs")?;
    rustix::mount::fsconfig_set_string(&context, "mode", format!("{:o}", tmpfs.mode))?;
    if tmpfs.size > 0 {
        rustix::mount::fsconfig_set_string(&context, "size", tmpfs.size.to_string())?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if tmpfs.noexec {
        attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
    }
    let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    rustix::mount::move_mount(&mount, "", CWD, &tmpfs.path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Sets a kernel parameter of the pod's namespaces, and only of those.
fn sysctl(spec: &SandboxSpec, key: &str, value: &str) -> Result<(), String> {
    let path = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    let ipc = ["kernel/shm", "kernel/msg", "kernel/sem", "fs/mqueue/"];
    let of_the_pod = (path.starts_with("net/") && !spec.host_network)
        || (ipc.iter().any(|prefix| path.starts_with(prefix)) && !spec.host_ipc);
    if !of_the_pod || path.split('/').any(|part| part == "..") {
        return Err(format!("sysctl {key}: it is not one of the pod's own namespaces"));
    }
    fs::write(Path::new("/proc/sys").join(&path), value).map_err(|e| format!("sysctl {key}={value}: {e}"))
}

/// The number of this process in the pid namespace of /proc, which is the host's.
fn own_pid() -> Option<i32> {
    fs::read_link("/proc/self").ok()?.to_str()?.parse().ok()
}

/// Starts the first process of a pid namespace for all containers of the pod. They can see it, so it must
/// not be this process, which holds rights on the host: it has an empty root, no capability, and no memory
/// that they can read.
fn shared_pid(dir: &Path, null: &OwnedFd) -> Result<Launched, String> {
    let slot = Slot(0);
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();
    let plan = Plan {
        outside: vec![],
        born_in: vec![],
        namespaces: vec![Namespace::Mount, Namespace::Pid],
        clocks: vec![],
        mappings: None,
        cgroup: None,
        steps: vec![
            Step::Undumpable,
            Step::IsolateMounts,
            Step::Filesystem {
                slot,
                kind: "tmpfs".to_owned(),
                source: "tmpfs".to_owned(),
                options: vec![],
                attributes: u64::from(read_only),
            },
            Step::PlaceRoot { slot, at: dir.to_owned() },
            Step::EnterRoot { how: Enter::Pivot },
            Step::NewSession,
            Step::Become {
                identity: Identity::Ids { uid: NOBODY, gid: NOBODY, groups: vec![] },
                capabilities: Capabilities::default(),
                filters: false,
            },
            Step::NoNewPrivileges,
            Step::Undumpable,
            Step::DieWithParent,
        ],
        last: vec![],
        exec: Exec { args: vec![], env: vec![] },
    };
    let stdio = [null.as_fd(); 3];
    let launched = launch(&Launch { then: Then::Reap, ..Launch::new(&plan, stdio) })
        .map_err(|failure| format!("shared pid namespace: {failure}"))?;
    loop {
        match wire::receive::<Report>(launched.control.as_fd(), true) {
            Ok((Report::Executing, _)) => return Ok(launched),
            Ok((Report::Failed(failure), _)) => return Err(format!("shared pid namespace: {failure}")),
            Ok(_) => {}
            Err(error) => return Err(format!("shared pid namespace: {error}")),
        }
    }
}
