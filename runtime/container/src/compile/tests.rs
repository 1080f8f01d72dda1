//! Plans in words, and what is refused.

use std::path::Path;

use oci_spec::runtime::{
    LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, MountBuilder, ProcessBuilder, RootBuilder, Spec,
    SpecBuilder, UserBuilder,
};

use super::*;

fn spec() -> Spec {
    let namespaces = [LinuxNamespaceType::Mount, LinuxNamespaceType::Pid, LinuxNamespaceType::Cgroup]
        .map(|typ| LinuxNamespaceBuilder::default().typ(typ).build().expect("namespace"));
    let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let process = ProcessBuilder::default()
        .args(strings(&["nginx", "-g", "daemon off;"]))
        .env(strings(&["PATH=/bin"]))
        .cwd("/srv")
        .user(UserBuilder::default().uid(0u32).gid(0u32).build().expect("user"))
        .no_new_privileges(false)
        .oom_score_adj(985)
        .capabilities(capability_sets(&["CHOWN", "CAP_KILL"]).expect("capabilities"))
        .build()
        .expect("process");
    let linux = LinuxBuilder::default()
        .namespaces(namespaces.to_vec())
        .masked_paths(strings(&["/proc/kcore", "/sys/firmware"]))
        .readonly_paths(strings(&["/proc/sys"]))
        .build()
        .expect("linux");
    let mut mounts = default_mounts(Some(Path::new("/run/pod/shm")));
    mounts.push(
        MountBuilder::default()
            .destination("/data")
            .source("/volumes/v/sub")
            .options(strings(&["rbind", "ro", "rprivate"]))
            .build()
            .expect("mount"),
    );
    SpecBuilder::default()
        .root(RootBuilder::default().path("/run/pod/root").readonly(true).build().expect("root"))
        .mounts(mounts)
        .process(process)
        .linux(linux)
        .build()
        .expect("spec")
}

fn options() -> Options {
    Options {
        overlay: Some(Overlay {
            lower: vec!["/layers/2".into(), "/layers/1".into()],
            upper: Some(("/c/upper".into(), "/c/work".into())),
        }),
        cgroup: CgroupDirs {
            unified: Some("/sys/fs/cgroup/unified/pod/c".into()),
            legacy: vec!["/sys/fs/cgroup/memory/pod/c".into()],
        },
        cgroup_view: CgroupView::Legacy(vec!["cpu,cpuacct".to_owned(), "memory".to_owned()]),
        user: Some("web".to_owned()),
        default_seccomp: false,
        confine: BTreeMap::from([("/data".into(), "/volumes/v".into())]),
    }
}

#[test]
fn a_container_in_words() {
    let plan = container(&spec(), &options()).expect("compiles");
    insta::assert_snapshot!(plan.to_string());
    let json = serde_json::to_string(&plan).expect("serialises");
    assert_eq!(serde_json::from_str::<Plan>(&json).expect("reads back"), plan);
}

#[test]
fn an_exec_in_words() {
    let spec = spec();
    let mut process = spec.process().clone().expect("given");
    process.set_terminal(Some(true));
    let plan = exec(&spec, &process, &options()).expect("compiles");
    insta::assert_snapshot!(plan.to_string());
}

/// A name, what is wrong with the spec, and the whole error.
type Wrong = (&'static str, fn(&mut Spec, &mut Options), &'static str);

#[test]
fn refused_table() {
    let cases: &[Wrong] = &[
        (
            "no root",
            |s, _| {
                s.set_root(None);
            },
            "root is missing",
        ),
        (
            "no process",
            |s, _| {
                s.set_process(None);
            },
            "process is missing",
        ),
        (
            "no program",
            |s, _| {
                process(s).set_args(Some(vec![]));
            },
            "process.args is missing",
        ),
        (
            "null byte",
            |s, _| {
                process(s).set_args(Some(vec!["a\0b".into()]));
            },
            "process.args: \"a\\0b\" contains a null byte",
        ),
        (
            "relative cwd",
            |s, _| {
                process(s).set_cwd("srv".into());
            },
            "process.cwd: \"srv\" is not absolute",
        ),
        (
            "apparmor",
            |s, _| {
                process(s).set_apparmor_profile(Some("x".into()));
            },
            "process.apparmorProfile is not supported",
        ),
        (
            "no mount namespace",
            |s, _| only(s, &[LinuxNamespaceType::Pid]),
            "linux.namespaces[mount] is missing",
        ),
        (
            "user namespace",
            |s, _| only(s, &[LinuxNamespaceType::Mount, LinuxNamespaceType::User]),
            "linux.namespaces[user] is not supported",
        ),
        (
            "namespace twice",
            |s, _| only(s, &[LinuxNamespaceType::Mount, LinuxNamespaceType::Pid, LinuxNamespaceType::Pid]),
            "linux.namespaces: \"mount, pid, pid\" names a namespace twice",
        ),
        (
            "a mount over the root",
            |s, _| {
                s.mounts_mut().as_mut().expect("given")[0].set_destination("/x/..".into());
            },
            "mounts[0]: \"/x/..\" is the root itself",
        ),
        (
            "a volume path outside its volume",
            |_, o| {
                o.confine.insert("/data".into(), "/volumes/w".into());
            },
            "mounts[7].source: \"/volumes/v/sub\" is not below its volume",
        ),
    ];
    for (name, change, expect) in cases {
        let (mut spec, mut options) = (spec(), options());
        change(&mut spec, &mut options);
        let error = container(&spec, &options).expect_err(name);
        assert_eq!(error.to_string(), *expect, "{name}");
    }
}

fn process(spec: &mut Spec) -> &mut Process {
    spec.process_mut().as_mut().expect("given")
}

fn only(spec: &mut Spec, kinds: &[LinuxNamespaceType]) {
    let namespaces = kinds
        .iter()
        .map(|typ| LinuxNamespaceBuilder::default().typ(*typ).build().expect("namespace"))
        .collect::<Vec<_>>();
    spec.linux_mut().as_mut().expect("given").set_namespaces(Some(namespaces));
}

#[test]
fn what_has_no_effect_is_said() {
    let mut spec = spec();
    let memory = serde_json::json!({ "memory": { "kernel": 4096, "useHierarchy": false, "limit": 4096 } });
    let resources = serde_json::from_value(memory).expect("resources");
    spec.linux_mut().as_mut().expect("given").set_resources(Some(resources));
    let words = super::passed_over(&spec).join("; ");
    for expect in ["memory.kernel has no effect", "memory.useHierarchy has no effect"] {
        assert!(words.contains(expect), "{words}");
    }
    assert!(!words.contains("memory.limit"), "{words}");
}

#[test]
fn nobody_is_root_by_a_number_that_means_as_it_is() {
    for (field, user) in [
        ("uid", serde_json::json!({ "uid": u32::MAX, "gid": 5 })),
        ("gid", serde_json::json!({ "uid": 5, "gid": u32::MAX })),
        ("additionalGids", serde_json::json!({ "uid": 5, "gid": 5, "additionalGids": [u32::MAX] })),
    ] {
        let mut spec = spec();
        process(&mut spec).set_user(serde_json::from_value(user).expect("a user"));
        let error = container(&spec, &options()).expect_err(field).to_string();
        assert_eq!(error, format!("process.user.{field}: \"4294967295\" is nobody's number"));
    }
}
