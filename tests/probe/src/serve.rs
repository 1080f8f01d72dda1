//! A web server that says who it is and stops the way a good pod does: on SIGTERM it goes on accepting for a while,
//! since Services forget it only moments later, then finishes what it has begun.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::signal::{SigSet, Signal};

/// More than any test has at a time; the next connection waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's head beyond this is refused.
const MAX_HEAD_BYTES: u64 = 16 * 1024;

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Text that `/` shows, to tell images apart.
    #[arg(long, env = "PROBE_VERSION", default_value = "v1")]
    version: String,
    /// Seconds until /readyz says yes.
    #[arg(long, default_value_t = 0)]
    delay_ready: u64,
    /// Milliseconds to go on accepting after SIGTERM.
    #[arg(long, default_value_t = 1000)]
    drain_ms: u64,
}

struct State {
    version: String,
    ready_from: Instant,
    unready: AtomicBool,
    open: AtomicUsize,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    // Blocked before any thread starts, so that every thread inherits it and only the waiting one takes the signal.
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    stop.add(Signal::SIGINT);
    stop.thread_block().context("block SIGTERM")?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, options.port))
        .or_else(|_| TcpListener::bind(("0.0.0.0", options.port)))
        .with_context(|| format!("listen on port {}", options.port))?;
    println!("listening on port {}, version {}", options.port, options.version);
    let state = Arc::new(State {
        version: options.version.clone(),
        ready_from: Instant::now() + Duration::from_secs(options.delay_ready),
        unready: AtomicBool::new(false),
        open: AtomicUsize::new(0),
    });
    let drain = Duration::from_millis(options.drain_ms);
    thread::spawn({
        let state = Arc::clone(&state);
        move || finish_on(stop, &state, drain)
    });
    accept(&listener, &state)
}

fn accept(listener: &TcpListener, state: &Arc<State>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().context("accept")?;
        if state.open.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
            state.open.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let state = Arc::clone(state);
        thread::spawn(move || {
            if let Err(error) = answer(stream, &state) {
                println!("connection failed: {error:#}");
            }
            state.open.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// Waits for SIGTERM, drains, and ends the process when the last request is answered.
fn finish_on(stop: SigSet, state: &State, drain: Duration) {
    if let Ok(signal) = stop.wait() {
        println!("{signal}: accepting for {} ms more", drain.as_millis());
    }
    state.unready.store(true, Ordering::Release);
    thread::sleep(drain);
    let deadline = Instant::now() + READ_TIMEOUT;
    while state.open.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    println!("done");
    exit(0)
}

fn answer(stream: TcpStream, state: &State) -> Result<()> {
    stream.set_read_timeout(Some(READ_TIMEOUT)).context("set a timeout")?;
    let mut reader = BufReader::new(stream.try_clone().context("duplicate the socket")?.take(MAX_HEAD_BYTES));
    let mut line = String::new();
    reader.read_line(&mut line).context("read the request")?;
    if line.is_empty() {
        return Ok(()); // A probe that only connects: it never meant to ask.
    }
    let path = line.split(' ').nth(1).unwrap_or("/").trim().to_owned();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).context("read the request's head")? == 0 || header.trim().is_empty()
        {
            break;
        }
    }
    let (status, body) = page(&path, &stream, state);
    let peer = stream.peer_addr().context("ask for the peer's address")?;
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .context("write the answer")?;
    println!("{} {path} from {peer}: {status}", line.split(' ').next().unwrap_or_default());
    Ok(())
}

fn page(path: &str, stream: &TcpStream, state: &State) -> (&'static str, String) {
    let ok = "200 OK";
    match path.split_once('?').map_or(path, |(path, _)| path) {
        "/healthz" => (ok, "ok\n".to_owned()),
        "/readyz" if state.unready.load(Ordering::Acquire) || Instant::now() < state.ready_from => {
            ("503 Service Unavailable", "not ready\n".to_owned())
        }
        "/readyz" => (ok, "ready\n".to_owned()),
        "/unready" => {
            state.unready.store(true, Ordering::Release);
            (ok, "unready\n".to_owned())
        }
        "/ready" => {
            state.unready.store(false, Ordering::Release);
            (ok, "ready\n".to_owned())
        }
        "/env" => (ok, std::env::vars().map(|(key, value)| format!("{key}={value}\n")).collect()),
        "/slow" => {
            let ms = path.split_once("ms=").and_then(|(_, ms)| ms.parse().ok()).unwrap_or(1000);
            thread::sleep(Duration::from_millis(ms));
            (ok, format!("{}\n", crate::hostname()))
        }
        _ => {
            let address = stream.local_addr().map(|address| address.to_string()).unwrap_or_default();
            let peer = stream.peer_addr().map(|peer| peer.to_string()).unwrap_or_default();
            (ok, format!("{}\n{address}\n{}\nfrom {peer}\n", crate::hostname(), state.version))
        }
    }
}
