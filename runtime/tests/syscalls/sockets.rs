//! Sockets and waiting for descriptors.

use crate::deputy::Guest;
use libc::*;

fn unix(path: &str) -> Vec<u8> {
    let mut name = (AF_UNIX as u16).to_le_bytes().to_vec();
    name.extend_from_slice(path.as_bytes());
    name.push(0);
    name
}

/// A msghdr in the guest.
fn message(g: &Guest, name: (u64, u64), iov: (u64, u64), control: (u64, u64)) -> u64 {
    g.words(&[name.0, name.1, iov.0, iov.1, control.0, control.1, 0])
}

pub fn sockets(g: &Guest, dir: &str) {
    let path = format!("{dir}/socket");
    let name = unix(&path);
    let (at, len) = (g.put(&name), name.len() as u64);
    let listener = g.ok("socket", [AF_UNIX as u64, SOCK_STREAM as u64, 0]);
    g.ok("bind", [listener, at, len]);
    g.fails("bind", [listener, at, 200], EINVAL);
    g.fails("connect", [99, at, len], EBADF);
    g.ok("listen", [listener, 5]);
    let client = g.ok("socket", [AF_UNIX as u64, SOCK_STREAM as u64, 0]);
    g.ok("connect", [client, at, len]);
    let (peer, peer_len) = (g.room(128), g.put(&128u32.to_le_bytes()));
    let server = g.ok("accept", [listener, peer, peer_len]);
    assert_eq!(g.int(peer_len), 2, "an unnamed peer");
    let second = g.ok("socket", [AF_UNIX as u64, SOCK_STREAM as u64, 0]);
    g.ok("connect", [second, at, len]);
    g.ok("accept4", [listener, 0, 0, SOCK_CLOEXEC as u64]);
    for call in ["getsockname", "getpeername"] {
        let fd = if call == "getsockname" { server } else { client };
        // Shorter room than the name: the true length comes back, the bytes are cut.
        let (short, short_len) = (g.put(&[0xee; 16]), g.put(&6u32.to_le_bytes()));
        g.ok(call, [fd, short, short_len]);
        assert_eq!(g.int(short_len), len as i32, "{call}");
        assert_eq!(g.get(short, 7), [&name[..6], &[0xee]].concat());
        g.fails(call, [fd, short, g.put(&(-1i32).to_le_bytes())], EINVAL);
    }
    let text = g.put(b"hello");
    assert_eq!(g.ok("sendto", [client, text, 5, 0, 0, 0]), 5);
    let back = g.room(64);
    assert_eq!(g.ok("recvfrom", [server, back, 64, 0, 0, 0]), 5);
    assert_eq!(g.get(back, 6), b"hello\0");
    g.fails("recvfrom", [server, back, 64, MSG_DONTWAIT as u64, 0, 0], EAGAIN);

    // A descriptor travels in a control message and arrives under home's number.
    let rights = g.put(
        &[
            &20u64.to_le_bytes()[..],
            &1i32.to_le_bytes(),
            &1i32.to_le_bytes(),
            &(listener as i32).to_le_bytes(),
            &[0; 4],
        ]
        .concat(),
    );
    let iov = g.words(&[text, 2, text + 2, 3]);
    let sent = message(g, (0, 0), (iov, 2), (rights, 24));
    assert_eq!(g.ok("sendmsg", [client, sent, 0]), 5);
    let (control, data) = (g.room(64), g.room(64));
    let into = g.words(&[data, 3, data + 16, 10]);
    let received = message(g, (0, 0), (into, 2), (control, 64));
    assert_eq!(g.ok("recvmsg", [server, received, 0]), 5);
    assert_eq!(
        (g.get(data, 4), g.get(data + 16, 3)),
        (b"hel\0".to_vec(), b"lo\0".to_vec())
    );
    assert_eq!(g.word(received + 40), 24, "msg_controllen");
    let fd = g.int(control + 16);
    let accepts = g.put(&4u32.to_le_bytes());
    let option = g.room(4);
    g.ok(
        "getsockopt",
        [fd as u64, SOL_SOCKET as u64, SO_ACCEPTCONN as u64, option, accepts],
    );
    assert_eq!(g.int(option), 1, "the descriptor is the listening socket");

    // Datagrams with addresses, several at once.
    let (a_path, a) = (
        format!("{dir}/a"),
        g.ok("socket", [AF_UNIX as u64, SOCK_DGRAM as u64, 0]),
    );
    let b = g.ok("socket", [AF_UNIX as u64, SOCK_DGRAM as u64, 0]);
    let a_name = unix(&a_path);
    g.ok("bind", [a, g.put(&a_name), a_name.len() as u64]);
    let b_name = unix(&format!("{dir}/b"));
    g.ok("bind", [b, g.put(&b_name), b_name.len() as u64]);
    let one = g.words(&[text, 3]);
    let to = (g.put(&a_name), a_name.len() as u64);
    let batch = g.room(128);
    for n in 0..2u64 {
        let header = g.get(message(g, to, (one, 1), (0, 0)), 56);
        g.put_at(batch + n * 64, &header);
    }
    assert_eq!(g.ok("sendmmsg", [b, batch, 2, 0]), 2);
    assert_eq!((g.int(batch + 56), g.int(batch + 120)), (3, 3), "msg_len");
    let batch = g.room(192);
    let (names, datas) = (g.room(384), g.room(300));
    for n in 0..3u64 {
        let iov = g.words(&[datas + n * 100, 100]);
        let header = g.get(message(g, (names + n * 128, 128), (iov, 1), (0, 0)), 56);
        g.put_at(batch + n * 64, &header);
        g.put_at(batch + n * 64 + 56, &77u32.to_le_bytes());
    }
    assert_eq!(g.ok("recvmmsg", [a, batch, 3, MSG_DONTWAIT as u64, 0]), 2);
    for n in 0..2u64 {
        assert_eq!(g.get(datas + n * 100, 4), b"hel\0");
        assert_eq!(g.int(batch + n * 64 + 56), 3);
        assert_eq!(g.int(batch + n * 64 + 8), b_name.len() as i32);
        assert_eq!(g.get(names + n * 128, b_name.len()), b_name);
    }
    assert_eq!(g.int(batch + 128 + 56), 77, "a message that was not received");
    assert_eq!(g.ok("sendto", [b, text, 4, 0, to.0, to.1]), 4);
    let (from, from_len) = (g.room(128), g.put(&128u32.to_le_bytes()));
    assert_eq!(
        g.ok("recvfrom", [a, back, 2, MSG_TRUNC as u64, from, from_len]),
        4,
        "MSG_TRUNC tells the true length"
    );
    assert_eq!(g.get(from, b_name.len()), b_name);

    let value = g.put(&4096u32.to_le_bytes());
    g.ok("setsockopt", [client, SOL_SOCKET as u64, SO_RCVBUF as u64, value, 4]);
    g.ok(
        "getsockopt",
        [client, SOL_SOCKET as u64, SO_RCVBUF as u64, option, accepts],
    );
    assert!(g.int(option) >= 4096);
    g.fails(
        "setsockopt",
        [client, SOL_SOCKET as u64, SO_RCVBUF as u64, value, 3],
        EINVAL,
    );
    let pair = g.room(8);
    g.ok("socketpair", [AF_UNIX as u64, SOCK_STREAM as u64, 0, pair]);
    g.ok("shutdown", [g.int(pair) as u64, SHUT_WR as u64]);
    assert_eq!(g.ok("read", [g.int(pair + 4) as u64, back, 10]), 0, "end of file");
}

pub fn waiting(g: &Guest, dir: &str) {
    let pair = g.room(8);
    g.ok("pipe", [pair]);
    let (r, w) = (g.int(pair) as u64, g.int(pair + 4) as u64);
    let fds = g.put(
        &[
            &(r as i32).to_le_bytes()[..],
            &POLLIN.to_le_bytes(),
            &[0xff; 2],
            &(w as i32).to_le_bytes(),
            &POLLOUT.to_le_bytes(),
            &[0; 2],
        ]
        .concat(),
    );
    assert_eq!(g.ok("poll", [fds, 2, 0]), 1);
    assert_eq!(
        (g.get(fds + 6, 2), g.get(fds + 14, 2)),
        (vec![0, 0], POLLOUT.to_le_bytes().to_vec())
    );
    g.ok("write", [w, g.put(b"x"), 1]);
    let short = g.words(&[0, 1_000_000]);
    assert_eq!(g.ok("ppoll", [fds, 2, short, 0, 8]), 2);
    let set = g.words(&[1 << r | 1 << w]);
    assert_eq!(g.ok("select", [w + 1, set, 0, 0, g.words(&[0, 0])]), 1);
    assert_eq!(g.word(set), 1 << r);
    let mask = g.words(&[0]);
    let left = g.words(&[5, 0]);
    assert_eq!(g.ok("pselect6", [w + 1, set, 0, 0, left, g.words(&[mask, 8])]), 1);
    assert!(g.word(left) < 6, "the rest of the time");
    g.fails("select", [u64::MAX, set, 0, 0, 0], EINVAL);

    let epoll = g.ok("epoll_create1", [0]);
    g.ok("close", [g.call("epoll_create", [1]) as u64]);
    let event = g.put(&[&(EPOLLIN as u32).to_le_bytes()[..], &0xabcd_u64.to_le_bytes()].concat());
    g.ok("epoll_ctl", [epoll, EPOLL_CTL_ADD as u64, r, event]);
    let events = g.put(&[0xee; 12 * 8]);
    for (call, args) in [
        ("epoll_wait", [epoll, events, 8, 0, 0, 0]),
        ("epoll_pwait", [epoll, events, 8, 0, mask, 8]),
        ("epoll_pwait2", [epoll, events, 8, short, 0, 8]),
    ] {
        assert_eq!(g.ok(call, args), 1, "{call}");
        assert_eq!(
            (g.int(events), g.word(events + 4), g.get(events + 12, 1)[0]),
            (EPOLLIN, 0xabcd, 0xee)
        );
    }
    g.fails("epoll_wait", [epoll, events, 0, 0], EINVAL);
    // More room than memory: as many as fit are asked for.
    assert_eq!(g.ok("epoll_wait", [epoll, events, 1 << 20, 0]), 1);

    let counter = g.ok("eventfd2", [3, 0]);
    g.ok("eventfd", [1]);
    let value = g.room(8);
    assert_eq!(g.ok("read", [counter, value, 8]), 8);
    assert_eq!(g.word(value), 3);
    let watch = g.ok("inotify_init1", [0]);
    g.ok("inotify_init", []);
    let id = g.ok("inotify_add_watch", [watch, g.text(dir), u64::from(IN_CREATE)]);
    g.ok("creat", [g.text(&format!("{dir}/seen")), 0o600]);
    let seen = g.room(256);
    assert!(g.ok("read", [watch, seen, 256]) >= 16);
    assert_eq!(g.get(seen + 16, 5), b"seen\0");
    g.ok("inotify_rm_watch", [watch, id]);
}
