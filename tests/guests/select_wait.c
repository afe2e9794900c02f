/* Blocked in select(2), pselect(2), epoll_pwait2(2) and a timed poll whose event comes: time-outs are kept, none is shown where none is. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/select.h>
static int ends[2];

static void act(void *unused)
{
	(void)unused;
	CHECK(write(ends[1], "x", 1) == 1, "write");
}

int main(void)
{
	SYS(pipe(ends));
	pid_t child = on_line(act, 0);
	int quiet[2];
	SYS(pipe(quiet));
	int e = SYS(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event event = { .events = EPOLLIN };
	SYS(epoll_ctl(e, EPOLL_CTL_ADD, quiet[0], &event));
	/* In read-only memory the kernel cannot write the rest of a time-out. */
	struct timespec *constant = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(constant != MAP_FAILED, "mmap");
	*constant = (struct timespec){ 1, 200000000 };
	SYS(mprotect(constant, 4096, PROT_READ));
	ready();
	fd_set set;
	FD_ZERO(&set);
	FD_SET(quiet[0], &set);
	struct timeval left = { 1, 200000 };
	double begin = now(CLOCK_MONOTONIC);
	int n = select(quiet[0] + 1, &set, 0, 0, &left);
	CHECK(n == 0, "select gave %d: %s", n, strerror(errno));
	check_elapsed("select", begin, 1.2);
	FD_ZERO(&set);
	FD_SET(quiet[0], &set);
	/* The library's pselect copies; the system call itself is wanted. */
	begin = now(CLOCK_MONOTONIC);
	n = syscall(SYS_pselect6, quiet[0] + 1, &set, 0, 0, constant, 0);
	CHECK(n == 0, "pselect6 gave %d: %s", n, strerror(errno));
	check_elapsed("pselect6", begin, 1.2);
	CHECK(constant->tv_sec == 1 && constant->tv_nsec == 200000000, "a constant time-out changed");
	begin = now(CLOCK_MONOTONIC);
	n = syscall(SYS_epoll_pwait2, e, &event, 1, constant, 0, 8);
	CHECK(n == 0, "epoll_pwait2 gave %d: %s", n, strerror(errno));
	check_elapsed("epoll_pwait2", begin, 1.2);
	struct pollfd in = { .fd = ends[0], .events = POLLIN };
	n = poll(&in, 1, 60000);
	CHECK(n == 1 && in.revents == POLLIN, "poll gave %d and %x: %s", n, in.revents, strerror(errno));
	reap(child);
	PASS();
}
