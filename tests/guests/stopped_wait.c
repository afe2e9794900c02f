/* A wait that was stopped (^Z) and continued before it moves ends on time, without EINTR. argv[1]: the call. */
#include "guest.h"
#include <linux/futex.h>

int main(int argc, char **argv)
{
	const char *call = argc > 1 ? argv[1] : "poll";
	static uint32_t word;
	struct timespec time = { 3, 0 };
	int quiet[2];
	SYS(pipe(quiet));
	struct pollfd never = { .fd = quiet[0], .events = POLLIN };
	long n;
	ready();
	double begin = now(CLOCK_MONOTONIC);
	errno = 0;
	if (strcmp(call, "nanosleep") == 0)
		n = syscall(SYS_nanosleep, &time, &time);
	else if (strcmp(call, "clock_nanosleep") == 0)
		n = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, &time);
	else if (strcmp(call, "futex") == 0)
		n = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, 0, 0) == -1 && errno == ETIMEDOUT ? 0 : -1;
	else
		n = poll(&never, 1, 3000);
	CHECK(n == 0, "%s gave %ld after %.3f s: %s", call, n, now(CLOCK_MONOTONIC) - begin, strerror(errno));
	check_elapsed(call, begin, 3);
	wait_line();
	PASS();
}
