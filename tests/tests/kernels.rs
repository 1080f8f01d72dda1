//! Other kernels, in virtual machines: Debian's 6.12 with a pure cgroup v2 hierarchy, where everything works, and 6.1,
//! where a cluster is refused by name and single containers run, with the version 1 hierarchies alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pith_tests::vm::{Console, Vm};
use pith_tests::{bin_dir, images_dir, test_program};

const DEADLINE: Duration = Duration::from_secs(900);

/// Programs that a replica holds while it runs: those of sockets, and two of its uplink.
const REPLICA_PROGRAMS: u32 = 8;
/// Instructions that the verifier may walk for any of them, as on the kernel of the proxy's own test.
const VERIFIED_MAX: u32 = 150_000;

/// The tests of the runtime and of the cgroups below it, which kernels/containers.sh runs.
const CONTAINERS: [(&str, &str); 2] = [("runtime", "bin/runtime-tests"), ("real", "bin/cgroup-tests")];

fn containers() -> anyhow::Result<Vec<(PathBuf, &'static str)>> {
    let mut files = vec![(bin_dir().join("pith-oci"), "bin/pith-oci")];
    for (name, to) in CONTAINERS {
        files.push((test_program(name)?, to));
    }
    Ok(files)
}

/// `None`, after a loud line, where no such machine can be had.
fn boot(test: &str, series: &str, script: &str, files: &[(&Path, &str)]) -> Option<Console> {
    let prepared = Vm::with_kernel(series).and_then(|vm| Ok((vm, containers()?)));
    match prepared {
        Ok((vm, containers)) => {
            let script = format!("{}\n{script}", include_str!("kernels/containers.sh"));
            let containers = containers.iter().map(|(from, to)| (from.as_path(), *to));
            let all: Vec<(&Path, &str)> = containers.chain(files.iter().copied()).collect();
            Some(vm.run(&script, &all, DEADLINE).expect("the machine runs its script"))
        }
        Err(error) => {
            eprintln!("SKIPPED: {test}: {error:#}");
            None
        }
    }
}

/// Deployment, limits in the v2 files, Service by NodePort, and nothing left afterwards; then containers by the runtime
/// alone, and their limits run into.
#[test]
fn everything_works_on_6_12_with_pure_cgroup_v2() {
    let test = "everything_works_on_6_12_with_pure_cgroup_v2";
    let kubectl = pith_tests::tools_dir().join("kubectl-1.32");
    if !kubectl.exists() {
        eprintln!("SKIPPED: {test}: {} is missing: run `cargo xtask test`", kubectl.display());
        return;
    }
    let demo: PathBuf = images_dir().join("demo-v1.tar");
    let files = [(kubectl.as_path(), "bin/kubectl"), (demo.as_path(), "images/demo.tar")];
    let Some(console) = boot(test, "6.12", include_str!("kernels/cluster.sh"), &files) else { return };
    let text = &console.text;
    assert_eq!(console.status, 0, "{text}");
    for expect in [
        "cgroups: v2",
        "successfully rolled out",
        "memory.max 33554432",
        "cpu.max 20000 100000",
        "answered: web-",
        "nothing is left",
        "containers: ok",
    ] {
        assert!(text.contains(expect), "no {expect:?} in:\n{text}");
    }
    let verified = text.lines().find_map(|line| line.strip_prefix("verified: ")?.split_once(' '));
    let verified = verified.map(|(programs, most)| (programs.parse::<u32>(), most.trim().parse::<u32>()));
    let Some((Ok(programs), Ok(most))) = verified else { panic!("no figures of the verifier in:\n{text}") };
    assert!(programs >= REPLICA_PROGRAMS, "a replica holds {programs} programs");
    assert!(most <= VERIFIED_MAX, "the verifier walked {most} instructions of a program");
}

/// No cluster, but containers: there with the version 1 hierarchies alone.
#[test]
fn a_kernel_without_tcx_is_refused() {
    let script = include_str!("kernels/refusal.sh");
    let Some(console) = boot("a_kernel_without_tcx_is_refused", "6.1", script, &[]) else { return };
    for expect in
        ["Linux 6.6 or newer is needed for tcx", "up: 1", "MISSING", "cgroups: v1", "containers: ok"]
    {
        assert!(console.text.contains(expect), "no {expect:?} in:\n{}", console.text);
    }
    assert!(!console.text.contains("cluster.json"), "nothing is begun:\n{}", console.text);
}
