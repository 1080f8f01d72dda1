//! What the programs cost the kernel's verifier, and that it takes them.

use aya::{maps::MapInfo, programs::loaded_programs};
use pith_abi::{LAYOUT, map_name};
use pith_proxy::{Limits, Xdp};

use crate::{
    support::{Sandbox, network::Nodes},
    uplink6::Network,
};

/// Programs and the instructions that the verifier may walk for each. It stops at 1,000,000; 100,000 take it some
/// 0.1 s, in which the program's place is without it when a replica starts. The ceilings leave room for other
/// kernels, which walk the same program differently.
const CEILINGS: [(&str, u32); 14] = [
    ("connect4", 8_000),
    ("connect6", 12_000),
    ("sendmsg4", 25_000),
    ("sendmsg6", 25_000),
    ("recvmsg4", 1_000),
    ("recvmsg6", 1_000),
    ("getpeername4", 1_000),
    ("getpeername6", 1_000),
    ("sock_release", 1_000),
    ("uplink_ingress", 150_000),
    ("uplink_egress", 25_000),
    ("uplink_xdp", 10_000),
    ("from_pod", 50_000),
    ("to_pod", 20_000),
];

/// Those that a node of both families has in their place.
const DUAL: [(&str, u32); 4] = [
    ("ingress_dual", 400_000),
    ("egress_dual", 150_000),
    ("from_pod_dual", 250_000),
    ("to_pod_dual", 100_000),
];

#[test]
fn the_verifier_takes_every_program_without_much_work() {
    Sandbox::run("verifier", |sandbox| {
        let nodes = Nodes::with(sandbox, Limits::default(), Xdp::Native);
        let walked = walked(sandbox);
        hold(&walked, &CEILINGS);
        assert_eq!(walked.len(), CEILINGS.len(), "{walked:?}");
        drop(nodes);
    });
}

#[test]
fn programs_of_both_families_are_taken_too() {
    Sandbox::run("verifier6", |sandbox| {
        let network = Network::new(sandbox);
        hold(&walked(sandbox), &DUAL);
        drop(network);
    });
}

/// The programs of a datapath, and how many instructions the verifier walked for each.
fn walked(sandbox: &Sandbox) -> Vec<(String, u32)> {
    let folder = sandbox.config().bpffs.join(format!("layout-{LAYOUT}/maps"));
    // Every program uses one of them.
    let ours = [map_name::REASONS, map_name::CONNECTED]
        .map(|map| MapInfo::from_pin(folder.join(map)).expect("a map of this datapath").id());
    // Those of others come and go meanwhile.
    let programs = loaded_programs().filter_map(Result::ok);
    let programs = programs.filter(
        |program| matches!(program.map_ids(), Ok(Some(maps)) if ours.iter().any(|map| maps.contains(map))),
    );
    let walked: Vec<(String, u32)> = programs
        .filter_map(|program| {
            Some((program.name_as_str()?.to_owned(), program.verified_instruction_count()?))
        })
        .collect();
    eprintln!("{walked:?}");
    walked
}

fn hold(walked: &[(String, u32)], ceilings: &[(&str, u32)]) {
    for (name, ceiling) in ceilings {
        // The kernel keeps 15 bytes of a name.
        let found = walked.iter().find(|(found, _)| found == name);
        let (_, walked) = found.unwrap_or_else(|| panic!("{name} is not loaded: {walked:?}"));
        assert!(walked <= ceiling, "{name}: {walked} instructions, at most {ceiling} are wanted");
    }
}
