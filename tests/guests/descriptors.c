/* Descriptors as such: numbers, flags, kinds of files behind them. */
#include "behaviour.h"
#include <linux/close_range.h>
#include <sys/ioctl.h>

BEHAVIOUR(dup_takes_the_lowest, "dup dup2 dup3 fcntl close")
{
	int fd = SYS(open("/dev/null", O_RDWR | O_CLOEXEC));
	away();
	int low = SYS(dup(fd));
	SYS(close(fd));
	SAME(dup(low), fd);
	SAME(fcntl(fd, F_GETFD), 0);
	SAME(dup2(low, 50), 50);
	SAME(dup2(low, low), low);
	SAME(dup3(low, 51, O_CLOEXEC), 51);
	SAME(fcntl(51, F_GETFD), FD_CLOEXEC);
	SAME(fcntl(low, F_DUPFD, 60), 60);
	SAME(fcntl(low, F_DUPFD_CLOEXEC, 60), 61);
	SAME(fcntl(61, F_GETFD), FD_CLOEXEC);
	FAILS(dup3(low, low, 0), EINVAL);
	FAILS(dup2(99, 70), EBADF);
	FAILS(close(99), EBADF);
}

BEHAVIOUR(ranges_close, "close_range")
{
	int fd = SYS(open("/dev/null", O_RDWR));
	for (int i = 40; i < 50; i++)
		SYS(dup2(fd, i));
	away();
	SYS(close_range(42, 44, 0));
	SYS(close_range(46, 47, CLOSE_RANGE_CLOEXEC));
	for (int i = 40; i < 50; i++) {
		int gone = i >= 42 && i <= 44, flag = i == 46 || i == 47;
		SAME(fcntl(i, F_GETFD), gone ? -1 : flag);
	}
	FAILS(close_range(50, 40, 0), EINVAL);
}

BEHAVIOUR(descriptor_limit, "dup prlimit64")
{
	struct { unsigned long now, most; } limit = { 30, 30 };
	SYS(syscall(SYS_prlimit64, 0, 7 /* RLIMIT_NOFILE */, &limit, 0));
	away();
	int last = 0, fd;
	while ((fd = dup(0)) >= 0)
		last = fd;
	SAME(errno, EMFILE);
	SAME(last, 29);
	FAILS(dup2(0, 30), EBADF);
	limit.most = limit.now = 20;
	SYS(syscall(SYS_prlimit64, 0, 7, &limit, 0));
	SYS(syscall(SYS_prlimit64, 0, 7, 0, &limit));
	SAME(limit.now, 20);
}

BEHAVIOUR(fcntl_flags, "fcntl")
{
	own_folder();
	int fd = file_with("f", "x"), ends[2];
	SYS(pipe(ends));
	away();
	SYS(fcntl(fd, F_SETFD, FD_CLOEXEC));
	SAME(fcntl(fd, F_GETFD), FD_CLOEXEC);
	SYS(fcntl(ends[0], F_SETFL, O_NONBLOCK));
	char c;
	FAILS(read(ends[0], &c, 1), EAGAIN);
	SAME(fcntl(ends[0], F_GETFL), O_NONBLOCK | O_RDONLY);
	CHECK(fcntl(ends[0], F_SETPIPE_SZ, 8192) >= 8192, "F_SETPIPE_SZ: %s", strerror(errno));
	SAME(fcntl(ends[1], F_GETPIPE_SZ), 8192);
	SAME(fcntl(fd, F_GETLEASE), F_UNLCK);
	SYS(fcntl(ends[0], F_SETSIG, SIGRTMIN));
	SAME(fcntl(ends[0], F_GETSIG), SIGRTMIN);
	SYS(fcntl(ends[0], F_SETOWN, getpid()));
	SAME(fcntl(ends[0], F_GETOWN), getpid());
	struct f_owner_ex owner = { 0 };
	SYS(fcntl(ends[0], F_GETOWN_EX, &owner));
	SAME(owner.pid, getpid());
	uint64_t hint = 2;
	SYS(fcntl(fd, F_SET_RW_HINT, &hint));
	hint = 0;
	SYS(fcntl(fd, F_GET_RW_HINT, &hint));
	SAME(hint, 2);
	FAILS(fcntl(fd, 999), EINVAL);
	FAILS(fcntl(99, F_GETFL), EBADF);
}

BEHAVIOUR(signal_when_a_pipe_has_data, "fcntl write")
{
	int ends[2];
	SYS(pipe(ends));
	handle(SIGRTMIN + 1, 0);
	SYS(fcntl(ends[0], F_SETOWN, getpid()));
	SYS(fcntl(ends[0], F_SETSIG, SIGRTMIN + 1));
	SYS(fcntl(ends[0], F_SETFL, O_ASYNC | O_NONBLOCK));
	away();
	SAME(fcntl(ends[0], F_GETFL) & O_ASYNC, O_ASYNC);
	CHECK(write(ends[1], "x", 1) == 1, "write");
	for (int i = 0; i < 1000 && !handled; i++)
		usleep(1000);
	SAME(handled, 1);
	SAME(handled_info.si_fd, ends[0]);
	SAME(handled_info.si_code, POLL_IN);
}

BEHAVIOUR(devices, "openat read write")
{
	away();
	char block[5000] = "x";
	int null = SYS(open("/dev/null", O_RDWR)), zero = SYS(open("/dev/zero", O_RDWR)), random = SYS(open("/dev/urandom", O_RDONLY)),
	    full = SYS(open("/dev/full", O_RDWR));
	SAME(read(null, block, sizeof block), 0);
	SAME(write(null, block, sizeof block), sizeof block);
	SAME(read(zero, block, sizeof block), sizeof block);
	for (size_t i = 0; i < sizeof block; i++)
		SAME(block[i], 0);
	SAME(read(random, block, sizeof block), sizeof block);
	int set = 0;
	for (size_t i = 0; i < sizeof block; i++)
		set += __builtin_popcount((unsigned char)block[i]);
	CHECK(set > 15000 && set < 25000, "%d bits of 40000 are set", set);
	FAILS(write(full, block, 1), ENOSPC);
}

BEHAVIOUR(memfd_and_seals, "memfd_create fcntl ftruncate")
{
	away();
	int fd = SYS(memfd_create("guest", MFD_ALLOW_SEALING));
	SYS(ftruncate(fd, 100));
	SAME(pwrite(fd, "sealed", 6, 0), 6);
	SYS(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE));
	SAME(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_WRITE);
	FAILS(pwrite(fd, "x", 1, 0), EPERM);
	FAILS(ftruncate(fd, 10), EPERM);
	SYS(ftruncate(fd, 200));
	char text[7];
	BYTES(text, pread(fd, text, 6, 0), "sealed");
}

BEHAVIOUR(ioctl_of_every_descriptor, "ioctl")
{
	own_folder();
	int fd = file_with("f", "twelve bytes"), ends[2];
	SYS(pipe(ends));
	CHECK(write(ends[1], "abc", 3) == 3, "write");
	away();
	int n = -1;
	SYS(ioctl(ends[0], FIONREAD, &n));
	SAME(n, 3);
	SYS(lseek(fd, 2, SEEK_SET));
	SYS(ioctl(fd, FIONREAD, &n));
	SAME(n, 10);
	SYS(ioctl(fd, FIOCLEX, 0));
	SAME(fcntl(fd, F_GETFD), FD_CLOEXEC);
	SYS(ioctl(fd, FIONCLEX, 0));
	SAME(fcntl(fd, F_GETFD), 0);
	int on = 1;
	SYS(ioctl(ends[0], FIONBIO, &on));
	CHECK(fcntl(ends[0], F_GETFL) & O_NONBLOCK, "FIONBIO");
	FAILS(ioctl(fd, TCGETS, &on), ENOTTY);
	FAILS(ioctl(99, FIONREAD, &n), EBADF);
}
