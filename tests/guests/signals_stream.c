/* A stream of queued signals, each with a number, from a process that stays at home: every one comes once, with its sender, wherever the
 * receiver is and whatever it does just then. */
#include "guest.h"
#define MOST 1000000
static volatile unsigned char seen[MOST];
static volatile int came, twice = -1, wrong_sender, end = -1;
static pid_t child;

static void handler(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (info->si_pid != child || info->si_code != SI_QUEUE)
		wrong_sender++;
	if (number == SIGRTMIN + 1)
		end = info->si_value.sival_int;
	else {
		came++;
		if (seen[info->si_value.sival_int % MOST]++)
			twice = info->si_value.sival_int;
	}
}

static void send(pid_t to, int signal, int value)
{
	while (sigqueue(to, signal, (union sigval){ .sival_int = value }) != 0) {
		CHECK(errno == EAGAIN, "sigqueue: %s", strerror(errno));
		usleep(1000);
	}
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART };
	sigset_t both, none;
	sigemptyset(&none);
	sigemptyset(&both);
	sigaddset(&both, SIGRTMIN);
	sigaddset(&both, SIGRTMIN + 1);
	action.sa_mask = both;
	SYS(sigaction(SIGRTMIN, &action, 0));
	SYS(sigaction(SIGRTMIN + 1, &action, 0));
	SYS(sigprocmask(SIG_BLOCK, &both, 0));
	pid_t parent = getpid();
	child = SYS(fork());
	if (child == 0) {
		end_with(parent);
		int sent = 0;
		for (; sent < MOST && (sent < 100 || !told()); sent++) {
			send(parent, SIGRTMIN, sent);
			usleep(sent % 64 < 8 ? 0 : 500);
		}
		send(parent, SIGRTMIN + 1, sent);
		_exit(0);
	}
	ready();
	for (unsigned round = 0; end < 0; round++) {
		sigsuspend(&none);
		if (round % 3)
			continue;
		/* The same while it computes, and while it makes calls. */
		SYS(sigprocmask(SIG_UNBLOCK, &both, 0));
		for (volatile int i = 0; i < 200000; i++)
			;
		for (int i = 0; i < 10; i++)
			CHECK(getppid() > 0, "getppid");
		SYS(sigprocmask(SIG_BLOCK, &both, 0));
	}
	reap(child);
	CHECK(twice < 0, "number %d came twice", twice);
	CHECK(came == end, "%d of %d signals came", came, end);
	CHECK(wrong_sender == 0, "%d showed another sender", wrong_sender);
	PASS();
}
