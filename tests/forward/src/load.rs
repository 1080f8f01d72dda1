//! The loads a client makes: each bounded in number and in time, each giving one [`Sample`].

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};

use crate::server::{CLOSE, ECHO, HTTP, SINK};
use crate::statistics::percentile;

/// How long one operation may take before the run is given up: longer than a lost packet's second sending.
const DEADLINE: Duration = Duration::from_secs(10);

/// What one round of a load saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// Microseconds of each operation.
    pub(crate) micros: Vec<f64>,
    /// Microseconds until the connection stood, where each operation makes one.
    pub(crate) connect_micros: Vec<f64>,
    pub(crate) elapsed: Duration,
    /// Processor time of the client's thread: its calls and the packets that the kernel forwarded on their behalf.
    pub(crate) cpu: Duration,
    pub(crate) bytes: u64,
}

impl Sample {
    #[expect(clippy::cast_precision_loss, reason = "counts of operations are far below 2^52")]
    pub(crate) fn rate(&self) -> f64 {
        self.micros.len() as f64 / self.elapsed.as_secs_f64()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of operations are far below 2^52")]
    pub(crate) fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.micros.len().max(1) as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of a round are far below 2^52")]
    pub(crate) fn gigabits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64() / 1e9
    }

    pub(crate) fn at(&self, share: f64) -> Option<f64> {
        percentile(&self.micros, share)
    }
}

/// How much of a load makes a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) operations: usize,
    pub(crate) time: Duration,
}

/// One byte there and back over connections that stand.
pub(crate) fn round_trips(targets: &[SocketAddrV4], bounds: Bounds) -> Result<Sample> {
    let mut sample = Sample::default();
    let each = (bounds.operations / targets.len()).max(1);
    let cpu = cpu_time()?;
    let begin = Instant::now();
    for target in targets {
        let mut stream = connect(*target)?;
        // The first byte pays for what a connection pays once.
        exchange(&mut stream, ECHO)?;
        for _ in 0..each {
            let sent = Instant::now();
            exchange(&mut stream, ECHO)?;
            sample.micros.push(micros(sent));
            if begin.elapsed() > bounds.time {
                break;
            }
        }
    }
    sample.elapsed = begin.elapsed();
    sample.cpu = cpu_time()?.saturating_sub(cpu);
    Ok(sample)
}

fn exchange(stream: &mut TcpStream, byte: u8) -> Result<()> {
    let mut answer = [byte];
    stream.write_all(&answer).context("send a byte")?;
    stream.read_exact(&mut answer).context("receive a byte")
}

/// A new connection for each byte there and back.
pub(crate) fn connections(targets: &[SocketAddrV4], bounds: Bounds) -> Result<Sample> {
    short(targets, bounds, &[CLOSE], 1)
}

/// A new connection for each HTTP request.
pub(crate) fn requests(targets: &[SocketAddrV4], bounds: Bounds) -> Result<Sample> {
    let request = [&[HTTP], &b"ET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"[..]].concat();
    short(targets, bounds, &request, 64)
}

fn short(targets: &[SocketAddrV4], bounds: Bounds, request: &[u8], at_least: usize) -> Result<Sample> {
    let mut sample = Sample::default();
    let mut answer = Vec::with_capacity(4096);
    let cpu = cpu_time()?;
    let begin = Instant::now();
    for target in targets.iter().cycle().take(bounds.operations) {
        let start = Instant::now();
        let mut stream = connect(*target)?;
        sample.connect_micros.push(micros(start));
        stream.write_all(request).context("send a request")?;
        answer.clear();
        stream.read_to_end(&mut answer).context("receive an answer")?;
        if answer.len() < at_least {
            bail!("{target} answered {} bytes", answer.len());
        }
        drop(stream);
        sample.micros.push(micros(start));
        if begin.elapsed() > bounds.time {
            break;
        }
    }
    sample.elapsed = begin.elapsed();
    sample.cpu = cpu_time()?.saturating_sub(cpu);
    Ok(sample)
}

/// As many bytes as go through one connection within the time, written `segment` bytes at a time.
pub(crate) fn stream(target: SocketAddrV4, time: Duration, segment: usize) -> Result<Sample> {
    let mut stream = connect(target)?;
    let bytes = vec![SINK; segment];
    let mut sample = Sample::default();
    let cpu = cpu_time()?;
    let begin = Instant::now();
    while begin.elapsed() < time {
        stream.write_all(&bytes).context("send")?;
        sample.bytes += segment as u64;
        sample.micros.push(0.0);
    }
    sample.elapsed = begin.elapsed();
    sample.cpu = cpu_time()?.saturating_sub(cpu);
    Ok(sample)
}

/// What became of connections that were made without a pause.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Hammered {
    answered: u32,
    lost: u32,
}

impl Hammered {
    pub(crate) fn lost_of_10_000(self) -> f64 {
        f64::from(self.lost) * 10_000.0 / f64::from((self.lost + self.answered).max(1))
    }
}

/// New connections for as long as `time`, each with an answer or lost.
pub(crate) fn hammer(target: SocketAddrV4, time: Duration) -> Hammered {
    let mut hammered = Hammered::default();
    let begin = Instant::now();
    while begin.elapsed() < time {
        let answered = connect(target).and_then(|mut stream| exchange(&mut stream, CLOSE));
        match answered {
            Ok(()) => hammered.answered += 1,
            Err(_) => hammered.lost += 1,
        }
    }
    hammered
}

pub(crate) fn at(addresses: &[Ipv4Addr], port: u16) -> Vec<SocketAddrV4> {
    addresses.iter().map(|address| SocketAddrV4::new(*address, port)).collect()
}

pub(crate) fn connect(target: SocketAddrV4) -> Result<TcpStream> {
    let stream = TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    stream.set_read_timeout(Some(DEADLINE)).context("a deadline")?;
    Ok(stream)
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

/// Processor time of the calling thread.
fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).context("getrusage")?;
    let of = |time: nix::sys::time::TimeVal| {
        Duration::new(
            u64::try_from(time.tv_sec()).unwrap_or_default(),
            u32::try_from(time.tv_usec() * 1000).unwrap_or_default(),
        )
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}
