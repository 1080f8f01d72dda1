//! What resources mean on a v2 and on a v1 host, as the words that `--explain` prints.

use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::*;
use crate::hierarchy::tests_support::{all_v1, all_v2, hybrid_without};

fn words(hierarchy: &Hierarchy, resources: Value) -> Result<Vec<String>> {
    let resources: LinuxResources = serde_json::from_value(resources).expect("a resources object");
    let steps = plan(hierarchy, &resources)?;
    Ok(steps
        .into_iter()
        .map(|step| match step {
            Step::Write(write) => write.to_string(),
            Step::Pair(first, second) => format!("{first} & {second}"),
            Step::IfPresent(write) => format!("{write}?"),
            Step::CpuPeriod(period) => format!("cpu.max ← … {period}"),
            Step::SwapBeyondMemory(total) => format!("memory.swap.max ← {total} - memory.max"),
            Step::DeviceRules(rules) => format!("devices {}", signed(&rules)),
            Step::DeviceProgram(rules) => format!("program {}", signed(&rules)),
        })
        .collect())
}

fn signed(rules: &devices::Rules) -> String {
    let signed = rules.iter().map(|rule| format!("{}{rule}", if rule.allow { '+' } else { '-' }));
    signed.collect::<Vec<_>>().join(", ")
}

#[test]
fn plan_table() {
    struct Case {
        name: &'static str,
        resources: Value,
        v1: &'static [&'static str],
        v2: &'static [&'static str],
    }
    let cases = [
        Case { name: "nothing", resources: json!({}), v1: &[], v2: &[] },
        Case {
            name: "memory without swap",
            resources: json!({"memory": {"limit": 67108864, "swap": 67108864}}),
            v1: &["memory.limit_in_bytes ← 67108864 & memory.memsw.limit_in_bytes ← 67108864"],
            v2: &["memory.max ← 67108864", "memory.swap.max ← 0"],
        },
        Case {
            name: "memory, no limit, zero is unset",
            resources: json!({"memory": {"limit": -1, "swap": -1, "reservation": 0}}),
            v1: &["memory.limit_in_bytes ← -1 & memory.memsw.limit_in_bytes ← -1"],
            v2: &["memory.max ← max", "memory.swap.max ← max"],
        },
        Case {
            name: "reservation alone",
            resources: json!({"memory": {"reservation": 4096}}),
            v1: &["memory.soft_limit_in_bytes ← 4096"],
            v2: &["memory.low ← 4096"],
        },
        Case {
            name: "cpu as the kubelet sets it",
            resources: json!({"cpu": {"shares": 512, "quota": 50000, "period": 100000}}),
            v1: &["cpu.shares ← 512", "cpu.cfs_period_us ← 100000 & cpu.cfs_quota_us ← 50000"],
            v2: &["cpu.weight ← 59", "cpu.max ← 50000 100000"],
        },
        Case {
            name: "cpu quota lifted",
            resources: json!({"cpu": {"quota": -1, "period": 100000}}),
            v1: &["cpu.cfs_period_us ← 100000 & cpu.cfs_quota_us ← -1"],
            v2: &["cpu.max ← max 100000"],
        },
        Case {
            name: "period alone",
            resources: json!({"cpu": {"period": 50000}}),
            v1: &["cpu.cfs_period_us ← 50000"],
            v2: &["cpu.max ← … 50000"],
        },
        Case {
            name: "swap alone",
            resources: json!({"memory": {"swap": 8192}}),
            v1: &["memory.memsw.limit_in_bytes ← 8192"],
            v2: &["memory.swap.max ← 8192 - memory.max"],
        },
        Case {
            name: "burst and idle",
            resources: json!({"cpu": {"burst": 1000, "idle": 1}}),
            v1: &["cpu.cfs_burst_us ← 1000", "cpu.idle ← 1"],
            v2: &["cpu.max.burst ← 1000", "cpu.idle ← 1"],
        },
        Case {
            name: "cpuset",
            resources: json!({"cpu": {"cpus": "0-1", "mems": "0"}}),
            v1: &["cpuset.cpus ← 0-1", "cpuset.mems ← 0"],
            v2: &["cpuset.cpus ← 0-1", "cpuset.mems ← 0"],
        },
        Case {
            name: "pids",
            resources: json!({"pids": {"limit": 100}}),
            v1: &["pids.max ← 100"],
            v2: &["pids.max ← 100"],
        },
        Case {
            name: "pids without limit",
            resources: json!({"pids": {"limit": -1}}),
            v1: &["pids.max ← max"],
            v2: &["pids.max ← max"],
        },
        Case {
            name: "huge pages",
            resources: json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}),
            v1: &["hugetlb.2MB.limit_in_bytes ← 4194304", "hugetlb.2MB.rsvd.limit_in_bytes ← 4194304?"],
            v2: &["hugetlb.2MB.max ← 4194304", "hugetlb.2MB.rsvd.max ← 4194304?"],
        },
        Case {
            name: "block io",
            resources: json!({"blockIO": {"weight": 500,
                "weightDevice": [{"major": 8, "minor": 0, "weight": 1000}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]}}),
            v1: &[
                "blkio.bfq.weight ← 500",
                "blkio.bfq.weight_device ← 8:0 1000",
                "blkio.throttle.read_bps_device ← 8:0 1048576",
                "blkio.throttle.write_iops_device ← 8:16 0",
            ],
            v2: &[
                "io.weight ← default 4950",
                "io.weight ← 8:0 10000",
                "io.max ← 8:0 rbps=1048576",
                "io.max ← 8:16 wiops=max",
            ],
        },
        Case {
            name: "devices",
            resources: json!({"devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                {"allow": true, "type": "b", "major": 8, "access": "r"}]}),
            v1: &["devices -a, +c 1:3 rwm, +b 8:* r"],
            v2: &["program -a, +c 1:3 rwm, +b 8:* r"],
        },
        Case {
            name: "rdma",
            resources: json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}),
            v1: &["rdma.max ← mlx5_1 hca_handle=3 hca_object=max"],
            v2: &["rdma.max ← mlx5_1 hca_handle=3 hca_object=max"],
        },
    ];
    for case in cases {
        let v1 = words(&all_v1(), case.resources.clone()).expect(case.name);
        assert_eq!(v1, case.v1, "{} on v1", case.name);
        let v2 = words(&all_v2(), case.resources).expect(case.name);
        assert_eq!(v2, case.v2, "{} on v2", case.name);
    }
}

#[test]
fn refusals_table() {
    let cases = [
        (
            "swap below memory",
            all_v2(),
            json!({"memory": {"limit": 4096, "swap": 1024}}),
            "memory.swap is 1024",
        ),
        (
            "swap without a memory limit",
            all_v2(),
            json!({"memory": {"limit": -1, "swap": 1024}}),
            "without memory.limit",
        ),
        ("below -1", all_v1(), json!({"memory": {"limit": -2}}), "memory.limit is -2"),
        ("swappiness", all_v1(), json!({"memory": {"swappiness": 101}}), "from 0 to 100"),
        ("v1 only", all_v2(), json!({"memory": {"swappiness": 10}}), "memory.swappiness does not exist"),
        ("realtime", all_v2(), json!({"cpu": {"realtimeRuntime": 1000}}), "cpu.realtimeRuntime"),
        (
            "controller missing",
            hybrid_without(Controller::Pids),
            json!({"pids": {"limit": 9}}),
            "no pids controller",
        ),
        ("a pipe", all_v1(), json!({"devices": [{"allow": true, "type": "p"}]}), "a pipe is not a device"),
        (
            "letters",
            all_v1(),
            json!({"devices": [{"allow": true, "type": "c", "access": "rx"}]}),
            "some of r, w and m",
        ),
        ("unified escapes", all_v2(), json!({"unified": {"../memory.max": "1"}}), "unified is"),
        ("unified on v1", all_v1(), json!({"unified": {"memory.high": "1"}}), "in v1 here"),
        ("page size", all_v1(), json!({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}), "pageSize"),
    ];
    for (name, hierarchy, resources, expect) in cases {
        match words(&hierarchy, resources) {
            Ok(steps) => panic!("{name}: accepted as {steps:?}"),
            Err(error) => assert!(error.to_string().contains(expect), "{name}: {error}"),
        }
    }
}

#[test]
fn unified_writes_v2_files() {
    let steps = words(&all_v2(), json!({"unified": {"memory.high": "8192", "cpu.weight": "7"}}));
    assert_eq!(steps.expect("v2 files"), ["cpu.weight ← 7", "memory.high ← 8192"]);
}

#[test]
fn weights_meet_at_the_ends_and_the_default() {
    for (shares, weight) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000), (102, 17)] {
        assert_eq!(weight_of_shares(shares), weight, "{shares}");
    }
    let mut last = 0;
    for shares in 2..=262_144 {
        let weight = weight_of_shares(shares);
        assert!(weight >= last, "{shares} weighs less than its predecessor");
        last = weight;
    }
    for (weight, expect) in [(10, 1), (500, 4950), (1000, 10_000), (0, 1)] {
        assert_eq!(io_weight(weight), expect, "{weight}");
    }
}
