//! Logs, exec, attach, terminals, and clients that misbehave.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use pith_container::plan::WindowSize;
use pith_container::supervisor::protocol::{Phase, Refusal};
use pith_container::supervisor::{Error, Streams, records};
use serde_json::{Value, json};

use crate::Test;
use crate::pod::{DEADLINE, Pod, eventually, read_all, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("every_line_is_logged", every_line_is_logged),
    ("logs_rotate_in_the_writer", logs_rotate_in_the_writer),
    ("exec_joins_the_container", exec_joins_the_container),
    ("exec_failures", exec_failures),
    ("exec_dies_with_its_connection", exec_dies_with_its_connection),
    ("exec_on_a_terminal", exec_on_a_terminal),
    ("a_container_on_a_terminal", a_container_on_a_terminal),
    ("attached_input", attached_input),
    ("a_slow_reader_holds_nobody_else", a_slow_reader_holds_nobody_else),
    ("hostile_clients", hostile_clients),
    ("a_subscriber_that_does_not_read", a_subscriber_that_does_not_read),
];

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe")
}

fn every_line_is_logged() {
    let mut pod = Pod::start("lines");
    pod.run_out("c", &["lines", "30000"]);
    let expect: Vec<String> = (0..30_000).map(|number| format!("line {number}")).collect();
    assert!(pod.log("c") == expect, "{} lines", pod.log("c").len());
}

fn logs_rotate_in_the_writer() {
    let mut pod = Pod::start("rotate");
    pod.run_out_with("c", &["lines", "5000"], |_, _, container| {
        let log = container.log.as_mut().expect("a log");
        (log.max_size, log.max_files) = (40_000, 3);
    });
    let mut files: Vec<_> = fs::read_dir(pod.path("logs/c"))
        .expect("logs")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    // `0.log` sorts before `0.log.<time>` and is the newest.
    files.rotate_left(1);
    assert_eq!(files.len(), 3, "{files:?}");
    let text: String = files.iter().map(|file| fs::read_to_string(file).expect("read")).collect();
    let numbers: Vec<u64> = text
        .lines()
        .map(|line| line.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a whole line"))
        .collect();
    let first = numbers.first().copied().expect("lines");
    assert!(numbers.iter().copied().eq(first..5000), "consecutive to the end, from {first}");
}

fn exec_joins_the_container() {
    let mut pod = Pod::start("exec");
    let record = pod.run("c", &["wait"]);
    let (code, output) = pod.exec("c", &["facts"]);
    assert_eq!(code, 0, "{output}");
    let facts: Value = serde_json::from_str(&output).expect("facts");
    assert_eq!(facts["fds"], json!(["0", "1", "2"]), "no descriptor of the host");
    assert_eq!(facts["status"]["CapEff"], "00000000a80425fb");
    assert_eq!(facts["status"]["CapInh"], "0000000000000000");
    assert_eq!(facts["status"]["Seccomp"], "2");
    assert_eq!(facts["status"]["NoNewPrivs"], "1");
    assert_eq!(facts["env"], json!({ "PATH": "/bin", "GREETING": "hello", "HOME": "/root" }));
    assert!(facts["pid"].as_u64().is_some_and(|pid| pid > 1 && pid < 100), "in its pid namespace: {facts}");
    assert_eq!(facts["hostname"], "pod-name");
    let of_pith = facts["cgroup"].as_str().expect("cgroup").lines().filter(|line| line.contains("pith"));
    assert_eq!(of_pith.count(), 0, "in the container's cgroup: {facts}");
    assert_eq!(pod.exec("c", &["exit", "9"]), (9, String::new()));

    for _ in 0..200 {
        assert_eq!(pod.exec("c", &["exit", "0"]).0, 0);
    }
    let pid = pod.supervisor().pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
    assert_eq!(children.trim(), record.pid.to_string(), "no zombie is left of 200 processes");
}

fn exec_failures() {
    let mut pod = Pod::start("execfail");
    pod.run("c", &["wait"]);
    let supervisor = pod.supervisor().clone();
    let plan = pod.exec_plan("c", &[], |process| {
        process.set_args(Some(vec!["nonesuch".to_owned()]));
    });
    let error = supervisor.exec("c", plan.clone(), Streams::default()).expect_err("no program");
    let Error::Refused(Refusal::Start(failure)) = error else { panic!("{error}") };
    assert_eq!(failure.message, "exec: \"nonesuch\": executable file not found in $PATH");
    assert_eq!(failure.exit_code(), 127);
    let error = supervisor.exec("d", plan.clone(), Streams::default()).expect_err("no container");
    assert!(matches!(error, Error::Refused(Refusal::NoSuchContainer { .. })), "{error}");
    let size = WindowSize { rows: 1, columns: 1 };
    let error = supervisor.exec_terminal("c", plan.clone(), size).expect_err("no terminal step");
    assert!(matches!(error, Error::Refused(Refusal::Invalid { .. })), "{error}");

    let (_, events) = supervisor.subscribe().expect("subscribe");
    supervisor.kill_container("c").expect("kill");
    wait_for(&events, "c", Phase::Exited);
    let error = supervisor.exec("c", plan, Streams::default()).expect_err("it has ended");
    assert!(matches!(error, Error::Refused(Refusal::WrongPhase { .. })), "{error}");
}

fn exec_dies_with_its_connection() {
    let mut pod = Pod::start("execdrop");
    pod.run("c", &["wait"]);
    let plan = pod.exec_plan("c", &["wait"], |_| {});
    let exec = pod.supervisor().exec("c", plan, Streams::default()).expect("exec");
    let proc = format!("/proc/{}/root/bin", exec.pid);
    assert!(fs::metadata(&proc).is_ok());
    assert_eq!(exec.wait(Some(std::time::Duration::from_millis(1))).expect("wait"), None);
    drop(exec);
    eventually("the process is gone", || fs::metadata(&proc).is_err());
    assert_eq!(pod.exec("c", &["exit", "4"]).0, 4, "the container is not");
}

fn exec_on_a_terminal() {
    let mut pod = Pod::start("exectty");
    pod.run("c", &["wait"]);
    let plan = pod.exec_plan("c", &["facts"], |process| {
        process.set_terminal(Some(true));
    });
    let size = WindowSize { rows: 33, columns: 77 };
    let mut exec = pod.supervisor().exec_terminal("c", plan, size).expect("exec");
    let master = exec.terminal.take().expect("a terminal");
    let mut output = Vec::new();
    let mut buffer = [0; 4096];
    // A terminal whose last user has gone reports EIO.
    while let Ok(length @ 1..) = rustix::io::read(&master, &mut buffer) {
        output.extend_from_slice(&buffer[..length]);
    }
    assert_eq!(exec.wait(Some(DEADLINE)).expect("wait").map(|exit| exit.code), Some(0));
    let facts: Value = serde_json::from_slice(&output).expect("facts");
    assert_eq!(facts["terminal"], json!([33, 77]));
    assert_eq!(facts["fds"], json!(["0", "1", "2"]));
}

fn a_container_on_a_terminal() {
    let mut pod = Pod::start("tty");
    pod.run_with("c", &["cat"], |spec, _, container| {
        spec.process_mut().as_mut().expect("given").set_terminal(Some(true));
        container.tty = true;
    })
    .expect("run");
    let (read, write) = pipe();
    let attachment = pod.supervisor().attach("c", true, Some(write.as_fd()), None).expect("attach");
    drop(write);
    let terminal = attachment.stdin.expect("the terminal");
    rustix::io::write(&terminal, b"hello\n\x04").expect("write");
    let (_, events) = pod.supervisor().subscribe().expect("subscribe");
    if pod.supervisor().state().expect("state").containers[0].phase != Phase::Exited {
        wait_for(&events, "c", Phase::Exited);
    }
    assert_eq!(read_all(read), "hello\r\nhello\r\n", "the echo, then what cat wrote");
    assert_eq!(pod.log("c"), ["hello\r", "hello\r"]);
}

fn attached_input() {
    let mut pod = Pod::start("attach");
    let with_input =
        |_: &mut _, _: &mut _, container: &mut pith_container::supervisor::protocol::ContainerSpec| {
            container.stdin = true;
            container.stdin_once = true;
        };
    pod.run_with("c", &["cat"], with_input).expect("run");
    let (_, events) = pod.supervisor().subscribe().expect("subscribe");
    let (read, write) = pipe();
    let attachment = pod.supervisor().attach("c", true, Some(write.as_fd()), None).expect("attach");
    drop(write);
    let mut input = fs::File::from(attachment.stdin.expect("its input"));
    input.write_all(b"one\ntwo\n").expect("write");
    drop(input);
    let record = wait_for(&events, "c", Phase::Exited);
    assert_eq!(record.exit.map(|exit| exit.code), Some(0), "the end of its input");
    assert_eq!(read_all(read), "one\ntwo\n");
    assert_eq!(pod.log("c"), ["one", "two"]);
}

fn a_slow_reader_holds_nobody_else() {
    let mut pod = Pod::start("slow");
    pod.run_with("busy", &["cat"], |_, _, container| container.stdin = true).expect("run");
    let (read, write) = pipe();
    let attachment = pod.supervisor().attach("busy", true, Some(write.as_fd()), None).expect("attach");
    drop(write);
    let mut input = fs::File::from(attachment.stdin.expect("its input"));
    // More than every buffer on the way holds: the writer blocks until the reader goes.
    let feeder = std::thread::spawn(move || input.write_all(&b"0123456789\n".repeat(100_000)));
    eventually("its output is held", || pod.log("busy").len() > 1000);
    assert_eq!(pod.run_out("other", &["exit", "0"]).exit.map(|exit| exit.code), Some(0));
    assert_eq!(pod.supervisor().state().expect("state").containers.len(), 2);
    drop(read);
    feeder.join().expect("thread").expect("all is read once the reader has gone");
    eventually("everything is logged", || pod.log("busy").len() == 100_000);
}

fn hostile_clients() {
    let mut pod = Pod::start("hostile");
    let dir = pod.spec.dir.clone();
    let connect = || pith_sys::message::connect(&dir, records::SOCKET);
    let garbage: [&[u8]; 4] = [b"{", b"\"Nonsense\"", &[0xff; 60_000], b"{\"delete\":{}}"];
    for bytes in garbage {
        let socket = connect().expect("connect");
        pith_sys::message::send(socket.as_fd(), bytes, &[], true).expect("send");
        let answer = pith_sys::message::receive(socket.as_fd(), 65_536, true).expect("receive");
        let answer = String::from_utf8(answer.expect("an answer").bytes).expect("text");
        assert!(answer.contains("invalid"), "{answer}");
    }
    // An empty packet with a pipe that never delivers, in place of a memfd.
    let socket = connect().expect("connect");
    let (read, _write) = pipe();
    pith_sys::message::send(socket.as_fd(), b"", &[read.as_fd()], true).expect("send");
    let silent: Vec<OwnedFd> = (0..400).filter_map(|_| connect().ok()).collect();
    assert!(pod.supervisor().state().is_ok(), "with {} silent connections", silent.len());
    drop(silent);
    assert_eq!(pod.run_out("c", &["exit", "0"]).exit.map(|exit| exit.code), Some(0));
}

fn a_subscriber_that_does_not_read() {
    let mut pod = Pod::start("deaf");
    let (_, deaf) = pod.supervisor().subscribe().expect("subscribe");
    let (_, events) = pod.supervisor().subscribe().expect("subscribe");
    let spec = pod.ready_with("c", &["exit", "0"], |_, _, _| {});
    for _ in 0..400 {
        pod.supervisor().run(spec.clone()).expect("run");
        wait_for(&events, "c", Phase::Exited);
        pod.supervisor().delete("c").expect("delete");
    }
    let mut seen = 0;
    let lost = loop {
        match deaf.next(Some(DEADLINE)) {
            Ok(Some(_)) => seen += 1,
            Ok(None) => panic!("neither an event nor the end after {seen}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(lost, Error::Gone { .. }), "{lost}");
    assert!((1..1200).contains(&seen), "what fitted into its socket: {seen}");
}
