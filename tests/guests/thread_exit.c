/* Threads come and go on every node: created, joined, detached, ended by pthread_exit, with values and thread-local memory. */
#include "guest.h"
static _Atomic int detached;
static __thread uint64_t mine = 7;

static void *joined(void *argument)
{
	uint64_t seed = (uint64_t)(uintptr_t)argument;
	CHECK(mine == 7, "thread-local memory starts as %lu", mine);
	mine = mix(seed);
	usleep(200);
	if (seed & 1)
		pthread_exit((void *)(uintptr_t)mine);
	return (void *)(uintptr_t)mine;
}

static void *gone(void *unused)
{
	(void)unused;
	detached--;
	return 0;
}

int main(void)
{
	/* One that lives from before the moves until after them. */
	pthread_t old;
	CHECK(pthread_create(&old, 0, joined, (void *)1) == 0, "pthread_create");
	ready();
	uint64_t round = 2;
	do {
		pthread_t threads[4], other;
		void *value;
		for (int i = 0; i < 4; i++)
			CHECK(pthread_create(&threads[i], 0, joined, (void *)(uintptr_t)(round + i)) == 0, "pthread_create");
		detached++;
		CHECK(pthread_create(&other, 0, gone, 0) == 0, "pthread_create");
		pthread_detach(other);
		for (int i = 0; i < 4; i++) {
			CHECK(pthread_join(threads[i], &value) == 0, "pthread_join");
			CHECK((uint64_t)(uintptr_t)value == mix(round + i), "thread %lu gave %p", round + i, value);
		}
		round += 4;
	} while (!told());
	for (int i = 0; i < 2000 && detached; i++)
		usleep(1000);
	CHECK(detached == 0, "%d detached threads did not end", detached);
	void *value;
	CHECK(pthread_join(old, &value) == 0 && (uint64_t)(uintptr_t)value == mix(1), "the first thread");
	PASS();
}
