//! Sessions over loopback TCP whose connections are cut at random moments.

use super::*;
use crate::link::tests::secured;
use crate::link::tls::Security;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

struct Pair {
    home: Arc<Session>,
    host: Arc<Session>,
    stop: Arc<AtomicBool>,
}

/// A session through a listener that hands connections to the accepting end, as an agent's listener does.
fn pair(home: Security, host: Security, options: SessionOptions) -> Pair {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = Arc::new(Session::accept(options.clone()).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    {
        let (accepting, stop) = (accepting.clone(), stop.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // A cut may hit the handshake: the dialling end tries again.
                let _ =
                    Stream::accept(OwnedFd::from(socket.unwrap()), &host).and_then(|stream| accepting.attach(stream));
            }
        });
    }
    let dialling = Session::dial(
        move || {
            let fd = OwnedFd::from(TcpStream::connect(address)?);
            Stream::dial(fd, &home).map_err(io::Error::other)
        },
        options,
    )
    .unwrap();
    Pair {
        home: Arc::new(dialling),
        host: accepting,
        stop,
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.home.cut();
    }
}

/// Body and payload of the frame number `n`, different for each and of mixed sizes, now and then large.
fn content(n: u64) -> (Vec<u8>, Vec<u8>) {
    let size = match n % 997 {
        0 => 300_000,
        rest => (rest * 7 % 300) as usize,
    };
    (n.to_le_bytes().to_vec(), vec![n as u8; size])
}

/// Sends `frames` frames and receives as many, checking order and content.
fn exchange(sending: &Arc<Session>, receiving: &Arc<Session>, frames: u64) -> [std::thread::JoinHandle<()>; 2] {
    let (tx, rx) = (sending.clone(), receiving.clone());
    let sender = std::thread::spawn(move || {
        for n in 0..frames {
            let (body, payload) = content(n);
            let (front, back) = payload.split_at(payload.len() / 2);
            tx.send(&body, &[front, back]).unwrap();
        }
    });
    let receiver = std::thread::spawn(move || {
        let mut frame = Frame::default();
        for n in 0..frames {
            rx.recv_into(&mut frame).unwrap();
            let (body, payload) = content(n);
            assert_eq!(frame.body, body, "frame {n}");
            assert!(frame.payload == payload, "payload of frame {n}");
        }
    });
    [sender, receiver]
}

fn survives_cuts(home: Security, host: Security, frames: u64) {
    // A small window makes the senders wait for acknowledgements that breaks delay.
    let options = SessionOptions {
        window: 4 << 20,
        redial: (Duration::from_millis(1), Duration::from_millis(20)),
        ..Default::default()
    };
    let pair = pair(home, host, options);
    let mut threads = Vec::new();
    threads.extend(exchange(&pair.home, &pair.host, frames));
    threads.extend(exchange(&pair.host, &pair.home, frames));
    let done = Arc::new(AtomicBool::new(false));
    let cuts = Arc::new(AtomicU64::new(0));
    let cutter = {
        let (done, cuts, home, host) = (done.clone(), cuts.clone(), pair.home.clone(), pair.host.clone());
        std::thread::spawn(move || {
            let mut random = 0x2545_f491_4f6c_dd1d_u64;
            while !done.load(Ordering::SeqCst) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                std::thread::sleep(Duration::from_micros(random % 40_000));
                if random & 1 == 0 {
                    home.cut()
                } else {
                    host.cut()
                }
                cuts.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    for thread in threads {
        thread.join().unwrap();
    }
    done.store(true, Ordering::SeqCst);
    cutter.join().unwrap();
    let cuts = cuts.load(Ordering::SeqCst);
    println!("{frames} frames each way, {cuts} cuts");
    assert!(cuts > 10, "only {cuts} cuts: the test showed nothing");
}

#[test]
fn nothing_is_lost_doubled_or_reordered_plain() {
    survives_cuts(Security::Plain, Security::Plain, 100_000);
}

#[test]
fn nothing_is_lost_doubled_or_reordered_tls() {
    let (home, host) = secured();
    survives_cuts(home, host, 100_000);
}

#[test]
fn close_delivers_everything_before_it() {
    let (home, host) = secured();
    let pair = pair(home, host, SessionOptions::default());
    for n in 0..1000_u64 {
        pair.home.send(&n.to_le_bytes(), &[]).unwrap();
    }
    let reader = {
        let host = pair.host.clone();
        std::thread::spawn(move || {
            let mut got = 0_u64;
            loop {
                match host.recv() {
                    Ok(frame) => {
                        assert_eq!(frame.body, got.to_le_bytes());
                        got += 1;
                    }
                    Err(closed) => return (got, closed),
                }
            }
        })
    };
    let begun = Instant::now();
    pair.home.close();
    assert!(
        begun.elapsed() < Duration::from_millis(1500),
        "close waited {:?}",
        begun.elapsed()
    );
    assert_eq!(reader.join().unwrap(), (1000, Closed::Peer));
    assert_eq!(pair.home.recv(), Err(Closed::Here));
    assert_eq!(pair.home.send(b"x", &[]), Err(SendError::Closed(Closed::Here)));
    assert_eq!(pair.host.state(), State::Closed(Closed::Peer));
}

#[test]
fn a_restarted_agent_ends_the_session_with_a_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let accept = || Stream::accept(OwnedFd::from(listener.accept().unwrap().0), &Security::Plain).unwrap();
        let first = Session::accept(SessionOptions::default()).unwrap();
        first.attach(accept()).unwrap();
        assert_eq!(first.recv().unwrap().body, b"one");
        // The agent dies: no farewell.
        first.cut();
        std::mem::forget(first);
        let second = Session::accept(SessionOptions::default()).unwrap();
        assert!(second.attach(accept()).is_err());
    });
    let home = Session::dial(
        move || Stream::dial(OwnedFd::from(TcpStream::connect(address)?), &Security::Plain).map_err(io::Error::other),
        SessionOptions::default(),
    )
    .unwrap();
    home.send(b"one", &[]).unwrap();
    match home.recv() {
        Err(Closed::Lost(why)) => assert!(why.contains("started again"), "{why}"),
        other => panic!("{other:?}"),
    }
    server.join().unwrap();
}

#[test]
fn silence_takes_the_link_down_and_the_window_holds_senders_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let options = SessionOptions {
        silence: Duration::from_millis(300),
        window: 1000,
        ..Default::default()
    };
    let mut first = true;
    let dial_options = options.clone();
    let dialler = std::thread::spawn(move || {
        Session::dial(
            move || {
                // After the first connection the network is gone.
                if !std::mem::take(&mut first) {
                    return Err(io::ErrorKind::NetworkUnreachable.into());
                }
                Stream::dial(OwnedFd::from(TcpStream::connect(address)?), &Security::Plain).map_err(io::Error::other)
            },
            dial_options,
        )
        .unwrap()
    });
    // A peer that says nothing more after the handshake: its keeper's signs of life are too rare.
    let peer = Session::accept(SessionOptions {
        heartbeat: Duration::from_secs(60),
        ..options
    })
    .unwrap();
    peer.attach(Stream::accept(OwnedFd::from(listener.accept().unwrap().0), &Security::Plain).unwrap())
        .unwrap();
    let home = Arc::new(dialler.join().unwrap());
    assert_eq!(home.state(), State::Up);
    let reader = {
        let home = home.clone();
        std::thread::spawn(move || home.recv())
    };
    let begun = Instant::now();
    while home.state() == State::Up {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(
        begun.elapsed() >= Duration::from_millis(200),
        "down after {:?}",
        begun.elapsed()
    );
    home.try_send(&[0; 500], &[]).unwrap();
    assert_eq!(home.try_send(&[0; 500], &[]), Err(SendError::Full));
    home.close();
    assert_eq!(reader.join().unwrap(), Err(Closed::Here));
}

/// Carries bytes between two addresses; while `stalled` it swallows nothing and passes nothing, as a cut cable does.
fn stalling_proxy(to: std::net::SocketAddr, stalled: Arc<AtomicBool>) -> std::net::SocketAddr {
    fn carry(mut from: TcpStream, mut to: TcpStream, stalled: Arc<AtomicBool>) {
        let mut buffer = [0; 16 << 10];
        while let Ok(got @ 1..) = io::Read::read(&mut from, &mut buffer) {
            while stalled.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if io::Write::write_all(&mut to, &buffer[..got]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
        let _ = from.shutdown(std::net::Shutdown::Both);
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (Ok(near), Ok(far)) = (socket, TcpStream::connect(to)) else {
                return;
            };
            for (from, to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                let stalled = stalled.clone();
                std::thread::spawn(move || carry(from, to, stalled));
            }
        }
    });
    address
}

#[test]
fn a_network_that_falls_silent_and_comes_back_is_only_a_delay() {
    let (home, host) = secured();
    let options = SessionOptions {
        heartbeat: Duration::from_millis(100),
        silence: Duration::from_millis(400),
        redial: (Duration::from_millis(10), Duration::from_millis(100)),
        ..Default::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stalled = Arc::new(AtomicBool::new(false));
    let address = stalling_proxy(listener.local_addr().unwrap(), stalled.clone());
    let accepting = Arc::new(Session::accept(options.clone()).unwrap());
    let agent = accepting.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (agent, host) = (agent.clone(), host.clone());
            // Handshakes that hang must not keep later connections out.
            std::thread::spawn(move || {
                let _ = Stream::accept(OwnedFd::from(socket.unwrap()), &host).and_then(|stream| agent.attach(stream));
            });
        }
    });
    let dialling = Session::dial(
        move || Stream::dial(OwnedFd::from(TcpStream::connect(address)?), &home).map_err(io::Error::other),
        options,
    );
    let dialling = Arc::new(dialling.unwrap());
    let frames = 20_000;
    let mut threads = Vec::new();
    threads.extend(exchange(&dialling, &accepting, frames));
    threads.extend(exchange(&accepting, &dialling, frames));
    // Idle ends notice as well: what was sent by now may all have arrived.
    std::thread::sleep(Duration::from_millis(20));
    stalled.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    while dialling.state() == State::Up && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    match dialling.state() {
        State::Down { why, .. } => println!("down after {:?}: {why}", begun.elapsed()),
        other => panic!("still {other:?} after {:?}", begun.elapsed()),
    }
    std::thread::sleep(Duration::from_millis(1500));
    stalled.store(false, Ordering::SeqCst);
    let healed = Instant::now();
    for thread in threads {
        thread.join().unwrap();
    }
    println!("all frames {:?} after the network came back", healed.elapsed());
    assert_eq!(dialling.state(), State::Up);
    dialling.close();
}

/// Answers of a batch are left to the receiving thread, by itself and by another thread: none stays behind.
#[test]
fn answers_that_share_a_record_are_all_written() {
    // No sign of life comes to the rescue of an answer that nobody writes.
    let options = SessionOptions {
        heartbeat: Duration::from_secs(3600),
        silence: Duration::from_secs(7200),
        ..Default::default()
    };
    let (a, b) = secured();
    let pair = pair(a, b, options);
    let (to_other, others) = std::sync::mpsc::channel::<Vec<u8>>();
    let host = pair.host.clone();
    let other = std::thread::spawn(move || {
        for body in others {
            host.send_later(&body, &[]).unwrap();
            host.flush_soon();
        }
    });
    let host = pair.host.clone();
    const ROUNDS: u64 = 300;
    let receiving = std::thread::spawn(move || {
        let mut frame = Frame::default();
        let all = (1..=ROUNDS).map(|round| round % 40 + 1).sum();
        for n in 0..all {
            host.recv_into(&mut frame).unwrap();
            // What may not be sent from here goes to the other thread.
            if n % 3 == 0 || host.try_send_amid(&frame.body, &[]).is_err() {
                to_other.send(frame.body.clone()).unwrap();
            }
        }
        // Back for a frame that never comes: only here the last answers are written.
        let _ = host.recv_into(&mut frame);
    });
    let mut frame = Frame::default();
    for round in 1..=ROUNDS {
        let batch = round % 40 + 1;
        for n in 0..batch {
            pair.home.send_later(&n.to_le_bytes(), &[]).unwrap();
        }
        pair.home.flush();
        let mut got: Vec<u64> = (0..batch)
            .map(|_| {
                pair.home.recv_into(&mut frame).unwrap();
                u64::from_le_bytes(frame.body[..].try_into().unwrap())
            })
            .collect();
        got.sort_unstable();
        assert!(got.into_iter().eq(0..batch), "round {round}");
    }
    pair.home.close();
    receiving.join().unwrap();
    other.join().unwrap();
}
