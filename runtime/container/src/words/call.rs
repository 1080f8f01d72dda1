//! The system calls of a step, with their flags by name.

use std::path::PathBuf;

use crate::plan::{Attributes, DeviceKind, Enter, Identity, Propagation, Source, Step};

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

impl Step {
    /// What the kernel is asked. One arm a step, so that none is forgotten.
    #[must_use]
    pub fn call(&self) -> String {
        match self {
            Step::JoinCgroup { dir } => format!("write 0 to {}/tasks", dir.display()),
            Step::JoinNamespace { path, .. } => format!("setns {}", path.display()),
            Step::JoinTarget { namespaces } => {
                let flags: Vec<&str> = namespaces.iter().map(|one| super::clone_flag(*one)).collect();
                format!("setns pidfd {}", flags.join(" "))
            }
            Step::NewCgroupNamespace => "unshare CLONE_NEWCGROUP".to_owned(),
            Step::AwaitMappings => "recvmsg: wait for uid_map and gid_map".to_owned(),
            Step::Loopback => "ioctl SIOCSIFFLAGS lo IFF_UP IFF_RUNNING".to_owned(),
            Step::NamespaceRoot => "setgroups [], setresgid 0, setresuid 0".to_owned(),
            Step::SessionKeyring { name } => format!("keyctl KEYCTL_JOIN_SESSION_KEYRING {name}"),
            Step::AwaitHooks { stage } => format!("recvmsg: wait for the {stage} hooks"),
            Step::RunHooks { stage, hooks } => format!("run {} {stage} hooks", hooks.len()),
            Step::Undumpable => "prctl PR_SET_DUMPABLE 0".to_owned(),
            Step::DieWithParent => "prctl PR_SET_PDEATHSIG SIGKILL".to_owned(),
            Step::OomScore { value } => format!("write {value} to /proc/self/oom_score_adj"),
            Step::Hostname { name } => format!("sethostname {name}"),
            Step::Domainname { name } => format!("setdomainname {name}"),
            Step::NewSession => "setsid".to_owned(),
            Step::Terminal { console, .. } => {
                let place = if *console { ", move_mount to /dev/console" } else { "" };
                format!("open /dev/pts/ptmx, TIOCGPTPEER{place}, TIOCSCTTY")
            }
            Step::ResourceLimit { resource, soft, hard } => format!("prlimit64 {resource} {soft} {hard}"),
            Step::Personality { persona } => format!("personality {persona:#x}"),
            Step::Scheduler { scheduling: s } => {
                format!("sched_setattr policy {} nice {} priority {}", s.policy, s.nice, s.priority)
            }
            Step::IoPriority { class, level } => format!("ioprio_set class {class} level {level}"),
            Step::CpuAffinity { cpus } => format!("sched_setaffinity {cpus:?}"),
            Step::MemoryPolicy { mode, nodes } => format!("set_mempolicy {mode:#x} {nodes:x?}"),
            Step::Label { file, value } => format!("write {value} to /proc/self/attr/{file}"),
            Step::WorkingDirectory { path } => {
                format!("openat2 RESOLVE_IN_ROOT {}; fchdir", path.display())
            }
            Step::Umask { mask } => format!("umask {mask:03o}"),
            Step::Become { identity, .. } => become_call(identity),
            Step::NoNewPrivileges => "prctl PR_SET_NO_NEW_PRIVS 1".to_owned(),
            Step::Seccomp { program, listener, .. } => {
                let listener = if *listener { " SECCOMP_FILTER_FLAG_NEW_LISTENER" } else { "" };
                format!("seccomp SECCOMP_SET_MODE_FILTER{listener} {} instructions", program.len())
            }
            Step::GiveUpFilterRight => "capset without CAP_SYS_ADMIN for the filter".to_owned(),
            Step::IsolateMounts => "mount_setattr / MS_SLAVE AT_RECURSIVE".to_owned(),
            Step::Filesystem { slot, kind, options, attributes, .. } => {
                let options: String = options
                    .iter()
                    .map(|(key, value)| match value {
                        Some(value) => format!(", {key}={value}"),
                        None => format!(", {key}"),
                    })
                    .collect();
                format!("fsopen {kind}{options}; fsmount{} -> #{}", attribute_names(*attributes), slot.0)
            }
            Step::Overlay { slot, lower, upper, user_attributes, .. } => {
                let upper = upper.as_ref().map(|upper| format!(", upperdir={}", upper.display()));
                let upper = upper.unwrap_or_default();
                let users = if *user_attributes { ", userxattr" } else { "" };
                format!("fsopen overlay, {} lowerdir+{upper}{users}; fsmount -> #{}", lower.len(), slot.0)
            }
            Step::Bind { slot, source, recursive } => {
                format!("open_tree OPEN_TREE_CLONE{} {} -> #{}", tree(*recursive), from(source), slot.0)
            }
            Step::BindDevice { slot, device } => {
                format!("open_tree OPEN_TREE_CLONE /dev/{} -> #{}", device.name, slot.0)
            }
            Step::MapIds { slot, recursive, .. } => {
                format!("mount_setattr #{} MOUNT_ATTR_IDMAP{}", slot.0, tree(*recursive))
            }
            Step::SetAttributes { slot, attributes, propagation, recursive } => {
                let propagation = propagation.map(|kind| format!(" {}", flag_of(kind))).unwrap_or_default();
                format!("mount_setattr #{}{}{}{propagation}", slot.0, change(*attributes), tree(*recursive))
            }
            Step::OpenNull { slot } => format!("open_tree OPEN_TREE_CLONE /dev/null -> #{}", slot.0),
            Step::OpenDirectory { slot, path } => {
                format!("openat2 RESOLVE_IN_ROOT {} -> #{}", path.display(), slot.0)
            }
            Step::MakeDirectory { slot, name, mode } => format!("mkdirat #{}/{name} {mode:o}", slot.0),
            Step::MakeDevice { slot, device } => {
                let kind = match device.kind {
                    DeviceKind::Character => 'c',
                    DeviceKind::Block => 'b',
                    DeviceKind::Fifo => 'p',
                };
                let (name, major, minor, mode) = (&device.name, device.major, device.minor, device.mode);
                format!("mknodat #{}/{name} {kind} {major}:{minor} {mode:o}", slot.0)
            }
            Step::MakeLink { slot, name, target } => format!("symlinkat {target} #{}/{name}", slot.0),
            Step::PlaceRoot { slot, at } => format!("move_mount #{} to {}", slot.0, at.display()),
            Step::EnterRoot { how: Enter::Pivot } => "pivot_root; umount2 MNT_DETACH the old root".to_owned(),
            Step::EnterRoot { how: Enter::Move } => "move_mount the root to /; chroot".to_owned(),
            Step::ChangeRoot { at } => format!("chroot {}", at.display()),
            Step::NoLink { path } => format!("openat2 RESOLVE_NO_SYMLINKS {}", path.display()),
            Step::CopyMode { slot, path } => format!("chmod #{} as {}", slot.0, path.display()),
            Step::CopyUp { slot, path } => format!("copy {} to #{}", path.display(), slot.0),
            Step::Remount { target, attributes, recursive } => {
                format!("mount_setattr {}{}{}", target.display(), change(*attributes), tree(*recursive))
            }
            Step::Attach { slot, target } => {
                format!("openat2 RESOLVE_IN_ROOT {0}; move_mount #{1} to {0}", target.display(), slot.0)
            }
            Step::Mask { paths, .. } => format!("move_mount over {}", list(paths)),
            Step::ReadOnly { paths } => {
                format!("open_tree OPEN_TREE_CLONE, mount_setattr ro, move_mount over {}", list(paths))
            }
            Step::Sysctl { key, value } => format!("write {value} to /proc/sys/{}", key.replace('.', "/")),
            Step::ReadOnlyRoot => "mount_setattr / ro".to_owned(),
            Step::RootPropagation { propagation, recursive } => {
                format!("mount_setattr / {}{}", flag_of(*propagation), tree(*recursive))
            }
        }
    }
}

fn become_call(identity: &Identity) -> String {
    match identity {
        Identity::Ids { uid, gid, groups } => {
            format!("prctl PR_CAPBSET_DROP, setgroups {groups:?}, setresgid {gid}, setresuid {uid}, capset")
        }
        Identity::Named { user, groups } => format!(
            "prctl PR_CAPBSET_DROP, setgroups, setresgid, setresuid: user {user:?} and groups {groups:?}, capset"
        ),
    }
}

/// Where a bind mount comes from.
fn from(source: &Source) -> String {
    match &source.beneath {
        Some(base) => format!("{} beneath {}", source.path.display(), base.display()),
        None => source.path.display().to_string(),
    }
}

fn tree(recursive: bool) -> &'static str {
    if recursive { " AT_RECURSIVE" } else { "" }
}

/// As options of mount(8), each after a space.
fn attribute_names(bits: u64) -> String {
    ATTRIBUTE_NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| format!(" {name}")).collect()
}

fn change(attributes: Attributes) -> String {
    let cleared: String = ATTRIBUTE_NAMES
        .iter()
        .filter(|(bit, _)| attributes.clear & !attributes.set & bit != 0)
        .map(|(_, name)| format!(" not-{name}"))
        .collect();
    attribute_names(attributes.set) + &cleared
}

fn flag_of(propagation: Propagation) -> &'static str {
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
