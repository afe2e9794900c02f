/* Blocked in poll(2) and ppoll(2): no EINTR, events come, time-outs are kept, and ppoll's remaining time is not made up. */
#include "guest.h"
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
	ready();
	struct pollfd never = { .fd = quiet[0], .events = POLLIN };
	double begin = now(CLOCK_MONOTONIC);
	int n = poll(&never, 1, 1500);
	CHECK(n == 0, "poll gave %d: %s", n, strerror(errno));
	check_elapsed("poll", begin, 1.5);
	struct timespec time = { 1, 500000000 };
	begin = now(CLOCK_MONOTONIC);
	n = ppoll(&never, 1, &time, 0);
	CHECK(n == 0, "ppoll gave %d: %s", n, strerror(errno));
	check_elapsed("ppoll", begin, 1.5);
	struct pollfd both[2] = { never, { .fd = ends[0], .events = POLLIN } };
	n = poll(both, 2, -1);
	CHECK(n == 1 && both[0].revents == 0 && both[1].revents == POLLIN, "poll gave %d (%s), %x and %x", n,
	      strerror(errno), both[0].revents, both[1].revents);
	reap(child);
	PASS();
}
