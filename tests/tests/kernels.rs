//! Other kernels, in virtual machines: Debian's 6.12 with a pure cgroup v2 hierarchy, where everything works, and 6.1,
//! which pith refuses by name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pith_tests::images_dir;
use pith_tests::vm::{Console, Vm};

const DEADLINE: Duration = Duration::from_secs(900);

/// `None`, after a loud line, where no such machine can be had.
fn boot(test: &str, series: &str, script: &str, files: &[(&Path, &str)]) -> Option<Console> {
    match Vm::with_kernel(series) {
        Ok(vm) => Some(vm.run(script, files, DEADLINE).expect("the machine runs its script")),
        Err(error) => {
            eprintln!("SKIPPED: {test}: {error:#}");
            None
        }
    }
}

/// Deployment, limits in the v2 files, Service by NodePort, and nothing left afterwards.
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
    ] {
        assert!(text.contains(expect), "no {expect:?} in:\n{text}");
    }
}

#[test]
fn a_kernel_without_tcx_is_refused() {
    let script = "pith up --detach --replicas 1; echo \"up: $?\"; pith doctor; ls /run/pith /var/lib/pith";
    let Some(console) = boot("a_kernel_without_tcx_is_refused", "6.1", script, &[]) else { return };
    for expect in ["Linux 6.6 or newer is needed for tcx", "up: 1", "MISSING"] {
        assert!(console.text.contains(expect), "no {expect:?} in:\n{}", console.text);
    }
    assert!(!console.text.contains("cluster.json"), "nothing is begun:\n{}", console.text);
}
