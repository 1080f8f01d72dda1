//! The servers in the backends' namespace: one address, four ways to be asked, told apart by the first byte.
//!
//! | first byte | answer |
//! |---|---|
//! | `E` | every read is written back, until the client closes |
//! | `C` | one byte, then the server closes |
//! | `G` | a short HTTP answer, then the server closes |
//! | `S` | nothing; what comes is thrown away until the client closes |
//!
//! The server closes first, so that the side which waits in TIME-WAIT is the one that does not run out of ports.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::net::Shutdown;

use crate::cluster::TARGET_PORT;
use crate::ground::Namespace;
use crate::pin;

/// Connections served at one time.
pub(crate) const THREADS: usize = 4;

pub(crate) const ECHO: u8 = b'E';
pub(crate) const CLOSE: u8 = b'C';
pub(crate) const HTTP: u8 = b'G';
pub(crate) const SINK: u8 = b'S';

const HTTP_ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\nConnection: close\r\n\r\nHello, world\n";

/// Serves until dropped.
pub(crate) struct Server {
    listener: Arc<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn new(namespace: &Namespace) -> Result<Self> {
        let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, TARGET_PORT);
        let listener = namespace.run(|| TcpListener::bind(address).context("listen"))?;
        let listener = Arc::new(listener);
        let serve = |_| {
            let listener = Arc::clone(&listener);
            thread::spawn(move || {
                pin::to_server_cpu();
                while let Ok((stream, _)) = listener.accept() {
                    // A client that goes away in the middle is its own business.
                    let _ = answer(stream);
                }
            })
        };
        let threads = (0..THREADS).map(serve).collect();
        Ok(Self { listener, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes whoever waits in accept(2), which then fails (tcp(7), SHUT_RD on a listening socket).
        let _ = rustix::net::shutdown(self.listener.as_fd(), Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match buffer[0] {
            ECHO => stream.write_all(&buffer[..length])?,
            CLOSE => return stream.write_all(&buffer[..1]),
            HTTP => return stream.write_all(HTTP_ANSWER),
            // A sink fills its first byte only: what follows is the same letter.
            _ => {}
        }
    }
}
