//! Each step in words: the system call, its flags by name, and what it changes.

use std::fmt;
use std::path::PathBuf;

use crate::plan::{Attributes, DeviceKind, Enter, Identity, Plan, Propagation, Step};

/// MOUNT_ATTR_* bits by their mount(8) names.
const ATTRIBUTE_NAMES: &[(u64, &str)] = &[
    (libc::MOUNT_ATTR_RDONLY, "ro"),
    (libc::MOUNT_ATTR_NOSUID, "nosuid"),
    (libc::MOUNT_ATTR_NODEV, "nodev"),
    (libc::MOUNT_ATTR_NOEXEC, "noexec"),
    (libc::MOUNT_ATTR_NOATIME, "noatime"),
    (libc::MOUNT_ATTR_STRICTATIME, "strictatime"),
    (libc::MOUNT_ATTR_NODIRATIME, "nodiratime"),
    (libc::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
];

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.outside.iter().try_for_each(|step| writeln!(f, "before: {step}"))?;
        for (namespace, path) in &self.born_in {
            writeln!(f, "setns {}: be born in that {namespace} namespace", path.display())?;
        }
        let flags: Vec<String> =
            self.namespaces.iter().map(|namespace| format!("new {namespace} namespace")).collect();
        write!(
            f,
            "clone3: {}",
            if flags.is_empty() { "no new namespace".to_owned() } else { flags.join(", ") }
        )?;
        if let Some(cgroup) = &self.cgroup {
            write!(f, ", born in cgroup {} (CLONE_INTO_CGROUP)", cgroup.display())?;
        }
        writeln!(f)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))?;
        write!(f, "execve: {}", self.exec.args.join(" "))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::JoinCgroup { dir } => write!(f, "write 0 to {}/tasks: join the cgroup", dir.display()),
            Step::JoinNamespace { namespace, path } => {
                write!(f, "setns {}: enter the {namespace} namespace", path.display())
            }
            Step::JoinTarget { namespaces } => {
                let names: Vec<String> = namespaces.iter().map(ToString::to_string).collect();
                write!(f, "setns pidfd: enter the container's {} namespaces at once", names.join(", "))
            }
            Step::NewCgroupNamespace => {
                write!(f, "unshare CLONE_NEWCGROUP: its cgroup becomes the root it sees")
            }
            Step::AwaitMappings => write!(f, "wait for uid_map and gid_map: the supervisor writes them"),
            Step::NamespaceRoot => write!(f, "setresgid 0, setresuid 0: root of the user namespace"),
            Step::SessionKeyring { name } => {
                write!(f, "keyctl KEYCTL_JOIN_SESSION_KEYRING {name}: a session keyring of its own")
            }
            Step::AwaitHooks { stage } => write!(f, "wait for the {stage} hooks"),
            Step::RunHooks { stage, hooks } => write!(f, "run {} {stage} hooks", hooks.len()),
            Step::Undumpable => write!(f, "prctl PR_SET_DUMPABLE 0: hide /proc/self until execve"),
            Step::DieWithParent => write!(f, "prctl PR_SET_PDEATHSIG SIGKILL: die with the supervisor"),
            Step::OomScore { value } => write!(f, "write {value} to /proc/self/oom_score_adj"),
            Step::IsolateMounts => {
                write!(f, "mount_setattr / MS_SLAVE AT_RECURSIVE: no mount made here leaves this namespace")
            }
            Step::Filesystem { slot, kind, options, attributes, .. } => {
                write!(f, "fsopen {kind}")?;
                for (key, value) in options {
                    match value {
                        Some(value) => write!(f, ", {key}={value}")?,
                        None => write!(f, ", {key}")?,
                    }
                }
                write!(f, "; fsmount{}: aside as #{}", names(*attributes), slot.0)
            }
            Step::Overlay { slot, lower, upper, .. } => {
                write!(f, "fsopen overlay: {} layers", lower.len())?;
                match upper {
                    Some(upper) => write!(f, ", changes to {}", upper.display())?,
                    None => write!(f, ", read-only")?,
                }
                write!(f, "; fsmount: aside as #{}", slot.0)
            }
            Step::Bind { slot, source, recursive } => {
                let tree = if *recursive { " AT_RECURSIVE" } else { "" };
                write!(f, "open_tree OPEN_TREE_CLONE{tree} ")?;
                match &source.beneath {
                    Some(base) => write!(f, "{} beneath {}", source.path.display(), base.display())?,
                    None => write!(f, "{}", source.path.display())?,
                }
                write!(f, ": a copy of that mount aside as #{}", slot.0)
            }
            Step::BindDevice { slot, device } => write!(
                f,
                "open_tree OPEN_TREE_CLONE /dev/{}: verified as device {}:{}, aside as #{}",
                device.name, device.major, device.minor, slot.0
            ),
            Step::MapIds { slot, mappings, .. } => {
                let (uids, gids) = (mappings.uids.len(), mappings.gids.len());
                write!(f, "mount_setattr #{} MOUNT_ATTR_IDMAP: {uids} ranges of uids, {gids} of gids", slot.0)
            }
            Step::SetAttributes { slot, attributes, propagation, recursive } => {
                write!(f, "mount_setattr #{}", slot.0)?;
                write!(f, "{}{}", change(*attributes), if *recursive { " AT_RECURSIVE" } else { "" })?;
                match propagation {
                    Some(propagation) => write!(f, " {}", propagation_name(*propagation)),
                    None => Ok(()),
                }
            }
            Step::OpenNull { slot } => {
                write!(f, "open_tree OPEN_TREE_CLONE /dev/null: verified as device 1:3, aside as #{}", slot.0)
            }
            Step::OpenDirectory { slot, path } => {
                write!(f, "openat2 RESOLVE_IN_ROOT {}: as #{}", path.display(), slot.0)
            }
            Step::MakeDirectory { slot, name, mode } => write!(f, "mkdirat #{}/{name} {mode:o}", slot.0),
            Step::MakeDevice { slot, device } => {
                let kind = match device.kind {
                    DeviceKind::Character => 'c',
                    DeviceKind::Block => 'b',
                    DeviceKind::Fifo => 'p',
                };
                let (name, major, minor, mode) = (&device.name, device.major, device.minor, device.mode);
                write!(f, "mknodat #{}/{name} {kind} {major}:{minor} {mode:o}", slot.0)
            }
            Step::MakeLink { slot, name, target } => write!(f, "symlinkat #{}/{name} -> {target}", slot.0),
            Step::PlaceRoot { slot, at } => write!(f, "move_mount #{} to {}: the root", slot.0, at.display()),
            Step::EnterRoot { how: Enter::Pivot } => {
                write!(f, "pivot_root; umount2 MNT_DETACH the old root: no path leads out")
            }
            Step::EnterRoot { how: Enter::Move } => {
                write!(f, "move_mount the root over /; chroot: no path leads out")
            }
            Step::ChangeRoot { at } => write!(f, "chroot {}", at.display()),
            Step::CopyUp { slot, path } => {
                write!(f, "copy what is at {} into #{}", path.display(), slot.0)
            }
            Step::Remount { target, attributes, recursive } => {
                let tree = if *recursive { " AT_RECURSIVE" } else { "" };
                write!(f, "mount_setattr {}{}{tree}", target.display(), change(*attributes))
            }
            Step::Attach { slot, target } => {
                write!(f, "openat2 RESOLVE_IN_ROOT {0}; move_mount #{1} to {0}", target.display(), slot.0)
            }
            Step::Mask { paths, .. } => {
                write!(f, "move_mount /dev/null or an empty tmpfs over: {}", list(paths))
            }
            Step::ReadOnly { paths } => write!(f, "mount_setattr ro over: {}", list(paths)),
            Step::Sysctl { key, value } => write!(f, "write {value} to /proc/sys/{}", key.replace('.', "/")),
            Step::ReadOnlyRoot => write!(f, "mount_setattr / ro"),
            Step::RootPropagation { propagation, recursive } => {
                let tree = if *recursive { " AT_RECURSIVE" } else { "" };
                write!(f, "mount_setattr / {}{tree}", propagation_name(*propagation))
            }
            Step::Hostname { name } => write!(f, "sethostname {name}"),
            Step::Domainname { name } => write!(f, "setdomainname {name}"),
            Step::NewSession => write!(f, "setsid: a session of its own"),
            Step::Terminal { console, .. } => {
                let place = if *console { ", also at /dev/console" } else { "" };
                write!(f, "open /dev/pts/ptmx, TIOCGPTPEER, TIOCSCTTY: a terminal{place}")
            }
            Step::ResourceLimit { resource, soft, hard } => write!(f, "prlimit64 {resource} {soft} {hard}"),
            Step::Personality { persona } => write!(f, "personality {persona:#x}"),
            Step::Scheduler { scheduling: s } => {
                write!(f, "sched_setattr policy {} nice {} priority {}", s.policy, s.nice, s.priority)
            }
            Step::IoPriority { class, level } => write!(f, "ioprio_set class {class} level {level}"),
            Step::CpuAffinity { cpus } => write!(f, "sched_setaffinity {cpus:?}"),
            Step::MemoryPolicy { mode, nodes } => write!(f, "set_mempolicy {mode:#x} {nodes:x?}"),
            Step::Label { file, value } => write!(f, "write {value} to /proc/self/attr/{file}"),
            Step::WorkingDirectory { path } => {
                write!(f, "openat2 RESOLVE_IN_ROOT {}; fchdir: the working directory", path.display())
            }
            Step::Umask { mask } => write!(f, "umask {mask:03o}"),
            Step::Become { identity, capabilities } => {
                match identity {
                    Identity::Ids { uid, gid, groups } => {
                        write!(f, "setgroups {groups:?}, setresgid {gid}, setresuid {uid}")?;
                    }
                    Identity::Named { user, groups } => {
                        write!(f, "setgroups, setresgid, setresuid: user {user:?} and groups {groups:?}")?;
                    }
                }
                write!(
                    f,
                    "; capset: bounding {:#x}, permitted {:#x}, effective {:#x}, inheritable {:#x}, ambient {:#x}",
                    capabilities.bounding,
                    capabilities.permitted,
                    capabilities.effective,
                    capabilities.inheritable,
                    capabilities.ambient
                )
            }
            Step::NoNewPrivileges => write!(f, "prctl PR_SET_NO_NEW_PRIVS"),
            Step::Seccomp { program, listener, .. } => {
                let listener = if *listener { ", with a listener" } else { "" };
                write!(f, "seccomp SECCOMP_SET_MODE_FILTER: {} instructions{listener}", program.len())
            }
        }
    }
}

fn names(bits: u64) -> String {
    ATTRIBUTE_NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| format!(" {name}")).collect()
}

fn change(attributes: Attributes) -> String {
    let cleared: String = ATTRIBUTE_NAMES
        .iter()
        .filter(|(bit, _)| attributes.clear & !attributes.set & bit != 0)
        .map(|(_, name)| format!(" not-{name}"))
        .collect();
    names(attributes.set) + &cleared
}

fn propagation_name(propagation: Propagation) -> &'static str {
    match propagation {
        Propagation::Shared => "MS_SHARED",
        Propagation::Slave => "MS_SLAVE",
        Propagation::Private => "MS_PRIVATE",
        Propagation::Unbindable => "MS_UNBINDABLE",
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
}
