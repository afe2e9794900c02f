//! Calls on paths and descriptors.

use crate::deputy::Guest;
use libc::*;

const CWD: u64 = AT_FDCWD as i64 as u64;

pub fn by_path(g: &Guest, dir: &str) {
    let path = |name: &str| g.text(&format!("{dir}/{name}"));
    let root = g.text(dir);
    let stat = g.room(256);
    g.ok("chdir", [root]);
    let cwd = g.room(4096);
    let len = g.ok("getcwd", [cwd, 4096]);
    assert_eq!(g.get(cwd, len as usize), format!("{dir}\0").as_bytes());
    g.fails("getcwd", [cwd, 2], ERANGE);

    let fd = g.ok("open", [path("a"), (O_CREAT | O_RDWR) as u64, 0o600]);
    let text = g.put(b"hello world");
    assert_eq!(g.ok("write", [fd, text, 11]), 11);
    for (call, args) in [
        ("stat", [path("a"), stat]),
        ("lstat", [path("a"), stat]),
        ("fstat", [fd, stat]),
    ] {
        g.ok(call, args);
        assert_eq!(g.word(stat + 48), 11, "{call}: st_size");
    }
    g.ok("newfstatat", [CWD, g.text("a"), stat, 0]);
    assert_eq!(g.word(stat + 48), 11);
    g.ok("statx", [CWD, g.text("a"), 0, STATX_SIZE as u64, stat]);
    assert_eq!(g.word(stat + 40), 11, "stx_size");
    // Errors in the kernel's own order: a bad descriptor before a bad pointer.
    g.fails("read", [99, 0x10, 5], EBADF);
    g.fails("pread64", [fd, 0xdead_0000, 5, 0], EFAULT);
    g.fails("open", [0xdead_0000, 0], EFAULT);
    g.fails("open", [g.text(&"x".repeat(5000)), 0], ENAMETOOLONG);
    g.fails("stat", [path("none"), 0x10], ENOENT);

    g.ok("truncate", [path("a"), 5]);
    g.ok("access", [path("a"), R_OK as u64]);
    g.ok("faccessat", [CWD, path("a"), R_OK as u64]);
    g.ok("faccessat2", [CWD, path("a"), R_OK as u64, 0]);
    g.ok("chmod", [path("a"), 0o640]);
    g.ok("fchmodat", [CWD, path("a"), 0o600]);
    g.may("fchmodat2", [CWD, path("a"), 0o600, 0], &[ENOSYS]);
    let me = u64::MAX;
    for (call, args) in [("chown", [path("a"), me, me]), ("lchown", [path("a"), me, me])] {
        g.ok(call, args);
    }
    g.ok("fchownat", [CWD, path("a"), me, me, 0]);

    g.ok("link", [path("a"), path("b")]);
    g.ok("linkat", [CWD, path("a"), CWD, path("c"), 0]);
    g.ok("symlink", [g.text("target"), path("l")]);
    g.ok("symlinkat", [g.text("target"), CWD, path("m")]);
    let link = g.room(64);
    assert_eq!(g.ok("readlink", [path("l"), link, 64]), 6);
    assert_eq!(g.get(link, 7), b"target\0");
    assert_eq!(g.ok("readlinkat", [CWD, path("m"), link, 3]), 3);
    g.ok("rename", [path("b"), path("b2")]);
    g.ok("renameat", [CWD, path("b2"), CWD, path("b3")]);
    g.ok(
        "renameat2",
        [CWD, path("b3"), CWD, path("b4"), u64::from(RENAME_NOREPLACE)],
    );
    g.ok("unlink", [path("b4")]);
    g.ok("unlinkat", [CWD, path("c"), 0]);
    g.ok("mkdir", [path("d"), 0o700]);
    g.ok("mkdirat", [CWD, path("e"), 0o700]);
    g.ok("rmdir", [path("e")]);
    g.ok("mknod", [path("fifo"), u64::from(S_IFIFO | 0o600), 0]);
    g.ok("mknodat", [CWD, path("fifo2"), u64::from(S_IFIFO | 0o600), 0]);
    let fd2 = g.ok("creat", [path("f"), 0o600]);
    let fd3 = g.ok("openat", [CWD, path("f"), O_RDONLY as u64]);
    let how = g.words(&[O_RDONLY as u64, 0, 0]);
    let fd4 = g.ok("openat2", [CWD, path("f"), how, 24]);
    for fd in [fd2, fd3, fd4] {
        g.ok("close", [fd]);
    }

    // Times: seconds and microseconds or nanoseconds.
    g.ok("utime", [path("a"), g.words(&[10, 20])]);
    g.ok("utimes", [path("a"), g.words(&[11, 0, 21, 0])]);
    g.ok("futimesat", [CWD, path("a"), g.words(&[12, 0, 22, 0])]);
    g.ok("utimensat", [CWD, path("a"), g.words(&[13, 0, 23, 5]), 0]);
    g.ok("stat", [path("a"), stat]);
    assert_eq!(
        (g.word(stat + 72), g.word(stat + 88), g.word(stat + 96)),
        (13, 23, 5),
        "st_atime, st_mtime"
    );
    g.ok("utimensat", [CWD, path("a"), 0, 0]);

    let fs = g.room(120);
    g.ok("statfs", [path("a"), fs]);
    assert!(g.word(fs + 8) > 0, "f_bsize");
    g.ok("fstatfs", [fd, fs]);
    g.ok("stat", [path("a"), stat]);
    g.may("ustat", [g.word(stat), g.room(32)], &[EINVAL, ENOSYS]);
    g.ok("umask", [0o077]);
    assert_eq!(g.ok("umask", [0o022]), 0o077);
    g.ok("sync", []);

    // Extended attributes, where the file system has them.
    let (name, value, back) = (g.text("user.mosix"), g.put(b"value"), g.room(64));
    for (set, get, list, remove) in [
        ("setxattr", "getxattr", "listxattr", "removexattr"),
        ("lsetxattr", "lgetxattr", "llistxattr", "lremovexattr"),
    ] {
        if g.may(set, [path("a"), name, value, 5, 0], &[EOPNOTSUPP]) {
            assert_eq!(g.ok(get, [path("a"), name, back, 64]), 5);
            assert_eq!(g.get(back, 5), b"value");
            assert_eq!(g.ok(get, [path("a"), name, 0, 0]), 5);
        } else {
            g.call(get, [path("a"), name, back, 64]);
        }
        g.call(list, [path("a"), back, 64]);
        g.call(remove, [path("a"), name]);
    }
    if g.may("fsetxattr", [fd, name, value, 5, 0], &[EOPNOTSUPP]) {
        g.fails("fgetxattr", [fd, name, back, 3], ERANGE);
        assert_eq!(g.ok("fgetxattr", [fd, name, back, 5]), 5);
    } else {
        g.call("fgetxattr", [fd, name, back, 5]);
    }
    g.call("flistxattr", [fd, back, 64]);
    g.may("listxattrat", [CWD, path("a"), 0, back, 64], &[ENOSYS, EOPNOTSUPP]);
    g.call("fremovexattr", [fd, name]);
    g.may(
        "removexattrat",
        [CWD, path("a"), 0, name],
        &[ENOSYS, EOPNOTSUPP, ENODATA],
    );
    g.fails("setxattr", [path("a"), g.text(&"x".repeat(300)), value, 5, 0], ERANGE);
    let attr = g.room(64);
    g.may(
        "file_getattr",
        [CWD, path("a"), attr, 24, 0],
        &[ENOSYS, EOPNOTSUPP, ENOTTY, EINVAL],
    );
    g.may(
        "file_setattr",
        [CWD, path("a"), attr, 24, 0],
        &[ENOSYS, EOPNOTSUPP, ENOTTY, EINVAL, EPERM],
    );
    g.ok("close", [fd]);
    g.fails("close", [fd], EBADF);
}

pub fn by_descriptor(g: &Guest, dir: &str) {
    let path = |name: &str| g.text(&format!("{dir}/{name}"));
    let fd = g.ok("open", [path("data"), (O_CREAT | O_RDWR | O_TRUNC) as u64, 0o600]);
    // write, writev, pwrite and their kin, read back each time.
    let (a, b, back) = (g.put(b"abc"), g.put(b"defg"), g.room(64));
    let iov = g.words(&[a, 3, 0, 0, b, 4]);
    let backs = g.words(&[back, 2, back + 8, 50]);
    assert_eq!(g.ok("write", [fd, a, 3]), 3);
    assert_eq!(g.ok("writev", [fd, iov, 3]), 7);
    assert_eq!(g.ok("pwrite64", [fd, b, 4, 10]), 4);
    assert_eq!(g.ok("pwritev", [fd, iov, 3, 14, 0]), 7);
    assert_eq!(g.ok("pwritev2", [fd, iov, 3, 21, 0, 0]), 7);
    assert_eq!(g.ok("lseek", [fd, 0, SEEK_SET as u64]), 0);
    assert_eq!(g.ok("read", [fd, back, 64]), 28);
    assert_eq!(g.get(back, 29), b"abcabcdefgdefgabcdefgabcdefg\0");
    assert_eq!(g.ok("pread64", [fd, back, 4, 10]), 4);
    assert_eq!(g.get(back, 4), b"defg");
    g.ok("lseek", [fd, 3, SEEK_SET as u64]);
    assert_eq!(g.ok("readv", [fd, backs, 2]), 25);
    assert_eq!(
        (g.get(back, 2), g.get(back + 8, 5)),
        (b"ab".to_vec(), b"cdefg".to_vec())
    );
    assert_eq!(g.ok("preadv", [fd, backs, 2, 10, 0]), 18);
    assert_eq!(g.ok("preadv2", [fd, backs, 2, 14, 0, 0]), 14);
    g.fails("readv", [fd, backs, 1025], EINVAL);
    g.fails("readv", [99, backs, 2], EBADF);
    g.fails("writev", [fd, g.words(&[a, u64::MAX]), 1], EINVAL);
    assert_eq!(g.ok("writev", [fd, iov, 0]), 0);
    // O_DIRECT needs the alignment that the guest's buffer has.
    let direct = g.call("open", [path("data"), (O_RDWR | O_DIRECT) as u64]);
    if direct >= 0 {
        g.room(8192);
        let page = (g.room(8192) + 4095) & !4095;
        assert_eq!(g.ok("pread64", [direct as u64, page, 4096, 0]), 28, "O_DIRECT read");
        g.may("pwrite64", [direct as u64, page, 512, 0], &[EINVAL]);
        g.ok("close", [direct as u64]);
    }
    // A megabyte in one call, to a file and back.
    let big = g.put(&(0..1 << 20).map(|n: u32| (n * 7) as u8).collect::<Vec<_>>());
    let copy = g.room(1 << 20);
    assert_eq!(g.ok("pwrite64", [fd, big, 1 << 20, 0]), 1 << 20);
    assert_eq!(g.ok("pread64", [fd, copy, 1 << 20, 0]), 1 << 20);
    assert!(g.get(big, 1 << 20) == g.get(copy, 1 << 20));

    for call in ["fsync", "fdatasync", "syncfs"] {
        g.ok(call, [fd]);
    }
    g.ok("ftruncate", [fd, 4096]);
    g.ok("fchmod", [fd, 0o600]);
    g.ok("fchown", [fd, u64::MAX, u64::MAX]);
    g.ok("flock", [fd, LOCK_EX as u64]);
    g.ok("readahead", [fd, 0, 4096]);
    g.ok("fadvise64", [fd, 0, 0, 3]);
    g.may("sync_file_range", [fd, 0, 0, 0], &[ESPIPE]);
    g.may("fallocate", [fd, 0, 0, 8192], &[EOPNOTSUPP]);
    g.may(
        "cachestat",
        [fd, g.words(&[0, 0]), g.room(40), 0],
        &[ENOSYS, EOPNOTSUPP],
    );
    let other = g.ok("memfd_create", [g.text("name"), 0]);
    g.fails("memfd_create", [g.text(&"x".repeat(260)), 0], EINVAL);
    let offset = g.words(&[0]);
    let target = g.ok("open", [path("copy"), (O_CREAT | O_RDWR) as u64, 0o600]);
    assert_eq!(g.ok("copy_file_range", [fd, offset, target, 0, 100, 0]), 100);
    assert_eq!(g.word(offset), 100);
    assert_eq!(g.ok("sendfile", [other, fd, offset, 50]), 50);
    assert_eq!(g.word(offset), 150);

    // Descriptors and pipes.
    let pair = g.room(8);
    g.ok("pipe", [pair]);
    g.ok("pipe2", [pair, O_CLOEXEC as u64]);
    let (r, w) = (g.int(pair) as u64, g.int(pair + 4) as u64);
    g.fails("pipe2", [0xdead_0000, 0], EFAULT);
    assert_eq!(g.ok("splice", [fd, g.words(&[0]), w, 0, 10, 0]), 10);
    g.ok("pipe", [pair]);
    assert_eq!(g.ok("tee", [r, g.int(pair + 4) as u64, 10, 0]), 10);
    let dup = g.ok("dup", [r]);
    assert_eq!(g.ok("dup2", [dup, 50]), 50);
    assert_eq!(g.ok("dup3", [dup, 51, O_CLOEXEC as u64]), 51);
    g.ok("close_range", [50, 51, 0]);
    g.fails("close", [50], EBADF);

    // fcntl: numbers, structures, a lock that this process holds itself.
    assert_eq!(g.ok("fcntl", [dup, F_GETFD as u64]), 0);
    g.ok("fcntl", [dup, F_SETFD as u64, FD_CLOEXEC as u64]);
    assert_eq!(g.ok("fcntl", [dup, F_GETFD as u64]), 1);
    assert!(g.ok("fcntl", [r, F_GETPIPE_SZ as u64]) >= 4096);
    assert_eq!(g.ok("fcntl", [dup, F_DUPFD as u64, 60]), 60);
    let lock = g.words(&[F_WRLCK as u64, 0, 10, 0]);
    g.ok("fcntl", [fd, F_SETLK as u64, lock]);
    g.ok("fcntl", [fd, F_GETLK as u64, lock]);
    assert_eq!(g.int(lock) & 0xffff, F_UNLCK, "the lock's holder sees no conflict");
    g.ok("fcntl", [fd, F_SETOWN as u64, g.pid as u64]);
    let owner = g.room(8);
    g.ok("fcntl", [fd, 16, owner]);
    assert_eq!((g.int(owner), g.int(owner + 4)), (1, g.pid));

    // ioctl: bytes waiting, non-blocking, a terminal pair.
    let n = g.room(4);
    g.ok("ioctl", [r, FIONREAD, n]);
    assert_eq!(g.int(n), 10);
    g.fails("ioctl", [r, TCGETS, g.room(64)], ENOTTY);
    let master = g.call("open", [g.text("/dev/ptmx"), (O_RDWR | O_NOCTTY) as u64]);
    if master >= 0 {
        let (master, size) = (master as u64, g.put(&[24, 0, 80, 0, 0, 0, 0, 0]));
        g.ok("ioctl", [master, TIOCSWINSZ, size]);
        let back = g.room(8);
        g.ok("ioctl", [master, TIOCGWINSZ, back]);
        assert_eq!(g.get(back, 4), [24, 0, 80, 0]);
        let termios = g.room(64);
        g.ok("ioctl", [master, TCGETS, termios]);
        g.ok("ioctl", [master, TCSETS, termios]);
        g.ok("ioctl", [master, TIOCGPTN, n]);
    }

    let folder = g.ok("open", [g.text(dir), (O_RDONLY | O_DIRECTORY) as u64]);
    let entries = g.room(4096);
    for call in ["getdents", "getdents64"] {
        g.ok("lseek", [folder, 0, 0]);
        let len = g.ok(call, [folder, entries, 4096]) as usize;
        let found = g.get(entries, len);
        assert!(found.windows(5).any(|name| name == b"data\0"), "{call}");
    }
    g.ok("fchdir", [folder]);
}
