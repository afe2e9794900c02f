/* Pipes and FIFOs. */
#include "behaviour.h"
#include <sys/ioctl.h>

BEHAVIOUR(bytes_wait_in_a_pipe, "read write pipe ioctl")
{
	int ends[2], other[2];
	SYS(pipe(ends));
	CHECK(write(ends[1], "before ", 7) == 7, "write");
	away();
	SAME(write(ends[1], "after", 5), 5);
	int n;
	SYS(ioctl(ends[0], FIONREAD, &n));
	SAME(n, 12);
	char text[20];
	BYTES(text, read(ends[0], text, 20), "before after");
	SYS(syscall(SYS_pipe, other));
	SYS(close(ends[1]));
	SAME(read(ends[0], text, 20), 0);
	FAILS(read(other[1], text, 1), EBADF);
}

BEHAVIOUR(sigpipe, "write close")
{
	int ends[2];
	SYS(pipe(ends));
	handle(SIGPIPE, 0);
	away();
	SYS(close(ends[0]));
	FAILS(write(ends[1], "x", 1), EPIPE);
	SAME(handled, 1);
	SAME(handled_signal, SIGPIPE);
	signal(SIGPIPE, SIG_IGN);
	FAILS(write(ends[1], "x", 1), EPIPE);
	SAME(handled, 1);
}

BEHAVIOUR(full_pipe, "write read poll")
{
	int ends[2];
	SYS(pipe2(ends, O_NONBLOCK));
	SYS(fcntl(ends[1], F_SETPIPE_SZ, 4096));
	away();
	char block[5000];
	memset(block, 'p', sizeof block);
	SAME(write(ends[1], block, sizeof block), 4096);
	FAILS(write(ends[1], block, 1), EAGAIN);
	struct pollfd one = { ends[1], POLLOUT, 0 };
	SAME(poll(&one, 1, 0), 0);
	SAME(read(ends[0], block, 4096), 4096);
	SAME(poll(&one, 1, 0), 1);
	SAME(one.revents, POLLOUT);
}

BEHAVIOUR(packets_in_a_pipe, "pipe2 read write")
{
	away();
	int ends[2];
	char text[20];
	SYS(pipe2(ends, O_DIRECT | O_CLOEXEC));
	SAME(write(ends[1], "first", 5), 5);
	SAME(write(ends[1], "second", 6), 6);
	BYTES(text, read(ends[0], text, 3), "fir");
	BYTES(text, read(ends[0], text, 20), "second");
	SAME(fcntl(ends[0], F_GETFD), FD_CLOEXEC);
}

static void feed(void *unused)
{
	(void)unused;
	int fd = open("fifo", O_WRONLY);
	CHECK(fd >= 0 && write(fd, "by name", 7) == 7, "the writer: %s", strerror(errno));
}

BEHAVIOUR(fifo_opens_when_both_are_there, "openat read wait4")
{
	own_folder();
	SYS(mkfifo("fifo", 0600));
	int go[2];
	SYS(pipe(go));
	pid_t child = SYS(fork());
	if (child == 0) {
		char c;
		close(go[1]);
		if (read(go[0], &c, 1) == 1)
			feed(0);
		_exit(0);
	}
	away();
	FAILS(open("fifo", O_WRONLY | O_NONBLOCK), ENXIO);
	CHECK(write(go[1], "g", 1) == 1, "write");
	int fd = SYS(open("fifo", O_RDONLY));
	char text[20];
	BYTES(text, read(fd, text, 20), "by name");
	SAME(read(fd, text, 20), 0);
	reap(child);
}

BEHAVIOUR(writer_of_a_fifo_waits_away, "openat write")
{
	own_folder();
	SYS(mkfifo("fifo", 0600));
	int go[2];
	SYS(pipe(go));
	pid_t child = SYS(fork());
	if (child == 0) {
		char c, text[10];
		close(go[1]);
		if (read(go[0], &c, 1) != 1)
			_exit(1);
		usleep(50000);
		int fd = open("fifo", O_RDONLY);
		_exit(fd >= 0 && read(fd, text, 10) == 4 && !memcmp(text, "away", 4) ? 0 : 1);
	}
	away();
	CHECK(write(go[1], "g", 1) == 1, "write");
	int fd = SYS(open("fifo", O_WRONLY));
	SAME(write(fd, "away", 4), 4);
	reap(child);
}

BEHAVIOUR(read_ends_when_the_child_does, "read wait4")
{
	int ends[2], go[2];
	SYS(pipe(ends));
	SYS(pipe(go));
	pid_t child = SYS(fork());
	if (child == 0) {
		char c;
		close(go[1]);
		close(ends[0]);
		ssize_t n = read(go[0], &c, 1);
		usleep(50000);
		_exit(n == 1 && write(ends[1], "last", 4) == 4 ? 7 : 1);
	}
	close(ends[1]);
	away();
	char text[20];
	int status;
	CHECK(write(go[1], "g", 1) == 1, "write");
	BYTES(text, read(ends[0], text, 20), "last");
	SAME(read(ends[0], text, 20), 0);
	SAME(waitpid(child, &status, 0), child);
	SAME(status, 7 << 8);
}
