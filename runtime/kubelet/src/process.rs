//! Running a process in a container: for `exec` probes and hooks, and for `kubectl exec`.

use std::{
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use pith_container::{
    compile,
    plan::{Plan, WindowSize},
    supervisor::{self, Exec, Streams, protocol::Exit},
};
use tokio::{io::Interest, net::UnixStream};

use crate::{
    context::{PodCell, blocking},
    network::chain,
    observed::ContainerId,
    record, start,
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("the container's specification cannot be read")]
    Specification(#[source] io::Error),
    #[error("{0}")]
    Process(String),
    #[error(transparent)]
    Compile(#[from] compile::CompileError),
    #[error("{}", chain(.0))]
    Supervisor(supervisor::Error),
    #[error("pipe")]
    Pipe(#[source] io::Error),
    #[error("waiting for the process")]
    Wait(#[source] io::Error),
    #[error("command timed out after {0:?}")]
    TimedOut(Duration),
    #[error("command '{command}' exited with {code}: {output}")]
    Failed { command: String, code: i32, output: String },
}

/// The plan of a process that runs `command` as the container's own would.
pub(crate) fn plan(
    cell: &PodCell,
    id: &ContainerId,
    command: &[String],
    terminal: bool,
) -> Result<Plan, ProcessError> {
    let base = record::load_base(&cell.folders.run, id).map_err(ProcessError::Specification)?;
    let base = base.ok_or_else(|| ProcessError::NotRunning(id.0.clone()))?;
    let mut process =
        base.spec.process().clone().ok_or_else(|| ProcessError::Process("it has no process".to_owned()))?;
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(terminal));
    if terminal {
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        process.set_env(Some(env));
    }
    Ok(compile::exec(&base.spec, &process, &start::options(cell, &base))?)
}

/// Starts a process on the given streams. Blocks until it runs.
pub(crate) fn spawn(
    cell: &PodCell,
    id: &ContainerId,
    command: &[String],
    streams: Streams<'_>,
) -> Result<Exec, ProcessError> {
    let plan = plan(cell, id, command, false)?;
    let sandbox = cell.sandbox().ok_or_else(|| ProcessError::NotRunning(id.0.clone()))?;
    sandbox.supervisor.exec(&id.0, plan, streams).map_err(ProcessError::Supervisor)
}

/// The same on a terminal of its own.
pub(crate) fn spawn_on_terminal(
    cell: &PodCell,
    id: &ContainerId,
    command: &[String],
    size: WindowSize,
) -> Result<Exec, ProcessError> {
    let plan = plan(cell, id, command, true)?;
    let sandbox = cell.sandbox().ok_or_else(|| ProcessError::NotRunning(id.0.clone()))?;
    sandbox.supervisor.exec_terminal(&id.0, plan, size).map_err(ProcessError::Supervisor)
}

/// What a failed command said is shown up to here, in bytes.
const OUTPUT_MAX: usize = 10 << 10;

/// Runs a command to its end; anything but exit code 0 is an error that carries its output.
pub(crate) async fn run(
    cell: &Arc<PodCell>,
    id: &ContainerId,
    command: &[String],
    timeout: Duration,
) -> Result<(), ProcessError> {
    let (cell, id, arguments) = (cell.clone(), id.clone(), command.to_vec());
    let (exec, reader) = blocking(move || {
        let (reader, writer) = pipe()?;
        let streams = Streams { stdin: None, stdout: Some(writer.as_fd()), stderr: Some(writer.as_fd()) };
        Ok::<_, ProcessError>((spawn(&cell, &id, &arguments, streams)?, reader))
    })
    .await?;
    // Dropped on time-out, which kills the process.
    let exit = tokio::time::timeout(timeout, ended(&exec)).await;
    let exit = exit.map_err(|_| ProcessError::TimedOut(timeout))??;
    if exit.code == 0 {
        return Ok(());
    }
    Err(ProcessError::Failed { command: command.join(" "), code: exit.code, output: drain(reader) })
}

/// Waits for a process without a thread for it: a session may last for days, and a kubelet that stops does
/// not wait for it.
pub(crate) async fn ended(exec: &Exec) -> Result<Exit, ProcessError> {
    // Only waited on; packets are read by the supervisor's client, which looks before it reads.
    let socket = exec.as_fd().try_clone_to_owned().map(std::os::unix::net::UnixStream::from);
    let socket = socket.and_then(|s| s.set_nonblocking(true).and_then(|()| UnixStream::from_std(s)));
    let socket = socket.map_err(ProcessError::Wait)?;
    loop {
        socket.readable().await.map_err(ProcessError::Wait)?;
        let next = socket.try_io(Interest::READABLE, || match exec.wait(Some(Duration::ZERO)) {
            Ok(Some(exit)) => Ok(Ok(exit)),
            Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Ok(Err(error)),
        });
        match next {
            Ok(exit) => return exit.map_err(ProcessError::Supervisor),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(ProcessError::Wait(error)),
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), ProcessError> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
    let (reader, writer) = rustix::pipe::pipe_with(flags).map_err(|e| ProcessError::Pipe(e.into()))?;
    Ok((reader, writer))
}

/// What is in the pipe now: children of the process may hold it open for ever.
fn drain(reader: OwnedFd) -> String {
    let mut file = std::fs::File::from(reader);
    let mut output = vec![];
    let mut buffer = [0; 4096];
    while output.len() < OUTPUT_MAX {
        match file.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(n) => output.extend_from_slice(&buffer[..n]),
        }
    }
    output.truncate(OUTPUT_MAX);
    String::from_utf8_lossy(&output).trim_end().to_owned()
}
