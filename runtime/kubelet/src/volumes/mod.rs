//! The volumes of a pod on this node.
//!
//! | kind | where |
//! |---|---|
//! | configMap, secret, downwardAPI, projected | run folder (memory), replaced atomically, kept current |
//! | emptyDir | state folder; `medium: Memory` is a tmpfs of the pod's supervisor |
//! | hostPath | itself, after its type was checked |
//! | persistentVolumeClaim | the hostPath or local folder of the bound volume |
//!
//! Nothing is ever mounted in the node's own mount namespace.

pub(crate) mod atomic;
pub(crate) mod payload;
pub(crate) mod tokens;

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown},
    },
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, PodSpec,
    Volume,
};
use kube::Api;
use pith_container::supervisor::protocol::SharedTmpfs;

use crate::{
    env::{Environment, expand},
    objects::ObjectKind,
    spec::Bind,
};

/// Why a volume is not there; shown in a FailedMount event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("{} \"{name}\" not found", .kind.word())]
    NoObject { kind: ObjectKind, name: String },
    #[error("{} \"{name}\" references non-existent key: {key}", .kind.word())]
    NoKey { kind: ObjectKind, name: String, key: String },
    #[error("the token has not been issued yet")]
    NoToken,
    #[error("failed to fetch token for service account {account:?}: {message}")]
    Token { account: String, message: String },
    #[error("path {} would leave the volume", .0.display())]
    Path(PathBuf),
    #[error("hostPath type check failed: {} {problem}", path.display())]
    HostPath { path: PathBuf, problem: &'static str },
    #[error("{} {}", operation, path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("persistentvolumeclaim \"{claim}\" {problem}")]
    Claim { claim: String, problem: String },
    #[error("volumes of this kind are not supported by this kubelet")]
    Kind,
    #[error("{0}")]
    Other(String),
}

/// Where a pod's volumes live.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    /// On memory, gone after a reboot.
    pub(crate) run: PathBuf,
    pub(crate) state: PathBuf,
}

impl Folders {
    fn fed(&self, volume: &str) -> PathBuf {
        self.run.join("volumes").join(volume)
    }

    fn empty(&self, volume: &str) -> PathBuf {
        self.state.join("volumes").join(volume)
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io { operation, path, source }
}

/// The supervisor's own tmpfs mounts: /dev/shm and every emptyDir in memory. Their mount points are made.
pub(crate) fn memory(spec: &PodSpec, folders: &Folders) -> Result<Vec<SharedTmpfs>, VolumeError> {
    let shm = SharedTmpfs { path: folders.run.join("shm"), size: 64 << 20, mode: 0o1777, noexec: true };
    let empty = spec.volumes.iter().flatten().filter_map(|v| {
        let e = v.empty_dir.as_ref().filter(|e| is_memory(e))?;
        let size = e.size_limit.as_ref().and_then(|q| q.0.parse::<pith_api::quantity::Quantity>().ok());
        let size = size.and_then(|q| u64::try_from(q.units()).ok()).unwrap_or(0);
        Some(SharedTmpfs { path: folders.fed(&v.name), size, mode: 0o777, noexec: false })
    });
    let all: Vec<_> = std::iter::once(shm).chain(empty).collect();
    for t in &all {
        fs::create_dir_all(&t.path).map_err(failed("create", &t.path))?;
    }
    Ok(all)
}

fn is_memory(e: &EmptyDirVolumeSource) -> bool {
    e.medium.as_deref() == Some("Memory")
}

/// Where each volume is, once it has been made ready.
pub(crate) type Places = BTreeMap<String, PathBuf>;

/// Makes a volume that needs no rendering ready; `None` for one that the API feeds.
pub(crate) async fn place(
    volume: &Volume,
    spec: &PodSpec,
    namespace: &str,
    folders: &Folders,
    client: &kube::Client,
) -> Result<Option<PathBuf>, VolumeError> {
    let group = fs_group(spec);
    if let Some(e) = &volume.empty_dir {
        if is_memory(e) {
            return Ok(Some(folders.fed(&volume.name)));
        }
        let dir = folders.empty(&volume.name);
        empty_dir(&dir, group)?;
        return Ok(Some(dir));
    }
    if let Some(h) = &volume.host_path {
        return host_path(h).map(Some);
    }
    if let Some(c) = &volume.persistent_volume_claim {
        return claim(&c.claim_name, namespace, client).await.map(Some);
    }
    let fed = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some();
    if fed { Ok(None) } else { Err(VolumeError::Kind) }
}

/// Shows `files` in the volume's folder.
pub(crate) fn feed(
    volume: &str,
    files: &atomic::Payload,
    spec: &PodSpec,
    folders: &Folders,
) -> Result<PathBuf, VolumeError> {
    let dir = folders.fed(volume);
    atomic::write(&dir, files, fs_group(spec)).map_err(failed("write", &dir))?;
    Ok(dir)
}

fn fs_group(spec: &PodSpec) -> Option<u32> {
    spec.security_context.as_ref()?.fs_group.and_then(|g| u32::try_from(g).ok())
}

fn empty_dir(dir: &Path, group: Option<u32>) -> Result<(), VolumeError> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed("create", dir))?;
    let mode = match group {
        Some(gid) => {
            chown(dir, None, Some(gid)).map_err(failed("change group of", dir))?;
            0o2777
        }
        None => 0o777,
    };
    // Not by the mode of mkdir, which the umask would cut.
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(failed("change mode of", dir))
}

fn host_path(h: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&h.path);
    if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(VolumeError::HostPath { path, problem: "is not an absolute path without .." });
    }
    let kind = h.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(&path).map_err(failed("create", &path))?;
        }
        "FileOrCreate" if !path.exists() => {
            fs::File::create_new(&path).map_err(failed("create", &path))?;
        }
        _ => {}
    }
    let Ok(meta) = fs::metadata(&path) else {
        return Err(VolumeError::HostPath { path, problem: "does not exist" });
    };
    let t = meta.file_type();
    let (fits, problem) = match kind {
        "" => (true, ""),
        "Directory" | "DirectoryOrCreate" => (t.is_dir(), "is not a directory"),
        "File" | "FileOrCreate" => (t.is_file(), "is not a file"),
        "Socket" => (t.is_socket(), "is not a socket file"),
        "CharDevice" => (t.is_char_device(), "is not a character device"),
        "BlockDevice" => (t.is_block_device(), "is not a block device"),
        _ => (false, "has a type that is not known"),
    };
    if fits { Ok(path) } else { Err(VolumeError::HostPath { path, problem }) }
}

async fn claim(name: &str, namespace: &str, client: &kube::Client) -> Result<PathBuf, VolumeError> {
    let problem = |problem: String| VolumeError::Claim { claim: name.to_owned(), problem };
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let found = claims.get_opt(name).await.map_err(|e| problem(e.to_string()))?;
    let found = found.ok_or_else(|| problem("not found".to_owned()))?;
    let bound = found.status.and_then(|s| s.phase).as_deref() == Some("Bound");
    let volume = found.spec.and_then(|s| s.volume_name).filter(|_| bound);
    let volume = volume.ok_or_else(|| problem("is not bound".to_owned()))?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let spec = volumes.get(&volume).await.map_err(|e| problem(e.to_string()))?.spec;
    let spec = spec.ok_or_else(|| problem(format!("is bound to {volume}, which has no spec")))?;
    match (spec.host_path, spec.local) {
        (Some(h), _) => host_path(&h),
        (None, Some(l)) => host_path(&HostPathVolumeSource { path: l.path, type_: None }),
        (None, None) => Err(VolumeError::Kind),
    }
}

/// The bind mounts of one container.
pub(crate) fn binds(c: &Container, places: &Places, env: &Environment) -> Result<Vec<Bind>, VolumeError> {
    c.volume_mounts
        .iter()
        .flatten()
        .map(|m| {
            let place = places
                .get(&m.name)
                .ok_or_else(|| VolumeError::Other(format!("volume {:?} does not exist", m.name)))?;
            let sub = match &m.sub_path_expr {
                Some(e) => expand(e, |n| env.get(n)),
                None => m.sub_path.clone().unwrap_or_default(),
            };
            let (source, beneath) = match sub.as_str() {
                "" => (place.clone(), None),
                sub => (sub_path(place, Path::new(sub))?, Some(place.clone())),
            };
            Ok(Bind {
                source,
                beneath,
                target: PathBuf::from(&m.mount_path),
                read_only: m.read_only.unwrap_or(false),
                propagation: match m.mount_propagation.as_deref() {
                    Some("HostToContainer") => "rslave",
                    Some("Bidirectional") => "rshared",
                    Some(_) | None => "rprivate",
                },
            })
        })
        .collect()
}

/// A folder (or file) below a volume, made if it is missing: its path without a link in it. Containers may have
/// written there, so each step is resolved beneath the volume; what they exchange for a link afterwards is
/// refused by the mount.
fn sub_path(place: &Path, sub: &Path) -> Result<PathBuf, VolumeError> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
    if !sub.components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(VolumeError::Path(sub.to_owned()));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let errno = |operation, path: &Path| {
        let path = path.to_owned();
        move |e: rustix::io::Errno| VolumeError::Io { operation, path, source: e.into() }
    };
    let mut at =
        rustix::fs::open(place, flags | OFlags::DIRECTORY, Mode::empty()).map_err(errno("open", place))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // The API's own volumes are made of links, which stay beneath.
    if let Ok(found) = openat2(&at, sub, flags, Mode::empty(), resolve) {
        let real = path_of(&found).and_then(|path| Ok((path, path_of(&at)?)));
        let (real, volume) =
            real.map_err(|source| VolumeError::Io { operation: "resolve", path: place.join(sub), source })?;
        let below = real.strip_prefix(volume).map_err(|_| VolumeError::Path(sub.to_owned()))?;
        return Ok(place.join(below));
    }
    for part in sub.components() {
        match mkdirat(&at, part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(errno("create", &place.join(sub))(e)),
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        at = openat2(&at, part.as_os_str(), flags | OFlags::DIRECTORY, Mode::empty(), resolve)
            .map_err(errno("open", &place.join(sub)))?;
    }
    Ok(place.join(sub))
}

/// Where an open file is (proc_pid_fd(5)).
fn path_of(file: &OwnedFd) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn host_path_types() {
        let temp = tempfile::tempdir().expect("temporary folder");
        let file = temp.path().join("f");
        fs::write(&file, "x").expect("writes");
        let check = |path: &Path, kind: &str| {
            host_path(&HostPathVolumeSource {
                path: path.display().to_string(),
                type_: Some(kind.to_owned()),
            })
        };
        assert!(check(&file, "File").is_ok());
        assert!(check(&file, "Directory").is_err());
        assert!(check(&temp.path().join("none"), "").is_err());
        assert!(check(&temp.path().join("made"), "DirectoryOrCreate").is_ok());
        assert!(check(&temp.path().join("new"), "FileOrCreate").is_ok());
        assert!(check(Path::new("../etc"), "").is_err());
    }

    #[test]
    fn sub_paths_stay_inside() {
        let temp = tempfile::tempdir().expect("temporary folder");
        let place = temp.path().join("v");
        fs::create_dir(&place).expect("creates");
        std::os::unix::fs::symlink("/etc", place.join("out")).expect("links");
        let places = Places::from([("v".to_owned(), place.clone())]);
        let run = |sub: &str| {
            let c = serde_json::from_value(json!({"name": "a",
                "volumeMounts": [{"name": "v", "mountPath": "/m", "subPath": sub}]}));
            binds(&c.expect("container"), &places, &Environment::default())
        };
        let ok = run("a/b").expect("is made");
        assert_eq!((&ok[0].source, ok[0].beneath.as_ref()), (&place.join("a/b"), Some(&place)));
        assert!(place.join("a/b").is_dir());
        // As a ConfigMap's file is.
        std::os::unix::fs::symlink("a/b", place.join("link")).expect("links");
        assert_eq!(run("link").expect("stays inside")[0].source, place.join("a/b"));
        for bad in ["out", "out/x", "../x", "/etc"] {
            assert!(run(bad).is_err(), "{bad}");
        }
    }
}
