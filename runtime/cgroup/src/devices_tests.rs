//! The policy that rules come to, and the program that follows it, asked by real opens in a real cgroup.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::cgroup::Cgroup;
use crate::hierarchy::Hierarchy;

fn rules(value: Value) -> Rules {
    let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(value).expect("device rules");
    Rules::parse(&rules).expect("good rules")
}

#[test]
fn policy_table() {
    let deny_all = json!({"allow": false, "access": "rwm"});
    let char_1_3 = |allow: bool, access: &str| json!({"allow": allow, "type": "c", "major": 1, "minor": 3, "access": access});
    let null = (Type::Char, Some(1), Some(3));
    let cases = [
        ("nothing said", json!([]), true, vec![]),
        ("deny all", json!([deny_all]), false, vec![]),
        (
            "two allowances are one",
            json!([deny_all, char_1_3(true, "r"), char_1_3(true, "w")]),
            false,
            vec![(null, 6)],
        ),
        ("taken back", json!([deny_all, char_1_3(true, "rw"), char_1_3(false, "w")]), false, vec![(null, 2)]),
        ("taken back whole", json!([deny_all, char_1_3(true, "rw"), char_1_3(false, "rwm")]), false, vec![]),
        ("denied from all", json!([char_1_3(false, "m")]), true, vec![(null, 1)]),
        ("what went before deny all is forgotten", json!([char_1_3(true, "r"), deny_all]), false, vec![]),
    ];
    for (name, value, default_allow, exceptions) in cases {
        let exceptions =
            exceptions.into_iter().map(|(device, access)| Exception { device, access }).collect();
        assert_eq!(Policy::of(&rules(value)), Policy { default_allow, exceptions }, "{name}");
    }
}

/// v1 hosts have the device controller for this; the program works beside it, so that it can be tested there.
#[test]
fn the_program_decides() {
    let hierarchy = match Hierarchy::detect() {
        Ok(hierarchy) if hierarchy.v2_root().is_some() => Arc::new(hierarchy),
        _ => {
            eprintln!("SKIPPED: the_program_decides: no v2 tree");
            return;
        }
    };
    let name = format!("pith-test-{}-bpf", std::process::id());
    let Ok(cgroup) = Cgroup::create(&hierarchy, &name) else {
        eprintln!("SKIPPED: the_program_decides: cgroups may not be made here");
        return;
    };
    let _guard = Guard(&cgroup);
    let deny_all = json!({"allow": false, "access": "rwm"});
    let allow = |typ: &str, major: i64, minor: i64, access: &str| json!({"allow": true, "type": typ, "major": major, "minor": minor, "access": access});
    let deny = |typ: &str, major: i64, minor: i64, access: &str| json!({"allow": false, "type": typ, "major": major, "minor": minor, "access": access});
    let cases = [
        ("allowed exactly", json!([deny_all, allow("c", 1, 3, "rwm")]), ": </dev/null >/dev/null", true),
        ("another minor", json!([deny_all, allow("c", 1, 5, "rwm")]), ": </dev/null", false),
        ("any minor", json!([deny_all, allow("c", 1, -1, "rwm")]), ": </dev/null", true),
        ("any major", json!([deny_all, allow("c", -1, 3, "rwm")]), ": </dev/null", true),
        ("another type", json!([deny_all, allow("b", 1, 3, "rwm")]), ": </dev/null", false),
        ("reading, allowed", json!([deny_all, allow("c", 1, 3, "r")]), ": </dev/null", true),
        ("writing, not allowed", json!([deny_all, allow("c", 1, 3, "r")]), ": >/dev/null", false),
        (
            "both, from two rules",
            json!([deny_all, allow("c", 1, 3, "r"), allow("c", 1, 3, "w")]),
            ": <>/dev/null",
            true,
        ),
        ("both, one missing", json!([deny_all, allow("c", 1, 3, "r")]), ": <>/dev/null", false),
        ("all but one", json!([deny("c", 1, 5, "r")]), ": </dev/null >/dev/zero", true),
        ("the one", json!([deny("c", 1, 5, "r")]), ": </dev/zero", false),
        ("the one, in part", json!([deny("c", 1, 5, "r")]), ": <>/dev/zero", false),
    ];
    for (name, value, script, allowed) in cases {
        cgroup
            .attach_device_program(&rules(value))
            .unwrap_or_else(|e| panic!("{name}: {e}: {:?}", e.io_error()));
        assert_eq!(runs(&cgroup, script), allowed, "{name}");
    }
}

fn runs(cgroup: &Cgroup, script: &str) -> bool {
    // A failed redirection of `:` would end the shell with 2; `if` makes it a plain failure either way.
    let script = format!("read go; if ( {script} ); then exit 0; else exit 1; fi");
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start sh");
    cgroup.add(i32::try_from(child.id()).expect("a pid fits")).expect("move in");
    child.stdin.take().expect("piped").write_all(b"go\n").expect("sh reads");
    child.wait().expect("wait").success()
}

struct Guard<'c>(&'c Cgroup);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.delete(Duration::from_secs(10))) {
            eprintln!("cannot remove {}: {error}", self.0.path());
        }
    }
}
