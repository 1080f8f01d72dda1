//! A pod for a test: folder, root file system, cgroups, supervisor. All of it goes when it is dropped.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oci_spec::runtime::{
    LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, Process, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use pith_container::compile::{self, CgroupView, Options, Overlay};
use pith_container::plan::Plan;
use pith_container::supervisor::protocol::{
    CgroupDirs, ContainerRecord, ContainerSpec, Event, LogSpec, Phase, SandboxSpec, SharedTmpfs,
};
use pith_container::supervisor::{Events, Streams, Supervisor};
use serde_json::Value;

/// Nothing here takes longer unless it hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
const LEGACY: [&str; 3] = ["memory", "cpu", "pids"];

/// Why these tests cannot run here.
pub(crate) fn missing_right() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root");
    }
    match pith_sys::process::fork(pith_sys::process::namespaces::MOUNT, None, || 0) {
        Ok(child) => {
            let _ = pith_sys::process::wait(&child.pidfd);
            None
        }
        Err(_) => Some("no right to make a mount namespace"),
    }
}

pub(crate) struct Pod {
    pub(crate) dir: tempfile::TempDir,
    _run_dir: tempfile::TempDir,
    pub(crate) cgroups: Vec<PathBuf>,
    name: String,
    pub(crate) spec: SandboxSpec,
    supervisor: Option<Supervisor>,
    pub(crate) spawned_in: Duration,
}

impl Pod {
    pub(crate) fn start(name: &str) -> Pod {
        Pod::start_with(name, |_| {})
    }

    pub(crate) fn start_with(name: &str, change: impl FnOnce(&mut SandboxSpec)) -> Pod {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("pith-test-{name}-{}-{number}", std::process::id());
        let dir = tempfile::Builder::new().prefix("pith-pod").tempdir().expect("tempdir");
        // On memory, as /run is: records are replaced by rename, which a disk makes slow.
        let memory = Path::new("/dev/shm");
        let memory = if memory.is_dir() { memory } else { dir.path() };
        let run_dir = tempfile::Builder::new().prefix("pith-pod").tempdir_in(memory).expect("tempdir");
        let run = run_dir.path().join("run");
        let shm = run.join("shm");
        fs::create_dir_all(&shm).expect("mkdir");
        make_root(&dir.path().join("image"));
        let mut pod = Pod {
            dir,
            _run_dir: run_dir,
            cgroups: Vec::new(),
            spec: SandboxSpec {
                dir: run,
                hostname: "pod-name".to_owned(),
                host_network: false,
                host_ipc: false,
                host_pid: false,
                share_pid: false,
                sysctls: vec![("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())],
                cgroup: CgroupDirs::default(),
                tmpfs: vec![SharedTmpfs { path: shm, size: 1 << 20, mode: 0o1777, noexec: true }],
            },
            name,
            supervisor: None,
            spawned_in: Duration::ZERO,
        };
        pod.spec.cgroup = pod.make_cgroup("podd");
        change(&mut pod.spec);
        let program = std::env::var("PITH_PODD").unwrap_or(env!("CARGO_BIN_EXE_pith-podd").to_owned());
        let start = Instant::now();
        let supervisor = Supervisor::spawn(Path::new(&program), &pod.spec);
        pod.spawned_in = start.elapsed();
        pod.supervisor = Some(supervisor.unwrap_or_else(|error| panic!("spawn: {error}")));
        pod
    }

    pub(crate) fn supervisor(&self) -> &Supervisor {
        self.supervisor.as_ref().expect("started")
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    pub(crate) fn make_cgroup(&mut self, leaf: &str) -> CgroupDirs {
        let path = format!("{}/{leaf}", self.name);
        let unified = UNIFIED.iter().map(Path::new).find(|root| root.join("cgroup.procs").exists());
        let legacy = LEGACY.map(|name| Path::new("/sys/fs/cgroup").join(name));
        let legacy: Vec<PathBuf> = legacy.into_iter().filter(|root| root.join("tasks").exists()).collect();
        let dirs = CgroupDirs {
            unified: unified.map(|root| root.join(&path)),
            legacy: legacy.iter().map(|root| root.join(&path)).collect(),
        };
        for dir in dirs.unified.iter().chain(&dirs.legacy) {
            fs::create_dir_all(dir).expect("make a cgroup");
            self.cgroups.push(dir.clone());
        }
        dirs
    }

    /// The spec of a container that runs `guest` with these arguments, as the kubelet would write it.
    pub(crate) fn oci(&self, args: &[&str]) -> Spec {
        let args = ["guest"].iter().chain(args).map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let process = ProcessBuilder::default()
            .args(args)
            .env(vec!["PATH=/bin".to_owned(), "GREETING=hello".to_owned()])
            .cwd("/")
            .user(UserBuilder::default().uid(0u32).gid(0u32).build().expect("user"))
            .no_new_privileges(true)
            .capabilities(compile::capability_sets(compile::default_capabilities()).expect("capabilities"))
            .build()
            .expect("process");
        let namespaces = [LinuxNamespaceType::Mount, LinuxNamespaceType::Pid, LinuxNamespaceType::Cgroup]
            .map(|typ| LinuxNamespaceBuilder::default().typ(typ).build().expect("namespace"));
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let linux = LinuxBuilder::default()
            .namespaces(namespaces.to_vec())
            .masked_paths(strings(compile::default_masked_paths()))
            .readonly_paths(strings(compile::default_readonly_paths()))
            .build()
            .expect("linux");
        let root = self.path("root");
        fs::create_dir_all(&root).expect("mkdir");
        SpecBuilder::default()
            .version("1.2.0")
            .root(RootBuilder::default().path(root).readonly(false).build().expect("root"))
            .mounts(compile::default_mounts(Some(&self.spec.tmpfs[0].path)))
            .process(process)
            .linux(linux)
            .build()
            .expect("spec")
    }

    pub(crate) fn options(&mut self, id: &str) -> Options {
        let layer = |kind: &str| {
            let path = self.path(&format!("layers/{id}/{kind}"));
            fs::create_dir_all(&path).expect("mkdir");
            path
        };
        let hybrid = Path::new(UNIFIED[0]).exists();
        Options {
            overlay: Some(Overlay {
                lower: vec![self.path("image")],
                upper: Some((layer("upper"), layer("work"))),
            }),
            cgroup: self.make_cgroup(id),
            cgroup_view: if hybrid {
                CgroupView::Legacy(LEGACY.map(str::to_owned).to_vec())
            } else {
                CgroupView::Unified
            },
            user: None,
            default_seccomp: true,
            confine: Default::default(),
        }
    }

    pub(crate) fn container(&self, id: &str, plan: Plan, options: &Options) -> ContainerSpec {
        ContainerSpec {
            id: id.to_owned(),
            plan,
            cgroup: options.cgroup.clone(),
            log: Some(LogSpec { path: self.path(&format!("logs/{id}/0.log")), max_size: 0, max_files: 0 }),
            stdin: false,
            stdin_once: false,
            tty: false,
        }
    }

    /// Compiles and runs a container; the spec and options can be changed before.
    pub(crate) fn run_with(
        &mut self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut Spec, &mut Options, &mut ContainerSpec),
    ) -> Result<ContainerRecord, pith_container::supervisor::Error> {
        let spec = self.ready_with(id, args, change);
        self.supervisor().run(spec)
    }

    pub(crate) fn ready_with(
        &mut self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut Spec, &mut Options, &mut ContainerSpec),
    ) -> ContainerSpec {
        let mut spec = self.oci(args);
        let mut options = self.options(id);
        let empty = Plan {
            outside: vec![],
            born_in: vec![],
            clocks: vec![],
            mappings: None,
            namespaces: vec![],
            cgroup: None,
            steps: vec![],
            last: vec![],
            exec: pith_container::plan::Exec { args: vec![], env: vec![] },
        };
        let mut container = self.container(id, empty, &options);
        change(&mut spec, &mut options, &mut container);
        container.plan =
            compile::container(&spec, &options).unwrap_or_else(|error| panic!("compile: {error}"));
        container
    }

    pub(crate) fn run(&mut self, id: &str, args: &[&str]) -> ContainerRecord {
        self.run_with(id, args, |_, _, _| {}).unwrap_or_else(|error| panic!("run {id}: {error}"))
    }

    /// Runs a container to its end.
    pub(crate) fn run_out(&mut self, id: &str, args: &[&str]) -> ContainerRecord {
        self.run_out_with(id, args, |_, _, _| {})
    }

    pub(crate) fn run_out_with(
        &mut self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut Spec, &mut Options, &mut ContainerSpec),
    ) -> ContainerRecord {
        let (_, events) = self.supervisor().subscribe().expect("subscribe");
        self.run_with(id, args, change).unwrap_or_else(|error| panic!("run {id}: {error}"));
        wait_for(&events, id, Phase::Exited)
    }

    /// Runs `guest facts` and reads what it found.
    pub(crate) fn facts(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut Spec, &mut Options, &mut ContainerSpec),
    ) -> Value {
        let record = self.run_out_with(id, &["facts"], change);
        let log = self.log(id);
        assert_eq!(record.exit.map(|exit| exit.code), Some(0), "{log:?}");
        serde_json::from_str(&log.join("")).unwrap_or_else(|error| panic!("{error}: {log:?}"))
    }

    /// The lines of a container's log, without time, stream and tag (parts are not joined).
    pub(crate) fn log(&self, id: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(&format!("logs/{id}/0.log"))).unwrap_or_default();
        // Not `lines`, which takes a carriage return for part of the end.
        let lines = text.split_terminator('\n');
        lines.map(|line| line.splitn(4, ' ').nth(3).unwrap_or("").to_owned()).collect()
    }

    pub(crate) fn wait_for_log(&self, id: &str, text: &str) {
        eventually(&format!("{text:?} in the log of {id}"), || {
            self.log(id).iter().any(|line| line.contains(text))
        });
    }

    /// A plan for a process in a running container.
    pub(crate) fn exec_plan(&mut self, id: &str, args: &[&str], change: impl FnOnce(&mut Process)) -> Plan {
        let spec = self.oci(args);
        let mut process = spec.process().clone().expect("given");
        change(&mut process);
        let options = self.options(id);
        compile::exec(&spec, &process, &options).unwrap_or_else(|error| panic!("compile: {error}"))
    }

    /// Runs a process in a container to its end: exit code and output.
    pub(crate) fn exec(&mut self, id: &str, args: &[&str]) -> (i32, String) {
        let plan = self.exec_plan(id, args, |_| {});
        let (read, write) = rustix::pipe::pipe().expect("pipe");
        let streams = Streams { stdout: Some(write.as_fd()), stderr: Some(write.as_fd()), stdin: None };
        let exec = self.supervisor().exec(id, plan, streams).unwrap_or_else(|error| panic!("exec: {error}"));
        drop(write);
        let exit = exec.wait(Some(DEADLINE)).expect("wait").expect("ends in time");
        (exit.code, read_all(read))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            if std::thread::panicking() {
                let errors = fs::read_to_string(self.spec.dir.join("podd.err")).unwrap_or_default();
                eprintln!("supervisor said: {errors:?}");
            }
            // Already ended is fine: some tests kill it.
            let _ = supervisor.stop();
        }
        let mut parents: Vec<PathBuf> =
            self.cgroups.iter().filter_map(|dir| dir.parent().map(Path::to_owned)).collect();
        parents.sort();
        parents.dedup();
        for dir in self.cgroups.drain(..).rev().chain(parents) {
            let deadline = Instant::now() + DEADLINE;
            // A process that was killed leaves its cgroup a moment later.
            while fs::remove_dir(&dir).is_err_and(|error| error.kind() != std::io::ErrorKind::NotFound) {
                if Instant::now() > deadline {
                    eprintln!("left behind: {}", dir.display());
                    break;
                }
                std::thread::yield_now();
            }
        }
    }
}

/// A bind mount for a container.
pub(crate) fn bind(source: &Path, destination: &str, options: &[&str]) -> Mount {
    let options: Vec<String> = ["rbind"].iter().chain(options).map(|option| (*option).to_owned()).collect();
    MountBuilder::default()
        .typ("bind")
        .source(source)
        .destination(destination)
        .options(options)
        .build()
        .expect("a mount")
}

pub(crate) fn add_mount(spec: &mut Spec, mount: Mount) {
    spec.mounts_mut().get_or_insert_default().push(mount);
}

/// The image: this executable as `guest` and `true`, and users.
fn make_root(root: &Path) {
    for dir in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(dir)).expect("mkdir");
    }
    let exe = std::env::current_exe().expect("own path");
    for name in ["guest", "true"] {
        let to = root.join("bin").join(name);
        fs::hard_link(&exe, &to).or_else(|_| fs::copy(&exe, &to).map(|_| ())).expect("copy the guest");
    }
    let files = [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:1001:1002::/srv:/bin/false\n"),
        ("etc/group", "root:x:0:\nweb:x:1002:\nextra:x:1003:web\n"),
        ("bin/not-executable", "text"),
    ];
    files.iter().for_each(|(path, text)| fs::write(root.join(path), text).expect("write"));
}

/// Waits for an event that says that a container has reached a phase.
pub(crate) fn wait_for(events: &Events, id: &str, phase: Phase) -> ContainerRecord {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match events.next(Some(left)).expect("events") {
            Some(Event::Container(record)) if record.id == id && record.phase == phase => return record,
            Some(_) => {}
            None => panic!("{id} did not become {phase}"),
        }
    }
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn read_all(fd: OwnedFd) -> String {
    let mut text = String::new();
    fs::File::from(fd).read_to_string(&mut text).expect("read");
    text
}
