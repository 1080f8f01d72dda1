//! A client that asks one URL many times, each time with a new connection and a fresh look-up of the name, and
//! counts who answered: the first line of an answer's body is the answering pod's name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

#[derive(Args)]
pub(crate) struct Options {
    /// http://HOST[:PORT]/PATH
    #[arg(long)]
    url: String,
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Requests a second; 0 is as fast as it goes.
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// Requests under way at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    concurrency: u32,
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
}

/// What happened to all requests.
#[derive(Default, Serialize)]
struct Tally {
    ok: u32,
    failed: u32,
    /// Requests by the pod that answered them.
    answers: BTreeMap<String, u32>,
    errors: BTreeMap<String, u32>,
}

/// Fails when any request failed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let (host, path) = parse_url(&options.url)?;
    let tally = Mutex::new(Tally::default());
    let next = AtomicU32::new(0);
    let begin = Instant::now();
    let worker = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= options.count {
                break;
            }
            // Each request has its moment on the clock, so that a slow answer does not lower the rate.
            if let Some(due) = (number * 1000).checked_div(options.rate) {
                thread::sleep(Duration::from_millis(due.into()).saturating_sub(begin.elapsed()));
            }
            let outcome = ask(&host, &path, Duration::from_millis(options.timeout_ms));
            tally.lock().expect("no thread panics while it counts").add(outcome);
        }
    };
    thread::scope(|scope| {
        for _ in 0..options.concurrency {
            scope.spawn(worker);
        }
    });
    let tally = tally.into_inner().expect("no thread panics while it counts");
    println!("{}", serde_json::to_string(&tally).context("write JSON")?);
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints what a name stands for; the port is no part of it.
pub(crate) fn resolve(name: &str) -> Result<()> {
    let found = (name, 0).to_socket_addrs().with_context(|| format!("resolve {name}"))?;
    let addresses: BTreeSet<IpAddr> = found.map(|address| address.ip()).collect();
    addresses.iter().for_each(|address| println!("{address}"));
    Ok(())
}

impl Tally {
    fn add(&mut self, outcome: Result<String>) {
        match outcome {
            Ok(name) => {
                self.ok += 1;
                *self.answers.entry(name).or_default() += 1;
            }
            Err(error) => {
                self.failed += 1;
                *self.errors.entry(format!("{error:#}")).or_default() += 1;
            }
        }
    }
}

fn ask(host: &str, path: &str, timeout: Duration) -> Result<String> {
    let address: SocketAddr =
        host.to_socket_addrs().with_context(|| format!("resolve {host}"))?.next().context("no address")?;
    let mut stream =
        TcpStream::connect_timeout(&address, timeout).with_context(|| format!("connect {address}"))?;
    stream.set_read_timeout(Some(timeout)).context("set a timeout")?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").context("send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receive")?;
    first_line(&answer)
}

fn first_line(answer: &str) -> Result<String> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("an incomplete answer") };
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("status {status}");
    }
    Ok(body.lines().next().unwrap_or_default().to_owned())
}

/// `host:port` and path of a plain HTTP URL.
fn parse_url(url: &str) -> Result<(String, String)> {
    let Some(rest) = url.strip_prefix("http://") else { bail!("--url {url}: only http:// is spoken here") };
    let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
    if host.is_empty() {
        bail!("--url {url}: names no host");
    }
    // An IPv6 address is in brackets, and its colons are no port's.
    let has_port = host.rsplit_once(']').map_or(host, |(_, port)| port).contains(':');
    let host = if has_port { host.to_owned() } else { format!("{host}:80") };
    Ok((host, format!("/{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_table() {
        let cases = [
            ("http://web", Some(("web:80", "/"))),
            ("http://web:8080/a/b?c", Some(("web:8080", "/a/b?c"))),
            ("http://[fd00::1]/", Some(("[fd00::1]:80", "/"))),
            ("http://[fd00::1]:8080/", Some(("[fd00::1]:8080", "/"))),
            ("https://web", None),
            ("http:///x", None),
        ];
        for (url, expect) in cases {
            let expect = expect.map(|(host, path)| (host.to_owned(), path.to_owned()));
            assert_eq!(parse_url(url).ok(), expect, "{url}");
        }
    }

    #[test]
    fn answers_table() {
        let cases = [
            ("HTTP/1.1 200 OK\r\nA: b\r\n\r\nweb-1\nmore", Some("web-1")),
            ("HTTP/1.1 503 No\r\n\r\nweb-1", None),
            ("HTTP/1.1 200 OK\r\nA:", None),
        ];
        for (answer, expect) in cases {
            assert_eq!(first_line(answer).ok().as_deref(), expect, "{answer:?}");
        }
    }
}
