//! What a link costs over bare TCP on loopback: round trips of a call's size, and bytes per second.
//!
//! `cargo bench -p mosix-runtime --bench link`. The bare ping-pong runs right before and after each measurement, in the same
//! minute on the same machine; the ratio is what counts. `ROUNDS` and `MIB` in the environment change the amounts.

use mosix_runtime::link::{Frame, Identity, Pins, Security, Session, SessionOptions, Stream};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a small call and its answer, without our header.
const CALL: usize = 24;
const ANSWER: usize = 8;

fn amount(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = listener.accept().unwrap().0;
    dialled.set_nodelay(true).unwrap();
    accepted.set_nodelay(true).unwrap();
    (dialled, accepted)
}

fn secured() -> (Security, Security) {
    let (a, b) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    (
        Security::tls(&a, &Pins::one(b.fingerprint())).unwrap(),
        Security::tls(&b, &Pins::one(a.fingerprint())).unwrap(),
    )
}

fn streams(home: &Security, host: &Security) -> (Stream, Stream) {
    let (a, b) = sockets();
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| Stream::accept(OwnedFd::from(b), host).unwrap());
        (Stream::dial(OwnedFd::from(a), home).unwrap(), accepted.join().unwrap())
    })
}

/// The middle and the 99th percentile of round trips in microseconds.
fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    (at(0.5), at(0.99))
}

/// CPU seconds of this process so far: what a loaded machine cannot falsify.
fn cpu() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6
}

/// GB/s, and CPU seconds per GB of both ends together.
fn rate(mib: usize, work: impl FnOnce()) -> (f64, f64) {
    let (begun, used) = (Instant::now(), cpu());
    work();
    let gigabytes = (mib << 20) as f64 / 1e9;
    (gigabytes / begun.elapsed().as_secs_f64(), (cpu() - used) / gigabytes)
}

fn timed(rounds: usize, mut round: impl FnMut()) -> (f64, f64) {
    (0..rounds / 10).for_each(|_| round());
    percentiles(
        (0..rounds)
            .map(|_| {
                let begun = Instant::now();
                round();
                begun.elapsed()
            })
            .collect(),
    )
}

/// 56 bytes there, 8 back, nothing else.
fn bare(rounds: usize) -> (f64, f64) {
    let (mut a, mut b) = sockets();
    let echo = std::thread::spawn(move || {
        let mut call = [0; 56];
        while b.read_exact(&mut call).is_ok() && b.write_all(&[0; 8]).is_ok() {}
    });
    let result = timed(rounds, || {
        a.write_all(&[0; 56]).unwrap();
        a.read_exact(&mut [0; 8]).unwrap();
    });
    drop(a);
    echo.join().unwrap();
    result
}

fn stream_round_trips(home: &Security, host: &Security, rounds: usize) -> (f64, f64) {
    let (mut a, mut b) = streams(home, host);
    let echo = std::thread::spawn(move || {
        let mut frame = Frame::default();
        while b.recv_into(&mut frame).is_ok() && b.send(&[0; ANSWER], &[]).is_ok() {}
    });
    let mut frame = Frame::default();
    let result = timed(rounds, || {
        a.send(&[0; CALL], &[]).unwrap();
        a.recv_into(&mut frame).unwrap();
    });
    drop(a);
    echo.join().unwrap();
    result
}

fn session_round_trips(home: &Security, host: &Security, rounds: usize) -> (f64, f64) {
    let (a, b) = streams(home, host);
    let host = Arc::new(Session::accept(SessionOptions::default()).unwrap());
    let attaching = host.clone();
    let attach = std::thread::spawn(move || attaching.attach(b).unwrap());
    let mut a = Some(a);
    let home = Session::dial(
        move || a.take().ok_or_else(|| std::io::ErrorKind::NotConnected.into()),
        SessionOptions::default(),
    )
    .unwrap();
    attach.join().unwrap();
    let echo = std::thread::spawn(move || {
        let mut frame = Frame::default();
        while host.recv_into(&mut frame).is_ok() && host.send(&[0; ANSWER], &[]).is_ok() {}
    });
    let mut frame = Frame::default();
    let result = timed(rounds, || {
        home.send(&[0; CALL], &[]).unwrap();
        home.recv_into(&mut frame).unwrap();
    });
    home.close();
    echo.join().unwrap();
    result
}

/// 1 MiB payloads one way.
fn throughput(home: &Security, host: &Security, mib: usize) -> (f64, f64) {
    let (mut a, mut b) = streams(home, host);
    rate(mib, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut frame = Frame::default();
                (0..mib).for_each(|_| b.recv_into(&mut frame).unwrap());
            });
            let pages = vec![0x5a; 1 << 20];
            (0..mib).for_each(|_| a.send(&[0; 16], &[&pages]).unwrap());
        });
    })
}

fn bare_throughput(mib: usize) -> (f64, f64) {
    let (mut a, mut b) = sockets();
    rate(mib, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = vec![0; 1 << 20];
                (0..mib).for_each(|_| b.read_exact(&mut buffer).unwrap());
            });
            let pages = vec![0x5a; 1 << 20];
            (0..mib).for_each(|_| a.write_all(&pages).unwrap());
        });
    })
}

fn main() {
    let (rounds, mib) = (amount("ROUNDS", 20_000), amount("MIB", 2048));
    let (home, host) = secured();
    let plain = (Security::Plain, Security::Plain);

    let made = Instant::now();
    (0..100).for_each(|_| drop(secured()));
    println!(
        "two identities and configurations: {:.2} ms",
        made.elapsed().as_secs_f64() * 10.0
    );
    let shaken = Instant::now();
    (0..100).for_each(|_| drop(streams(&home, &host)));
    println!(
        "connect and TLS handshake: {:.2} ms",
        shaken.elapsed().as_secs_f64() * 10.0
    );

    type Measure<'a> = (&'a str, Box<dyn Fn() -> (f64, f64) + 'a>);
    let measures: [Measure; 4] = [
        (
            "stream, plain",
            Box::new(|| stream_round_trips(&plain.0, &plain.1, rounds)),
        ),
        ("stream, tls", Box::new(|| stream_round_trips(&home, &host, rounds))),
        (
            "session, plain",
            Box::new(|| session_round_trips(&plain.0, &plain.1, rounds)),
        ),
        ("session, tls", Box::new(|| session_round_trips(&home, &host, rounds))),
    ];
    println!(
        "{:<16} {:>10} {:>10} {:>10} {:>7}",
        "round trip", "median us", "99 % us", "bare us", "ratio"
    );
    for (name, measure) in measures {
        let before = bare(rounds).0;
        let (median, late) = measure();
        let bare = (before + bare(rounds).0) / 2.0;
        println!(
            "{name:<16} {median:>10.1} {late:>10.1} {bare:>10.1} {:>7.2}",
            median / bare
        );
    }
    println!("{:<16} {:>10} {:>12}", "one way", "GB/s", "CPU s / GB");
    for (name, (rate, cpu)) in [
        ("bare", bare_throughput(mib)),
        ("stream, plain", throughput(&plain.0, &plain.1, mib)),
        ("stream, tls", throughput(&home, &host, mib)),
    ] {
        println!("{name:<16} {rate:>10.2} {cpu:>12.3}");
    }
}
