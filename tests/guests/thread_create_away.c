/* Threads are made where the process is: many at a time, by several threads at a time, joined and detached. Each has its number at home. */
#include "guest.h"
#include <dirent.h>

#define MANY 24
static _Atomic int running, seen;
static pthread_barrier_t all;

/* Whether home's kernel has a thread of this process with that number. */
static int at_home(pid_t tid)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/task/%d/comm", (int)tid);
	return access(path, F_OK) == 0;
}

static void *numbered(void *argument)
{
	pid_t tid = syscall(SYS_gettid);
	CHECK(tid != getpid(), "a thread has the number of its process");
	CHECK(at_home(tid), "home does not know thread %d", (int)tid);
	*(pid_t *)argument = tid;
	pthread_barrier_wait(&all);
	seen++;
	return argument;
}

static void *short_lived(void *argument)
{
	running--;
	return argument;
}

/* A thread that makes threads. */
static void *parent(void *argument)
{
	for (int i = 0; i < 4; i++) {
		pthread_t child;
		void *value;
		running++;
		CHECK(pthread_create(&child, 0, short_lived, argument) == 0, "pthread_create in a thread");
		if (i & 1) {
			CHECK(pthread_join(child, &value) == 0 && value == argument, "pthread_join in a thread");
		} else {
			pthread_detach(child);
		}
	}
	return argument;
}

int main(void)
{
	ready();
	do {
		pthread_t threads[MANY];
		pid_t tids[MANY] = { 0 };
		void *value;
		SYS(pthread_barrier_init(&all, 0, MANY));
		seen = 0;
		for (int i = 0; i < MANY; i++)
			CHECK(pthread_create(&threads[i], 0, numbered, &tids[i]) == 0, "pthread_create %d", i);
		for (int i = 0; i < MANY; i++)
			CHECK(pthread_join(threads[i], &value) == 0 && value == &tids[i], "pthread_join %d", i);
		CHECK(seen == MANY, "%d of %d threads ran", seen, MANY);
		for (int i = 0; i < MANY; i++)
			for (int j = 0; j < i; j++)
				CHECK(tids[i] != tids[j], "two threads have number %d", (int)tids[i]);
		for (int i = 0; i < 4; i++)
			CHECK(pthread_create(&threads[i], 0, parent, &tids[i]) == 0, "pthread_create");
		for (int i = 0; i < 4; i++)
			CHECK(pthread_join(threads[i], &value) == 0 && value == &tids[i], "pthread_join");
		for (int i = 0; i < 5000 && running; i++)
			usleep(1000);
		CHECK(running == 0, "%d detached threads did not end", running);
	} while (!told());
	PASS();
}
