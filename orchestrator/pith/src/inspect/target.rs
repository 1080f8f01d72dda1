//! Which process is meant: by its number, as a container of a pod, or by the id of a container without a cluster.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pith_container::supervisor::records;
use serde_json::Value;

/// Where `pith-oci` keeps its containers unless it is told otherwise.
const OCI_ROOT: &str = "/run/pith-oci";

/// A process to look at.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) pid: i32,
    /// The pod it belongs to.
    pub(super) pod: Option<Pod>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: String,
    /// `replica-1`: where it runs.
    pub(super) replica: String,
}

/// How a command line names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named<'a> {
    Pid(i32),
    Container { namespace: &'a str, pod: &'a str, container: &'a str },
    Id(&'a str),
}

pub(super) fn parse(text: &str) -> Option<Named<'_>> {
    if let Ok(pid) = text.parse() {
        return (pid > 0).then_some(Named::Pid(pid));
    }
    let parts: Vec<&str> = text.split('/').collect();
    if parts.iter().any(|part| part.is_empty() || part.starts_with('.')) {
        return None;
    }
    match parts.as_slice() {
        [pod, container] => Some(Named::Container { namespace: "default", pod, container }),
        [namespace, pod, container] => Some(Named::Container { namespace, pod, container }),
        [id] => Some(Named::Id(id)),
        _ => None,
    }
}

/// `run_dir` is the cluster's, `dir` that of `pith run`.
pub(super) fn find(named: &Named<'_>, run_dir: &Path, dir: &Path) -> Result<Target> {
    match named {
        Named::Pid(pid) if Path::new(&format!("/proc/{pid}")).is_dir() => Ok(Target { pid: *pid, pod: None }),
        Named::Pid(pid) => bail!("there is no process {pid}"),
        Named::Container { namespace, pod, container } => in_cluster(run_dir, namespace, pod, container),
        Named::Id(id) => alone(&[dir.join("run/state"), OCI_ROOT.into()], id),
    }
}

/// A container of `pith run` or `pith-oci`, by what those wrote down.
fn alone(roots: &[PathBuf], id: &str) -> Result<Target> {
    let state = roots.iter().map(|root| root.join(id).join("state.json")).find(|path| path.is_file());
    let Some(path) = state else {
        let roots: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
        bail!("no container {id} in {}", roots.join(" or "));
    };
    let pid = read(&path)?["process"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    match pid {
        Some(pid) if Path::new(&format!("/proc/{pid}")).is_dir() => Ok(Target { pid, pod: None }),
        Some(_) | None => bail!("container {id} does not run"),
    }
}

/// A container of a pod, by what the replicas' kubelets and supervisors wrote down.
fn in_cluster(run_dir: &Path, namespace: &str, pod: &str, container: &str) -> Result<Target> {
    for replica in below(run_dir)? {
        for dir in below(&replica.join("pods"))? {
            let Ok(object) = read(&dir.join("pod.json")) else { continue };
            let metadata = &object["metadata"];
            if metadata["name"] != pod || metadata["namespace"] != namespace {
                continue;
            }
            let target = Pod { uid: name(&dir), replica: name(&replica) };
            let pid =
                pid(&dir, container).with_context(|| format!("{namespace}/{pod} on {}", target.replica))?;
            return Ok(Target { pid, pod: Some(target) });
        }
    }
    bail!("no pod {namespace}/{pod} runs on the replicas in {}", run_dir.display())
}

/// The process of a pod's container.
fn pid(dir: &Path, container: &str) -> Result<i32> {
    let record = read(&dir.join("kubelet.json"))?;
    let Some(known) = record["containers"].as_object() else { bail!("it has no containers yet") };
    let Some(id) = known.get(container).and_then(|container| container["id"].as_str()) else {
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        bail!("it has no container {container}, only {}", names.join(", "));
    };
    let records = records::read(dir).with_context(|| format!("read the records in {}", dir.display()))?;
    match records.iter().find(|record| record.id == id) {
        Some(record) if record.exit.is_none() && record.pid > 0 => Ok(record.pid),
        Some(_) | None => bail!("its container {container} does not run"),
    }
}

fn read(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
}

/// The folders in a folder; none in one that is not there.
fn below(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", dir.display())),
    };
    let mut dirs: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    Ok(dirs)
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_table() {
        let container = |namespace, pod, container| Some(Named::Container { namespace, pod, container });
        let cases = [
            ("12", Some(Named::Pid(12))),
            ("0", None),
            ("-3", None),
            ("web/app", container("default", "web", "app")),
            ("kube-system/web/app", container("kube-system", "web", "app")),
            ("run-1", Some(Named::Id("run-1"))),
            ("..", None),
            ("../x", None),
            ("web/", None),
            ("a/b/c/d", None),
            ("", None),
        ];
        for (text, expect) in cases {
            assert_eq!(parse(text), expect, "{text:?}");
        }
    }

    #[test]
    fn a_containers_process() {
        let dir = tempfile::tempdir().expect("a folder");
        let pod = dir.path().join("replica-2/pods/u1");
        fs::create_dir_all(pod.join("containers")).expect("made");
        let write = |name: &str, value: Value| fs::write(pod.join(name), value.to_string()).expect("written");
        write("pod.json", json!({ "metadata": { "name": "web", "namespace": "default" } }));
        write("kubelet.json", json!({ "containers": { "app": { "id": "c1" }, "old": { "id": "c2" } } }));
        let record = |exit: Value| {
            json!({ "id": "c1", "phase": "running", "pid": 77, "created_at": 1, "exit": exit }).to_string()
        };
        fs::write(pod.join("containers/c1.json"), record(Value::Null)).expect("written");
        let find = |namespace, pod, container| {
            in_cluster(dir.path(), namespace, pod, container).map_err(|error| format!("{error:#}"))
        };
        let expect = Pod { uid: "u1".to_owned(), replica: "replica-2".to_owned() };
        assert_eq!(find("default", "web", "app"), Ok(Target { pid: 77, pod: Some(expect) }));
        for (namespace, pod, container, reason) in [
            ("default", "web", "x", "it has no container x, only app, old"),
            ("default", "web", "old", "its container old does not run"),
            ("default", "nope", "app", "no pod default/nope runs"),
            ("other", "web", "app", "no pod other/web runs"),
        ] {
            let error = find(namespace, pod, container).expect_err("there is none");
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn containers_without_a_cluster() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("a")).expect("made");
        let write = |pid: u32| {
            let state = json!({ "process": { "pid": pid } }).to_string();
            fs::write(dir.path().join("a/state.json"), state).expect("written");
        };
        let roots = [dir.path().to_owned()];
        write(std::process::id());
        assert!(alone(&roots, "a").is_ok_and(|target| target.pid.cast_unsigned() == std::process::id()));
        write(u32::MAX);
        assert!(alone(&roots, "a").is_err());
        assert!(alone(&roots, "b").is_err());
    }
}
