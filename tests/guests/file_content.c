/* Reading and writing a regular file: positions, vectors, holes, appending, truncation. */
#include "behaviour.h"
#include <sys/uio.h>

BEHAVIOUR(offset_is_shared_by_dups, "read write lseek")
{
	own_folder();
	int fd = file_with("f", "0123456789"), twin = SYS(dup(fd)), other = SYS(open("f", O_RDWR));
	SYS(lseek(fd, 4, SEEK_SET));
	away();
	char text[20];
	BYTES(text, read(twin, text, 3), "456");
	SAME(lseek(fd, 0, SEEK_CUR), 7);
	SAME(lseek(other, 0, SEEK_CUR), 0);
	SAME(write(fd, "xy", 2), 2);
	SAME(lseek(twin, -1, SEEK_CUR), 8);
	SAME(lseek(twin, 0, SEEK_END), 10);
	FAILS(lseek(twin, -1, SEEK_SET), EINVAL);
	holds("f", "0123456xy9");
}

BEHAVIOUR(pread_and_pwrite_leave_the_offset, "pread64 pwrite64 lseek")
{
	own_folder();
	int fd = file_with("f", "abcdefgh");
	away();
	char text[20];
	BYTES(text, pread(fd, text, 4, 2), "cdef");
	SAME(pwrite(fd, "ZZ", 2, 6), 2);
	SAME(lseek(fd, 0, SEEK_CUR), 0);
	SAME(pread(fd, text, 4, 100), 0);
	FAILS(pread(fd, text, 4, -1), EINVAL);
	holds("f", "abcdefZZ");
}

BEHAVIOUR(vectors, "readv writev preadv pwritev")
{
	own_folder();
	int fd = file_with("f", "");
	away();
	struct iovec out[] = { { "one", 3 }, { "", 0 }, { "two", 3 }, { "three", 5 } };
	SAME(writev(fd, out, 4), 11);
	SAME(pwritev(fd, out, 2, 20), 3);
	char a[4], b[30];
	memset(b, 'x', sizeof b);
	struct iovec in[] = { { a, 4 }, { b, 30 } };
	SAME(preadv(fd, in, 2, 1), 22);
	BYTES(a, 4, "netw");
	CHECK(!memcmp(b, "othree\0\0\0\0\0\0\0\0\0one", 18) && b[18] == 'x', "the second part");
	SYS(lseek(fd, 8, SEEK_SET));
	SAME(readv(fd, in, 1), 4);
	FAILS(syscall(SYS_readv, fd, in, -1), EINVAL);
	SAME(readv(fd, in, 0), 0);
}

BEHAVIOUR(vectors_with_flags, "preadv2 pwritev2")
{
	own_folder();
	int fd = file_with("f", "begin ");
	away();
	struct iovec out = { "end", 3 };
	/* RWF_APPEND writes at the end whatever the position; -1 uses and moves the offset. */
	SAME(pwritev2(fd, &out, 1, 0, RWF_APPEND), 3);
	char text[20];
	struct iovec in = { text, 5 };
	SAME(preadv2(fd, &in, 1, -1, 0), 5);
	BYTES(text, 5, "begin");
	SAME(lseek(fd, 0, SEEK_CUR), 5);
	holds("f", "begin end");
	FAILS(preadv2(fd, &in, 1, 0, 0x40000000), EOPNOTSUPP);
}

BEHAVIOUR(append_writes_at_the_end, "write fcntl")
{
	own_folder();
	int fd = SYS(open("f", O_WRONLY | O_CREAT | O_APPEND, 0600)), other = SYS(open("f", O_WRONLY));
	CHECK(write(fd, "first ", 6) == 6, "write");
	away();
	SAME(pwrite(other, "longer first ", 13, 0), 13);
	SAME(write(fd, "second", 6), 6);
	holds("f", "longer first second");
	SAME(fcntl(fd, F_GETFL) & (O_APPEND | O_ACCMODE), O_APPEND | O_WRONLY);
	/* Without the flag it goes on where it is. */
	SYS(fcntl(fd, F_SETFL, 0));
	SYS(lseek(fd, 0, SEEK_SET));
	SAME(write(fd, "LONGER", 6), 6);
	holds("f", "LONGER first second");
}

BEHAVIOUR(holes_are_found, "lseek pwrite64 fallocate newfstatat")
{
	own_folder();
	int fd = SYS(open("f", O_RDWR | O_CREAT, 0600));
	away();
	SAME(pwrite(fd, "x", 1, 1 << 20), 1);
	off_t data = lseek(fd, 0, SEEK_DATA), hole = lseek(fd, 1 << 20, SEEK_HOLE);
	CHECK(data > 0 && data <= 1 << 20, "data at %ld", (long)data);
	SAME(hole, (1 << 20) + 1);
	SAME(lseek(fd, 0, SEEK_HOLE), 0);
	FAILS(lseek(fd, 2 << 20, SEEK_DATA), ENXIO);
	struct stat status;
	SYS(fstat(fd, &status));
	CHECK(status.st_blocks * 512 < 1 << 20, "%ld blocks", (long)status.st_blocks);
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 20, 4096) == 0) {
		char c = 'y';
		SAME(pread(fd, &c, 1, 1 << 20), 1);
		SAME(c, 0);
	} else
		SAME(errno, EOPNOTSUPP);
}

BEHAVIOUR(sizes_change, "ftruncate truncate fallocate stat lstat newfstatat")
{
	own_folder();
	int fd = file_with("f", "0123456789");
	SYS(symlink("f", "l"));
	away();
	struct stat status;
	SYS(ftruncate(fd, 4));
	SYS(fstat(fd, &status));
	SAME(status.st_size, 4);
	SYS(truncate("f", 6));
	SYS(syscall(SYS_stat, "l", &status));
	SAME(status.st_size, 6);
	SYS(syscall(SYS_lstat, "l", &status));
	CHECK(S_ISLNK(status.st_mode) && status.st_size == 1, "mode %o", status.st_mode);
	SYS(posix_fallocate(fd, 0, 100) ? -1 : 0);
	SYS(fstat(fd, &status));
	SAME(status.st_size, 100);
	char text[10];
	SAME(pread(fd, text, 6, 0), 6);
	CHECK(!memcmp(text, "0123\0\0", 6), "what was cut comes back as zeros");
	FAILS(truncate("none", 1), ENOENT);
	FAILS(ftruncate(fd, -1), EINVAL);
}

BEHAVIOUR(signal_at_the_size_limit, "write prlimit64")
{
	own_folder();
	int fd = file_with("f", "");
	handle(SIGXFSZ, 0);
	struct { unsigned long now, most; } limit = { 10, 10 };
	SYS(syscall(SYS_prlimit64, 0, 1 /* RLIMIT_FSIZE */, &limit, 0));
	away();
	SYS(syscall(SYS_prlimit64, 0, 1, 0, &limit));
	SAME(limit.now, 10);
	SAME(write(fd, "123456789abc", 12), 10);
	FAILS(write(fd, "x", 1), EFBIG);
	SAME(handled, 1);
}

BEHAVIOUR(writing_it_out, "fsync fdatasync sync_file_range syncfs sync")
{
	own_folder();
	int fd = file_with("f", "something");
	away();
	SYS(fsync(fd));
	SYS(fdatasync(fd));
	SYS(sync_file_range(fd, 0, 4, SYNC_FILE_RANGE_WRITE));
	SYS(syncfs(fd));
	sync();
	int ends[2];
	SYS(pipe(ends));
	FAILS(fsync(ends[0]), EINVAL);
	FAILS(fsync(99), EBADF);
}

BEHAVIOUR(advice_about_reading, "fadvise64 readahead cachestat")
{
	own_folder();
	int fd = file_with("f", "something to read"), ends[2];
	SYS(pipe(ends));
	away();
	SAME(posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL), 0);
	SAME(posix_fadvise(ends[0], 0, 0, POSIX_FADV_NORMAL), ESPIPE);
	SYS(readahead(fd, 0, 4096));
	struct { uint64_t at, length; } range = { 0, 4096 };
	uint64_t found[5] = { 0 };
	if (syscall(451 /* cachestat */, fd, &range, found, 0) == 0)
		SAME(found[0], 1);
	else
		CHECK(errno == ENOSYS || errno == EOPNOTSUPP, "cachestat: %s", strerror(errno));
}
