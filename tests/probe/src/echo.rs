//! Echo servers for raw TCP and UDP, and clients of theirs that notice when anything is lost.

use std::io::{BufRead, BufReader, Write, copy};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses to listen at, the best first: one for both families, and where there is no IPv6, that of IPv4.
fn everywhere(port: u16) -> [SocketAddr; 2] {
    [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
}

pub(crate) fn tcp(port: u16) -> Result<()> {
    let listener =
        TcpListener::bind(&everywhere(port)[..]).with_context(|| format!("listen on port {port}"))?;
    println!("tcp echo on port {port}");
    for stream in listener.incoming() {
        let mut stream = stream.context("accept")?;
        thread::spawn(move || {
            let copied = stream.try_clone().and_then(|mut from| copy(&mut from, &mut stream));
            println!("connection over: {copied:?}");
        });
    }
    Ok(())
}

pub(crate) fn udp(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(&everywhere(port)[..]).with_context(|| format!("listen on port {port}"))?;
    println!("udp echo on port {port}");
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).context("receive")?;
        let mut answer = crate::hostname().into_bytes();
        answer.push(b' ');
        answer.extend_from_slice(&buffer[..length]);
        socket.send_to(&answer, peer).with_context(|| format!("answer {peer}"))?;
    }
}

pub(crate) fn udp_client(address: &str, message: &str) -> Result<()> {
    let mut found = address.to_socket_addrs().with_context(|| format!("resolve {address}"))?;
    let to = found.next().with_context(|| format!("{address} has no address"))?;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).context("open a socket")?;
    socket.set_read_timeout(Some(TIMEOUT)).context("set a timeout")?;
    socket.send_to(message.as_bytes(), to).with_context(|| format!("send to {to}"))?;
    let mut buffer = vec![0; 65_536];
    let (length, peer) =
        socket.recv_from(&mut buffer).with_context(|| format!("no answer from {address}"))?;
    println!("{} from {peer}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}

#[derive(Args)]
pub(crate) struct Hold {
    /// HOST:PORT of a TCP echo server
    address: String,
    /// How many lines to send.
    #[arg(long, default_value_t = 100)]
    lines: u32,
    /// Milliseconds between two lines.
    #[arg(long, default_value_t = 100)]
    pause_ms: u64,
}

/// One connection for the whole time: it fails when a line is lost, changed or late.
pub(crate) fn hold(options: &Hold) -> Result<()> {
    let mut stream =
        TcpStream::connect(&options.address).with_context(|| format!("connect {}", options.address))?;
    stream.set_read_timeout(Some(TIMEOUT)).context("set a timeout")?;
    let mut answers = BufReader::new(stream.try_clone().context("duplicate the socket")?).lines();
    for number in 0..options.lines {
        writeln!(stream, "line {number}").with_context(|| format!("send line {number}"))?;
        let answer = answers.next().with_context(|| format!("closed at line {number}"))?;
        let answer = answer.with_context(|| format!("no answer to line {number}"))?;
        if answer != format!("line {number}") {
            bail!("line {number} came back as {answer:?}");
        }
        thread::sleep(Duration::from_millis(options.pause_ms));
    }
    println!("{} lines came back", options.lines);
    Ok(())
}
