//! Stock kubectl against this crate, every version on the machine: SPDY up to 1.29, WebSocket exec from
//! 1.30 or 1.31 on, SPDY inside a WebSocket for port-forward from 1.31 on.

mod server;

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use server::{BIG, Server};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
    time::timeout,
};

/// How long one kubectl may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Those of Google's SDK, one a minor version, and the one on the PATH.
fn kubectls(test: &str) -> Vec<PathBuf> {
    let sdk = (27..=40).map(|minor| format!("/usr/lib/google-cloud-sdk/bin/kubectl.1.{minor}"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("kubectl"));
    let mut found: Vec<_> = sdk.map(PathBuf::from).filter(|path| path.exists()).collect();
    found.extend(on_path.into_iter().find(|path| path.exists()));
    if found.is_empty() {
        eprintln!("SKIPPED: {test}: no kubectl on the PATH");
    }
    found
}

fn kubectl(program: &PathBuf, server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .arg(format!("--server=http://{}", server.address))
        .args(arguments)
        .env("KUBECONFIG", "/dev/null")
        .env("HOME", "/nonexistent")
        .kill_on_drop(true);
    command
}

async fn output(mut command: Command, input: Option<&[u8]>) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().expect("kubectl can be started");
    let stdin = child.stdin.take();
    let feeding = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            stdin.write_all(input).await.expect("kubectl reads");
        }
    };
    let both = async { tokio::join!(child.wait_with_output(), feeding).0 };
    let output = timeout(DEADLINE, both).await;
    output.unwrap_or_else(|_| panic!("{command:?} hangs")).expect("kubectl ran")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command said on its error output. kubectl before 1.33.1 may hear the first message before it has made the
/// stream it is for, and says that it drops it (kubernetes#131189); that message is empty, so that nothing is lost.
fn complaint(output: &Output) -> String {
    let text = text(&output.stderr);
    let own = text
        .split_inclusive('\n')
        .filter(|line| !line.ends_with("Unknown stream id 1, discarding message\n"));
    own.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_carries_output_input_and_exit_codes() {
    let server = Server::start().await;
    for program in kubectls("exec_carries_output_input_and_exit_codes") {
        let run = |arguments: &[&str], input| {
            output(kubectl(&program, &server, &[&["exec", "p"], arguments].concat()), input)
        };
        let name = program.display();

        let both = run(&["--", "both", "0"], None).await;
        assert_eq!(text(&both.stdout), "to stdout\n", "{name}: {}", text(&both.stderr));
        assert_eq!((complaint(&both).as_str(), both.status.code()), ("to stderr\n", Some(0)), "{name}");

        let failed = run(&["--", "both", "7"], None).await;
        assert_eq!(failed.status.code(), Some(7), "{name}: {}", text(&failed.stderr));
        assert_eq!(complaint(&failed), "to stderr\ncommand terminated with exit code 7\n", "{name}");

        let input: Vec<u8> = (0..BIG).map(|n| (n % 251) as u8).collect();
        let cat = run(&["-i", "--", "cat"], Some(&input)).await;
        assert!(cat.stdout == input, "{name}: {} bytes back: {}", cat.stdout.len(), text(&cat.stderr));

        let big = run(&["--", "big"], None).await;
        assert_eq!((big.stdout.len(), big.status.code()), (BIG, Some(0)), "{name}");

        let none = run(&["--", "nonsense"], None).await;
        let refusal = complaint(&none);
        assert!(refusal.contains("no command [\"nonsense\"]"), "{name}: {refusal}");
        assert_ne!(none.status.code(), Some(0), "{name}");
    }
    eprintln!("exec was asked for as {:?}", server.upgrades.lock().expect("no panic while held"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_a_size() {
    let server = Server::start().await;
    for program in kubectls("a_terminal_has_a_size") {
        // script(1) gives kubectl a terminal.
        let line = format!(
            "stty cols 93 rows 31; {} --server=http://{} exec -it p -- size",
            program.display(),
            server.address
        );
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("KUBECONFIG", "/dev/null").kill_on_drop(true);
        let shown = output(command, Some(b"")).await;
        assert!(text(&shown.stdout).contains("93x31"), "{}: {}", program.display(), text(&shown.stdout));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_forward_carries_many_connections() {
    let server = Server::start().await;
    for program in kubectls("port_forward_carries_many_connections") {
        let name = program.display();
        let mut command = kubectl(&program, &server, &["port-forward", "p", ":8080", ":1000", ":9"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl can be started");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut complaints = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut ports = std::collections::HashMap::new();
        while ports.len() < 3 {
            let line = timeout(DEADLINE, lines.next_line()).await.expect("kubectl says its ports");
            let line = line.expect("text").unwrap_or_else(|| panic!("{name} ended"));
            // Forwarding from 127.0.0.1:41234 -> 8080; the same for [::1].
            if let Some((local, remote)) =
                line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|it| it.split_once(" -> "))
            {
                ports.insert(remote.to_owned(), local.parse::<u16>().expect("a port"));
            }
        }

        let talk = |n: usize| {
            let port = ports["8080"];
            async move {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("kubectl listens");
                let message = vec![n as u8; 50_000];
                stream.write_all(&message).await.expect("kubectl reads");
                stream.shutdown().await.expect("half closed");
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.expect("kubectl answers");
                assert!(answer.starts_with(b"8080\n"), "{}", text(&answer));
                assert!(answer[5..] == message, "{} bytes back", answer.len());
            }
        };
        let all = futures::future::join_all((0..20).map(talk));
        timeout(DEADLINE, all).await.unwrap_or_else(|_| panic!("{name}: connections hang"));

        let big = async {
            let mut stream = TcpStream::connect(("127.0.0.1", ports["1000"])).await.expect("kubectl listens");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("kubectl answers");
            assert_eq!(answer.len(), BIG, "{name}");
        };
        timeout(DEADLINE, big).await.unwrap_or_else(|_| panic!("{name}: a big answer hangs"));

        let _refused = TcpStream::connect(("127.0.0.1", ports["9"])).await.expect("kubectl listens");
        let complaint = async {
            loop {
                let line = complaints.next_line().await.expect("text").expect("kubectl complains");
                if line.contains("nobody listens on port 9") {
                    return;
                }
            }
        };
        timeout(DEADLINE, complaint).await.unwrap_or_else(|_| panic!("{name}: the error is not shown"));
        child.kill().await.expect("ended");
    }
    eprintln!("port-forward was asked for as {:?}", server.upgrades.lock().expect("no panic while held"));
}
