//! Bytes over one TLS stream and nothing else: what a move of that much memory is compared with by `cargo xtask bench`.
//!
//! `bulk serve ADDRESS:PORT` takes one connection; `bulk send ADDRESS:PORT MIB` sends and prints the nanoseconds from the
//! first byte until the server has said that it has all of them. Keys are exchanged in the clear: it measures, it protects nothing.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use mosix_runtime::link::{Frame, Identity, Pins, Security, Stream};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Bytes of a frame's payload.
const CHUNK: usize = 1 << 20;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address] => serve(address),
        ["send", address, mib] => send(address, mib.parse().context("MIB")?),
        _ => bail!("bulk serve ADDRESS:PORT, or bulk send ADDRESS:PORT MIB"),
    }
}

/// Our fingerprint there, theirs here; what we need to speak TLS with exactly this peer.
fn agree(socket: &mut TcpStream) -> Result<Security> {
    let identity = Identity::generate()?;
    let mut theirs = identity.fingerprint();
    socket.set_nodelay(true)?;
    socket.write_all(&theirs.0)?;
    socket.read_exact(&mut theirs.0)?;
    Ok(Security::tls(&identity, &Pins::one(theirs))?)
}

fn serve(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| address.to_owned())?;
    println!("ready");
    let mut socket = listener.accept()?.0;
    let security = agree(&mut socket)?;
    let mut stream = Stream::accept(OwnedFd::from(socket), &security)?;
    let mut frame = Frame::default();
    loop {
        stream.recv_into(&mut frame)?;
        if frame.payload.is_empty() {
            stream.send(b"all", &[])?;
            return Ok(());
        }
    }
}

fn send(address: &str, mib: usize) -> Result<()> {
    let mut socket = TcpStream::connect(address).with_context(|| address.to_owned())?;
    let security = agree(&mut socket)?;
    let mut stream = Stream::dial(OwnedFd::from(socket), &security)?;
    // Not zeros: as little as memory that does not compress.
    let mut state = 1_u64;
    let mut chunk = Vec::with_capacity(CHUNK);
    while chunk.len() < CHUNK {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        chunk.extend((state ^ (state >> 33)).to_le_bytes());
    }
    let begin = Instant::now();
    for _ in 0..mib {
        stream.send(b"", &[&chunk])?;
    }
    stream.send(b"", &[])?;
    stream.recv()?;
    println!("{}", begin.elapsed().as_nanos());
    Ok(())
}
