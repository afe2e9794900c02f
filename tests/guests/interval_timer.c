/* Timers of the real clock go on ticking through moves: setitimer and timer_create, at their rate, none lost for good. */
#include "guest.h"
#include <sys/time.h>
static volatile sig_atomic_t ticks, posix;
static volatile long overruns;
static timer_t timer;

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
		overruns += timer_getoverrun(timer);
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
	double took = now(CLOCK_MONOTONIC) - begin;
	long seen = posix + overruns;
	struct itimerval left;
	SYS(getitimer(ITIMER_REAL, &left));
	CHECK(left.it_interval.tv_usec == 20000, "interval became %ld", left.it_interval.tv_usec);
	/* A frozen process gets one SIGALRM for all that fell due meanwhile; the POSIX timer counts them. */
	CHECK(ticks > took / 0.02 * 0.3 && ticks <= took / 0.02 + 2, "%d ticks in %.2f s", (int)ticks, took);
	CHECK(seen > took / 0.05 * 0.7 - 2 && seen <= took / 0.05 + 2, "%ld timer expirations in %.2f s", seen, took);
	CHECK(x != 0, "x");
	PASS();
}
