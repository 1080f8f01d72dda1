//! What a step changes, for people who read along.

use crate::plan::{Capabilities, Enter, Namespace, Propagation, Step};

impl Step {
    /// What is different afterwards. One arm a step, so that none is forgotten.
    #[must_use]
    pub fn change(&self) -> String {
        match self {
            Step::JoinCgroup { .. } => "limited and counted by that cgroup from here on".to_owned(),
            Step::JoinNamespace { namespace, .. } => format!("in that {namespace} namespace from here on"),
            Step::JoinTarget { namespaces } => {
                format!("in the container's {} namespaces, all at once", kinds(namespaces))
            }
            Step::NewCgroupNamespace => "its own cgroup is the root of all it sees".to_owned(),
            Step::AwaitMappings => "uids and gids mean something in the new user namespace".to_owned(),
            Step::Loopback => "127.0.0.1 answers; no other interface is there".to_owned(),
            Step::NamespaceRoot => "root of the user namespace, nobody outside".to_owned(),
            Step::SessionKeyring { .. } => "the caller's keys are out of reach".to_owned(),
            Step::AwaitHooks { stage } => format!("the {stage} hooks have run outside"),
            Step::RunHooks { stage, .. } => format!("the {stage} hooks have run inside"),
            Step::Undumpable => "/proc/self is hidden from the container until execve".to_owned(),
            Step::DieWithParent => "killed by the kernel when its supervisor ends".to_owned(),
            Step::OomScore { .. } => "more, or less, likely to be chosen by the OOM killer".to_owned(),
            Step::IsolateMounts => "no mount made here is seen outside".to_owned(),
            Step::Filesystem { kind, .. } => format!("a complete {kind}, still attached nowhere"),
            Step::Overlay { upper: Some(_), .. } => {
                "the image's layers as one root, its changes in a folder of their own".to_owned()
            }
            Step::Overlay { upper: None, .. } => "the image's layers as one read-only root".to_owned(),
            Step::Bind { .. } => "a copy of that mount, still attached nowhere".to_owned(),
            Step::BindDevice { device, .. } => {
                format!("the host's node, verified to be device {}:{}", device.major, device.minor)
            }
            Step::MapIds { .. } => "the owners of its files are shown as the mappings say".to_owned(),
            Step::SetAttributes { propagation: Some(kind), .. } => propagation(*kind).to_owned(),
            Step::SetAttributes { .. } => "what may be done through that mount".to_owned(),
            Step::OpenNull { .. } => "the file that masked files show, verified to be device 1:3".to_owned(),
            Step::OpenDirectory { .. } => "a directory of the container's root, held open".to_owned(),
            Step::MakeDirectory { .. } => "a place to attach to".to_owned(),
            Step::MakeDevice { device, .. } => format!("/dev/{} for the container", device.name),
            Step::MakeLink { name, .. } => format!("/dev/{name} for the container"),
            Step::PlaceRoot { .. } => "the root file system stands, in this mount namespace alone".to_owned(),
            Step::EnterRoot { how: Enter::Pivot } => {
                "/ is the container's; nothing of the host is left in the namespace".to_owned()
            }
            Step::EnterRoot { how: Enter::Move } | Step::ChangeRoot { .. } => {
                "/ is the container's".to_owned()
            }
            Step::NoLink { .. } => "the image does not say where it is mounted".to_owned(),
            Step::CopyMode { .. } => "it may be entered and written as what it covers".to_owned(),
            Step::CopyUp { .. } => "the image's files appear in what will cover them".to_owned(),
            Step::Remount { .. } => "what may be done below that path".to_owned(),
            Step::Attach { target, .. } => format!("{} is there; its path cannot lead out", target.display()),
            Step::Mask { .. } => "files there read as empty, folders too".to_owned(),
            Step::ReadOnly { .. } => "nothing can be written there".to_owned(),
            Step::Sysctl { .. } => "a parameter of its own namespace".to_owned(),
            Step::ReadOnlyRoot => "nothing can be written to the root".to_owned(),
            Step::RootPropagation { propagation: kind, .. } => propagation(*kind).to_owned(),
            Step::Hostname { .. } | Step::Domainname { .. } => "the name of its own uts namespace".to_owned(),
            Step::NewSession => "away from the caller's terminal and its signals".to_owned(),
            Step::Terminal { .. } => "a terminal of the container's own, its master handed out".to_owned(),
            Step::ResourceLimit { .. } => "a limit of this process and its children".to_owned(),
            Step::Personality { .. } => "how the kernel behaves towards old programs".to_owned(),
            Step::Scheduler { .. } => "how it is scheduled".to_owned(),
            Step::IoPriority { .. } => "how its input and output is served".to_owned(),
            Step::CpuAffinity { .. } => "where it may run".to_owned(),
            Step::MemoryPolicy { .. } => "where its memory comes from".to_owned(),
            Step::Label { .. } => "the label that a security module gives it at execve".to_owned(),
            Step::WorkingDirectory { .. } => {
                "where the program starts, proven to be inside the root".to_owned()
            }
            Step::Umask { .. } => "bits that new files do not get".to_owned(),
            Step::Become { capabilities, .. } => rights(*capabilities),
            Step::NoNewPrivileges => "no execve gives more rights than it has now".to_owned(),
            Step::Seccomp { listener: true, .. } => {
                "system calls are filtered, some answered by somebody else".to_owned()
            }
            Step::Seccomp { listener: false, .. } => "system calls are filtered, for good".to_owned(),
            Step::GiveUpFilterRight => "the capabilities are those asked for, and no more".to_owned(),
        }
    }
}

fn kinds(namespaces: &[Namespace]) -> String {
    namespaces.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn propagation(kind: Propagation) -> &'static str {
    match kind {
        Propagation::Shared => "mounts made below travel both ways",
        Propagation::Slave => "mounts made below come in and never go out",
        Propagation::Private => "mounts made below stay where they are made",
        Propagation::Unbindable => "mounts made below stay, and cannot be copied",
    }
}

/// What is left of root's rights.
fn rights(capabilities: Capabilities) -> String {
    let Capabilities { bounding, effective, permitted, inheritable, ambient } = capabilities;
    let names = crate::capability::names(effective | permitted).join(" ");
    let mut text = match names.as_str() {
        "" => "no capability".to_owned(),
        names => format!("the user, with {names}"),
    };
    for (set, mask) in [("bounding", bounding), ("inheritable", inheritable), ("ambient", ambient)] {
        if mask != effective | permitted && (mask != 0 || set == "bounding") {
            text.push_str(&format!("; {set} {mask:#x}"));
        }
    }
    text
}
