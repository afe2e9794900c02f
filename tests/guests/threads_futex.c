/* Eight threads hand a token round by mutex and condition variable; no turn is lost, and all are joined. */
#include "guest.h"
#define THREADS 8
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
static int whose, stop;
static uint64_t total, own[THREADS];
static __thread uint64_t local;

static void *player(void *argument)
{
	int me = (int)(intptr_t)argument;
	pthread_mutex_lock(&lock);
	for (;;) {
		while (whose != me && !stop)
			pthread_cond_wait(&turn, &lock);
		if (stop)
			break;
		total++;
		own[me] = ++local;
		whose = (me + 1) % THREADS;
		pthread_cond_broadcast(&turn);
	}
	pthread_mutex_unlock(&lock);
	return (void *)(intptr_t)local;
}

int main(void)
{
	pthread_t threads[THREADS];
	for (intptr_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], 0, player, (void *)i) == 0, "pthread_create");
	ready();
	wait_line();
	pthread_mutex_lock(&lock);
	uint64_t before = total;
	pthread_mutex_unlock(&lock);
	/* It still goes round after the moves, too. */
	for (double begin = now(CLOCK_MONOTONIC); now(CLOCK_MONOTONIC) - begin < 20;) {
		pthread_mutex_lock(&lock);
		uint64_t seen = total;
		pthread_mutex_unlock(&lock);
		if (seen > before + 10 * THREADS)
			break;
		usleep(1000);
	}
	pthread_mutex_lock(&lock);
	CHECK(total > before + 10 * THREADS, "the token stands still at %llu", (unsigned long long)total);
	stop = 1;
	pthread_cond_broadcast(&turn);
	pthread_mutex_unlock(&lock);
	uint64_t sum = 0, low = -1ul, high = 0;
	for (int i = 0; i < THREADS; i++) {
		void *value;
		CHECK(pthread_join(threads[i], &value) == 0, "pthread_join");
		CHECK((uint64_t)value == own[i], "thread %d: %lu turns, counted %lu", i, (uint64_t)value, own[i]);
		sum += own[i];
		low = own[i] < low ? own[i] : low;
		high = own[i] > high ? own[i] : high;
	}
	CHECK(sum == total && high - low <= 1, "turns: sum %lu, total %lu, %lu to %lu", sum, total, low, high);
	PASS();
}
