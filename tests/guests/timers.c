/* Sleeping, timers, clocks. */
#include "behaviour.h"
#include <sys/time.h>

BEHAVIOUR(sleeps, "nanosleep clock_nanosleep")
{
	away();
	double begin = now(CLOCK_MONOTONIC);
	struct timespec part = { 0, 30000000 };
	SYS(syscall(SYS_nanosleep, &part, 0));
	check_elapsed("nanosleep", begin, 0.03);
	begin = now(CLOCK_MONOTONIC);
	SAME(clock_nanosleep(CLOCK_MONOTONIC, 0, &part, 0), 0);
	check_elapsed("clock_nanosleep", begin, 0.03);
	part = (struct timespec){ 0, 1000000000 };
	FAILS(syscall(SYS_nanosleep, &part, 0), EINVAL);
	SAME(clock_nanosleep(99, 0, &part, 0), EINVAL);
}

BEHAVIOUR(sleep_until, "clock_nanosleep")
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	double begin = now(CLOCK_MONOTONIC);
	until.tv_sec += 1;
	away();
	SAME(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0), 0);
	/* The moves may have taken longer. */
	CHECK(now(CLOCK_MONOTONIC) - begin >= 1, "it ended early");
	begin = now(CLOCK_MONOTONIC);
	SAME(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0), 0);
	check_elapsed("a time in the past", begin, 0);
}

BEHAVIOUR(rest_of_a_sleep, "nanosleep setitimer")
{
	handle(SIGALRM, 0);
	away();
	struct itimerval soon = { { 0, 0 }, { 0, 50000 } };
	struct timespec part = { 20, 0 }, rest = { 0, 0 };
	SYS(setitimer(ITIMER_REAL, &soon, 0));
	FAILS(syscall(SYS_nanosleep, &part, &rest), EINTR);
	SAME(handled, 1);
	CHECK(rest.tv_sec >= 10 && rest.tv_sec < 20, "%ld s are left", (long)rest.tv_sec);
}

BEHAVIOUR(alarm_made_at_home, "getitimer alarm")
{
	handle(SIGALRM, 0);
	SYS(setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 0 }, { 100, 0 } }, 0));
	away();
	struct itimerval left;
	SYS(getitimer(ITIMER_REAL, &left));
	CHECK(left.it_value.tv_sec > 50 && left.it_value.tv_sec < 100, "%ld s are left", (long)left.it_value.tv_sec);
	unsigned before = alarm(1);
	CHECK(before > 50 && before <= 100, "%u s were left", before);
	double begin = now(CLOCK_MONOTONIC);
	pause();
	check_elapsed("alarm", begin, 1);
	SAME(handled, 1);
	SAME(handled_info.si_code, SI_KERNEL);
}

BEHAVIOUR(interval_timer_goes_on, "setitimer getitimer")
{
	handle(SIGALRM, SA_RESTART);
	SYS(setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 20000 }, { 0, 20000 } }, 0));
	away();
	int seen = handled;
	while (handled < seen + 5)
		usleep(5000);
	struct itimerval off = { 0 }, old;
	SYS(setitimer(ITIMER_REAL, &off, &old));
	SAME(old.it_interval.tv_usec, 20000);
	seen = handled;
	usleep(50000);
	CHECK(handled <= seen + 1, "it goes on");
	SYS(getitimer(ITIMER_REAL, &old));
	SAME(old.it_value.tv_usec + old.it_value.tv_sec, 0);
	FAILS(getitimer(9, &old), EINVAL);
}

BEHAVIOUR(posix_timer_signals, "timer_create timer_settime timer_gettime timer_getoverrun timer_delete")
{
	handle(SIGRTMIN, 0);
	timer_t early, late;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 41 };
	SYS(timer_create(CLOCK_MONOTONIC, &event, &early));
	away();
	struct itimerspec once = { { 0, 0 }, { 0, 20000000 } }, left;
	SYS(timer_settime(early, 0, &once, 0));
	while (!handled)
		usleep(1000);
	SAME(handled_info.si_code, SI_TIMER);
	SAME(handled_info.si_value.sival_int, 41);
	SAME(timer_getoverrun(early), 0);
	event.sigev_value.sival_int = 42;
	SYS(timer_create(CLOCK_REALTIME, &event, &late));
	once.it_value = (struct timespec){ 100, 0 };
	SYS(timer_settime(late, 0, &once, 0));
	SYS(timer_gettime(late, &left));
	CHECK(left.it_value.tv_sec > 90, "%ld s are left", (long)left.it_value.tv_sec);
	SYS(timer_delete(late));
	FAILS(timer_gettime(late, &left), EINVAL);
	SYS(timer_delete(early));
}

BEHAVIOUR(posix_timer_overruns, "timer_settime rt_sigtimedwait")
{
	timer_t timer;
	block(SIG_BLOCK, SIGRTMIN);
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
	SYS(timer_create(CLOCK_MONOTONIC, &event, &timer));
	struct itimerspec often = { { 0, 10000000 }, { 0, 10000000 } }, off = { 0 };
	away();
	SYS(timer_settime(timer, 0, &often, 0));
	usleep(100000);
	siginfo_t info;
	sigset_t set = set_of(SIGRTMIN);
	SAME(sigwaitinfo(&set, &info), SIGRTMIN);
	SYS(timer_settime(timer, 0, &off, 0));
	SAME(info.si_code, SI_TIMER);
	CHECK(info.si_overrun >= 5, "%d overruns", info.si_overrun);
}

BEHAVIOUR(posix_timer_for_a_thread, "timer_settime")
{
	handle(SIGRTMIN + 2, 0);
	timer_t timer;
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 2 };
	event._sigev_un._tid = gettid();
	SYS(timer_create(CLOCK_MONOTONIC, &event, &timer));
	away();
	SYS(timer_settime(timer, 0, &(struct itimerspec){ { 0, 0 }, { 0, 10000000 } }, 0));
	while (!handled)
		usleep(1000);
	SAME(handled_info.si_code, SI_TIMER);
}

BEHAVIOUR(clocks_go_on, "clock_gettime")
{
	double before[] = { now(CLOCK_MONOTONIC), now(CLOCK_BOOTTIME), now(CLOCK_MONOTONIC_RAW), now(CLOCK_REALTIME) };
	away();
	double after[] = { now(CLOCK_MONOTONIC), now(CLOCK_BOOTTIME), now(CLOCK_MONOTONIC_RAW), now(CLOCK_REALTIME) };
	for (int i = 0; i < 4; i++)
		CHECK(after[i] >= before[i] && after[i] < before[i] + 60, "clock %d went from %f to %f", i, before[i], after[i]);
	struct timespec t;
	SYS(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t));
	SYS(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t));
	SYS(clock_getres(CLOCK_MONOTONIC, &t));
	struct timeval v;
	SYS(gettimeofday(&v, 0));
	CHECK(v.tv_sec - time(0) >= -1 && v.tv_sec - time(0) <= 1, "two clocks differ");
}

BEHAVIOUR(clocks_of_others, "clock_gettime")
{
	pid_t child = SYS(fork());
	if (child == 0)
		for (;;)
			pause();
	clockid_t clock;
	CHECK(clock_getcpuclockid(child, &clock) == 0, "clock_getcpuclockid");
	away();
	struct timespec t;
	SYS(clock_gettime(clock, &t));
	SYS(kill(child, SIGKILL));
	SAME(waitpid(child, 0, 0), child);
	FAILS(clock_gettime(clock, &t), EINVAL);
	FAILS(clock_gettime(99, &t), EINVAL);
}
