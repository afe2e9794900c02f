/* Signals that wait blocked during the moves come in the kernel's order, each with its value; ordinary ones once. */
#include "guest.h"
static volatile struct { int number, value; } seen[64];
static volatile int count;

static void handler(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (count < 64) {
		seen[count].number = number;
		seen[count++].value = info->si_value.sival_int;
	}
}

static void later(void *parent)
{
	pid_t to = (pid_t)(intptr_t)parent;
	for (int i = 5; i < 8; i++)
		SYS(sigqueue(to, SIGRTMIN + 1, (union sigval){ .sival_int = i }));
	SYS(kill(to, SIGUSR1));
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	sigfillset(&action.sa_mask);
	int numbers[] = { SIGUSR1, SIGRTMIN, SIGRTMIN + 1 };
	sigset_t set;
	sigemptyset(&set);
	for (int i = 0; i < 3; i++) {
		sigaction(numbers[i], &action, 0);
		sigaddset(&set, numbers[i]);
	}
	sigprocmask(SIG_BLOCK, &set, 0);
	for (int i = 0; i < 5; i++) {
		SYS(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = i }));
		SYS(sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = 100 + i }));
	}
	SYS(kill(getpid(), SIGUSR1));
	pid_t child = on_line(later, (void *)(intptr_t)getpid());
	ready();
	reap(child);
	sigset_t pending;
	sigpending(&pending);
	for (int i = 0; i < 3; i++)
		CHECK(sigismember(&pending, numbers[i]), "signal %d is not pending", numbers[i]);
	CHECK(count == 0, "a blocked signal was delivered");
	sigprocmask(SIG_UNBLOCK, &set, 0);
	/* Each handler blocks all signals, so they ran in the order of delivery. */
	CHECK(count == 14, "%d signals came instead of 14", count);
	CHECK(seen[0].number == SIGUSR1, "first came %d", seen[0].number);
	for (int i = 0; i < 5; i++)
		CHECK(seen[1 + i].number == SIGRTMIN && seen[1 + i].value == 100 + i, "place %d: signal %d, value %d", 1 + i,
		      seen[1 + i].number, seen[1 + i].value);
	for (int i = 0; i < 8; i++)
		CHECK(seen[6 + i].number == SIGRTMIN + 1 && seen[6 + i].value == i, "place %d: signal %d, value %d", 6 + i,
		      seen[6 + i].number, seen[6 + i].value);
	PASS();
}
