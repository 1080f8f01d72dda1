//! The namespaces of a spec, by how they are had.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};

use crate::plan::{Mapping, Mappings, Namespace};

use super::{CompileError, unsupported};

pub(super) struct Namespaces {
    /// By clone3 (time: by unshare before it).
    pub(super) new: Vec<Namespace>,
    /// By setns before clone3.
    pub(super) born_in: Vec<(Namespace, PathBuf)>,
    /// By setns in the process; the mount namespace last, because the paths of the others are the host's.
    pub(super) joined: Vec<(Namespace, PathBuf)>,
    /// By unshare, once the cgroups have been joined.
    pub(super) new_cgroup: bool,
    /// Of a new user namespace.
    pub(super) mappings: Option<Mappings>,
}

impl Namespaces {
    /// Without a caller that stands by, what needs one is refused.
    pub(super) fn read(spec: &Spec, caller: bool) -> Result<Namespaces, CompileError> {
        let mut namespaces =
            Namespaces { new: vec![], born_in: vec![], joined: vec![], new_cgroup: false, mappings: None };
        let linux = spec.linux().as_ref();
        let listed = linux.and_then(|linux| linux.namespaces().as_ref());
        let mut seen: Vec<Namespace> = Vec::new();
        for namespace in listed.into_iter().flatten() {
            let kind = kind_of(namespace.typ());
            if seen.contains(&kind) {
                seen.push(kind);
                return Err(twice(&seen));
            }
            seen.push(kind);
            let path = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty());
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                return Err(CompileError::Invalid {
                    field: format!("linux.namespaces[{kind}].path"),
                    value: path.display().to_string(),
                    problem: "is not absolute",
                });
            }
            match (kind, path) {
                (Namespace::User | Namespace::Time, _) if !caller => {
                    return Err(unsupported(format!("linux.namespaces[{kind}]"), ""));
                }
                (Namespace::Pid | Namespace::Mount, Some(_)) if !caller => {
                    let reason = ": it is entered by the supervisor";
                    return Err(unsupported(format!("linux.namespaces[{kind}].path"), reason));
                }
                (Namespace::Cgroup, None) => namespaces.new_cgroup = true,
                (kind, None) => namespaces.new.push(kind),
                (Namespace::User | Namespace::Pid, Some(path)) => {
                    namespaces.born_in.push((kind, path.clone()));
                }
                (kind, Some(path)) => namespaces.joined.push((kind, path.clone())),
            }
        }
        if !caller && !namespaces.has_mount() {
            // Without it the container's mounts would be the host's.
            return Err(CompileError::Missing { field: "linux.namespaces[mount]" });
        }
        namespaces.new.sort_unstable();
        namespaces.joined.sort_by_key(|(kind, _)| *kind == Namespace::Mount);
        namespaces.mappings = namespaces.read_mappings(spec)?;
        Ok(namespaces)
    }

    fn read_mappings(&self, spec: &Spec) -> Result<Option<Mappings>, CompileError> {
        let linux = spec.linux().as_ref();
        let uids = linux.and_then(|linux| linux.uid_mappings().as_deref()).unwrap_or_default();
        let gids = linux.and_then(|linux| linux.gid_mappings().as_deref()).unwrap_or_default();
        let given = !uids.is_empty() || !gids.is_empty();
        if !self.new.contains(&Namespace::User) {
            let joined = self.born_in.iter().any(|(kind, _)| *kind == Namespace::User);
            // Engines repeat the maps of a namespace that is joined by path: they are those it has.
            if given && !joined {
                let reason = " without a user namespace";
                return Err(unsupported("linux.uidMappings", reason));
            }
            return Ok(None);
        }
        if uids.is_empty() {
            return Err(CompileError::Missing { field: "linux.uidMappings" });
        }
        if gids.is_empty() {
            return Err(CompileError::Missing { field: "linux.gidMappings" });
        }
        Ok(Some(Mappings { uids: mappings(uids), gids: mappings(gids) }))
    }

    pub(super) fn has_mount(&self) -> bool {
        self.has(Namespace::Mount)
    }

    /// New or joined: not the runtime's own.
    pub(super) fn has(&self, kind: Namespace) -> bool {
        self.new.contains(&kind)
            || (kind == Namespace::Cgroup && self.new_cgroup)
            || self.joined.iter().chain(&self.born_in).any(|(joined, _)| *joined == kind)
    }

    pub(super) fn users(&self) -> bool {
        self.has(Namespace::User)
    }
}

pub(super) fn mappings(listed: &[LinuxIdMapping]) -> Vec<Mapping> {
    listed
        .iter()
        .map(|m| Mapping { inside: m.container_id(), outside: m.host_id(), size: m.size() })
        .collect()
}

fn twice(kinds: &[Namespace]) -> CompileError {
    let mut kinds = kinds.to_vec();
    kinds.sort_unstable();
    let names: Vec<String> = kinds.iter().map(ToString::to_string).collect();
    CompileError::Invalid {
        field: "linux.namespaces".to_owned(),
        value: names.join(", "),
        problem: "names a namespace twice",
    }
}

fn kind_of(typ: LinuxNamespaceType) -> Namespace {
    match typ {
        LinuxNamespaceType::Mount => Namespace::Mount,
        LinuxNamespaceType::Cgroup => Namespace::Cgroup,
        LinuxNamespaceType::Uts => Namespace::Uts,
        LinuxNamespaceType::Ipc => Namespace::Ipc,
        LinuxNamespaceType::User => Namespace::User,
        LinuxNamespaceType::Pid => Namespace::Pid,
        LinuxNamespaceType::Network => Namespace::Network,
        LinuxNamespaceType::Time => Namespace::Time,
    }
}
