/* Blocked in epoll_wait(2): no EINTR, the event comes, and a time-out is kept. */
#include "guest.h"
#include <sys/epoll.h>
static int ends[2];

static void act(void *unused)
{
	(void)unused;
	CHECK(write(ends[1], "x", 1) == 1, "write");
}

int main(void)
{
	SYS(pipe(ends));
	int e = SYS(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 0x1122334455667788u }, got[4];
	SYS(epoll_ctl(e, EPOLL_CTL_ADD, ends[0], &event));
	pid_t child = on_line(act, 0);
	ready();
	double begin = now(CLOCK_MONOTONIC);
	int n = epoll_wait(e, got, 4, 2000);
	if (n == 0)
		check_elapsed("epoll_wait", begin, 2.0);
	while (n == 0)
		n = epoll_wait(e, got, 4, -1);
	CHECK(n == 1, "epoll_wait gave %d: %s", n, n < 0 ? strerror(errno) : "");
	CHECK(got[0].events == EPOLLIN && got[0].data.u64 == event.data.u64, "event %x, data %lx", got[0].events,
	      (unsigned long)got[0].data.u64);
	reap(child);
	PASS();
}
