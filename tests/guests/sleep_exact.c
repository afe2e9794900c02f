/* Sleeps that moves interrupt end when they should: relative, absolute, and by select. argv[1]: seconds of each. */
#include "guest.h"
#include <sys/select.h>

int main(int argc, char **argv)
{
	double each = argc > 1 ? atof(argv[1]) : 1.5;
	struct timespec time = { (time_t)each, (long)((each - (time_t)each) * 1e9) };
	ready();
	double begin = now(CLOCK_MONOTONIC);
	CHECK(nanosleep(&time, &time) == 0, "nanosleep: %s", strerror(errno));
	check_elapsed("nanosleep", begin, each);

	begin = now(CLOCK_MONOTONIC);
	double end = begin + each;
	struct timespec until = { (time_t)end, (long)((end - (time_t)end) * 1e9) };
	int error = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
	CHECK(error == 0, "clock_nanosleep: %s", strerror(error));
	check_elapsed("absolute clock_nanosleep", begin, each);

	begin = now(CLOCK_MONOTONIC);
	struct timeval left = { (time_t)each, (long)((each - (time_t)each) * 1e6) };
	CHECK(select(0, 0, 0, 0, &left) == 0, "select: %s", strerror(errno));
	check_elapsed("select", begin, each);
	CHECK(left.tv_sec == 0 && left.tv_usec == 0, "select left %ld.%06ld", left.tv_sec, left.tv_usec);
	wait_line();
	PASS();
}
