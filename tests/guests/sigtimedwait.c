/* Blocked in sigtimedwait(2): the signal comes with its value and sender, no EINTR, and a time-out is kept. */
#include "guest.h"

static void act(void *parent)
{
	SYS(sigqueue((pid_t)(intptr_t)parent, SIGUSR1, (union sigval){ .sival_int = 42 }));
}

int main(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, 0);
	sigset_t other;
	sigemptyset(&other);
	sigaddset(&other, SIGUSR2);
	sigprocmask(SIG_BLOCK, &other, 0);
	pid_t child = on_line(act, (void *)(intptr_t)getpid());
	ready();
	double begin = now(CLOCK_MONOTONIC);
	struct timespec time = { 1, 500000000 };
	int n = sigtimedwait(&other, 0, &time);
	CHECK(n == -1 && errno == EAGAIN, "sigtimedwait gave %d: %s", n, strerror(errno));
	check_elapsed("sigtimedwait", begin, 1.5);
	siginfo_t info;
	n = sigwaitinfo(&set, &info);
	CHECK(n == SIGUSR1, "sigwaitinfo gave %d: %s", n, strerror(errno));
	CHECK(info.si_code == SI_QUEUE && info.si_value.sival_int == 42 && info.si_pid == child && info.si_uid == getuid(),
	      "siginfo: code %d, value %d, pid %d", info.si_code, info.si_value.sival_int, info.si_pid);
	reap(child);
	PASS();
}
