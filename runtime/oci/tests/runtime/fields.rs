//! Field by field: what config.json says is what the program finds.

use serde_json::{Value, json};

use crate::Test;
use crate::bundle::Bundle;

pub(crate) const TESTS: &[Test] = &[("fields", fields)];

/// A name, a change to the configuration, and what must hold of the facts inside.
type Field = (&'static str, fn(&mut Value), fn(&Value) -> bool);

fn number_after(text: &Value, key: &str) -> Option<i64> {
    let line = text.as_str()?.lines().find(|line| line.starts_with(key))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

fn limit<'a>(facts: &'a Value, name: &str) -> Vec<&'a str> {
    let limits = facts["limits"].as_str().unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line[name.len()..].split_whitespace().take(2).collect()
}

const FIELDS: &[Field] = &[
    (
        "as it is",
        |_| (),
        |f| f["pid"] == 1 && f["fds"] == json!(["0", "1", "2"]) && f["cwd"] == "/" && f["hostname"] == "pith",
    ),
    (
        "env",
        |c| c["process"]["env"] = json!(["A=1", "B=x=y"]),
        |f| f["env"] == json!({ "A": "1", "B": "x=y", "HOME": "/root" }),
    ),
    (
        "env given twice",
        |c| c["process"]["env"] = json!(["A=1", "HOME=/x", "A=2", "C=3", "HOME=/y"]),
        |f| f["variables"] == json!(["A=2", "HOME=/y", "C=3"]),
    ),
    (
        "cwd is made",
        |c| {
            c["process"]["cwd"] = "/new/dir".into();
        },
        |f| f["cwd"] == "/new/dir",
    ),
    (
        "user",
        |c| {
            c["process"]["user"] = json!({ "uid": 5, "gid": 6, "additionalGids": [7, 8], "umask": 63 });
        },
        |f| f["ids"] == json!([5, 6]) && f["status"]["Groups"] == "7 8" && f["status"]["Umask"] == "0077",
    ),
    (
        "capabilities",
        |c| {
            let all = json!(["CAP_KILL", "CAP_NET_RAW"]);
            c["process"]["capabilities"] = json!({
                "bounding": all, "effective": ["CAP_KILL"], "permitted": all, "inheritable": all, "ambient": ["CAP_KILL"],
            });
            c["process"]["user"]["uid"] = 5.into();
        },
        |f| {
            // A program of user 5 keeps what is ambient (capabilities(7)).
            let set = |name: &str| f["status"][name].as_str().map(str::to_owned).unwrap_or_default();
            set("CapBnd") == "0000000000002020"
                && set("CapInh") == "0000000000002020"
                && set("CapAmb") == "0000000000000020"
                && set("CapEff") == "0000000000000020"
        },
    ),
    (
        "no capabilities",
        |c| c["process"]["capabilities"] = Value::Null,
        |f| f["status"]["CapEff"] == "0000000000000000" && f["status"]["CapBnd"] == "0000000000000000",
    ),
    (
        "rlimits",
        |c| {
            c["process"]["rlimits"] = json!([
                { "type": "RLIMIT_NOFILE", "soft": 55, "hard": 77 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            ]);
        },
        |f| limit(f, "Max open files") == ["55", "77"] && limit(f, "Max core file size") == ["0", "0"],
    ),
    (
        "no new privileges",
        |c| c["process"]["noNewPrivileges"] = true.into(),
        |f| f["status"]["NoNewPrivs"] == "1",
    ),
    (
        "new privileges",
        |c| c["process"]["noNewPrivileges"] = false.into(),
        |f| f["status"]["NoNewPrivs"] == "0",
    ),
    ("oom score", |c| c["process"]["oomScoreAdj"] = 321.into(), |f| f["oom"] == "321"),
    (
        "scheduler",
        |c| {
            c["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
        },
        |f| number_after(&f["sched"], "policy") == Some(3) && number_after(&f["sched"], "prio") == Some(125),
    ),
    (
        "deadline scheduler",
        |c| {
            c["process"]["scheduler"] = json!({
                "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 10_000_000, "period": 10_000_000,
            });
        },
        |f| number_after(&f["sched"], "policy") == Some(6),
    ),
    (
        "scheduler flags",
        |c| {
            let flags = json!(["SCHED_FLAG_RESET_ON_FORK"]);
            c["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "flags": flags });
        },
        |f| number_after(&f["sched"], "policy") == Some(3),
    ),
    (
        "io priority",
        |c| {
            c["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
        },
        |f| f["io priority"] == json!([3, 0]),
    ),
    (
        "io priority with a level",
        |c| {
            c["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
        },
        |f| f["io priority"] == json!([2, 6]),
    ),
    (
        "personality",
        |c| c["linux"]["personality"] = json!({ "domain": "LINUX32" }),
        |f| f["personality"] == "00000008",
    ),
    (
        "host and domain name",
        |c| {
            c["hostname"] = "one".into();
            c["domainname"] = "two".into();
        },
        |f| f["hostname"] == "one" && f["domainname"] == "two",
    ),
    (
        "sysctl",
        |c| {
            c["linux"]["sysctl"] = json!({ "kernel.msgmax": "9001", "net/ipv4/ip_forward": "1" });
        },
        |f| f["msgmax"] == "9001",
    ),
    (
        "default devices",
        |_| (),
        |f| {
            [
                ("null", "1:3"),
                ("zero", "1:5"),
                ("full", "1:7"),
                ("random", "1:8"),
                ("urandom", "1:9"),
                ("tty", "5:0"),
            ]
            .iter()
            .all(|(name, number)| f["devices"][name] == format!("c {number} 666 0:0"))
                && ["fd", "stdin", "stdout", "stderr", "ptmx"].iter().all(|link| {
                    f["dev"].as_array().is_some_and(|names| names.iter().any(|name| name == link))
                })
        },
    ),
    (
        "more devices",
        |c| {
            c["linux"]["devices"] = json!([
                { "path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 432, "uid": 3, "gid": 4 },
                { "path": "/dev/queue", "type": "p" },
            ]);
        },
        |f| f["devices"]["mine"] == "c 1:5 660 3:4" && f["devices"]["queue"] == "p 0:0 666 0:0",
    ),
    ("session keyring", |_| (), |f| f["keyring"].as_str().is_some_and(|keys| !keys.contains("user.secret"))),
    (
        "a device elsewhere",
        |c| {
            c["linux"]["devices"] = json!([{ "path": "/srv/null", "type": "c", "major": 1, "minor": 3 }]);
        },
        |f| f["srv"] == json!(["null"]),
    ),
    (
        "memory policy",
        |c| {
            c["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0" });
        },
        // A kernel without NUMA has no such file, and no other node either.
        |f| f["numa"].as_str().is_some_and(|map| map.is_empty() || map.contains(" bind:0 ")),
    ),
    (
        "no user",
        |c| drop(c["process"].as_object_mut().expect("a process").remove("user")),
        |f| f["ids"] == json!([0, 0]),
    ),
    (
        "unknown properties",
        |c| {
            c["unknown"] = json!({ "a": 1 });
            c["annotations"] = json!({ "any.key": "" });
        },
        |f| f["pid"] == 1,
    ),
    (
        "an unknown capability",
        |c| {
            c["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_OF_THE_FUTURE"]);
        },
        |f| f["status"]["CapBnd"] == "0000000000000020",
    ),
];

fn fields() {
    let mut bundle = Bundle::new("fields");
    let plain = bundle.config.clone();
    for (name, change, holds) in FIELDS {
        bundle.config = plain.clone();
        change(&mut bundle.config);
        println!("  {name}");
        let facts = bundle.facts();
        assert!(holds(&facts), "{name}: {facts:#}");
    }
}
