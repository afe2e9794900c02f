/* Timers of the real clock go on ticking through moves: setitimer, and timer_create at its rate, no expiration lost for good. */
#include "guest.h"
#include <sys/time.h>
static volatile sig_atomic_t ticks, posix;
static volatile long overruns;
static timer_t timer;
/* How far the count of expirations may be behind: they are on their way. How long it has to come so near, in seconds. */
enum { BEHIND = 4, PATIENCE = 20 };

static void tick(int number)
{
	(void)number;
	ticks++;
}

static void posix_tick(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	posix++;
	if (info->si_code == SI_TIMER)
		overruns += info->si_overrun;
}

int main(void)
{
	struct sigaction action = { .sa_handler = tick, .sa_flags = SA_RESTART };
	SYS(sigaction(SIGALRM, &action, 0));
	action.sa_sigaction = posix_tick;
	action.sa_flags = SA_RESTART | SA_SIGINFO;
	SYS(sigaction(SIGRTMIN, &action, 0));
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
	SYS(timer_create(CLOCK_MONOTONIC, &event, &timer));
	struct itimerspec each = { { 0, 50000000 }, { 0, 50000000 } };
	struct itimerval every = { { 0, 20000 }, { 0, 20000 } };
	double begin = now(CLOCK_MONOTONIC);
	SYS(timer_settime(timer, 0, &each, 0));
	SYS(setitimer(ITIMER_REAL, &every, 0));
	ready();
	uint64_t x = 1;
	do
		for (int i = 0; i < 100000; i++)
			x = mix(x);
	while (!told() || now(CLOCK_MONOTONIC) - begin < 1);
	/* A frozen process gets one SIGALRM for all that fell due meanwhile; the POSIX timer counts them. How late they come depends on the
	   machine: but as soon as one comes in time, none is missing. */
	double told_at = now(CLOCK_MONOTONIC), took;
	long before = ticks, seen, due;
	do {
		for (int i = 0; i < 100000; i++)
			x = mix(x);
		took = now(CLOCK_MONOTONIC) - begin;
		seen = posix + overruns;
		due = (long)(took / 0.05);
	} while ((seen < due - BEHIND || ticks < before + 3) && took < told_at - begin + PATIENCE);
	CHECK(timer_getoverrun(timer) >= 0, "timer_getoverrun: %s", strerror(errno));
	struct itimerval left;
	SYS(getitimer(ITIMER_REAL, &left));
	CHECK(left.it_interval.tv_usec == 20000, "interval became %ld", left.it_interval.tv_usec);
	took = now(CLOCK_MONOTONIC) - begin;
	CHECK(ticks >= before + 3 && ticks <= took / 0.02 + 2, "%d ticks in %.2f s, %ld when told", (int)ticks, took, before);
	seen = posix + overruns;
	CHECK(seen >= due - BEHIND && seen <= took / 0.05 + 2, "%ld timer expirations of %ld in %.2f s", seen, due, took);
	CHECK(x != 0, "x");
	PASS();
}
