/* CPU clocks and CLOCK_MONOTONIC never go back while they are read without a pause, by several threads, and the process moves from host to
   host. It begins to read at the line, and stops at a second one. */
#include "cpu.h"
static atomic_int over;
static _Atomic uint64_t newest;

static uint64_t ns(clockid_t clock)
{
	struct timespec t;
	SYS(clock_gettime(clock, &t));
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* One clock for all threads: nobody reads less than somebody has read before. */
static void *watch(void *unused)
{
	(void)unused;
	while (!over) {
		uint64_t seen = newest, read = ns(CLOCK_MONOTONIC);
		if (read < seen)
			FAIL("CLOCK_MONOTONIC went back by %llu ns", (unsigned long long)(seen - read));
		while (seen < read && !atomic_compare_exchange_weak(&newest, &seen, read))
			;
	}
	return 0;
}

static void *watch_cpu(void *clock)
{
	uint64_t last = 0;
	while (!over) {
		uint64_t read = ns(*(clockid_t *)clock);
		if (read < last)
			FAIL("CPU clock %d went back by %llu ns", *(clockid_t *)clock, (unsigned long long)(last - read));
		last = read;
	}
	return 0;
}

int main(void)
{
	clockid_t clocks[] = { CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID };
	pthread_t threads[4];
	ready();
	wait_line();
	for (int i = 0; i < 4; i++)
		SYS(pthread_create(&threads[i], 0, i < 2 ? watch : watch_cpu, i < 2 ? 0 : &clocks[i - 2]));
	wait_line();
	over = 1;
	for (int i = 0; i < 4; i++)
		SYS(pthread_join(threads[i], 0));
	PASS();
}
