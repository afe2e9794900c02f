//! Streams over loopback: contents, wrong certificates, garbage, ends.

use super::*;
use mosix_wire::frame::{FrameError, HEADER, Header, Kind};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Two connected sockets on loopback.
pub(super) fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (dialled, listener.accept().unwrap().0)
}

/// A home and a host that know each other's certificates.
pub(super) fn secured() -> (Security, Security) {
    let (a, b) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    (
        Security::tls(&a, &Pins::one(b.fingerprint())).unwrap(),
        Security::tls(&b, &Pins::one(a.fingerprint())).unwrap(),
    )
}

/// Both ends' outcomes of a handshake.
fn shake(home: &Security, host: &Security) -> (Result<Stream, LinkError>, Result<Stream, LinkError>) {
    let (a, b) = sockets();
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| Stream::accept(OwnedFd::from(b), host));
        let dialled = Stream::dial(OwnedFd::from(a), home);
        (dialled, accepted.join().unwrap())
    })
}

fn streams(home: &Security, host: &Security) -> (Stream, Stream) {
    let (dialled, accepted) = shake(home, host);
    (dialled.unwrap(), accepted.unwrap())
}

fn both() -> [(Security, Security); 2] {
    [(Security::Plain, Security::Plain), secured()]
}

#[test]
fn frames_of_all_sizes_come_through() {
    for (home, host) in both() {
        let (mut a, mut b) = streams(&home, &host);
        let sizes = [
            0, 1, 100, 16_351, 16_352, 16_353, 16_384, 70_000, 262_144, 3_000_000, 20_000_000,
        ];
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for size in sizes {
                    let payload: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
                    let third = size / 3;
                    a.send(&vec![7; size % 5000], &[&payload[..third], &[], &payload[third..]])
                        .unwrap();
                }
                a.split().0.finish().unwrap();
            });
            let mut frame = Frame::default();
            for size in sizes {
                b.recv_into(&mut frame).unwrap();
                assert_eq!(frame.header.kind, Kind::Data);
                assert!(frame.body == vec![7; size % 5000]);
                assert!(
                    frame
                        .payload
                        .iter()
                        .enumerate()
                        .all(|(n, byte)| *byte == (n % 251) as u8)
                );
                assert_eq!(frame.payload.len(), size);
            }
            assert!(matches!(b.recv(), Err(LinkError::Closed)));
        });
    }
}

#[test]
fn a_wrong_certificate_is_refused_and_both_sides_say_so() {
    let (home, host) = secured();
    let (other_home, _) = secured();
    // The host does not expect this home, nor it this host: the dialling end notices first.
    let (dialled, accepted) = shake(&other_home, &host);
    let said = dialled.err().unwrap().to_string();
    assert!(said.contains("not the one that was agreed on"), "{said}");
    let said = accepted.err().unwrap().to_string();
    assert!(said.contains("refused our certificate"), "{said}");

    // The home knows the host, but not the other way round.
    let (stranger, known) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let eager = Security::tls(&stranger, &Pins::one(known.fingerprint())).unwrap();
    let strict = Security::tls(&known, &Pins::default()).unwrap();
    let (dialled, accepted) = shake(&eager, &strict);
    let said = accepted.err().unwrap().to_string();
    assert!(said.contains("not the one that was agreed on"), "{said}");
    let said = dialled.and_then(|mut stream| stream.recv()).err().unwrap().to_string();
    assert!(said.contains("refused our certificate"), "{said}");
    drop(home);
}

#[test]
fn a_certificate_without_its_key_is_worthless() {
    // Mallory shows the host's certificate, which anybody can see, but signs with his own key: rcgen and rustls refuse to
    // build such a configuration, so the check is made on the verifier's own terms.
    let (honest, mallory) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    assert!(tls::tests::mixed(&honest, &mallory).is_err());
}

#[test]
fn pins_can_be_added_and_taken_back_while_configurations_live() {
    let (a, b, c) = (
        Identity::generate().unwrap(),
        Identity::generate().unwrap(),
        Identity::generate().unwrap(),
    );
    let pins = Pins::one(a.fingerprint());
    let host = Security::tls(&b, &pins).unwrap();
    let third = Security::tls(&c, &Pins::one(b.fingerprint())).unwrap();
    assert!(shake(&third, &host).1.is_err());
    pins.add(c.fingerprint());
    assert!(shake(&third, &host).1.is_ok());
    pins.remove(c.fingerprint());
    assert!(shake(&third, &host).1.is_err());
}

#[test]
fn plain_and_tls_ends_do_not_meet() {
    let (home, host) = secured();
    let (mut a, b) = sockets();
    a.write_all(&Header::new(Kind::Data, 0, 0).unwrap().encode()).unwrap();
    a.shutdown(std::net::Shutdown::Write).unwrap();
    let said = Stream::accept(OwnedFd::from(b), &host).err().unwrap().to_string();
    assert!(said.contains("TLS"), "{said}");
    let (dialled, _) = (home, ());
    let (a, b) = sockets();
    let mut plain = Stream::accept(OwnedFd::from(b), &Security::Plain).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            assert!(matches!(plain.recv(), Err(LinkError::Frame(FrameError::Magic(_)))));
        });
        assert!(Stream::dial(OwnedFd::from(a), &dialled).is_err());
    });
}

#[test]
fn garbage_oversized_and_truncated_frames_are_errors() {
    let good = Header::new(Kind::Data, 10, 10).unwrap().encode();
    let mut huge = good;
    huge[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    for (bytes, wanted) in [
        (
            b"GET / HTTP/1.1\r\nHost: some.where.org\r\n\r\n".to_vec(),
            "not a mosix frame",
        ),
        (huge.to_vec(), "at most"),
        (good.to_vec(), "within a message"),
        (good[..HEADER - 1].to_vec(), "within a message"),
        (Vec::new(), "closed"),
    ] {
        let (mut a, b) = sockets();
        let mut b = Stream::accept(OwnedFd::from(b), &Security::Plain).unwrap();
        a.write_all(&bytes).unwrap();
        drop(a);
        let said = b.recv().err().unwrap().to_string();
        assert!(said.contains(wanted), "{said} for {bytes:?}");
    }
}

#[test]
fn keys_are_renewed_on_the_way() {
    let (home, host) = secured();
    let (mut a, mut b) = streams(&home, &host);
    for round in 0..20u8 {
        // Either end, also while it has half a message under way.
        let (from, to) = if round % 2 == 0 {
            (&mut a, &mut b)
        } else {
            (&mut b, &mut a)
        };
        from.send(&[round], &[]).unwrap();
        from.wear_out();
        from.send(&[round], &[&vec![round; 40_000]]).unwrap();
        assert_eq!(to.recv().unwrap().body, [round]);
        assert_eq!(to.recv().unwrap().payload, vec![round; 40_000]);
    }
}

#[test]
fn a_changed_bit_ends_a_connection() {
    let (home, host) = secured();
    for bit in [0, 30, 45, 90, 8 * 30, 8 * 60] {
        let (mut middle_near, mut middle_far) = (sockets(), sockets());
        std::thread::scope(|scope| {
            // home <-> middle <-> host; once both are through the handshake, a bit of home's next record is turned.
            let accepted = scope.spawn(|| Stream::accept(OwnedFd::from(middle_far.1), &host));
            let (turn, turned) = std::sync::mpsc::channel::<()>();
            let (mut up, mut down) = (middle_near.1.try_clone().unwrap(), middle_far.0.try_clone().unwrap());
            scope.spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(got @ 1..) = up.read(&mut bytes) {
                    if turned.try_recv().is_ok() {
                        bytes[bit / 8] ^= 1 << (bit % 8);
                    }
                    if down.write_all(&bytes[..got]).is_err() {
                        break;
                    }
                }
                let _ = down.shutdown(std::net::Shutdown::Both);
            });
            let back = scope.spawn(move || std::io::copy(&mut middle_far.0, &mut middle_near.1));
            let mut dialled = Stream::dial(OwnedFd::from(middle_near.0), &home).unwrap();
            let mut accepted = accepted.join().unwrap().unwrap();
            turn.send(()).unwrap();
            dialled.send(b"a message of some bytes", &[]).unwrap();
            dialled.socket().shutdown_write();
            assert!(matches!(
                accepted.recv(),
                Err(LinkError::NotTls | LinkError::Cut | LinkError::Tls(rustls::Error::DecryptError))
            ));
            drop((dialled, accepted));
            let _ = back.join();
        });
    }
}

#[test]
fn a_cut_tls_connection_is_not_taken_for_its_end() {
    let (home, host) = secured();
    let (mut a, mut b) = streams(&home, &host);
    a.send(b"x", &[]).unwrap();
    a.socket().shutdown_write();
    b.recv().unwrap();
    assert!(matches!(b.recv(), Err(LinkError::Cut)));
}

#[test]
fn nobody_holds_a_handshake_for_ever() {
    let (_, host) = secured();
    let (mut a, b) = sockets();
    let begun = std::time::Instant::now();
    let error = Stream::accept(OwnedFd::from(b), &host).err().unwrap();
    assert!(matches!(error, LinkError::HandshakeTimeout), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(8));
    let _ = a.read(&mut [0; 10]);
}

#[test]
fn two_threads_send_and_receive_large_frames_at_once() {
    for (home, host) in both() {
        let (a, b) = streams(&home, &host);
        std::thread::scope(|scope| {
            for stream in [a, b] {
                let (mut tx, mut rx) = stream.split();
                let payload = vec![5; 8 << 20];
                scope.spawn(move || (0..8).for_each(|_| tx.send(b"page", &[&payload]).unwrap()));
                scope.spawn(move || (0..8).for_each(|_| assert_eq!(rx.recv().unwrap().payload.len(), 8 << 20)));
            }
        });
    }
}
