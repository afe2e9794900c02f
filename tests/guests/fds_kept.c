/* Every kind of descriptor keeps its state: shared offsets, flags, locks, pipes with bytes in them, eventfd, timerfd, … */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

int main(void)
{
	char name[] = "/tmp/mosix-guest-XXXXXX", text[100];
	int fd = SYS(mkstemp(name));
	CHECK(write(fd, "0123456789", 10) == 10, "write");
	int twin = SYS(dup(fd));
	SYS(lseek(fd, 4, SEEK_SET));
	int append = SYS(open(name, O_WRONLY | O_APPEND | O_CLOEXEC));
	SYS(flock(append, LOCK_EX));
	int ends[2], pair[2];
	SYS(pipe2(ends, O_NONBLOCK));
	CHECK(write(ends[1], "in the pipe", 11) == 11, "write");
	SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	CHECK(send(pair[0], "first", 5, 0) == 5 && send(pair[0], "second one", 10, 0) == 10, "send");
	int event = SYS(eventfd(41, EFD_NONBLOCK));
	int timer = SYS(timerfd_create(CLOCK_MONOTONIC, 0));
	struct itimerspec half = { { 0, 0 }, { 0, 500000000 } };
	SYS(timerfd_settime(timer, 0, &half, 0));
	int watch = SYS(inotify_init1(IN_NONBLOCK));
	SYS(inotify_add_watch(watch, name, IN_MODIFY));
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, 0);
	int sig = SYS(signalfd(-1, &set, SFD_NONBLOCK));
	int poller = SYS(epoll_create1(0));
	struct epoll_event one = { .events = EPOLLIN, .data.fd = event };
	SYS(epoll_ctl(poller, EPOLL_CTL_ADD, event, &one));
	int memory = SYS(memfd_create("guest", 0));
	SYS(ftruncate(memory, 8192));
	CHECK(pwrite(memory, "far", 3, 8000) == 3, "pwrite");
	ready();
	wait_line();

	CHECK(lseek(twin, 0, SEEK_CUR) == 4, "the shared offset is %ld", (long)lseek(twin, 0, SEEK_CUR));
	CHECK(read(fd, text, 2) == 2 && !memcmp(text, "45", 2), "read at the offset");
	CHECK(lseek(twin, 0, SEEK_CUR) == 6, "the offset is not shared");
	struct iovec parts[] = { { "app", 3 }, { "ended", 5 } };
	CHECK(writev(append, parts, 2) == 8, "writev: %s", strerror(errno));
	CHECK(pread(fd, text, 100, 10) == 8 && !memcmp(text, "appended", 8), "what was appended");
	CHECK(fcntl(append, F_GETFD) == FD_CLOEXEC && (fcntl(append, F_GETFL) & O_APPEND), "flags");
	pid_t child = SYS(fork());
	if (child == 0) {
		int other = open(name, O_RDWR);
		_exit(other >= 0 && flock(other, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK ? 0 : 1);
	}
	reap(child);
	CHECK(read(ends[0], text, 100) == 11 && !memcmp(text, "in the pipe", 11), "the pipe");
	CHECK(read(ends[0], text, 100) == -1 && errno == EAGAIN, "an empty pipe: %s", strerror(errno));
	CHECK(recv(pair[1], text, 100, 0) == 5 && recv(pair[1], text, 3, MSG_TRUNC) == 10 && !memcmp(text, "sec", 3), "packets");
	struct epoll_event got;
	CHECK(epoll_wait(poller, &got, 1, 0) == 1 && got.data.fd == event, "epoll");
	uint64_t value;
	CHECK(read(event, &value, 8) == 8 && value == 41, "eventfd");
	CHECK(epoll_wait(poller, &got, 1, 0) == 0, "epoll after the read");
	CHECK(read(timer, &value, 8) == 8 && value == 1, "timerfd");
	CHECK(read(watch, text, sizeof text) >= (ssize_t)sizeof(struct inotify_event), "inotify: %s", strerror(errno));
	/* That signals come there has a behaviour of its own: polling.c, signalfd_made_at_home. */
	CHECK(fcntl(sig, F_GETFL) == (O_RDWR | O_NONBLOCK), "signalfd: flags %#x", fcntl(sig, F_GETFL));
	CHECK(pread(memory, text, 100, 8000) == 100 && !memcmp(text, "far", 4), "memfd");
	SYS(unlink(name));
	PASS();
}
