/* A futex wait ends by its time-out, exactly: relative, absolute, and by pthread_cond_timedwait (CLOCK_REALTIME). */
#include "guest.h"
#include <linux/futex.h>
static uint32_t word;

int main(void)
{
	struct timespec time = { 1, 500000000 };
	ready();
	double begin = now(CLOCK_MONOTONIC);
	long n = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, 0, 0);
	CHECK(n == -1 && errno == ETIMEDOUT, "FUTEX_WAIT gave %ld, %s", n, strerror(errno));
	check_elapsed("FUTEX_WAIT", begin, 1.5);

	begin = now(CLOCK_MONOTONIC);
	double end = begin + 1.5;
	struct timespec until = { (time_t)end, (long)((end - (time_t)end) * 1e9) };
	n = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &until, 0, FUTEX_BITSET_MATCH_ANY);
	CHECK(n == -1 && errno == ETIMEDOUT, "FUTEX_WAIT_BITSET gave %ld, %s", n, strerror(errno));
	check_elapsed("FUTEX_WAIT_BITSET", begin, 1.5);

	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t never = PTHREAD_COND_INITIALIZER;
	begin = now(CLOCK_MONOTONIC);
	end = now(CLOCK_REALTIME) + 1.5;
	until = (struct timespec){ (time_t)end, (long)((end - (time_t)end) * 1e9) };
	pthread_mutex_lock(&lock);
	int error;
	do
		error = pthread_cond_timedwait(&never, &lock, &until);
	while (error == 0);
	CHECK(error == ETIMEDOUT, "pthread_cond_timedwait: %s", strerror(error));
	check_elapsed("pthread_cond_timedwait", begin, 1.5);
	wait_line();
	PASS();
}
