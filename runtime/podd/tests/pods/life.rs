//! Containers from creation to deletion, and what they find inside.

use std::fs;
use std::path::Path;

use pith_container::plan::FailureKind;
use pith_container::supervisor::protocol::{Phase, Refusal};
use pith_container::supervisor::{Error, Supervisor, records};
use serde_json::json;

use crate::Test;
use crate::bench::{RESIDENT_MAX_KB, memory_of};
use crate::pod::{Pod, eventually, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("a_container_runs_and_ends", a_container_runs_and_ends),
    ("what_a_container_finds", what_a_container_finds),
    ("users_and_rights", users_and_rights),
    ("failures_to_start", failures_to_start),
    ("created_then_started", created_then_started),
    ("signals_and_exit_codes", signals_and_exit_codes),
    ("states_that_forbid", states_that_forbid),
    ("shared_pid_namespace", shared_pid_namespace),
    ("host_namespaces", host_namespaces),
    ("an_idle_supervisor_is_small", an_idle_supervisor_is_small),
    ("adoption", adoption),
    ("a_killed_supervisor_takes_all_along", a_killed_supervisor_takes_all_along),
    ("a_thousand_short_runs", a_thousand_short_runs),
];

fn a_container_runs_and_ends() {
    let mut pod = Pod::start("life");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let record = pod.run_out("one", &["both"]);
    assert_eq!(record.exit.map(|exit| (exit.code, exit.signal)), Some((0, None)));
    assert!(record.pid > 0 && record.started_at > Some(record.created_at), "{record:?}");
    let mut log = pod.log("one");
    log.sort();
    assert_eq!(log, ["to stderr", "to stdout"]);
    assert_eq!(records::read(&pod.spec.dir).expect("records"), std::slice::from_ref(&record));
    assert_eq!(pod.supervisor().state().expect("state").containers, [record]);

    assert_eq!(pod.run_out("two", &["exit", "3"]).exit.map(|exit| exit.code), Some(3));
    pod.supervisor().delete("one").expect("delete");
    let left: Vec<String> =
        records::read(&pod.spec.dir).expect("records").into_iter().map(|record| record.id).collect();
    assert_eq!(left, ["two"]);
    let after = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert_eq!(mounts, after, "no mount is made in the host's namespace");
}

fn what_a_container_finds() {
    let mut pod = Pod::start("facts");
    let facts = pod.facts("c", |_, _, container| {
        container.log.as_mut().expect("a log").max_size = 0;
    });
    assert_eq!(facts["pid"], 1);
    assert_eq!(facts["sid"], 1, "a session of its own");
    assert_eq!(facts["fds"], json!(["0", "1", "2"]), "no descriptor of the host");
    assert_eq!(facts["cwd"], "/");
    assert_eq!(facts["hostname"], "pod-name");
    assert_eq!(facts["env"], json!({ "PATH": "/bin", "GREETING": "hello", "HOME": "/root" }));
    assert_eq!(facts["status"]["Seccomp"], "2", "a filter");
    assert_eq!(facts["status"]["NoNewPrivs"], "1");
    let default = "00000000a80425fb";
    for set in ["CapBnd", "CapEff", "CapPrm"] {
        assert_eq!(facts["status"][set], default, "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(facts["status"][set], "0000000000000000", "{set}");
    }
    let dev = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    ];
    assert_eq!(facts["dev"], json!(dev));
    let mounts = facts["mounts"].as_array().expect("mounts");
    let options = |target: &str| {
        let of_target = |line: &&str| line.split(' ').next() == Some(target);
        let found = mounts.iter().filter_map(|line| line.as_str()).rfind(of_target);
        found.map(|line| line.split(' ').nth(1).unwrap_or("").to_owned())
    };
    let ro = |target: &str| options(target).is_some_and(|options| options.starts_with("ro"));
    assert!(!ro("/") && ro("/sys") && ro("/proc/sys") && ro("/sys/fs/cgroup"), "{mounts:?}");
    assert!(options("/proc").is_some_and(|o| o.contains("nosuid") && o.contains("noexec")), "{mounts:?}");
    let allowed = ["/", "/proc", "/dev", "/sys"];
    for line in mounts.iter().filter_map(|line| line.as_str()) {
        let target = line.split(' ').next().unwrap_or("");
        let known = allowed.iter().any(|a| target == *a || (*a != "/" && target.starts_with(a)));
        assert!(known, "a mount of the host: {line}");
    }
    let cgroup = facts["cgroup"].as_str().expect("cgroup");
    let of_pith: Vec<&str> = cgroup.lines().filter(|line| line.contains("pith")).collect();
    assert_eq!(of_pith, Vec::<&str>::new(), "its cgroup is the root it sees");
    if Path::new("/sys/fs/cgroup/unified").exists() {
        assert_eq!(facts["cgroup files"], json!(["cpu", "memory", "pids"]));
    }
}

fn users_and_rights() {
    let mut pod = Pod::start("users");
    let facts = pod.facts("named", |spec, options, _| {
        options.user = Some("web".to_owned());
        let process = spec.process_mut().as_mut().expect("given");
        process.set_cwd("/srv/data/deep".into());
        process.user_mut().set_additional_gids(Some(vec![5000]));
        process.user_mut().set_umask(Some(0o077));
        let limit = oci_spec::runtime::PosixRlimitBuilder::default()
            .typ(oci_spec::runtime::PosixRlimitType::RlimitNofile)
            .soft(100u64)
            .hard(200u64)
            .build();
        process.set_rlimits(Some(vec![limit.expect("limit")]));
    });
    assert_eq!(facts["status"]["Uid"], "1001\t1001\t1001\t1001");
    assert_eq!(facts["status"]["Gid"], "1002\t1002\t1002\t1002");
    assert_eq!(facts["status"]["Groups"], "1002 1003 5000");
    assert_eq!(facts["status"]["CapEff"], "0000000000000000", "execve as an ordinary user drops them");
    assert_eq!(facts["status"]["CapBnd"], "00000000a80425fb");
    assert_eq!(facts["status"]["Umask"], "0077");
    assert_eq!(facts["cwd"], "/srv/data/deep", "the working directory is made");
    assert_eq!(facts["env"]["HOME"], "/srv");
    let nofile = facts["nofile"].as_str().expect("limits");
    assert!(nofile.contains(" 100 ") && nofile.contains(" 200 "), "{nofile}");

    let facts = pod.facts("number", |spec, options, _| {
        options.user = Some("4242:77".to_owned());
        spec.process_mut().as_mut().expect("given").set_no_new_privileges(Some(false));
    });
    assert_eq!(facts["status"]["Uid"], "4242\t4242\t4242\t4242");
    assert_eq!(facts["status"]["Gid"], "77\t77\t77\t77");
    assert_eq!(facts["status"]["NoNewPrivs"], "0");
    assert_eq!(facts["status"]["Seccomp"], "2", "loaded before the rights for it are gone");
    assert_eq!(facts["env"]["HOME"], "/");
}

/// Id, program, user, message, kind, exit code.
type Failing = (&'static str, &'static str, Option<&'static str>, &'static str, FailureKind, i32);

fn failures_to_start() {
    let mut pod = Pod::start("failures");
    let cases: &[Failing] = &[
        (
            "absent",
            "nonesuch",
            None,
            "exec: \"nonesuch\": executable file not found in $PATH",
            FailureKind::NotFound,
            127,
        ),
        (
            "absent-path",
            "/no/such",
            None,
            "exec: \"/no/such\": stat /no/such: no such file or directory",
            FailureKind::NotFound,
            127,
        ),
        (
            "plain-file",
            "/bin/not-executable",
            None,
            "exec: \"/bin/not-executable\": permission denied",
            FailureKind::NotExecutable,
            126,
        ),
        ("folder", "/bin/", None, "exec: \"/bin/\": is a directory", FailureKind::NotExecutable, 126),
        (
            "user",
            "guest",
            Some("nobody-here"),
            "unable to find user nobody-here: no matching entries in passwd file",
            FailureKind::UnknownUser,
            128,
        ),
    ];
    for (id, program, user, message, kind, code) in cases {
        let error = pod
            .run_with(id, &[], |spec, options, _| {
                options.user = user.map(str::to_owned);
                let process = spec.process_mut().as_mut().expect("given");
                process.set_args(Some(vec![(*program).to_owned()]));
            })
            .expect_err(id);
        let Error::Refused(Refusal::Start(failure)) = error else { panic!("{id}: {error}") };
        assert_eq!((failure.message.as_str(), failure.kind), (*message, *kind), "{id}");
        let record = records::read(&pod.spec.dir).expect("records").into_iter().find(|r| r.id == *id);
        let record = record.expect("a record of the failure");
        assert_eq!(record.exit.map(|exit| exit.code), Some(*code), "{id}");
        assert_eq!((record.phase, record.failure), (Phase::Exited, Some(failure)), "{id}");
    }
    let error = pod.run_with("mount", &[], |spec, _, _| {
        crate::pod::add_mount(spec, crate::pod::bind(Path::new("/no/such/source"), "/data", &[]));
    });
    let message = error.expect_err("no source").to_string();
    assert!(message.starts_with("open_tree OPEN_TREE_CLONE AT_RECURSIVE /no/such/source"), "{message}");
    assert!(message.ends_with("No such file or directory (os error 2)"), "{message}");
}

fn created_then_started() {
    let mut pod = Pod::start("created");
    let spec = pod.ready_with("c", &["print", "ran"], |_, _, _| {});
    let record = pod.supervisor().create(spec).expect("create");
    assert_eq!((record.phase, record.started_at), (Phase::Created, None));
    assert_eq!(pod.log("c"), Vec::<String>::new());
    let (_, events) = pod.supervisor().subscribe().expect("subscribe");
    let record = pod.supervisor().start("c").expect("start");
    assert_eq!(record.phase, Phase::Running);
    wait_for(&events, "c", Phase::Exited);
    assert_eq!(pod.log("c"), ["ran"]);

    // One that is never started ends with a kill, and says why.
    let spec = pod.ready_with("d", &["print", "ran"], |_, _, _| {});
    pod.supervisor().create(spec).expect("create");
    pod.supervisor().kill_container("d").expect("kill");
    let record = wait_for(&events, "d", Phase::Exited);
    assert_eq!(record.failure.map(|failure| failure.kind), Some(FailureKind::Died));
}

fn signals_and_exit_codes() {
    let mut pod = Pod::start("signals");
    let (_, events) = pod.supervisor().subscribe().expect("subscribe");
    pod.run("handled", &["term"]);
    pod.wait_for_log("handled", "waiting");
    pod.supervisor().signal("handled", libc::SIGTERM).expect("signal");
    assert_eq!(wait_for(&events, "handled", Phase::Exited).exit.map(|exit| exit.code), Some(7));

    pod.run("killed", &["wait"]);
    pod.supervisor().signal("killed", libc::SIGKILL).expect("signal");
    let exit = wait_for(&events, "killed", Phase::Exited).exit.expect("an exit");
    assert_eq!((exit.code, exit.signal), (137, Some(libc::SIGKILL)));

    pod.run("all", &["daemon"]);
    pod.wait_for_log("all", "daemon");
    pod.supervisor().kill_container("all").expect("kill");
    wait_for(&events, "all", Phase::Exited);
    let procs = pod.make_cgroup("all").unified.map(|dir| dir.join("cgroup.procs"));
    if let Some(procs) = procs {
        assert_eq!(fs::read_to_string(procs).expect("procs"), "", "nobody is left in its cgroup");
    }
}

fn states_that_forbid() {
    let mut pod = Pod::start("states");
    let supervisor = pod.supervisor().clone();
    let refusal = |result: Result<(), Error>| match result {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let absent = Refusal::NoSuchContainer { id: "x".to_owned() };
    assert_eq!(refusal(supervisor.signal("x", 15)), absent);
    assert_eq!(refusal(supervisor.delete("x")), absent);
    assert_eq!(refusal(supervisor.start("x").map(|_| ())), absent);

    pod.run("x", &["wait"]);
    let running = |needed: &str| Refusal::WrongPhase {
        id: "x".to_owned(),
        phase: Phase::Running,
        needed: needed.to_owned(),
    };
    assert_eq!(refusal(supervisor.delete("x")), running("exited"));
    assert_eq!(refusal(supervisor.start("x").map(|_| ())), running("created"));
    let again = pod.run_with("x", &["wait"], |_, _, _| {});
    assert_eq!(refusal(again.map(|_| ())), Refusal::Exists { id: "x".to_owned() });
    for id in ["../x", ".x", ""] {
        let spec = pod.ready_with("y", &["wait"], |_, _, container| container.id = id.to_owned());
        let refused = refusal(supervisor.run(spec).map(|_| ()));
        assert!(matches!(refused, Refusal::Invalid { .. }), "{id:?}: {refused}");
    }
}

fn shared_pid_namespace() {
    let mut pod = Pod::start_with("sharedpid", |spec| spec.share_pid = true);
    let without_pid = |spec: &mut oci_spec::runtime::Spec| {
        let linux = spec.linux_mut().as_mut().expect("given");
        let namespaces = linux.namespaces().clone().expect("given");
        let keep = namespaces.into_iter().filter(|n| n.typ() != oci_spec::runtime::LinuxNamespaceType::Pid);
        linux.set_namespaces(Some(keep.collect()));
    };
    pod.run_with("a", &["daemon"], |spec, _, _| without_pid(spec)).expect("run a");
    pod.wait_for_log("a", "daemon");
    let facts = pod.facts("b", |spec, _, _| without_pid(spec));
    assert!(facts["pid"].as_u64().is_some_and(|pid| pid > 2), "beside the other's processes: {facts}");
    assert_eq!(facts["first process"], "Uid:\t65534\t65534\t65534\t65534");
    let (code, output) = pod.exec("a", &["try", "root of 1"]);
    assert_eq!((code, output.trim()), (0, "refused: 13"), "the first process has nothing to look at");
    let (_, events) = pod.supervisor().subscribe().expect("subscribe");
    pod.supervisor().signal("a", libc::SIGKILL).expect("signal");
    wait_for(&events, "a", Phase::Exited);
    if let Some(dir) = pod.make_cgroup("a").unified {
        eventually("its daemon is gone too", || {
            fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|procs| procs.is_empty())
        });
    }
}

fn host_namespaces() {
    let own = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).expect("a namespace");
    let mut pod = Pod::start_with("host", |spec| {
        spec.host_network = true;
        spec.host_ipc = true;
        spec.host_pid = true;
        spec.sysctls.clear();
    });
    let pid = pod.supervisor().pid();
    for name in ["net", "ipc", "uts", "pid"] {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a namespace");
        assert_eq!(theirs, own(name), "{name}");
    }
    pod.run_with("c", &["daemon"], |spec, _, _| {
        let linux = spec.linux_mut().as_mut().expect("given");
        let typ = oci_spec::runtime::LinuxNamespaceType::Mount;
        let mount = oci_spec::runtime::LinuxNamespaceBuilder::default().typ(typ).build().expect("namespace");
        linux.set_namespaces(Some(vec![mount]));
        let mounts = spec.mounts_mut().as_mut().expect("given");
        mounts.retain(|mount| mount.typ().as_deref() != Some("cgroup"));
    })
    .expect("run");
    pod.wait_for_log("c", "daemon");
    let record = pod.supervisor().state().expect("state").containers.remove(0);
    pod.supervisor().kill();
    eventually("the container dies with its supervisor", || {
        !Path::new(&format!("/proc/{}/root/bin", record.pid)).exists()
    });
    // Its daemon has no init process above it: the cgroup is how the kubelet finds it.
    if let Some(dir) = pod.make_cgroup("c").unified {
        fs::write(dir.join("cgroup.kill"), "1").expect("cgroup.kill");
    }
}

fn an_idle_supervisor_is_small() {
    let mut pod = Pod::start("small");
    pod.run("c", &["wait"]);
    for _ in 0..20 {
        pod.exec("c", &["exit", "0"]);
    }
    let pid = pod.supervisor().pid();
    eventually("resident below a mebibyte", || memory_of(pid).0 <= RESIDENT_MAX_KB);
    let (_, _, dirty) = memory_of(pid);
    assert!(dirty <= 256, "its own memory: {dirty} kB");
}

fn adoption() {
    let mut pod = Pod::start("adopt");
    let record = pod.run("c", &["wait"]);
    let adopted = Supervisor::adopt(&pod.spec.dir).expect("adopt");
    assert_eq!(adopted.pid(), pod.supervisor().pid());
    assert_eq!(adopted.state().expect("state").containers, [record]);
    let netns = rustix::fs::fstat(adopted.netns().expect("netns")).expect("stat");
    let own = rustix::fs::stat("/proc/self/ns/net").expect("stat");
    assert_ne!(netns.st_ino, own.st_ino, "a network of its own");
    let shm = adopted.path(&pod.spec.tmpfs[0].path);
    fs::write(shm.join("from-outside"), "x").expect("the pod's memory can be reached");
    assert!(!pod.spec.tmpfs[0].path.join("from-outside").exists(), "and is not mounted on the host");

    assert!(matches!(Supervisor::adopt(Path::new("/nonexistent")), Err(Error::Gone { .. })));
    adopted.stop().expect("stop");
    assert!(adopted.has_ended());
    assert!(matches!(Supervisor::adopt(&pod.spec.dir), Err(Error::Gone { .. })), "it has ended");
}

fn a_killed_supervisor_takes_all_along() {
    let mut pod = Pod::start("sigkill");
    let pids: Vec<i32> = ["a", "b"].iter().map(|id| pod.run(id, &["daemon"]).pid).collect();
    pod.wait_for_log("a", "daemon");
    pod.wait_for_log("b", "daemon");
    pod.supervisor().kill();
    for dir in pod.cgroups.clone() {
        let procs = dir.join(if dir.join("tasks").exists() { "tasks" } else { "cgroup.procs" });
        eventually(&format!("{} is empty", procs.display()), || {
            fs::read_to_string(&procs).is_ok_and(|pids| pids.is_empty())
        });
    }
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}/root/bin")).exists());
    }
    assert!(matches!(Supervisor::adopt(&pod.spec.dir), Err(Error::Gone { .. })));
    let left = records::read(&pod.spec.dir).expect("records");
    assert_eq!(left.len(), 2, "what ran is on file");
}

fn a_thousand_short_runs() {
    let mut pod = Pod::start("thousand");
    let supervisor = pod.supervisor().clone();
    let (_, events) = supervisor.subscribe().expect("subscribe");
    let open = || fs::read_dir(format!("/proc/{}/fd", supervisor.pid())).expect("fds").count();
    let spec = pod.ready_with("r", &["exit", "5"], |_, _, _| {});
    let before = open();
    for run in 0..1000 {
        let record = supervisor.run(spec.clone()).unwrap_or_else(|error| panic!("run {run}: {error}"));
        assert!(matches!(record.phase, Phase::Running | Phase::Exited));
        let record = wait_for(&events, "r", Phase::Exited);
        assert_eq!(record.exit.map(|exit| exit.code), Some(5), "run {run}");
        supervisor.delete("r").unwrap_or_else(|error| panic!("delete {run}: {error}"));
    }
    eventually("every descriptor is closed", || open() == before);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", supervisor.pid()));
    assert_eq!(children.map(|children| children.trim().to_owned()).ok().as_deref(), Some(""), "no zombie");
}
