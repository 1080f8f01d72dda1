//! A cluster for one test: `pith up` in a folder of its own, `pith down` when the test ends, however it ends.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::kubectl::{Kubectl, Reply};
use crate::program::{bin_dir, folder, missing_right};

/// A running cluster. Dropping it takes it down.
pub struct Cluster {
    pub name: String,
    dir: TempDir,
}

impl Cluster {
    /// Starts `replicas` replicas with the demo and probe images in their stores.
    /// `None`, after a loud line, where the machine does not allow it.
    ///
    /// # Panics
    /// When `pith up` fails, with all that it printed.
    pub fn start(replicas: u16, more: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if let Some(reason) = missing_right() {
            eprintln!("SKIPPED: end-to-end test: {reason}");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}-{number}", std::process::id());
        let dir = TempDir::with_prefix("pith-test-").expect("a temporary folder");
        let cluster = Self { name, dir };
        let replicas = replicas.to_string();
        // Tests leave the machine's own interfaces alone.
        let mut arguments = vec!["up", "--detach", "--outside", "none", "--replicas", &replicas];
        arguments.extend(more);
        let reply = cluster.pith(&arguments);
        assert!(reply.ok, "pith up failed:\n{}{}", reply.stdout, reply.stderr);
        for image in ["demo-v1", "demo-v2", "probe"] {
            cluster.import(&folder("PITH_IMAGES_DIR", "target/images").join(format!("{image}.tar")));
        }
        Some(cluster)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// kubectl for this cluster; see [`Kubectl::new`].
    pub fn kubectl(&self, version: &str) -> Option<Kubectl> {
        Kubectl::new(version, &self.kubeconfig())
    }

    /// `pith ARGUMENTS --name … --dir …`
    pub fn pith(&self, arguments: &[&str]) -> Reply {
        self.pith_as(&self.name, arguments, self.dir().to_str().expect("paths of the tests are UTF-8"))
    }

    /// The same for a cluster of another name or folder.
    pub fn pith_as(&self, name: &str, arguments: &[&str], dir: &str) -> Reply {
        let mut command = Command::new(bin_dir().join("pith"));
        command.args(arguments).args(["--name", name, "--dir", dir]);
        Reply::from(command.output().expect("pith starts"))
    }

    /// Sends SIGKILL to a replica's process; its pods go on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill_replica(&self, replica: &str) {
        let status = self.status();
        let replicas = status["replicas"].as_array().expect("status lists replicas");
        let pid = replicas.iter().find(|one| one["name"] == replica).and_then(|one| one["pid"].as_i64());
        kill(pid.expect("the replica runs"));
    }

    /// Sends SIGKILL to the primary.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill_primary(&self) {
        kill(self.status()["primary"].as_i64().expect("the primary runs"));
    }

    /// Kills all processes of a replica's pods, as a power cut would.
    ///
    /// # Panics
    /// When the cgroup file cannot be written.
    pub fn kill_pods(&self, replica: &str) {
        let v2 = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(|root| {
            Path::new(root).join(format!("pith-{}", self.name)).join(replica).join("cgroup.kill")
        });
        let file = v2.iter().find(|path| path.exists()).expect("the replica's cgroup in the v2 hierarchy");
        std::fs::write(file, "1").expect("cgroup.kill takes a 1");
    }

    /// Puts an image archive into every replica's store.
    ///
    /// # Panics
    /// When the import fails.
    pub fn import(&self, archive: &Path) {
        let archive = archive.to_str().expect("paths of the tests are UTF-8");
        let reply = self.pith(&["image", "import", archive]);
        assert!(reply.ok, "import of {archive} failed:\n{}{}", reply.stdout, reply.stderr);
    }

    /// `pith status --output json`
    ///
    /// # Panics
    /// When it fails.
    pub fn status(&self) -> Value {
        let reply = self.pith(&["status", "--output", "json"]);
        assert!(reply.ok, "pith status failed:\n{}", reply.stderr);
        serde_json::from_str(&reply.stdout).expect("status prints JSON")
    }

    /// Takes the cluster down now and checks that `pith down` says it went well.
    ///
    /// # Panics
    /// When something is left.
    pub fn down(self) {
        let reply = self.pith(&["down"]);
        assert!(reply.ok, "pith down failed:\n{}{}", reply.stdout, reply.stderr);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // After `down()` this finds nothing to do. A failing test gets the logs before they go.
        if std::thread::panicking() {
            print_logs(&self.dir().join("logs"));
        }
        let reply = self.pith(&["down"]);
        if !reply.ok {
            eprintln!("pith down of {} failed:\n{}", self.name, reply.stderr);
        }
    }
}

fn kill(pid: i64) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a live process has a pid above 0");
    kill_process(pid, Signal::KILL).expect("the process runs");
}

/// The end of each log of a cluster whose test failed.
fn print_logs(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default();
        eprintln!("--- {}\n{}", path.display(), tail.join("\n"));
    }
}
