/* Threads: their ends, locals, cancellation, locks between them. */
#include "behaviour.h"
#include <semaphore.h>
#include <sys/prctl.h>

static void *double_it(void *n)
{
	return (void *)((intptr_t)n * 2);
}

BEHAVIOUR(threads_made_away, "clone clone3 exit")
{
	away();
	pthread_t threads[5];
	for (intptr_t i = 0; i < 5; i++)
		CHECK(pthread_create(&threads[i], 0, double_it, (void *)i) == 0, "pthread_create");
	for (intptr_t i = 0; i < 5; i++) {
		void *result;
		CHECK(pthread_join(threads[i], &result) == 0, "pthread_join");
		SAME((intptr_t)result, i * 2);
	}
}

static __thread int local = 5;
static pthread_key_t key;
static int destroyed;
static _Atomic int phase, waiting;

static void destroy(void *value)
{
	destroyed += (int)(intptr_t)value;
}

static void wait_phase(int wanted)
{
	waiting++;
	while (phase < wanted)
		usleep(1000);
}

static void *with_locals(void *n)
{
	local = (int)(intptr_t)n;
	pthread_setspecific(key, n);
	wait_phase(1);
	return (void *)(intptr_t)(local * 1000 + (int)(intptr_t)pthread_getspecific(key));
}

BEHAVIOUR(locals_of_threads, "exit")
{
	pthread_t threads[3];
	pthread_key_create(&key, destroy);
	for (intptr_t i = 1; i <= 3; i++)
		CHECK(pthread_create(&threads[i - 1], 0, with_locals, (void *)i) == 0, "pthread_create");
	while (waiting < 3)
		usleep(1000);
	away();
	phase = 1;
	for (intptr_t i = 1; i <= 3; i++) {
		void *result;
		pthread_join(threads[i - 1], &result);
		SAME((intptr_t)result, i * 1001);
	}
	SAME(local, 5);
	SAME(destroyed, 6);
}

static int cleaned;

static void clean(void *unused)
{
	(void)unused;
	cleaned++;
}

static void *read_for_ever(void *fd)
{
	char c;
	pthread_cleanup_push(clean, 0);
	waiting = 1;
	if (read((int)(intptr_t)fd, &c, 1) == 1)
		FAIL("there was something to read");
	pthread_cleanup_pop(0);
	return 0;
}

static void *do_nothing(void *unused)
{
	pause();
	return unused;
}

/* The library loads another one at the first cancellation. */
static void cancel_one(void)
{
	pthread_t thread;
	CHECK(pthread_create(&thread, 0, do_nothing, 0) == 0, "pthread_create");
	pthread_cancel(thread);
	pthread_join(thread, 0);
}

BEHAVIOUR(cancelled_in_a_read, "tgkill")
{
	cancel_one();
	int ends[2];
	SYS(pipe(ends));
	pthread_t thread;
	CHECK(pthread_create(&thread, 0, read_for_ever, (void *)(intptr_t)ends[0]) == 0, "pthread_create");
	while (!waiting)
		usleep(1000);
	away();
	CHECK(pthread_cancel(thread) == 0, "pthread_cancel");
	void *result;
	CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED, "it was not cancelled");
	SAME(cleaned, 1);
}

static void *wait_for_ever(void *unused)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
	(void)unused;
	pthread_mutex_lock(&mutex);
	pthread_cleanup_push(clean, 0);
	waiting = 1;
	for (;;)
		pthread_cond_wait(&never, &mutex);
	pthread_cleanup_pop(0);
	return 0;
}

BEHAVIOUR(cancelled_in_a_condition, "tgkill")
{
	cancel_one();
	pthread_t thread;
	CHECK(pthread_create(&thread, 0, wait_for_ever, 0) == 0, "pthread_create");
	while (!waiting)
		usleep(1000);
	away();
	pthread_cancel(thread);
	void *result;
	CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED, "it was not cancelled");
	SAME(cleaned, 1);
}

static void *outlive(void *unused)
{
	(void)unused;
	wait_line();
	usleep(20000);
	/* The leader is gone; the process is what this thread makes of it. */
	SAME(syscall(SYS_tgkill, getpid(), gettid(), 0), 0);
	PASS();
}

BEHAVIOUR(leader_exits_first, "exit_group tgkill")
{
	pthread_t thread;
	CHECK(pthread_create(&thread, 0, outlive, 0) == 0, "pthread_create");
	ready();
	/* Blocked until the line has come: an exited leader cannot move. */
	struct pollfd in = { .fd = 0, .events = POLLIN };
	while (poll(&in, 1, -1) < 0)
		;
	pthread_exit(0);
}

static pthread_barrier_t barrier;
static _Atomic int passed;

static void *meet(void *unused)
{
	(void)unused;
	for (int i = 0; i < 20; i++)
		if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
			passed++;
	return 0;
}

BEHAVIOUR(barrier_between_threads, "")
{
	pthread_t threads[3];
	pthread_barrier_init(&barrier, 0, 4);
	for (int i = 0; i < 3; i++)
		CHECK(pthread_create(&threads[i], 0, meet, 0) == 0, "pthread_create");
	usleep(20000);
	/* Three wait in it while they move. */
	away();
	meet(0);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], 0);
	SAME(passed, 20);
}

static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static int shared_value;

static void *write_it(void *unused)
{
	(void)unused;
	waiting++;
	pthread_rwlock_wrlock(&rwlock);
	shared_value++;
	pthread_rwlock_unlock(&rwlock);
	return 0;
}

BEHAVIOUR(writers_wait_for_readers, "")
{
	pthread_t threads[4];
	pthread_rwlock_rdlock(&rwlock);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(&threads[i], 0, write_it, 0) == 0, "pthread_create");
	while (waiting < 4)
		usleep(1000);
	away();
	SAME(shared_value, 0);
	pthread_rwlock_unlock(&rwlock);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], 0);
	SAME(shared_value, 4);
}

static pthread_mutex_t robust, inheriting, recursive;

static void *die_with_it(void *mutex)
{
	pthread_mutex_lock(mutex);
	waiting = 1;
	wait_phase(1);
	return 0;
}

static void make_mutex(pthread_mutex_t *mutex, int type, int protocol, int owner_dies)
{
	pthread_mutexattr_t attributes;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_settype(&attributes, type);
	pthread_mutexattr_setprotocol(&attributes, protocol);
	pthread_mutexattr_setrobust(&attributes, owner_dies);
	CHECK(pthread_mutex_init(mutex, &attributes) == 0, "pthread_mutex_init");
}

BEHAVIOUR(robust_mutex_of_a_dead_owner, "exit")
{
	pthread_t thread;
	make_mutex(&robust, PTHREAD_MUTEX_NORMAL, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_ROBUST);
	CHECK(pthread_create(&thread, 0, die_with_it, &robust) == 0, "pthread_create");
	while (!waiting)
		usleep(1000);
	away();
	SAME(pthread_mutex_trylock(&robust), EBUSY);
	phase = 1;
	SAME(pthread_mutex_lock(&robust), EOWNERDEAD);
	pthread_join(thread, 0);
	SAME(pthread_mutex_consistent(&robust), 0);
	SAME(pthread_mutex_unlock(&robust), 0);
	SAME(pthread_mutex_lock(&robust), 0);
}

static void *take_and_give(void *mutex)
{
	waiting = 1;
	pthread_mutex_lock(mutex);
	passed = 1;
	pthread_mutex_unlock(mutex);
	return 0;
}

BEHAVIOUR(mutex_with_inheritance, "")
{
	pthread_t thread;
	make_mutex(&inheriting, PTHREAD_MUTEX_ERRORCHECK, PTHREAD_PRIO_INHERIT, PTHREAD_MUTEX_STALLED);
	/* Held and waited for while it moves: the thread's number is in the lock. */
	pthread_mutex_lock(&inheriting);
	CHECK(pthread_create(&thread, 0, take_and_give, &inheriting) == 0, "pthread_create");
	while (!waiting)
		usleep(1000);
	usleep(20000);
	away();
	SAME(passed, 0);
	SAME(pthread_mutex_lock(&inheriting), EDEADLK);
	SAME(pthread_mutex_unlock(&inheriting), 0);
	pthread_join(thread, 0);
	SAME(passed, 1);
	SAME(pthread_mutex_unlock(&inheriting), EPERM);
}

BEHAVIOUR(recursive_mutex, "")
{
	make_mutex(&recursive, PTHREAD_MUTEX_RECURSIVE, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_STALLED);
	pthread_mutex_lock(&recursive);
	pthread_mutex_lock(&recursive);
	away();
	SAME(pthread_mutex_lock(&recursive), 0);
	for (int i = 0; i < 3; i++)
		SAME(pthread_mutex_unlock(&recursive), 0);
	SAME(pthread_mutex_unlock(&recursive), EPERM);
}

static sem_t tokens;

static void *give(void *unused)
{
	(void)unused;
	wait_phase(1);
	usleep(20000);
	sem_post(&tokens);
	return 0;
}

BEHAVIOUR(semaphore_between_threads, "")
{
	pthread_t thread;
	sem_init(&tokens, 0, 1);
	CHECK(pthread_create(&thread, 0, give, 0) == 0, "pthread_create");
	away();
	SYS(sem_wait(&tokens));
	FAILS(sem_trywait(&tokens), EAGAIN);
	phase = 1;
	SYS(sem_wait(&tokens));
	pthread_join(thread, 0);
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec = (until.tv_nsec + 20000000) % 1000000000;
	FAILS(sem_timedwait(&tokens, &(struct timespec){ until.tv_sec - 1, 0 }), ETIMEDOUT);
}

static void *named(void *unused)
{
	(void)unused;
	prctl(PR_SET_NAME, "worker");
	wait_phase(1);
	char name[16];
	prctl(PR_GET_NAME, name);
	return (void *)(intptr_t)!strcmp(name, "worker");
}

BEHAVIOUR(names_of_threads, "prctl")
{
	pthread_t thread;
	CHECK(pthread_create(&thread, 0, named, 0) == 0, "pthread_create");
	while (!waiting)
		usleep(1000);
	away();
	char name[16];
	prctl(PR_GET_NAME, name);
	CHECK(!strcmp(name, "threads"), "the first thread is %s", name);
	phase = 1;
	void *fine;
	pthread_join(thread, &fine);
	SAME((intptr_t)fine, 1);
	struct { uint64_t words[11]; } none = { { 0 } };
	SAME(syscall(SYS_clone3, &none, 5), -1);
}

static int order_of_exit;

static void third(void)
{
	if (order_of_exit++ == 0)
		say("PASS\n");
}

static void second(void)
{
	order_of_exit--;
}

BEHAVIOUR(exit_handlers_run_in_order, "exit_group write")
{
	order_of_exit = 1;
	atexit(third);
	atexit(second);
	away();
	exit(0);
}
