//! The command line as a contract: exit codes, and errors that name what was wrong. Nothing is started here.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use pith_tests::{bin_dir, missing_right};

fn pith(arguments: &[&str]) -> Command {
    let mut command = Command::new(bin_dir().join("pith"));
    command.args(arguments);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// 2: used wrongly. 1: could not be done.
#[test]
fn exit_codes_and_words() {
    let nowhere = tempfile::tempdir().expect("a temporary folder");
    let dir = nowhere.path().to_str().expect("UTF-8");
    let broken = nowhere.path().join("broken.tar");
    std::fs::write(&broken, b"this is no archive").expect("writable");
    let broken = broken.to_str().expect("UTF-8");
    let cases: [(&[&str], i32, &str); 19] = [
        (&[], 2, "Usage: pith"),
        (&["nope"], 2, "unrecognized subcommand 'nope'"),
        (&["up", "--replicas", "0"], 2, "'--replicas <REPLICAS>': 0 is not in 1..=64"),
        (&["up", "--replicas", "many"], 2, "'many' for '--replicas"),
        (&["up", "--name", "Bad_Name", "--dir", dir], 2, "'Bad_Name' for '--name"),
        (&["up", "--node-cidr", "300.1.1.0/24"], 2, "'300.1.1.0/24' for '--node-cidr"),
        (&["up", "--service-cidr", "10.0.0.0/30"], 2, "a prefix of 8 to 28 bits"),
        (&["up", "--port", "0"], 2, "'--port <PORT>': 0 is not in 1..=65535"),
        (&["primary", "--store", "paper", "--dir", dir], 2, "'paper' for '--store"),
        (&["replica", "--node-ip", "here", "--dir", dir], 2, "'here' for '--node-ip"),
        (&["replica", "--node-ip", "10.0.0.1,10.0.0.2", "--dir", dir], 2, "two of IPv4: one of each family"),
        (&["up", "--surprise"], 2, "'--surprise'"),
        (&["primary", "--listen", "nonsense", "--dir", dir], 2, "'nonsense' for '--listen"),
        (&["proxy"], 2, "--kubeconfig <FILE>"),
        (&["status", "--dir", dir], 1, dir),
        (&["token", "create", "--dir", dir], 1, dir),
        (&["image", "import", "/no/such/file", "--dir", dir], 1, "/no/such/file"),
        (&["image", "ls", "--dir", dir], 1, "images: it does not exist"),
        (&["image", "import", broken, "--dir", dir], 1, broken),
    ];
    for (arguments, code, expect) in cases {
        let output = pith(arguments).output().expect("pith starts");
        assert_eq!(output.status.code(), Some(code), "pith {arguments:?}:\n{}", said(&output));
        assert!(said(&output).contains(expect), "pith {arguments:?} lacks {expect:?}:\n{}", said(&output));
        let store = nowhere.path().join("images").exists();
        assert!(!store || arguments.contains(&broken), "pith {arguments:?} made an image store");
    }
}

/// Refused before anything is attached or pinned.
#[test]
fn a_replica_without_credentials_changes_nothing() {
    if let Some(reason) = missing_right() {
        eprintln!("SKIPPED: a_replica_without_credentials_changes_nothing: {reason}");
        return;
    }
    let nowhere = tempfile::tempdir().expect("a temporary folder");
    let dir = nowhere.path().join("state").to_string_lossy().into_owned();
    let pins = format!("/sys/fs/bpf/pith-refused-{}", std::process::id());
    let cases: [(&[&str], &str); 2] = [
        (&[], "give --join and --token, or --kubeconfig"),
        (&["--join", "https://127.0.0.1:1", "--token", "x"], "--token"),
    ];
    for (more, expect) in cases {
        let output = pith(&["replica", "--dir", &dir, "--bpf-dir", &pins]).args(more).output();
        let output = output.expect("pith starts");
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(expect), "no {expect:?} in:\n{}", said(&output));
        assert!(!Path::new(&pins).exists() && !Path::new(&dir).exists(), "nothing is left of {more:?}");
    }
}

#[test]
fn an_ordinary_user_is_told_to_become_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED: an_ordinary_user_is_told_to_become_root: only root can start a program as another"
        );
        return;
    }
    // The program may stand in a folder that others cannot enter.
    let copy = tempfile::Builder::new().permissions(open_to_all()).tempdir().expect("a temporary folder");
    let program = copy.path().join("pith");
    std::fs::copy(bin_dir().join("pith"), &program).expect("copied");
    for arguments in [["up", "--detach"], ["down", "--name=x"]] {
        let output = run_as_nobody(&program, &arguments);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert_eq!(said(&output).lines().count(), 1, "one line: {}", said(&output));
        assert!(said(&output).contains("needs root"), "{}", said(&output));
    }
}

fn open_to_all() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}

fn run_as_nobody(program: &Path, arguments: &[&str]) -> Output {
    const NOBODY: u32 = 65534;
    Command::new(program).args(arguments).uid(NOBODY).gid(NOBODY).output().expect("pith starts")
}

#[test]
fn doctor_says_what_this_kernel_can_do() {
    let output = pith(&["doctor", "--output", "json"]).output().expect("pith starts");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = report.as_array().expect("a list");
    for what in ["kernel", "BTF", "bpffs", "overlayfs", "cgroups", "seccomp"] {
        let row = rows.iter().find(|row| row["what"] == what).unwrap_or_else(|| panic!("no row {what:?}"));
        let state = row["state"].as_str().expect("a word");
        assert!(["ok", "degraded", "missing"].contains(&state), "{row}");
        assert!(state == "ok" || row["advice"] != "", "what is not well comes with advice: {row}");
    }
}
